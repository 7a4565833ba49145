"""Which processes write to a tracker: a lock file each, which the kernel frees when a process dies."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

__all__ = ["Writer", "is_dead"]


@final
class Writer:
    """This process as a writer of runs, from its making until `close`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = uuid.uuid4().hex
        self._marker = folder / self.name
        self._lock = FileLock(f"{self._marker}.lock")
        self._lock.acquire()
        self._marker.touch()

    def close(self, *, clean: bool = True) -> None:
        """Leave. Unless cleanly, runs that still say RUNNING under this name are ended by the next writer."""
        if clean:
            self._marker.unlink(missing_ok=True)
        self._lock.release()
        if clean:
            Path(self._lock.lock_file).unlink(missing_ok=True)


def is_dead(folder: Path, name: str) -> bool:
    """Say whether a writer of this folder died; one that is not known here counts as alive (another machine's)."""
    if not name.isalnum() or not (folder / name).is_file():
        return False
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True
