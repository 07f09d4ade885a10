"""Tests at once, by pytest-xdist: those that measure what a loaded machine would spoil, such as
losses of a queue that nobody reads for too long, wait until they are alone."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def turn(directory: Path, *, alone: bool) -> Iterator[None]:
    """`directory`: the same for all processes. Who waits to be alone holds the door, so that not
    always another one slips in before."""
    with (directory / "room").open("w") as room:
        with (directory / "door").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
