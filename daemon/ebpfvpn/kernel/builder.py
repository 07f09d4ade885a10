"""The builder of a new kernel path while another path moves the packets: in a thread, so that they
go on meanwhile, and after a pause again when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ebpfvpn.failures import logged
from ebpfvpn.kernel.backoff import LONGEST, Backoff
from ebpfvpn.kernel.datapath import KernelDatapath


class Builder:
    """Of one tunnel; also takes kernel paths away."""

    def __init__(self, build: Callable[[], KernelDatapath] | None) -> None:
        """None: none is ever wanted."""
        self._build = build
        self._thread = ThreadPoolExecutor(1, "kernel-path")
        self._building: Future[KernelDatapath] | None = None
        self._backoff = Backoff(time.monotonic())
        self._worked_since = time.monotonic()

    def poll(self, prepare: Callable[[KernelDatapath], None]) -> KernelDatapath | None:
        """One that is ready, or None; begins to build one when it is time to. `prepare` is called
        with it in the thread. Any Exception: why there is none; told once for each try."""
        if self._building is None:
            if self._build is not None and self._backoff.due(time.monotonic()):
                self._building = self._thread.submit(self._make, self._build, prepare)
            return None
        if not self._building.done():
            return None
        building, self._building = self._building, None
        try:
            kernel = building.result()
        except Exception:
            self._backoff.failed(time.monotonic())
            raise
        self._worked_since = time.monotonic()
        return kernel

    def _make(
        self, build: Callable[[], KernelDatapath], prepare: Callable[[KernelDatapath], None]
    ) -> KernelDatapath:
        kernel = build()
        try:
            prepare(kernel)
            kernel.check()
        except BaseException:
            self._discard(kernel)
            raise
        return kernel

    def broke(self) -> None:
        """The one in use did. If it did not last, the next has to wait longer."""
        now = time.monotonic()
        if now - self._worked_since > LONGEST:
            self._backoff.restart(now)
        else:
            self._backoff.failed(now)

    def discard(self, kernel: KernelDatapath) -> None:
        """Takes it away, in the thread."""
        self._thread.submit(self._discard, kernel)

    def _discard(self, kernel: KernelDatapath) -> None:
        with logged("what is left of the kernel path cannot be taken away"):
            kernel.discard()

    def stop(self) -> Future[None]:
        """No other is wanted; what is being built is taken away. Done when all that is."""
        self._give_up()
        return self._thread.submit(lambda: None)

    def _give_up(self) -> None:
        self._build = None
        building, self._building = self._building, None
        if building is not None and not building.cancel():
            self._thread.submit(self._undo, building)

    def _undo(self, building: Future[KernelDatapath]) -> None:
        if building.exception() is None:
            self._discard(building.result())

    def close(self) -> None:
        """As `stop`, and waits for that."""
        self._give_up()
        self._thread.shutdown()
