"""Tiny registries, and the command line as a user calls it: in this process, or as a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from saebench_core.catalog import Catalog, PluginChoice, make_catalog
from saebench_core.plan import Environment, Plan, make_plan
from saebench_core.registry import Document, Registry, load_registry

TINY = """\
name: tiny
backbones:
  - {name: toy, type: synthetic, d_in: 8, n_features: 16, probability: {type: constant, p: 0.1}}
architectures:
  - {type: topk, d_sae: 16}
constraints:
  - {type: trained}
  - {type: frozen_decoder}
  - {type: soft_frozen_decoder, tau: 0.8}
  - {type: untrained}
l0: [3]
seeds: [0, 1]
training: {steps: 20, batch_size: 32, calibration_rows: 64, evaluation_rows: 64}
runtime: {device: cpu, backbone_dtype: fp32, threads: 1}
metrics:
  - {type: reconstruction, rows: 64}
  - {type: feature_recovery}
"""
TWO_BACKBONES = (
    "architectures:",
    "  - {name: wide, type: synthetic, d_in: 12, n_features: 16}\narchitectures:",
)
"""What `changed` makes another backbone of."""
CPU = Environment("cpu", "fp32", "0")


def changed(*pairs: tuple[str, str], text: str = TINY) -> str:
    """Return the tiny registry with parts replaced; each part must be there once."""
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


@lru_cache(maxsize=1)
def built_in() -> Catalog:
    """Return the catalog of the core's own plugins."""
    return make_catalog(PluginChoice(frozenset()))


def load(text: str = TINY, overrides: Sequence[str] = (), catalog: Catalog | None = None) -> Registry:
    return load_registry(Document("registry.yaml", text, overrides), catalog or built_in(), tuple(overrides))


def plan_of(
    text: str = TINY, catalog: Catalog | None = None, only: Sequence[str] = (), environment: Environment = CPU
) -> Plan:
    catalog = catalog or built_in()
    registry = load(text, catalog=catalog)
    return make_plan(registry, catalog, environment, registry.select(only) if only else None)


def kinds(plan: Plan) -> dict[str, int]:
    """Return how many tasks of each kind a plan has."""
    return dict(Counter(task.kind for task in plan.tasks))


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def call(*args: Any, cwd: Path) -> Outcome:
    """Run ``saebench`` in this process, in a folder; the environment is put back after it."""
    from saebench_core.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = ["saebench", *map(str, args)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(cwd))
        stack.enter_context(mock.patch.dict(os.environ, {"COLUMNS": "200"}))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def command(*args: Any) -> list[str]:
    """Return the command line of the installed ``saebench``."""
    return [str(Path(sys.executable).with_name("saebench")), *map(str, args)]


def environment(site: Path | None = None, **changes: str) -> Mapping[str, str]:
    """Return the environment of a process of its own, with a folder of distributions on its path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAEBENCH_")}
    path = {"PYTHONPATH": str(site)} if site else {}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | path | changes


def spawn(*args: Any, cwd: Path, site: Path | None = None, **changes: str) -> subprocess.Popen[str]:
    """Start ``saebench`` as a process of its own."""
    return subprocess.Popen(
        command(*args),
        cwd=cwd,
        env=environment(site, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process(*args: Any, cwd: Path, site: Path | None = None, **changes: str) -> Outcome:
    """Run ``saebench`` as a process of its own to its end."""
    with spawn(*args, cwd=cwd, site=site, **changes) as child:
        out, err = child.communicate(timeout=120)
    return Outcome(child.returncode, out, err)


def listing(folder: Path) -> dict[str, int]:
    """Return all files below a folder with their times of change."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
