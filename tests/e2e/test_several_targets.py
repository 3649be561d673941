"""Several targets of one volume: one close behind, one delayed, each at its own pace; added later, ended alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nbd.client import Client
from tests.e2e.system import first_difference, make_source, running, wait_until
from tests.kafka_fixture import Kafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
MIB = 1 << 20
DELAY_S = 8.0


def test_a_delayed_replica_beside_one_that_follows(kafka: Kafka, tmp_path: Path) -> None:
    name = kafka.fresh_volume_name()
    with running(tmp_path / "system", bootstrap=kafka.bootstrap, environment={"HOSTOFFLOAD_TARGET_ALSO": "late"}) as system:
        assert len(system.processes("target")) == 2
        source = make_source(system.folder / "source.img", 16 * MIB, 8 * MIB)
        uri = system.add(name, source)
        with Client(uri) as client:
            client.write(0, os.urandom(MIB))
        system.check_equal(name, source)
        late = system.folder / "late.img"
        system.run("volume", "add", name, "--source", source, "--replica", late, "--target", "late", "--delay", DELAY_S)

        def shown() -> dict[str, dict]:
            return {one["name"]: one for one in system.status(name)["targets"]}

        assert shown()["late"]["delay_s"] == DELAY_S
        wait_until(lambda: late.exists() and first_difference(source, late) is None, "the late target has copied what there was")

        old = source.read_bytes()
        with Client(uri) as client:
            client.write(2 * MIB, os.urandom(4 * MIB))
        written_s = time.time()
        system.check_equal(name, source)
        assert time.time() < written_s + DELAY_S, "this machine is too slow to see it"
        assert late.read_bytes() == old
        status = system.status(name)
        applied = {one["name"]: one["applied"] for one in status["targets"]}
        assert applied["late"] < applied["target"] == status["position"]["applied"]
        wait_until(lambda: first_difference(source, late) is None, "the late target has applied the write")
        assert time.time() >= written_s + DELAY_S - 1.0
        system.run("verify", name, "--timeout", 120)

        system.run("volume", "remove", name, "--target", "late")
        kept = late.read_bytes()
        with Client(uri) as client:
            client.write(0, os.urandom(MIB))
        system.check_equal(name, source)
        assert set(shown()) == {"target"} and late.read_bytes() == kept

        system.run("volume", "add", name, "--source", source, "--replica", late, "--target", "late")
        wait_until(lambda: first_difference(source, late) is None, "it has caught up without a delay")
        assert system.wait_in_sync(name)["targets"][0]["name"] == "late"
        system.run("volume", "remove", name)
