"""Somebody else's daemon, in the foreground on a node of a lab."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lab
from lab import Lab, LabError, Node


class Foreground:
    """Started at once, ended by the lab. `argv` has it log to `log`."""

    def __init__(
        self, here: Lab, node: Node, log: Path, *argv: str, name: str | None = None
    ) -> None:
        """`name`: where it is not argv's first word."""
        self._name = name or argv[0]
        self._log = log
        self._process = node.start(*argv)
        here.defer(partial(lab.end, self._process))

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """As lab.wait_for; the error has the log's last lines. Raises it as well when the daemon
        ends."""
        deadline = time.monotonic() + timeout
        while not condition():
            if (code := self._process.poll()) is not None:
                raise LabError(f"{self._name} ended with exit code {code}{self._reason()}")
            if time.monotonic() > deadline:
                raise LabError(f"{self._name}: {what}: not within {timeout:g} s{self._reason()}")
            time.sleep(0.01)

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def _reason(self) -> str:
        # The very last line may be a mere "Terminating".
        lines = self.log().splitlines()[-3:]
        return f": {'; '.join(lines)}" if lines else ""


def reaches(node: Node, address: str) -> bool:
    """Whether a ping is answered within 100 ms."""
    try:
        node.run("ping", "-c", "1", "-W", "0.1", address)
    except LabError:
        return False
    return True
