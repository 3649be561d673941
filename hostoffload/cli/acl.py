"""`acl show|apply`: the least rights at the broker that each role works with, shown and put into force."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from hostoffload.context import Context
from stream.roles import ROLES, Right, rights, rights_to_take

USER = "User:"


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parsers."""
    acl = commands.add_parser("acl", help="rights at the broker", description="The rights at the broker that each role needs.")
    actions = acl.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="what each role needs",
        description="Show the least rights at the broker that each role works with; no broker is asked.",
    )
    show.set_defaults(run=_show)
    apply = actions.add_parser(
        "apply",
        help="give a role's rights to a user of the broker",
        description="Give a user of the broker the rights of a role, and have ho.control and ho.status made. It needs a user who may alter "
        "the cluster. Rights that the user has already stay; applied twice it changes nothing.",
    )
    apply.add_argument("role", metavar="ROLE", choices=tuple(ROLES), help=", ".join(ROLES))
    apply.add_argument("--principal", metavar="USER", required=True, help="the user: `name`, or a certificate's subject")
    apply.add_argument("--volume", metavar="NAME", action="append", default=[], help="a volume that it works on; may be repeated")
    apply.add_argument("--revoke", action="store_true", help="take the rights on the volumes instead; without --volume all others")
    apply.set_defaults(run=_apply)


def _show(context: Context, options: argparse.Namespace) -> int:
    facts = {role: [asdict(grant) for grant in grants] for role, grants in ROLES.items()}
    lines = [
        f"{role:<9} {grant.resource:<6} {grant.name:<20} {' '.join(grant.operations)}" for role, grants in ROLES.items() for grant in grants
    ]
    context.answer({"roles": facts}, "\n".join(lines))
    return 0


def _apply(context: Context, options: argparse.Namespace) -> int:
    from stream.access import check_access
    from stream.acl import AccessLists
    from stream.topics import Topics, shared_topics

    wanted = rights_to_take(options.role, options.volume) if options.revoke else rights(options.role, options.volume)
    principal = options.principal if options.principal.startswith(USER) else USER + options.principal
    config = context.config_with_broker()
    check_access(config.kafka)
    lists = AccessLists(config.kafka)
    if options.revoke:
        lists.take(principal, wanted)
    else:
        lists.give(principal, wanted)
        Topics(config.kafka).ensure(shared_topics(config.kafka))
    did = "taken from" if options.revoke else "given to"
    facts = {"principal": principal, "role": options.role, "revoked": options.revoke, "rights": [asdict(one) for one in wanted]}
    context.answer(facts, "\n".join([f"{did} {principal}:", *(f"  {_line(one)}" for one in wanted)]))
    return 0


def _line(right: Right) -> str:
    return f"{right.resource} {right.name}{'*' if right.prefix else ''} {right.operation}"
