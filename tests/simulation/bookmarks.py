"""What must hold of bookmarks, from what was asked, what the rings show and what was answered; nothing of it comes from the product.

A mark is taken once for a request, in mode DATA, on volumes that the request names. Between the first and the last mark of one barrier no
record of any member gets a position, unless capture dies there. A label stands once in a volume. An answer tells the truth, and
says `durable` only of what the log has.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from stream.control import Request
from tests.simulation import plain
from tests.simulation.cluster import Stored, Topic
from tests.simulation.history import Entry, Position
from tests.simulation.scheduler import SimulationError

if TYPE_CHECKING:
    from tests.simulation.world import World

BOOKMARK = 21
HALF_MARKED = ("in the middle of the barrier", "memory was lost")


class Bookmarks:
    """The bookmarks of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: dict[str, Request] = {}
        self._marks: dict[str, dict[str, Position]] = {}
        self._open: dict[str, tuple[Any, set[str]]] = {}
        self._answers: dict[str, dict[str, Any]] = {}

    def request(self, rng: random.Random) -> Request:
        """Return a new request: of one volume or of all, with a label that may have been given, for now or for a while."""
        world, number = self._world, len(self._asked)
        names = [one.name for one in world.plan.volumes]
        until_ns = world.clock.time_ns() + int((world.host.skew_s - world.operator.skew_s + rng.uniform(0.2, 3.0)) * 1e9)
        told = {"label": f"x{rng.randint(max(0, number - 1), number)}", "until_ns": str(until_ns)}
        if rng.random() < 0.7:
            told |= {"group": "g", "members": ",".join(names)}
        request = Request(f"bookmark-{number}", "bookmark", rng.choice(names), told, "operator", number)
        self._asked[request.id] = request
        return request

    def captured(self, volume: str, position: Position, entry: Entry) -> None:
        """Hear of a record as it gets its position."""
        capture = self._world.services["capture"].process
        told = json.loads(entry.payload) if entry.kind == BOOKMARK else {}
        for barrier, (process, members) in list(self._open.items()):
            if process is not capture:
                del self._open[barrier]
            elif volume in members and told.get("barrier") != barrier:
                raise self._wrong(volume, f"{position} is captured between the marks of {barrier}")
        if not told:
            return
        asked = self._asked[told["barrier"]]
        members = set(asked.attributes.get("members", asked.volume).split(","))
        taken = self._marks.setdefault(asked.id, {})
        if volume not in members or set(told["members"].split(",")) != members or told["label"] != asked.attributes["label"]:
            raise self._wrong(volume, f"the mark at {position} says {told}, asked for was {asked}")
        if volume in taken:
            raise self._wrong(volume, f"{asked.id} is marked at {taken[volume]} and again at {position}")
        if self._world.mode(volume) != 2:
            raise self._wrong(volume, f"{asked.id} is marked at {position} in mode {self._world.mode(volume)}")
        taken[volume] = position
        self._open.pop(asked.id, None)
        if members - taken.keys():
            self._open[asked.id] = capture, members

    def appended(self, topic: Topic, message: Stored) -> None:
        """Look at an answer that became durable."""
        if topic.name != "ho.control" or message.value is None:
            return
        name, body = plain.message(message.value)
        if name != "Answer" or body["id"] not in self._asked:
            return
        self._answers[body["id"]] = body
        if body["done"]:
            self._check_taken(self._asked[body["id"]], body["attributes"])

    def finish(self) -> None:
        """Compare answers and marks when nothing is on its way any more."""
        for number, taken in self._marks.items():
            answer = self._answers.get(number)
            if answer is None or answer["done"]:
                continue
            error = answer["attributes"]["error"]
            told = [f"already, at {epoch:08d}-{sequence:016d}" for epoch, sequence in taken.values()]  # the host that knew whose was lost
            if not any(one in error for one in (*HALF_MARKED, *told)):
                raise self._wrong("", f"{number} was refused ({error}) and is marked at {taken}")
        labels: dict[tuple[str, str], str] = {}
        for number, taken in self._marks.items():
            for volume, position in taken.items():
                if self._world.checker.volumes[volume].history.is_lost(position):
                    continue
                key = (volume, self._asked[number].attributes["label"])
                if key in labels:
                    raise self._wrong(volume, f"the label {key[1]} is given by {labels[key]} and by {number}")
                labels[key] = number
        self._world.seen["bookmarks"] = len(self._marks)

    def _check_taken(self, asked: Request, told: dict[str, str]) -> None:
        taken = self._marks.get(asked.id, {})
        shown = {name: f"{epoch:08d}-{sequence:016d}" for name, (epoch, sequence) in taken.items()}
        if told["positions"] != ",".join(f"{name}={at}" for name, at in sorted(shown.items())):
            raise self._wrong(asked.volume, f"{asked.id} is marked at {shown}, answered is {told}")
        if set(taken) != set(asked.attributes.get("members", asked.volume).split(",")):
            raise self._wrong(asked.volume, f"{asked.id} is answered as done, and only {sorted(taken)} are marked")
        for volume, (epoch, sequence) in taken.items() if told["durable"] == "true" else ():
            known = self._world.checker.volumes[volume].history.epochs[epoch]
            if sequence > known.logged_ever:
                raise self._wrong(volume, f"{asked.id} is said to be durable, the log never had {(epoch, sequence)}")

    @staticmethod
    def _wrong(volume: str, told: str) -> SimulationError:
        return SimulationError(f"volume {volume}: bookmark: {told}")
