"""Print the part of requirements.lock that the product needs to run: no test tools in the image.

    python3 runtime_lock.py pyproject.toml requirements.lock

Called by build.sh and the Dockerfile. The lock says for each package who asked for it (`# via`), so what the product asks for, and all that
follows from it, is read off without a network. Versions and hashes are the lock's own. Exit 1 if a package of the product is not locked.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9._-]+")


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(pyproject: Path) -> set[str]:
    """Return the names of the packages that the product itself asks for."""
    told = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    return {canonical(NAME.match(one).group()) for one in told["project"]["dependencies"]}


def entries(lock: Path) -> dict[str, tuple[str, set[str]]]:
    """Return each locked package's lines, and who asked for it."""
    found = {}
    for text in re.split(r"^(?=[A-Za-z0-9])", lock.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if "==" in text:
            askers = re.findall(r"^    #(?: via)? +(?!via)([A-Za-z0-9._-]+)", text, flags=re.MULTILINE)
            found[canonical(NAME.match(text).group())] = (text, {canonical(one) for one in askers})
    return found


def main(pyproject: Path, lock: Path) -> int:
    """Print the lines."""
    names, locked = wanted(pyproject), entries(lock)
    if missing := names - locked.keys():
        print(f"{lock} lacks {', '.join(sorted(missing))}", file=sys.stderr)
        return 1
    while more := {name for name, (_, askers) in locked.items() if askers & names} - names:
        names |= more
    print("".join(locked[name][0] for name in sorted(names)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
