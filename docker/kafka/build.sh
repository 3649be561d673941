#!/bin/sh
# Build the stand-in Kafka image: docker/kafka/build.sh [IMAGE]      (default hostoffload/kafka:4.3.1)
#
# Nothing needs a registry: docker/base.sh has the base image, the jars come by Maven from the
# coordinates in hostoffload/broker/pom.xml. An image that stands already is left alone; `docker rmi` it to have it made again.
# Needs docker with an engine that answers (docker/engine.sh), Maven, Java 17; progress goes to stderr, the image's name to stdout.
set -eu

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

docker version >/dev/null 2>&1 || die "Docker's engine does not answer (docker/engine.sh starts one)"
if ! docker image inspect "$image" >/dev/null 2>&1; then
    base=$("$here/../base.sh")
    say "fetching Kafka's jars"
    mkdir "$work/context"
    cp "$here/../../hostoffload/broker/pom.xml" "$work/pom.xml"
    quietly mvn --batch-mode --strict-checksums --file "$work/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
        "-DoutputDirectory=$work/context/libs" || die "Maven could not fetch Kafka"
    cp "$here"/Dockerfile "$here"/run "$here"/tool "$here"/server.properties "$here"/*.yaml "$work/context/"
    say "building $image"
    quietly docker build --network host --build-arg "BASE=$base" --tag "$image" "$work/context" || die "docker build failed"
fi
echo "$image"
