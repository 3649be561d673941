#!/bin/sh
# Have the base image of our images at hand: docker/base.sh      (debian:bookworm-slim; its name goes to stdout)
#
# No registry is needed: an image that stands is left alone, else it is pulled, else made by debootstrap (root). Called by the build.sh
# beside it; progress and errors go to stderr, exit 3 if it can't be had.
set -eu

BASE=debian:bookworm-slim
SUITE=bookworm
PULL_S_MAX=120

say() { echo "base image: $*" >&2; }
die() { say "$*"; exit 3; }

make_base() {
    command -v debootstrap >/dev/null || die "$BASE can't be pulled, and debootstrap is not installed (Debian: apt-get install debootstrap)"
    [ "$(id -u)" -eq 0 ] || die "$BASE can't be pulled, and only root can make it by debootstrap"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    say "making $BASE by debootstrap"
    debootstrap --variant=minbase "$SUITE" "$work/base" >"$work/said" 2>&1 || { tail -n 15 "$work/said" >&2; die "debootstrap failed"; }
    # What debootstrap downloaded is not needed any more; /dev and /proc belong to the engine.
    rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
    tar --numeric-owner --one-file-system -C "$work/base" -c . | docker import --change 'CMD ["/bin/bash"]' - "$BASE" >/dev/null \
        || die "docker import failed"
}

docker version >/dev/null 2>&1 || die "Docker's engine does not answer (docker/engine.sh starts one)"
docker image inspect "$BASE" >/dev/null 2>&1 || timeout "$PULL_S_MAX" docker pull --quiet "$BASE" >/dev/null 2>&1 || make_base
echo "$BASE"
