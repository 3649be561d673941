"""`agent run`: the agent's two processes in the foreground, for systemd or containers.

`agent capture` and `agent publisher` are what the supervisor runs; they are not for people.
"""

from __future__ import annotations

import argparse

from hostoffload import layout
from hostoffload.cli.service import run_service
from hostoffload.context import Context
from hostoffload.listeners import Listeners, given_fds, parse_listen
from hostoffload.metrics import address_of
from hostoffload.state_lock import ROLE_AGENT, StateLock
from stream.log import configure


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parsers."""
    agent = commands.add_parser("agent", help="the service of a protected host", description="The service of a protected host.")
    actions = agent.add_subparsers(metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="capture and publish in the foreground",
        description="Serve this host's volumes over NBD, capture and publish, in the foreground until SIGTERM. Listening sockets are taken "
        "from LISTEN_FDS if given.",
    )
    run.set_defaults(run=_run)
    actions.add_parser("capture").set_defaults(run=_capture)
    actions.add_parser("publisher").set_defaults(run=_publisher)


def _run(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.services import agent_services
    from hostoffload.supervisor import Supervisor

    config = context.config_with_broker()
    address_of(config, "agent")
    layout.make(context.state_dir)
    configure(config.log, "agent")
    listeners = Listeners(layout.nbd_socket(context.state_dir), parse_listen(config.agent.listen), given_fds())
    with StateLock(context.state_dir).held(ROLE_AGENT):
        return Supervisor(context.state_dir, ROLE_AGENT, agent_services(context, config), listeners, log_dir=None).run()


def _capture(context: Context, options: argparse.Namespace) -> int:
    from agent import capture

    state_dir = context.state_dir
    return run_service(
        context,
        "capture",
        lambda config: capture.run(config, state_dir, layout.ring_dir(state_dir, config.agent.ring_dir), list(given_fds())),
        uses_kafka=False,
    )


def _publisher(context: Context, options: argparse.Namespace) -> int:
    from agent import publisher

    state_dir = context.state_dir
    return run_service(
        context,
        "publisher",
        lambda config: publisher.run(config, state_dir, layout.ring_dir(state_dir, config.agent.ring_dir)),
        metrics="agent",
    )
