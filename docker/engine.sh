#!/bin/sh
# A Docker engine for tests on a machine where none runs: `eval "$(docker/engine.sh start DIR)"`, later `docker/engine.sh stop DIR`.
#
# start: if an engine answers already, it is used and nothing is printed. Otherwise dockerd is started as root with everything it
#        keeps below DIR, and the line that points `docker` at it is printed (export DOCKER_HOST=...). Safe to repeat.
# stop:  ends the engine that `start` made (its containers with it), leaves DIR's images for the next time, and nothing mounted below
#        DIR, so that it may be removed. Safe to repeat, and after a kill.
#
# Needs Debian's docker.io. Progress and errors go to stderr; exit 3 if no engine can be had.
set -eu

START_S_MAX=60
STOP_S_MAX=30

say() { echo "engine: $*" >&2; }
die() { say "$*"; exit 3; }

usage() { echo "usage: $0 start|stop DIR" >&2; exit 2; }

[ $# -eq 2 ] || usage
action=$1
mkdir -p "$2"
root=$(cd "$2" && pwd)
socket=$root/docker.sock
pidfile=$root/dockerd.pid
log=$root/dockerd.log

answers() { timeout 10 docker "$@" version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# The pid of our dockerd, or nothing: the pid file alone could name another process by now.
ours() {
    [ -s "$pidfile" ] || return 0
    pid=$(cat "$pidfile" 2>/dev/null) || return 0  # it ends just now
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] && tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF -- "--pidfile=$pidfile"; then
        echo "$pid"
    fi
}

launch() {
    # Its own session and none of the caller's files, or a caller that waits for the end of its output would wait for ever.
    setsid dockerd --data-root="$root/data" --exec-root="$root/exec" --pidfile="$pidfile" --host="unix://$socket" "$@" \
        </dev/null >>"$log" 2>&1 &
    waited=0
    while ! answers --host "unix://$socket"; do
        sleep 0.5
        waited=$((waited + 1))
        [ "$waited" -lt $((START_S_MAX * 2)) ] || return 1
        # Two seconds for it to write its pid file; after that, no process means that it gave up.
        [ "$waited" -lt 4 ] || [ -n "$(ours)" ] || return 1
    done
}

start() {
    if [ -n "$(ours)" ] && answers --host "unix://$socket"; then
        echo "export DOCKER_HOST=unix://$socket"
        return
    fi
    command -v docker >/dev/null || die "docker is not installed (Debian: apt-get install docker.io)"
    if answers; then
        say "an engine answers already"
        return
    fi
    command -v dockerd >/dev/null || die "dockerd is not installed (Debian: apt-get install docker.io)"
    [ "$(id -u)" -eq 0 ] || die "no engine answers, and only root can start one"
    [ ${#socket} -le 100 ] || die "the path $root is too long for a unix socket"
    say "starting dockerd in $root"
    # A killed dockerd leaves its pid file, and the next one refuses to start if that number is anybody's.
    rm -f "$pidfile"
    : >"$log"
    if ! launch; then
        stop
        say "again without a bridge of its own: containers will have the host's network only"
        launch --bridge=none --iptables=false || { tail -n 5 "$log" >&2; stop; die "dockerd does not start (log: $log)"; }
    fi
    echo "export DOCKER_HOST=unix://$socket"
}

stop() {
    pid=$(ours)
    [ -z "$pid" ] || end "$pid"
    # A dockerd that was killed leaves its mounts, and DIR could not be removed. Newest first.
    awk -v below="$root/" 'index($2, below) == 1 { print $2 }' /proc/mounts | tac | while read -r mounted; do
        umount "$mounted" || say "still mounted: $mounted"
    done
}

end() {
    pid=$1
    kill "$pid" 2>/dev/null || return 0
    waited=0
    while [ -n "$(ours)" ]; do
        sleep 0.5
        waited=$((waited + 1))
        if [ "$waited" -ge $((STOP_S_MAX * 2)) ]; then
            say "dockerd does not end by itself; killed"
            kill -9 "$pid" 2>/dev/null || true
            return
        fi
    done
}

case $action in
    start) start ;;
    stop) stop ;;
    *) usage ;;
esac
