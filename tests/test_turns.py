from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

from turns import turn


def take(directory: Path, alone: bool, ours: Connection) -> None:
    """Tells when it has its turn; ends it when told to."""
    with turn(directory, alone=alone):
        ours.send("in")
        ours.recv()


class Other:
    def __init__(self, directory: Path, *, alone: bool) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(
            target=take, args=(directory, alone, theirs), daemon=True
        )
        self.process.start()

    def is_in(self, timeout: float = 5) -> bool:
        return self.pipe.poll(timeout)

    def leave(self) -> None:
        self.pipe.send("out")
        self.process.join()


def test_many_or_one(tmp_path: Path) -> None:
    others = [Other(tmp_path, alone=False) for _ in range(2)]
    assert all(other.is_in() for other in others)
    waiting = Other(tmp_path, alone=True)
    others[0].leave()
    assert not waiting.is_in(0.05)
    others[1].leave()
    assert waiting.is_in()
    late = Other(tmp_path, alone=False)
    assert not late.is_in(0.05)
    waiting.leave()
    assert late.is_in()
    late.leave()


def test_nobody_slips_in_before_who_waits(tmp_path: Path) -> None:
    first = Other(tmp_path, alone=False)
    assert first.is_in()
    waiting = Other(tmp_path, alone=True)
    deadline = time.monotonic() + 5
    while True:
        # Until it holds the door, others come in.
        late = Other(tmp_path, alone=False)
        if not late.is_in(0.2):
            break
        late.leave()
        assert time.monotonic() < deadline
    first.leave()
    assert waiting.is_in()
    assert not late.is_in(0.05)
    waiting.leave()
    assert late.is_in()
    late.leave()
