"""`group create|list|remove`: volumes that recover to one common instant."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from hostoffload.context import Context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hostoffload.control_room import ControlRoom
    from stream.control import GroupDeclaration


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parsers."""
    group = commands.add_parser("group", help="volumes that recover to one common instant", description="The consistency groups.")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    create = actions.add_parser(
        "create",
        help="declare one",
        description="Declare a consistency group of volumes of one host; `hostoffload bookmark NAME LABEL` then marks all of them at one "
        "instant.",
    )
    create.add_argument("name", metavar="NAME", help="the group; its name is no volume's")
    create.add_argument("volumes", metavar="VOLUME", nargs="+", help="its volumes, all of one host")
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list the groups", description="List the declared groups.")
    listing.set_defaults(run=_list)
    remove = actions.add_parser(
        "remove", help="forget one", description="Forget a group; its volumes, and the bookmarks that were taken, stay as they are."
    )
    remove.add_argument("name", metavar="NAME", help="the group")
    remove.set_defaults(run=_remove)


def _create(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.control_room import ControlRoom
    from stream.bookmark import check_group_name
    from stream.control import GroupDeclaration
    from stream.errors import ConfigError

    name = check_group_name(options.name)
    with ControlRoom(context.config_with_broker()) as control:
        volumes, agent = _members(control, name, options.volumes)
        known = control.groups().get(name)
        if known is not None and known.volumes != volumes:
            raise ConfigError(
                f"There is a group {name!r} already, of {', '.join(known.volumes)}",
                hint=f"Choose another name, or remove it first: hostoffload group remove {name}",
            )
        if known is None or known.agent != agent:
            control.put(GroupDeclaration(name, agent, volumes, time.time_ns()))
    context.answer({"group": name, "volumes": list(volumes)}, "")
    return 0


def _members(control: ControlRoom, name: str, volumes: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the volumes, sorted, and the agent of all. Raises ConfigError."""
    from stream.bookmark import GROUP_VOLUMES_MAX
    from stream.errors import ConfigError

    taken = control.volumes().get(name)
    if taken is not None and taken.state != "removed":
        raise ConfigError(f"There is a volume {name!r}", hint="A group needs a name of its own: a bookmark names a volume or a group.")
    declared = [control.volume(one) for one in sorted(set(volumes))]
    if len(declared) > GROUP_VOLUMES_MAX:
        raise ConfigError(f"{len(declared)} volumes are too many for a group", hint=f"At most {GROUP_VOLUMES_MAX} are stopped together.")
    agents = sorted({one.agent for one in declared})
    if len(agents) > 1:
        raise ConfigError(f"The volumes are of {len(agents)} hosts: {', '.join(agents)}", hint="A group's volumes are of one host.")
    return tuple(one.volume for one in declared), agents[0]


def _list(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.control_room import ControlRoom

    with ControlRoom(context.config_with_broker()) as control:
        groups = [one for _, one in sorted(control.groups().items())]
    context.answer({"groups": [asdict(one) for one in groups]}, "\n".join(_line(one) for one in groups))
    return 0


def _line(one: GroupDeclaration) -> str:
    return f"{one.group}  {one.agent}  {' '.join(one.volumes)}"


def _remove(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.control_room import ControlRoom
    from stream.errors import ConfigError

    with ControlRoom(context.config_with_broker()) as control:
        known = control.groups().get(options.name)
        if known is None:
            names = ", ".join(sorted(control.groups())) or "none"
            raise ConfigError(f"There is no group {options.name!r}", hint=f"Groups: {names}.")
        control.remove(known.key)
    context.answer({"group": options.name, "state": "removed"}, "")
    return 0
