"""History in the store, proved against the source while both are in use; and what becomes of it when somebody changes the source behind
the agent's back (design rule 26)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from history.doubts import Doubt, doubts
from history.store import open_store
from nbd.client import Client
from tests.e2e.system import System, make_source, running, wait_until
from tests.tools import need

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

VOLUME_BYTES = 32 << 20
ENVIRONMENT = {
    "HOSTOFFLOAD_AGENT_VERIFY_BYTES_PER_S": str(32 << 20),
    "HOSTOFFLOAD_HISTORY_EVERY_S": "0.3",
    "HOSTOFFLOAD_HISTORY_RETENTION": "any write 5 s, 2 s for 1 d, 6 s for 1 d",
    "HOSTOFFLOAD_CX_SEGMENT_AGE_S_MAX": "0.5",
}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    need("java")
    with running(tmp_path / "proof", environment=ENVIRONMENT) as one:
        yield one


def in_doubt(system: System) -> list[Doubt]:
    return doubts(open_store(str(system.state / "store")), "db")


def cx(system: System) -> dict:
    """Return what the CX says of the volume."""
    (report,) = (system.state / "status").glob("cx-*.json")
    return json.loads(report.read_text())["volumes"]["db"]


def test_a_source_changed_behind_the_agent_puts_its_history_in_doubt(system: System) -> None:
    source = make_source(system.folder / "db.img", VOLUME_BYTES, used_bytes=4 << 20)
    uri = system.add("db", source)
    system.wait_in_sync("db")
    with Client(uri) as client:

        def load() -> bool:
            client.write_all([(offset, os.urandom(3000)) for offset in range(0, VOLUME_BYTES - 4096, 777_777)])
            told = cx(system)
            return told.get("folds", 0) >= 4 and told.get("expired", 0) >= 4

        wait_until(load, "history is folded and expires under load", 120)
        assert in_doubt(system) == [], "a false alarm"

        with open(source, "r+b") as file:
            file.seek(9 << 20)
            file.write(b"not by the agent" * 512)
        wait_until(lambda: load() and bool(in_doubt(system)), "the store's history is in doubt", 120)
        wait_until(lambda: all(one.until is not None for one in in_doubt(system)), "it was copied again, and proved", 120)
    status = system.check_equal("db", source)
    assert status["gaps"] == 0, "order was not lost"
    told = json.loads(system.run("check", "db", "--json"))
    assert told["good"] and set(told["volumes"][0]["levels"]) >= {"L0", "L1", "L2"}
