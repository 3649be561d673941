"""`volume add|list|remove|pause|resume|resync`: what is protected."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hostoffload.context import Context

if TYPE_CHECKING:
    from stream.control import VolumeDeclaration

WAIT_S = 60.0
CODECS = ("none", "snappy", "zstd", "lz4")
FLUSH_POLICIES = ("local", "stream")


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parsers."""
    volume = commands.add_parser("volume", help="what is protected", description="The protected volumes.")
    actions = volume.add_subparsers(metavar="ACTION", required=True)
    _add_add(actions)
    listing = actions.add_parser("list", help="list the volumes", description="List the declared volumes.")
    listing.set_defaults(run=_list)
    remove = _named(
        actions,
        "remove",
        "stop protecting one",
        "Stop protecting a volume; source, replica, topics and history are kept unless --purge says otherwise.",
    )
    remove.add_argument("--purge", action="store_true", help="delete its topics and history too")
    remove.add_argument("--yes", action="store_true", help="yes, delete them")
    remove.add_argument("--target", metavar="TARGET", help="end the replica of this target alone; the volume stays protected by the others")
    remove.set_defaults(run=_remove)
    _named(actions, "pause", "stop serving and following one", "Pause a volume: its export ends, its replica stays.").set_defaults(
        run=_pause
    )
    _named(actions, "resume", "go on with a paused one", "Go on with a paused volume.").set_defaults(run=_resume)
    _named(
        actions, "resync", "copy one again", "Have the whole volume copied again; returns when the agent has it in its books."
    ).set_defaults(run=_resync)


def _add_add(actions: argparse._SubParsersAction) -> None:
    parser = _named(
        actions,
        "add",
        "protect one",
        "Protect a volume and print the NBD URI to use it by. A replica that is absent is made, with the size of the source. For a volume "
        "that is protected already it adds a replica of another target, or changes the delay of one.",
    )
    parser.add_argument("--source", metavar="PATH", type=Path, required=True, help="regular file or block device")
    parser.add_argument("--replica", metavar="PATH", type=Path, required=True, help="regular file or block device, or absent")
    parser.add_argument("--target", metavar="TARGET", help="the target that keeps this replica (default: target.name)")
    parser.add_argument(
        "--delay", metavar="S", type=float, help="keep this replica so many seconds behind (default: as it is declared, else none)"
    )
    parser.add_argument("--flush-policy", choices=FLUSH_POLICIES, help="what a flush waits for (default: agent.flush_policy)")
    parser.add_argument("--codec", choices=CODECS, help="compression of the journal (default: cx.codec)")
    parser.add_argument("--take-over", action="store_true", help="claim a volume that another agent has; that one must be stopped")
    parser.set_defaults(run=_add)


def _named(actions: argparse._SubParsersAction, action: str, short: str, long: str) -> argparse.ArgumentParser:
    """Add a parser of an action on one volume, which waits until it is carried out."""
    parser = actions.add_parser(action, help=short, description=long)
    parser.add_argument("name", metavar="NAME", help="the volume")
    parser.add_argument("--timeout", metavar="S", type=float, default=WAIT_S, help="give up waiting after this (default %(default).0f s)")
    return parser


def _add(context: Context, options: argparse.Namespace) -> int:
    from cx_consumers.target_delay import check_delay
    from hostoffload import local_state
    from hostoffload.cli.status import uri_of
    from hostoffload.control_room import ControlRoom
    from hostoffload.replicas import kept_by_store_s, target_of
    from hostoffload.volume_plan import check_existing, check_free, make_replica, plan_volume, replicas_with
    from hostoffload.volume_progress import agent_runs, wait_served
    from stream.config import host_name
    from stream.errors import ConfigError, RetryError
    from stream.topics import Topics, check_volume_name, data_topics

    name = check_volume_name(options.name)
    target = target_of(context, context.config(), options.target)
    plan = plan_volume(options.source, options.replica, target=target.name, delay_s=options.delay or 0.0, here=target.here)
    config = context.config_with_broker()
    check_delay(plan.delay_s, config.kafka, stored_s=kept_by_store_s(context, config))
    if not agent_runs(local_state.read(context.state_dir)):
        raise RetryError("No agent runs on this machine", hint="Run `hostoffload up`, or `hostoffload agent run`.")
    agent = config.agent.name or host_name()
    began_ns = time.time_ns()
    with ControlRoom(config) as control:
        if name in control.groups():
            raise ConfigError(f"There is a group {name!r}", hint="A volume needs a name of its own: a bookmark names a volume or a group.")
        existing = control.volumes().get(name)
        known = check_existing(name, plan, existing, agent, take_over=options.take_over)
        check_free(name, plan, control.volumes().values())
        Topics(config.kafka).ensure(data_topics(name, config.kafka))
        if plan.replica_absent:
            make_replica(plan)
        replicas = replicas_with(existing, plan, options.delay)
        if known is None:
            control.put(replace(_declaration(name, plan, config, agent, options), replicas=replicas))
        elif not any(one.target == target.name and options.delay in (None, one.delay_s) for one in known.replicas):
            control.put(replace(known, replicas=replicas))
    if not target.here:
        context.say(f"the target {target.name} is not here: there {plan.replica} has to be a file or device of {plan.size_bytes} bytes")
    elif not target.runs:
        context.say(f"the target {target.name} does not run here now: hostoffload target run --name {target.name}")
    wait_served(context.state_dir, name, began_ns, options.timeout, bear_errors=options.take_over)
    uri = uri_of(context, config, name)
    context.answer({"volume": name, "uri": uri}, uri)
    return 0


def _declaration(name: str, plan, config, agent: str, options: argparse.Namespace) -> VolumeDeclaration:
    from stream.control import VolumeDeclaration

    return VolumeDeclaration(
        name,
        agent,
        plan.source,
        plan.size_bytes,
        flush_policy=options.flush_policy or config.agent.flush_policy,
        codec=options.codec or config.cx.codec,
        declared_at_ns=time.time_ns(),
    )


def _list(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.control_room import ControlRoom

    with ControlRoom(context.config_with_broker()) as control:
        volumes = [one for _, one in sorted(control.volumes().items()) if one.state != "removed"]
    context.answer({"volumes": [asdict(one) for one in volumes]}, "\n".join(_line(one) for one in volumes))
    return 0


def _line(one: VolumeDeclaration) -> str:
    replicas = ", ".join(
        f"{replica.path} ({replica.target}" + (f", {replica.delay_s:g} s behind)" if replica.delay_s else ")") for replica in one.replicas
    )
    return f"{one.volume}  {one.state}  {one.agent}:{one.source} -> {replicas}"


def _remove(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.control_room import ControlRoom
    from hostoffload.purge import purge_history, purge_topics
    from hostoffload.volume_progress import wait_let_go
    from stream.errors import ConfigError

    if options.target is not None:
        return _remove_replica(context, options)
    if options.purge and not options.yes:
        raise ConfigError(f"--purge deletes all topics and history of {options.name}", hint="Say --yes too if that is what you want.")
    config = context.config_with_broker()
    began_ns = time.time_ns()
    with ControlRoom(config) as control:
        known = control.volumes().get(options.name)
        if not (options.purge and known is not None and known.state == "removed"):
            control.put(replace(control.volume(options.name), state="removed", declared_at_ns=began_ns))
            groups = [group for group, told in sorted(control.groups().items()) if options.name in told.volumes]
            if groups:
                context.say(f"{options.name} is still named by {', '.join(groups)}, whose bookmarks are refused: hostoffload group remove")
        wait_let_go(context.state_dir, options.name, began_ns, options.timeout)
        if options.purge:
            purge_topics(config, options.name)
            objects = purge_history(config, context.state_dir, options.name)
            control.forget(options.name)
            context.say(f"{options.name}: topics and {objects} objects of history deleted")
    context.answer({"volume": options.name, "state": "removed", "purged": options.purge}, "")
    return 0


def _remove_replica(context: Context, options: argparse.Namespace) -> int:
    """End the replica of one target; its file or device is kept."""
    from hostoffload.control_room import ControlRoom
    from hostoffload.volume_progress import wait_ended_at
    from stream.errors import ConfigError

    began_ns = time.time_ns()
    with ControlRoom(context.config_with_broker()) as control:
        declaration = control.volume(options.name)
        left = tuple(one for one in declaration.replicas if one.target != options.target)
        if len(left) == len(declaration.replicas):
            known = ", ".join(one.target for one in declaration.replicas) or "none"
            raise ConfigError(f"{options.name} has no target {options.target!r}", hint=f"Targets: {known}.")
        if not left:
            raise ConfigError(f"{options.target} is the only target of {options.name}", hint="Leave out --target to end its protection.")
        control.put(replace(declaration, replicas=left))
    wait_ended_at(context.state_dir, options.name, options.target, began_ns, options.timeout)
    context.answer({"volume": options.name, "target": options.target, "state": "removed"}, "")
    return 0


def _pause(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.volume_progress import wait_let_go

    began_ns = _set_state(context, options.name, "paused")
    wait_let_go(context.state_dir, options.name, began_ns, options.timeout, kinds=("capture",))
    context.answer({"volume": options.name, "state": "paused"}, "")
    return 0


def _resume(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.cli.status import uri_of
    from hostoffload.volume_progress import wait_served

    began_ns = _set_state(context, options.name, "active")
    wait_served(context.state_dir, options.name, began_ns, options.timeout)
    uri = uri_of(context, context.config(), options.name)
    context.answer({"volume": options.name, "state": "active", "uri": uri}, uri)
    return 0


def _set_state(context: Context, name: str, state: str) -> int:
    """Declare the state of a volume; return when, in ns since 1970."""
    from hostoffload.control_room import ControlRoom

    began_ns = time.time_ns()
    with ControlRoom(context.config_with_broker()) as control:
        declaration = control.volume(name)
        if declaration.state != state:
            control.put(replace(declaration, state=state, declared_at_ns=began_ns))
    return began_ns


def _resync(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.control_room import ControlRoom
    from stream.errors import RetryError

    with ControlRoom(context.config_with_broker()) as control:
        control.volume(options.name)
        request = control.ask("resync", options.name, {"reason": "operator"})
        answer = control.answer(request, options.timeout)
    if not answer.done:
        raise RetryError(f"The resync of {options.name} was refused", hint="See `hostoffload status`.", **answer.attributes)
    context.answer({"volume": options.name, "request": request.id}, "")
    return 0
