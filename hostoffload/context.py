"""What every command is given: the state folder, the config in force, and where to say what.

Made once by `hostoffload.cli.main`. stdout carries the answer only; messages go to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hostoffload import layout
from stream.config import Config, load
from stream.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Context:
    """`config_path` None: `config.toml` of the state folder if there is one. `own_process`: this process is here for the command alone."""

    state_dir: Path
    config_path: Path | None = None
    json: bool = False
    own_process: bool = False

    def config_file(self) -> Path | None:
        """Return the config file in use, None if there is none."""
        if self.config_path is not None:
            return self.config_path
        inside = self.state_dir / "config.toml"
        return inside if inside.exists() else None

    def config(self) -> Config:
        """Return the config as file and environment say. Raises ConfigError."""
        return load(self.config_file())

    def config_with_broker(self) -> Config:
        """Return the config with the broker's address filled in: the config's own, else what this state folder uses, else KAFKA_BOOTSTRAP.

        Raises ConfigError when nobody names a broker.
        """
        config = self.config()
        bootstrap = config.kafka.bootstrap or self._broker_in_use(os.environ)
        if not bootstrap:
            raise ConfigError("No broker is known here", hint="Run `hostoffload up`, or name one by KAFKA_BOOTSTRAP or kafka.bootstrap.")
        return replace(config, kafka=replace(config.kafka, bootstrap=bootstrap))

    def config_for_recovery(self) -> Config:
        """Return the config with store and broker filled in; without a broker the store alone is read. Raises ConfigError."""
        config = self.config()
        bootstrap = config.kafka.bootstrap or self._broker_in_use(os.environ)
        store_url = config.cx.store_url or str(layout.store_dir(self.state_dir.absolute()))
        return replace(config, kafka=replace(config.kafka, bootstrap=bootstrap), cx=replace(config.cx, store_url=store_url))

    def say(self, text: str) -> None:
        """Tell the user something that is not the answer."""
        print(text, file=sys.stderr, flush=True)

    def answer(self, facts: Mapping[str, Any], text: str) -> None:
        """Print the answer: the facts as JSON if asked for, else the text."""
        shown = json.dumps(facts) if self.json else text
        if shown:
            print(shown, flush=True)

    def _broker_in_use(self, environment: Mapping[str, str]) -> str:
        """A local broker of this state folder wins; another that was named before yields to KAFKA_BOOTSTRAP."""
        from hostoffload.broker.folder import BrokerFolder

        known = BrokerFolder(self.state_dir).load()
        if known is not None and known.kind != "external":
            return known.bootstrap
        return environment.get("KAFKA_BOOTSTRAP") or (known.bootstrap if known is not None else "")
