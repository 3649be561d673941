#!/bin/sh
# Build the image of hostoffload from this checkout: docker/hostoffload/build.sh [IMAGE]      (default hostoffload/hostoffload:latest)
#
# No registry is needed: docker/base.sh has the base image, and the Python packages are fetched here, by this machine's pip and its
# settings, so that no setting of it gets into a layer. Needs docker with an engine that answers (docker/engine.sh) and Python with pip
# (`make setup` is enough); progress goes to stderr, the image's name to stdout.
set -eu

PYTHON_OF_THE_BASE=3.11

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
image=${1:-hostoffload/hostoffload:latest}
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "hostoffload image: $*" >&2; }
die() { say "$*"; exit 3; }

# Run a noisy command: silent if it works, its last lines if it doesn't.
quietly() {
    "$@" >"$work/said" 2>&1 || { tail -n 15 "$work/said" >&2; return 1; }
}

base=$("$here/../base.sh")
context=$work/context
mkdir "$context"
# What git knows or might know, so that nothing of what lies about gets in; without git the whole folder, less what .dockerignore names.
if git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
    (cd "$root" && git ls-files --cached --others --exclude-standard -z | tar --null --files-from=- --ignore-failed-read -c) | tar -x -C "$context"
else
    (cd "$root" && tar --exclude=./.venv --exclude=./.git -c .) | tar -x -C "$context"
fi

say "fetching Python packages"
"$python" "$here/runtime_lock.py" "$root/pyproject.toml" "$root/requirements.lock" >"$work/runtime.lock"
set -- --python-version "$PYTHON_OF_THE_BASE" --implementation cp --abi cp311 --abi abi3 --abi none --platform any
for platform in manylinux_2_28 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
    set -- "$@" --platform "${platform}_x86_64"
done
quietly "$python" -m pip download --no-deps --require-hashes --only-binary=:all: "$@" --requirement "$work/runtime.lock" \
    --dest "$context/wheels" || die "pip could not fetch the packages"
quietly "$python" -m pip wheel --no-deps --wheel-dir "$context/wheels" "$context" || die "the wheel of hostoffload could not be made"
rm -rf "$context/build"

say "building $image"
quietly docker build --network host --build-arg "BASE=$base" --file "$context/docker/hostoffload/Dockerfile" --tag "$image" "$context" \
    || die "docker build failed"
echo "$image"
