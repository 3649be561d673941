"""Somebody changes the replica behind the target's back: one round of verification finds it, names it, and has it copied again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import Client
from tests.e2e.system import COMMAND_S_MAX, System, first_difference, make_source, running
from tests.tools import need

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

VOLUME_BYTES = 256 << 20
USED_BYTES = 96 << 20
CHUNK_BYTES = 1 << 20
FLIPPED_AT = 41 * CHUNK_BYTES + 777_777


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    need("java")
    with running(tmp_path / "verify", environment={"HOSTOFFLOAD_AGENT_VERIFY_BYTES_PER_S": "0"}) as one:
        yield one


def test_one_flipped_byte_is_found_named_and_repaired(system: System) -> None:
    source = make_source(system.folder / "db.img", VOLUME_BYTES, used_bytes=USED_BYTES)
    uri = system.add("db", source)
    with Client(uri) as client:
        client.write_all([(offset, os.urandom(3000)) for offset in range(0, VOLUME_BYTES - CHUNK_BYTES, 1_234_567)])
    system.check_equal("db", source)
    assert _verify(system)[0] == 0, "equal, and not proved so"

    _flip(system.replica(source), FLIPPED_AT)
    assert first_difference(source, system.replica(source)) == FLIPPED_AT
    code, facts, said = _verify(system)
    assert code == 1 and not facts["equal"] and facts["proved_position"] is None
    (target,) = facts["targets"]
    assert target["mismatches"] == 1
    (named,) = target["offsets"]
    assert named <= FLIPPED_AT < named + CHUNK_BYTES
    assert str(named) in said

    status = system.check_equal("db", source)
    assert status["gaps"] == 0, "no order was lost"
    assert status["verify"]["mismatches"] == 1 and status["verify"]["repairs_open"] == 0
    code, facts, _ = _verify(system)
    assert code == 0 and facts["equal"]
    assert facts["proved_position"] and system.status("db")["proved_position"] == facts["proved_position"]


def _flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        (was,) = file.read(1)
        file.seek(at)
        file.write(bytes([was ^ 0x10]))


def _verify(system: System) -> tuple[int, dict, str]:
    """Return exit code, facts and what was said of a round."""
    done = subprocess.run(
        [sys.executable, "-m", "hostoffload", "verify", "db", "--json"],
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        check=False,
        env=system.environment,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr
