"""The source tree as the tidy tests see it: every Python file that belongs to the project."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("stream", "nbd", "agent", "cx_consumers", "history", "recovery", "hostoffload", "schemas")
FOLDERS = (*PACKAGES, "bench", "tests", "docker")


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file, parsed."""

    name: str
    text: str
    tree: ast.Module


def sources(*folders: str) -> Iterator[Source]:
    """Yield the Python files below these folders of the project, sorted."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            yield Source(str(path.relative_to(ROOT)), text, ast.parse(text, path))
