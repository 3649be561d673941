"""Every current schema against every published one, both ways, by really writing with one and reading with the other.

A change that would be refused here: publish it as a new version only if it passes, never by editing a published file.
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest
from fastavro.schema import parse_schema, to_parsing_canonical_form
from fastavro.utils import generate_many

import schemas

NAMES = sorted(path.stem for path in schemas.FOLDER.glob("*.avsc"))
PUBLISHED = sorted(schemas.FOLDER.glob("published/*.avsc"))
SAMPLES = 20


def definition(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def problem(writer: dict[str, Any], reader: dict[str, Any]) -> str | None:
    """Return what happens to samples of the writer that the reader can't read or reads differently, or None."""
    random.seed(7)
    parsed_writer, parsed_reader = parse_schema(copy.deepcopy(writer)), parse_schema(copy.deepcopy(reader))
    common = {field["name"] for field in writer["fields"]} & {field["name"] for field in reader["fields"]}
    for sample in generate_many(parsed_writer, SAMPLES):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed_writer, sample)
        out.seek(0)
        plain = fastavro.schemaless_reader(io.BytesIO(out.getvalue()), parsed_writer, None)
        try:
            seen = fastavro.schemaless_reader(out, parsed_writer, parsed_reader)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        for name in common:
            if not same(plain[name], seen[name]):
                return f"{name} is read differently"
    return None


def same(written: Any, read: Any) -> bool:
    """Compare what both sides know; a field that one side lacks is not compared."""
    if isinstance(written, dict) and isinstance(read, dict):
        return all(same(written[key], read[key]) for key in written.keys() & read.keys())
    if isinstance(written, list) and isinstance(read, list):
        return len(written) == len(read) and all(map(same, written, read))
    return written == read


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_current_and_published_read_each_other(path: Path) -> None:
    published, current = definition(path), definition(schemas.FOLDER / f"{path.name.split('.')[0]}.avsc")
    assert problem(published, current) is None
    assert problem(current, published) is None


@pytest.mark.parametrize("name", NAMES)
def test_the_current_schema_is_published(name: str) -> None:
    """The newest version published is the one in use: a schema that changed is published as the next version, with golden files."""
    versions = {int(path.name.split(".v")[1].removesuffix(".avsc")): path for path in PUBLISHED if path.name.startswith(f"{name}.v")}
    assert sorted(versions) == list(range(1, len(versions) + 1))
    newest = definition(versions[max(versions)])
    current = definition(schemas.FOLDER / f"{name}.avsc")
    assert to_parsing_canonical_form(newest) == to_parsing_canonical_form(current)


def added_without_default(schema: dict[str, Any]) -> None:
    schema["fields"].insert(0, {"name": "added", "type": "long"})


def renamed(schema: dict[str, Any]) -> None:
    schema["fields"][0]["name"] = "renamed"


def another_type(schema: dict[str, Any]) -> None:
    schema["fields"][0]["type"] = "long"


def removed(schema: dict[str, Any]) -> None:
    del schema["fields"][0]


def a_longer_checksum(schema: dict[str, Any]) -> None:
    schema["fields"][-1]["type"] = {"type": "fixed", "name": "Checksum", "namespace": "hostoffload", "size": 16}


@pytest.mark.parametrize("change", [added_without_default, renamed, another_type, removed, a_longer_checksum])
def test_a_change_that_breaks_readers_is_noticed(change: Callable[[dict[str, Any]], None]) -> None:
    before = definition(schemas.FOLDER / "JournalFence.avsc")
    after = copy.deepcopy(before)
    change(after)
    assert problem(before, after) or problem(after, before)


def test_a_field_with_a_default_may_be_added() -> None:
    before = definition(schemas.FOLDER / "JournalBatch.avsc")
    after = copy.deepcopy(before)
    after["fields"].insert(3, {"name": "added", "type": "string", "default": ""})
    assert problem(before, after) is None
    assert problem(after, before) is None
