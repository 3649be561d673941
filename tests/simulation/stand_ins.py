"""Put the stand-ins of one run in the place of what the product imports; done once in a process, which ends with its run.

Every module of the product is searched: whatever it imported of threads, clocks, files and Kafka is exchanged by identity, wherever it is
used. A module that comes new is found without being named here.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pkgutil
import queue
import random
import resource
import secrets
import select
import signal
import sys
import threading
import time
import uuid
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import confluent_kafka
import confluent_kafka.admin

from tests.simulation.cluster import Cluster
from tests.simulation.filesystem import FileSystem
from tests.simulation.kafka import clients_of
from tests.simulation.paths import SimulatedPath, open_of
from tests.simulation.scheduler import Scheduler
from tests.simulation.threads import Clock, queue_of, threading_of

PACKAGES = ("agent", "cx_consumers", "history", "nbd", "stream")
_NOT_IN_A_RUN = frozenset(("cx_consumers.app", "cx_consumers.__main__", "nbd.__main__", "agent.__main__"))


def load_product() -> list[ModuleType]:
    """Import every module of the product that takes part."""
    for package in PACKAGES:
        for found in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            if found.name not in _NOT_IN_A_RUN and not found.name.endswith("__main__"):
                import_module(found.name)
    return [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] in PACKAGES and name not in _NOT_IN_A_RUN]


def put_in_place(scheduler: Scheduler, clock: Clock, files: FileSystem, cluster: Cluster) -> None:
    """Exchange everything, for this process and for good."""
    modules = load_product()
    exchanged = _exchanged(scheduler, clock, files, cluster)
    SimulatedPath.files = files
    for module in modules:
        for name, value in list(vars(module).items()):
            found = exchanged.get(id(value))
            if found is not None:
                setattr(module, name, found)
            else:
                _exchange_defaults(value, module.__name__, exchanged)
        module.open = open_of(files)
    blockfile = sys.modules["nbd.blockfile"]
    blockfile._fallocate = files.fallocate
    sys.modules["agent.publisher"].keep_freed_memory = lambda: None


def _exchanged(scheduler: Scheduler, clock: Clock, files: FileSystem, cluster: Cluster) -> dict[int, Any]:
    """Return what takes whose place, by identity."""
    producer, consumer, admin = clients_of(cluster)
    tokens = random.Random(scheduler.rng.getrandbits(64))

    def handle(number: int, handler: Any) -> None:
        scheduler.current.process.handlers[number] = handler

    pairs: list[tuple[Any, Any]] = [
        (threading, threading_of(scheduler)),
        (queue, queue_of(scheduler)),
        (time, clock),
        (time.time_ns, clock.time_ns),
        (time.time, clock.time),
        (time.monotonic, clock.monotonic),
        (time.monotonic_ns, clock.monotonic_ns),
        (time.perf_counter, clock.perf_counter),
        (time.sleep, clock.sleep),
        (os, files),
        (Path, SimulatedPath),
        (mmap, SimpleNamespace(mmap=files.mmap)),
        (fcntl, SimpleNamespace(flock=files.flock, ioctl=_no_ioctl, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB, LOCK_UN=fcntl.LOCK_UN)),
        (select, SimpleNamespace(poll=files.poll, POLLIN=select.POLLIN)),
        (secrets, SimpleNamespace(token_bytes=tokens.randbytes, token_hex=lambda n=8: tokens.randbytes(n).hex())),
        (uuid, SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=tokens.randbytes(16).hex()))),
        (signal, SimpleNamespace(signal=handle, SIGTERM=signal.SIGTERM, SIGINT=signal.SIGINT)),
        (resource, SimpleNamespace(getrusage=lambda who: SimpleNamespace(ru_nvcsw=0), RUSAGE_THREAD=resource.RUSAGE_THREAD)),
        (confluent_kafka.Producer, producer),
        (confluent_kafka.Consumer, consumer),
        (confluent_kafka.admin.AdminClient, admin),
    ]
    return {id(old): new for old, new in pairs}


def _exchange_defaults(value: Any, module: str, exchanged: dict[int, Any]) -> None:
    """Exchange what stands as the default of a parameter."""
    if isinstance(value, type) and value.__module__ == module:
        functions = [one for one in vars(value).values() if isinstance(one, FunctionType)]
    elif isinstance(value, FunctionType) and value.__module__ == module:
        functions = [value]
    else:
        return
    for one in functions:
        if one.__defaults__:
            one.__defaults__ = tuple(exchanged.get(id(default), default) for default in one.__defaults__)
        if one.__kwdefaults__:
            one.__kwdefaults__ = {name: exchanged.get(id(default), default) for name, default in one.__kwdefaults__.items()}


def _no_ioctl(fd: int, request: int, argument: bytes) -> bytes:
    raise OSError(25, "a simulated file has no ioctl")  # ENOTTY
