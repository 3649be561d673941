#!/bin/sh
# Build the stand-in Kafka image: docker/kafka/build.sh [IMAGE]      (default hostoffload/kafka:4.3.1)
#
# Nothing needs a registry: the base image is pulled if that works, else made by debootstrap (root); the jars come by Maven from the
# coordinates in hostoffload/broker/pom.xml. An image that stands already is left alone; `docker rmi` it to have it made again.
# Needs docker with an engine that answers (docker/engine.sh), Maven, Java 17; progress goes to stderr, the image's name to stdout.
set -eu

BASE=debian:bookworm-slim
SUITE=bookworm
PULL_S_MAX=120

here=$(cd "$(dirname "$0")" && pwd)
image=${1:-hostoffload/kafka:4.3.1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "kafka image: $*" >&2; }
die() { say "$*"; exit 3; }

# Run a noisy command: silent if it works, its last lines if it doesn't.
quietly() {
    "$@" >"$work/said" 2>&1 || { tail -n 15 "$work/said" >&2; return 1; }
}

make_base() {
    if docker image inspect "$BASE" >/dev/null 2>&1 || timeout "$PULL_S_MAX" docker pull --quiet "$BASE" >/dev/null 2>&1; then
        return
    fi
    command -v debootstrap >/dev/null || die "$BASE can't be pulled, and debootstrap is not installed (Debian: apt-get install debootstrap)"
    [ "$(id -u)" -eq 0 ] || die "$BASE can't be pulled, and only root can make it by debootstrap"
    say "making $BASE by debootstrap"
    quietly debootstrap --variant=minbase "$SUITE" "$work/base" || die "debootstrap failed"
    # What debootstrap downloaded is not needed any more; /dev and /proc belong to the engine.
    rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
    tar --numeric-owner --one-file-system -C "$work/base" -c . | docker import --change 'CMD ["/bin/bash"]' - "$BASE" >/dev/null \
        || die "docker import failed"
}

docker version >/dev/null 2>&1 || die "Docker's engine does not answer (docker/engine.sh starts one)"
if ! docker image inspect "$image" >/dev/null 2>&1; then
    make_base
    say "fetching Kafka's jars"
    mkdir "$work/context"
    cp "$here/../../hostoffload/broker/pom.xml" "$work/pom.xml"
    quietly mvn --batch-mode --strict-checksums --file "$work/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
        "-DoutputDirectory=$work/context/libs" || die "Maven could not fetch Kafka"
    cp "$here"/Dockerfile "$here"/run "$here"/tool "$here"/server.properties "$here"/*.yaml "$work/context/"
    say "building $image"
    quietly docker build --network host --build-arg "BASE=$BASE" --tag "$image" "$work/context" || die "docker build failed"
fi
echo "$image"
