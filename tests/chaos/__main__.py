"""`python -m tests.chaos` (`make chaos`): the fault campaign on real processes and a real broker.

Progress goes to stderr, the table to stdout, all facts as JSON into build/chaos/; the last line is the figure. Exit code 0: all of it
held. 1: something did not; the folder with all logs is kept and named, and so is the line that repeats it. 3: it could not be run here.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.agent_rig import ROOT
from tests.chaos import report
from tests.chaos.campaign import Campaign, Wish
from tests.chaos.plan import FAULTS

TOOLS = ("fio", "nbdkit", "java")
RESULTS = ROOT / "build" / "chaos"
CANT = 3


def main(arguments: list[str] | None = None) -> int:
    """Run one campaign; return the exit code."""
    options = _parser().parse_args(arguments)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return CANT
    seed = options.seed or random.randrange(1, 1 << 31)
    kills = options.kills if "kill" in options.faults else 0
    wish = Wish(seed, options.seconds, kills, options.faults, options.buffer_mib << 20)
    folder = Path(tempfile.mkdtemp(prefix="ho-chaos-", dir=options.dir))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {text}", file=sys.stderr, flush=True)

    say(f"{wish.again()}   in {folder}")
    outcome = Campaign(wish, folder, say).run()
    path = options.results / f"chaos-{seed}.json"
    report.save(path, outcome.facts, outcome.failures)
    print(report.show(outcome.facts, outcome.failures))
    print(f"facts: {path}")
    if outcome.failures:
        print(f"kept: {folder} (logs in {folder / 'state' / 'log'})")
        print(f"again: {wish.again()}")
    elif not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    print(report.figure(outcome.facts) + ("" if not outcome.failures else f"; {len(outcome.failures)} FAILURES"))
    return 1 if outcome.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="repeats a campaign (default: a new one)")
    parser.add_argument("--seconds", type=float, default=170.0, help="over how long the faults are spread (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs altogether (default: %(default)s)")
    parser.add_argument("--faults", type=_kinds, default=FAULTS, help=f"kinds of faults, comma separated (default: {','.join(FAULTS)})")
    parser.add_argument("--buffer-mib", type=int, default=256, help="the agent's buffer; a small one overflows (default: %(default)s)")
    parser.add_argument("--dir", type=Path, default=tempfile.gettempdir(), help="where state and volumes lie (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes (default: build/chaos)")
    parser.add_argument("--keep", action="store_true", help="keep the folder in any case")
    return parser


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(one for one in text.split(",") if one)
    if not kinds or set(kinds) - set(FAULTS):
        raise argparse.ArgumentTypeError(f"kinds are {', '.join(FAULTS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(main())
