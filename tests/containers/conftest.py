"""Fixtures of the deployed system: the images, and the cluster of three brokers that most tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # the reaper's image can't be had everywhere; fixtures remove what they start

from tests.containers.deployment import Deployment, deployed
from tests.containers.images import Images, images


@pytest.fixture(scope="session")
def built() -> Images:
    """Both images."""
    return images()


@pytest.fixture(scope="session")
def shared(built: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three brokers, an agent, two CX workers, a target; each test adds volumes of its own."""
    with deployed(built, tmp_path_factory.mktemp("cluster"), brokers=3) as running:
        yield running


@pytest.fixture
def cluster(shared: Deployment) -> Iterator[Deployment]:
    """The shared one, all of it running."""
    try:
        yield shared
    finally:
        shared.restore()
