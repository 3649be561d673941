"""Who knows whom: the contracts of importlinter.ini, and the libraries that have one place each."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.tree import PACKAGES, ROOT, sources

# A library, and the only modules that may import it.
ONE_PLACE = {
    "faust": ("cx_consumers/app.py",),
    "aiokafka": ("cx_consumers/app.py",),
    "confluent_kafka": ("stream/", "hostoffload/broker/probe.py"),
    "fastavro": ("stream/schema.py", "history/", "schemas/golden/"),
    "obstore": ("history/store.py",),
    "prometheus_client": ("hostoffload/metrics/",),
    "cryptography": ("history/seal.py",),
    "rich": ("hostoffload/cli/", "hostoffload/demo/"),
}


def test_packages_know_only_whom_they_may() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    command = [str(linter), "--config", "tests/tidy/importlinter.ini", "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("library", ONE_PLACE)
def test_a_library_has_its_place(library: str) -> None:
    elsewhere = [
        source.name for source in sources(*PACKAGES) if library in imported(source.tree) and not source.name.startswith(ONE_PLACE[library])
    ]
    assert elsewhere == []


def test_a_store_is_opened_by_the_vault_alone() -> None:
    """Else what is to be sealed would be written plain."""
    doors = {"open_store", "open_existing", "LocalStore", "ObjectStore"}
    found = {
        source.name
        for source in sources(*PACKAGES)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "history.store" and doors & {one.name for one in node.names}
    }
    assert found == {"history/vault.py"}


def imported(tree: ast.Module) -> set[str]:
    """Return the first names of all modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names.add(node.module.partition(".")[0])
    return names
