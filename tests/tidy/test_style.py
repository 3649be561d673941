"""The rules of the house that a program can check: sizes, docstrings, names, unfinished work, and the linter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from tests.tidy.tree import FOLDERS, PACKAGES, ROOT, sources

FILE_LINES_MAX = 400
TEST_LINES_MAX = 450
FUNCTION_LINES_MAX = 60
NAMELESS = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|NotImplemented" r"Error)\b")  # in halves, or this line would find itself


def test_files_are_short() -> None:
    long = {
        source.name: lines
        for source in sources(*FOLDERS)
        if (lines := source.text.count("\n")) > (TEST_LINES_MAX if source.name.startswith("tests/") else FILE_LINES_MAX)
    }
    assert long == {}


def test_functions_are_short() -> None:
    long = {
        f"{source.name}:{node.lineno} {node.name}": lines
        for source in sources(*FOLDERS)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_every_file_says_what_it_is() -> None:
    silent = [source.name for source in sources(*FOLDERS) if source.text.strip() and not ast.get_docstring(source.tree)]
    assert silent == []


def test_files_are_named_by_a_noun() -> None:
    nameless = [source.name for source in sources(*PACKAGES) if source.name.rpartition("/")[2].removesuffix(".py") in NAMELESS]
    assert nameless == []


def test_no_two_test_files_have_one_name() -> None:
    """pytest can't tell them apart when it runs all layers at once, but for those in packages."""
    paths = [ROOT / source.name for source in sources("tests")]
    names = [path.name for path in paths if path.name.startswith("test_") and not (path.parent / "__init__.py").exists()]
    assert [name for name in set(names) if names.count(name) > 1] == []


def test_nothing_is_left_unfinished() -> None:
    found = [
        f"{source.name}:{number}"
        for source in sources(*FOLDERS)
        for number, line in enumerate(source.text.splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_no_merge_is_left_in_the_middle() -> None:
    marks = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
    kinds = ("*.py", "*.md", "*.toml", "*.yaml", "*.json", "*.avsc")
    pages = [path for kind in kinds for path in ROOT.rglob(kind) if ".venv" not in path.parts]
    assert [str(path.relative_to(ROOT)) for path in pages if marks.search(path.read_text(encoding="utf-8"))] == []


def test_what_a_test_lacks_is_said_in_one_place() -> None:
    """So that nothing can skip in CI: `tests.tools` fails there."""
    skips = re.compile(r"pytest\.sk" r"ip\(|skip" r"if|x" r"fail|import" r"orskip|unittest\.sk" r"ip")  # in halves, as above
    found = [source.name for source in sources("tests") if skips.search(source.text)]
    assert found == ["tests/tools.py"]


def test_the_linter_is_content() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
