"""The images that the suite deploys, and the engine that runs them; skip by name where one is missing, fail in CI."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.tools import lacking, need

ROOT = Path(__file__).resolve().parents[2]
BUILD_S_MAX = 900
ENGINE_S_MAX = 20


@dataclass(frozen=True, slots=True)
class Images:
    """Names of the image of Kafka and of ours."""

    kafka: str
    ours: str


def images() -> Images:
    """Return the images, built where nobody named one."""
    need("docker", root=True)
    told = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False, timeout=ENGINE_S_MAX)
    if told.returncode != 0:
        lacking(f"no Docker engine answers: {told.stderr.strip()}")
    return Images(
        kafka=os.environ.get("HOSTOFFLOAD_BROKER_IMAGE") or _built("docker/kafka/build.sh"),
        ours=os.environ.get("HOSTOFFLOAD_IMAGE") or _built("docker/hostoffload/build.sh"),
    )


def _built(script: str) -> str:
    done = subprocess.run([ROOT / script], capture_output=True, text=True, check=False, timeout=BUILD_S_MAX)
    if done.returncode != 0:
        lacking(f"{script}: {done.stderr.strip()}")
    return done.stdout.strip()
