"""Lists that must agree: commands, config keys and error classes in the code and in the docs."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import fields

import pytest

from hostoffload.cli import parser
from stream.config import SECTIONS, Config
from stream.roles import ROLES
from tests.tidy.tree import ROOT, sources

OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
# What the supervisor runs; not for people.
HIDDEN = {"supervise", "metrics", "agent capture", "agent publisher"}
# The commands of the design; some are still to come, none may come that is not among them.
PLANNED = {
    "up", "down", "broker start", "broker stop", "broker status", "agent run", "cx run", "target run", "volume add",
    "volume list", "volume remove", "volume resync", "volume pause", "volume resume", "group create", "group list",
    "group remove", "status", "wait", "verify", "bookmark", "points", "check", "export", "export list", "export stop", "restore",
    "replay", "drill", "plan", "demo", "config check", "acl show", "acl apply",
}  # fmt: skip


def commands(of: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, argparse.ArgumentParser, str | None]]:
    """Yield path, parser and one-line help of every command that can be given."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help for choice in action._choices_actions}
            for name, one in action.choices.items():
                here = f"{path} {name}".strip()
                below = list(commands(one, here))
                yield from below
                if not below:
                    yield here, one, told.get(name)


COMMANDS = {path: (one, told) for path, one, told in commands(parser())}


def test_hidden_commands_are_those_and_no_others() -> None:
    assert {path for path, (_, told) in COMMANDS.items() if told is None} == HIDDEN


@pytest.mark.parametrize("path", sorted(set(COMMANDS) - HIDDEN))
def test_a_command_is_planned_explained_and_documented(path: str) -> None:
    one, told = COMMANDS[path]
    assert path in PLANNED
    assert told and one.description
    text = one.format_help()
    assert all(option in text for option in ("--state", "--config", "--json"))
    assert re.search(rf"`hostoffload {path}\b", OPERATING), f"docs/operating.md does not tell of `hostoffload {path}`"


@pytest.mark.parametrize("path", sorted(set(COMMANDS) - HIDDEN))
def test_every_option_of_a_command_says_what_it_does(path: str) -> None:
    silent = [action.dest for action in COMMANDS[path][0]._actions if not action.help]
    assert silent == []


def test_config_keys_and_defaults_are_those_of_the_docs() -> None:
    config = Config()
    real = {
        f"{section}.{one.name}": (getattr(getattr(config, section), one.name), one.metadata["meaning"])
        for section, kind in SECTIONS.items()
        for one in fields(kind)
    }
    told = dict(table(OPERATING, "key"))
    assert set(told) == set(real)
    for key, (default, meaning) in real.items():
        shown, explained = told[key]
        assert shown.strip('"') == str(default), key
        assert explained.startswith(meaning), key


def test_error_classes_are_those_of_the_docs() -> None:
    (errors,) = [source for source in sources("stream") if source.name == "stream/errors.py"]
    real = {node.name for node in errors.tree.body if isinstance(node, ast.ClassDef)} - {"HostoffloadError"}
    assert set(dict(table(OPERATING, "class"))) == real
    drawn = set(re.findall(r"[├└]── (\w+)", ast.get_docstring(errors.tree) or ""))
    assert drawn == real


def test_the_rights_of_roles_are_those_of_the_docs() -> None:
    real = [
        (role, grant.resource, grant.name, " ".join(grant.operations)) for role, grants in ROLES.items() for grant in grants
    ]
    security = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert [(first, *(cell.strip("`") for cell in rest)) for first, rest in table(security, "role")] == real


def table(text: str, first: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the rows of the table whose first column has that title, without their back quotes."""
    inside = False
    for line in text.splitlines():
        cells = tuple(cell.strip().strip("`") for cell in line.strip("|").split(" | ")) if line.startswith("|") else ()
        if not cells:
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not set(cells[0]) <= set("-|"):
            yield cells[0], cells[1:]


RULES = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
TESTS = {
    node.name
    for path in (ROOT / "tests").rglob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.FunctionDef)
}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", RULES))))
def test_the_tests_that_a_rule_names_exist(name: str) -> None:
    assert name in TESTS
