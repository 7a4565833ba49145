"""Checkpoints within a training: each SAE's own, so that a killed group goes on where it was.

A checkpoint holds all that training changes: tensors, moments, counters, controllers, curves. The batch order needs
no state, for it follows from seed and step. What goes on from one ends bit-equal to what was never interrupted.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saebench_core.store import file_sha256, flush_file, flush_folder

__all__ = ["FOLDER", "Checkpoints", "Kept", "NoCheckpoints"]

FOLDER: Final = "checkpoints"
"""Folder of a workdir in which the trainings that are not finished lie, by the keys of their products."""

_TENSORS: Final = "state.safetensors"
_PLAIN: Final = "state.json"
_TIMES_WRITING: Final = 10


class Kept(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        step: number of steps that were done.
        tensors: by name.
        plain: numbers, lists and dictionaries of them.
    """

    step: int
    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]


@final
class NoCheckpoints:
    """Keeps nothing."""

    def due(self) -> bool:
        """Never."""
        return False

    def save(self, name: str, kept: Kept) -> None:
        """Do nothing."""

    def load(self, name: str) -> Kept | None:
        """Return None."""
        return None


@final
@dataclass
class Checkpoints:
    """Checkpoints below one folder, written every so many seconds; each replaces the one before.

    Where writing takes long, they come as much more rarely that it stays a tenth of the whole time; with 0 seconds, one
    comes after every step whatever it takes.

    Attributes:
        root: folder of all trainings that are not finished.
        keys: folder name of every SAE, by the SAE's name.
        seconds: least time between two checkpoints.
        now: clock.
    """

    root: Path
    keys: Mapping[str, str]
    seconds: float
    now: Callable[[], float] = time.monotonic
    _last: float | None = field(default=None, repr=False)
    _spent: float = field(default=0.0, repr=False)

    def due(self) -> bool:
        """Say whether it is time to write; the clock starts at the first question."""
        now = self.now()
        if self._last is None:
            self._last = now
        least = max(self.seconds, _TIMES_WRITING * self._spent) if self.seconds else 0.0
        if now - self._last < least:
            return False
        self._last, self._spent = now, 0.0
        return True

    def save(self, name: str, kept: Kept) -> None:
        """Write a checkpoint, then remove the older ones; a crash at any moment leaves one of them whole.

        Raises:
            OSError: if the disk does not take it; the older one stays.
        """
        began, place = time.perf_counter(), self.root / self.keys[name]
        draft = place / f".{uuid.uuid4().hex}.tmp"
        try:
            draft.mkdir(parents=True)
            self._write(draft, kept)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise OSError(str(error)) from error
        target = place / f"step-{kept.step:09d}"
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        flush_folder(place)
        for other in place.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
        self._spent += time.perf_counter() - began

    def _write(self, draft: Path, kept: Kept) -> None:
        save_file(dict(kept.tensors), draft / _TENSORS)
        record = {"step": kept.step, "sha256": file_sha256(draft / _TENSORS), "plain": kept.plain}
        (draft / _PLAIN).write_text(json.dumps(record, allow_nan=True), encoding="utf-8")
        for path in (draft / _TENSORS, draft / _PLAIN):
            flush_file(path)
        flush_folder(draft)

    def load(self, name: str) -> Kept | None:
        """Return the newest whole checkpoint, or None."""
        place = self.root / self.keys[name]
        for folder in sorted(place.glob("step-*"), reverse=True):
            try:
                record = json.loads((folder / _PLAIN).read_text(encoding="utf-8"))
                if record["sha256"] == file_sha256(folder / _TENSORS):
                    return Kept(int(record["step"]), load_file(folder / _TENSORS), record["plain"])
            except (OSError, ValueError, KeyError, SafetensorError):
                continue  # a damaged checkpoint is none: the training begins anew
        return None

    def discard(self, name: str) -> None:
        """Remove what is kept of an SAE that is finished."""
        shutil.rmtree(self.root / self.keys[name], ignore_errors=True)
