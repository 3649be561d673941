"""The state folder: where everything of one hostoffload lies, and where its sockets and shared memory are.

Used by the command line and the supervisor, which pass paths on: no other package works out a path of its own. Pure functions of the state
folder, except for `make` and `check_private`.

    config.toml                 optional
    broker/                     the local Kafka (`hostoffload.broker`)
    run/                        supervisor.lock, up.lock, <process>.json (pid file), <process>.error.json, <process>.held; and the
                                sockets, if the path is short enough
    status/<kind>-<name>.json   the last report of each process
    log/<process>.log[.1]       what each process says, bounded
    agent/  target/  store/     the services' own
    exports/<id>.json           exports, and what runs of them (`hostoffload.exports`); exports/overlays/<volume>/<name>/
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from stream.errors import ConfigError

SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7), less the final zero
SOCKET_NAME_BYTES_MAX = 40
NBD_SOCKET = "nbd.sock"
PRIVATE_MODE = 0o700
_FOLDERS = ("run", "status", "log", "agent", "target", "store", "exports")


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return HOSTOFFLOAD_STATE, else /var/lib/hostoffload for root, else the user's own state folder (XDG base directories)."""
    named = environment.get("HOSTOFFLOAD_STATE")
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/hostoffload")
    home = environment.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "hostoffload"


def state_hash(state_dir: Path) -> str:
    """Return twelve characters that stand for this state folder wherever its path is too long."""
    return hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:12]


def run_dir(state_dir: Path) -> Path:
    return state_dir / "run"


def status_dir(state_dir: Path) -> Path:
    return state_dir / "status"


def log_dir(state_dir: Path) -> Path:
    return state_dir / "log"


def store_dir(state_dir: Path) -> Path:
    return state_dir / "store"


def exports_dir(state_dir: Path) -> Path:
    return state_dir / "exports"


def overlay_dir(state_dir: Path, volume: str, name: str) -> Path:
    """Return the folder of a named overlay."""
    return exports_dir(state_dir) / "overlays" / volume / name


def export_socket(state_dir: Path, export: str) -> Path:
    """Return the socket of an export; its name is short whatever the volume's is."""
    return socket_dir(state_dir) / f"export-{hashlib.sha256(export.encode()).hexdigest()[:12]}.sock"


def target_dir(state_dir: Path, further: str = "") -> Path:
    """Return the folder of this state folder's own target, or of a further one of that name."""
    return state_dir / "target" / further if further else state_dir / "target"


def declared_file(state_dir: Path) -> Path:
    """Return the file in which the agent's publisher keeps the declared volumes."""
    return state_dir / "agent" / "volumes.json"


def socket_dir(state_dir: Path) -> Path:
    """Return the folder of the unix sockets: `run/`, or one in /tmp if a socket's path there would be too long for the kernel.

    `run/` may be a link to a folder elsewhere, as /run/hostoffload of the systemd units: only the owner can have made it.
    """
    inside = run_dir(state_dir).resolve()
    if len(os.fsencode(inside)) + 1 + SOCKET_NAME_BYTES_MAX <= SOCKET_PATH_BYTES_MAX:
        return inside
    return Path(f"/tmp/hostoffload-{os.getuid()}-{state_hash(state_dir)}")


def nbd_socket(state_dir: Path) -> Path:
    return socket_dir(state_dir) / NBD_SOCKET


def ring_dir(state_dir: Path, base: str) -> Path:
    """Return the folder of this state folder's shared memory below `base` (config `agent.ring_dir`)."""
    return Path(base) / f"hostoffload-{state_hash(state_dir)}"


def make(state_dir: Path) -> None:
    """Make what is missing of the state folder, for its owner alone. Raises ConfigError when it can't be or belongs to somebody else."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=PRIVATE_MODE)
        for name in _FOLDERS:
            (state_dir / name).mkdir(exist_ok=True, mode=PRIVATE_MODE)
        sockets = socket_dir(state_dir)
        sockets.mkdir(exist_ok=True, mode=PRIVATE_MODE)
    except OSError as error:
        raise ConfigError(
            f"The state folder {state_dir} can't be made: {error.strerror}", hint="Name another one by --state or HOSTOFFLOAD_STATE."
        ) from error
    check_private(sockets)


def check_private(folder: Path) -> None:
    """Raise ConfigError unless the folder is a real one that only this user may enter (design rule 12)."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"The folder {folder} is not private to this user",
            hint=f"Remove it, or make it yours alone: chmod 700 {folder}",
            owner=found.st_uid,
            mode=oct(stat.S_IMODE(found.st_mode)),
        )
