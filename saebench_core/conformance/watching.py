"""Watches a plugin at work: global generators, the network, and what importing it loads."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, final
from unittest import mock

import numpy as np
import torch

__all__ = ["HEAVY", "Watched", "heavy_imports", "watch"]

HEAVY: Final = ("transformers", "open_clip", "timm", "mlflow", "datasets", "sae_lens", "transformer_lens", "vllm")
"""Libraries that are imported where they are needed, never with a plugin's module."""

_BEARTYPE: Final = "beartype"
"""Checks a random item of each list, by the hidden generator: where it is loaded that one moves all the time."""

_PROBE: Final = """
import importlib, importlib.util, json, os, sys
import saebench_core.hookspecs, saebench_core.sae, saebench_core.interfaces.metric
heavy, modules = json.loads(sys.argv[1])
found = {}
for name, path in modules:
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name.partition(".")[0] or not path:
                    raise
                spec = importlib.util.spec_from_file_location(name, path)
                sys.modules[name] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(sys.modules[name])
            told = [library for library in heavy if library in sys.modules]
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        found[name] = json.loads(stream.read() or '"the import ended the process"')
    os.wait()
print(json.dumps(found))
"""


@final
@dataclass(frozen=True)
class Watched:
    """What a plugin did that it must not do.

    Attributes:
        generators: global generators that it moved.
        addresses: places on the network that it tried to reach.
    """

    generators: tuple[str, ...]
    addresses: tuple[str, ...]


def watch(work: Callable[[], object]) -> Watched:
    """Run some work without a network and say what it did; the global generators are put back after it."""
    addresses: list[str] = []
    drawn: list[str] = []
    before_python, before_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that is watched
    with torch.random.fork_rng(devices=[]), _without_network(addresses), _watched_random(drawn):
        before_torch = torch.get_rng_state()
        try:
            work()
        finally:
            moved = {
                "torch": not torch.equal(before_torch, torch.get_rng_state()),
                "random": bool(drawn) or (_BEARTYPE not in sys.modules and before_python != random.getstate()),
                "numpy.random": not _same_state(before_numpy, np.random.get_state()),  # noqa: NPY002
            }
            random.setstate(before_python)
            np.random.set_state(before_numpy)  # noqa: NPY002
    return Watched(tuple(name for name, yes in moved.items() if yes), tuple(addresses))


@contextmanager
def _watched_random(drawn: list[str]) -> Iterator[None]:
    """Keep the names of functions of Python's hidden generator that are called, but for what beartype calls."""

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            drawn.append(name)
            return function(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in random.__all__:
            function = getattr(random, name)
            if isinstance(getattr(function, "__self__", None), random.Random) and name not in (
                "getrandbits",
                "getstate",
            ):
                stack.enter_context(mock.patch.object(random, name, noted(name, function)))
        yield


def _same_state(left: Any, right: Any) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


@contextmanager
def _without_network(addresses: list[str]) -> Iterator[None]:
    """Refuse connections, datagrams and look-ups of names in this process, and keep what was asked for."""

    def refuse(address: object) -> None:
        if isinstance(address, tuple):  # not a socket of the file system
            addresses.append(":".join(map(str, address[:2])))
            raise OSError(f"the network is closed while a plugin is checked: {addresses[-1]}")

    def connect(self: socket.socket, address: object) -> None:
        refuse(address)
        _CONNECT(self, address)

    def connect_ex(self: socket.socket, address: object) -> int:
        refuse(address)
        return _CONNECT_EX(self, address)

    def send_to(self: socket.socket, data: object, *where: Any) -> int:
        refuse(where[-1] if where else None)
        return _SEND_TO(self, data, *where)

    def look_up(host: object, port: object, *args: object, **kwargs: object) -> object:
        refuse((host, port))
        return []

    def look_up_name(host: object) -> object:
        refuse((host,))
        return None

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(socket.socket, "connect", connect))
        stack.enter_context(mock.patch.object(socket.socket, "connect_ex", connect_ex))
        stack.enter_context(mock.patch.object(socket.socket, "sendto", send_to))
        stack.enter_context(mock.patch.object(socket, "getaddrinfo", look_up))
        for name in ("gethostbyname", "gethostbyname_ex"):
            stack.enter_context(mock.patch.object(socket, name, look_up_name))
        yield


_CONNECT: Final[Callable[[socket.socket, Any], None]] = socket.socket.connect
_CONNECT_EX: Final[Callable[[socket.socket, Any], int]] = socket.socket.connect_ex
_SEND_TO: Final[Callable[..., int]] = socket.socket.sendto


@lru_cache(maxsize=64)
def heavy_imports(modules: tuple[tuple[str, str], ...]) -> dict[str, list[str] | str]:
    """Return, for each module, the heavy libraries that importing it loads, or the error that it raises.

    A process of its own imports torch once and forks for each module, so that none sees another's imports.

    Args:
        modules: names, each with the file that is run where no such module can be found; empty for none.
    """
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", _PROBE, json.dumps([HEAVY, modules])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {name: f"the import could not be tried: {last}" for name, _ in modules}
    return dict(json.loads(done.stdout.splitlines()[-1]))
