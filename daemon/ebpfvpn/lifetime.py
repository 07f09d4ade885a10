"""The lifetime of a daemon: from bringing its interface up until all is taken away, or the next one
follows."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from ebpfvpn import handover, setup
from ebpfvpn.config import Config
from ebpfvpn.daemon import Daemon
from ebpfvpn.errors import OperatorError
from ebpfvpn.kernel import leftovers


def run(config: Config, ready: Callable[[], None]) -> dict[str, int] | None:
    """Brings the interface up, calls `ready`, and returns when it was told to stop: by SIGTERM,
    SIGINT, or `down` on the control socket, and then everything is taken away (None); or by
    `restart` there, and then packets go on, and what is returned are descriptors for the daemon
    that is to follow. OperatorError."""

    def stopped(*_: object) -> None:
        raise _Stopped(f"{config.name}: stopped before it was ready")

    signal.signal(signal.SIGTERM, stopped)
    try:
        with contextlib.ExitStack() as undo:
            # One that came while the process executed this daemon.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            return _run(config, ready, undo)
    except _Stopped:
        leftovers.clean(config.name)
        raise
    except OSError as error:
        raise OperatorError(f"{config.name}: {error.strerror or error}") from error


class _Stopped(OperatorError):
    """By SIGTERM: what was up before is not wanted any more either."""


def _run(
    config: Config, ready: Callable[[], None], undo: contextlib.ExitStack
) -> dict[str, int] | None:
    interface = setup.bring_up(config, undo)
    was_ready = False

    def now_ready() -> None:
        nonlocal was_ready
        was_ready = True
        ready()

    try:
        daemon = Daemon(config, interface)
        asyncio.run(daemon.serve(now_ready))
    except BaseException:
        # What was up stays up, for the next daemon.
        if interface.is_new and not was_ready:
            interface.remove()
        raise
    if daemon.restarts and not daemon.tun_is_gone:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        return interface.descriptors_of_restart()
    interface.remove()
    handover.forget(interface.descriptors())
    if daemon.tun_is_gone:
        raise OperatorError(
            f"{config.name}: somebody deleted the device {config.name}, so everything else of the "
            "tunnel was taken away too; run ebpfvpn up again"
        )
    return None
