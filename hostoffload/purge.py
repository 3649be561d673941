"""Delete what `volume remove --purge` deletes: a volume's topics and its history in the store. Both may be done again after a failure."""

from __future__ import annotations

from pathlib import Path

from hostoffload import layout
from stream.config import Config
from stream.topics import Topics, journal_topic, writes_topic


def purge_topics(config: Config, volume: str) -> None:
    """Delete the data topics. Raises RetryError."""
    Topics(config.kafka).delete([writes_topic(volume), journal_topic(volume)])


def purge_history(config: Config, state_dir: Path, volume: str) -> int:
    """Delete every object of the volume from the store; return how many there were. Raises RetryError, ConfigError."""
    from history.vault import open_vault

    store = open_vault(config.cx.store_url or str(layout.store_dir(state_dir)), config.history)
    objects = store.list(f"{volume}/")
    for one in objects:
        store.delete(one.name)
    return len(objects)
