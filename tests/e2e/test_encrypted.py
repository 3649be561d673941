"""A whole system with an encrypted store: history, check and restore work through it, and the folder alone tells nothing."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nbd.client import Client
from tests.e2e.system import System, first_difference, make_source, running, wait_until

pytestmark = pytest.mark.slow

PATTERN = b"the application's own words; "


def test_history_is_sealed_checked_and_restored_over_a_rotation(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{_key()}\n")
    environment = {"HOSTOFFLOAD_HISTORY_ENCRYPTION_KEY_FILE": str(keys), "HOSTOFFLOAD_CX_CODEC": "none"}
    with running(tmp_path / "system", environment=environment) as system:
        source = make_source(system.folder / "source.img", 8 << 20)
        uri = system.add("v", source)
        before = _write_and_mark(system, uri, source, "before")
        keys.write_text(f"{_key()}\n{keys.read_text()}")
        system.down()
        system.up()
        wait_until(lambda: system.status("v")["mode"] == "DATA", "the volume is served again")
        after = _write_and_mark(system, uri, source, "after")
        for label, kept in (("before", before), ("after", after)):
            restored = system.folder / f"{label}.img"
            system.run("restore", "v", "--at", label, "--to", restored)
            assert first_difference(kept, restored) is None
        wait_until(lambda: len(_key_ids(system)) == 2, "segments under both keys are stored")
        system.run("check", "v")
        objects = [path for path in (system.state / "store").rglob("*") if path.is_file()]
        assert objects and all(path.name.endswith(".sealed") for path in objects)
        assert [path for path in objects if PATTERN in path.read_bytes()] == []
        _refused(system, f"{_key()}\n", "The store has objects that are sealed with the key ")
        _refused(system, None, "The store is encrypted, and no key is here")


def _write_and_mark(system: System, uri: str, source: Path, label: str) -> Path:
    """Write and bookmark; return a copy of the source at that moment."""
    system.wait_in_sync("v")
    with Client(uri) as client:
        client.write_all([(offset, PATTERN * 500 + label.encode()) for offset in range(0, 8 << 20, 1 << 20)])
        client.flush()
    system.run("bookmark", "v", label)
    system.wait_in_sync("v")
    kept = source.with_suffix(f".{label}")
    kept.write_bytes(source.read_bytes())
    return kept


def _key_ids(system: System) -> set[bytes]:
    """Return the ids of the keys that segments are sealed with."""
    return {path.read_bytes()[8:16] for path in (system.state / "store" / "v").glob("L*/*.sealed")}


def _refused(system: System, keys: str | None, sentence: str) -> None:
    environment = dict(system.environment)
    named = environment.pop("HOSTOFFLOAD_HISTORY_ENCRYPTION_KEY_FILE")
    if keys is not None:
        other = Path(named).with_name("other")
        other.write_text(keys)
        environment["HOSTOFFLOAD_HISTORY_ENCRYPTION_KEY_FILE"] = str(other)
    command = [sys.executable, "-m", "hostoffload", "check", "v"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert f"error: {sentence}" in done.stderr and "hint: " in done.stderr and "Traceback" not in done.stderr


def _key() -> str:
    return base64.b64encode(os.urandom(32)).decode()
