"""A short campaign; `make chaos` is the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.__main__ import main
from tests.tools import need

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

SEED = int(os.environ.get("HOSTOFFLOAD_TEST_SEED", "0"))


def test_short_campaign(tmp_path: Path) -> None:
    need("fio", "nbdkit", "java")
    assert main(["--seed", str(SEED), "--seconds", "40", "--kills", "24", "--dir", str(tmp_path), "--results", str(tmp_path)]) == 0
