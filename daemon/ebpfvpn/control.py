"""The control socket /run/ebpfvpn/NAME.sock: how `show`, `restart` and `down` talk to a daemon.

One request a connection: a line of JSON, {"command": "status"}, answered by a line of JSON,
{"result": {...}} or {"error": "one line"}. Only root gets there (directory 0700, socket 0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import select
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ebpfvpn.errors import OperatorError

RUN_DIRECTORY = Path("/run/ebpfvpn")

Handlers = Mapping[str, Callable[[], Mapping[str, Any]]]

_LINE_LIMIT = 4096
_SERVER_TIMEOUT = 5.0
_CLIENT_TIMEOUT = 10.0
_RESTART_POLL = 0.05

log = logging.getLogger(__name__)


class NotUp(OperatorError):
    """No daemon answers for this interface."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not up")


def socket_path(name: str) -> Path:
    return RUN_DIRECTORY / f"{name}.sock"


def make_run_directory() -> None:
    """Makes RUN_DIRECTORY, for root alone. OperatorError if that is not possible."""
    try:
        RUN_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        RUN_DIRECTORY.chmod(0o700)
    except OSError as error:
        raise OperatorError(f"{RUN_DIRECTORY}: cannot be made: {error.strerror}") from error


# The daemon's side.


@contextlib.asynccontextmanager
async def serve(name: str, handlers: Handlers) -> AsyncIterator[None]:
    """Answers requests while the body runs; `handlers` gives each command's result.

    An OperatorError of a handler is sent to the client. Leaving the body waits for the replies
    that are on their way, so that a handler may be what ends it. Raises OperatorError if NAME is
    up already.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            async with asyncio.timeout(_SERVER_TIMEOUT):
                await _answer(handlers, reader, writer)
        except (TimeoutError, OSError, ValueError) as error:
            log.warning("control socket: a request was not answered: %s", error or "too slow")
        finally:
            tasks.discard(task)
            writer.close()

    listener = _listen(name)
    try:
        server = await asyncio.start_unix_server(connected, sock=listener, limit=_LINE_LIMIT)
        try:
            yield
        finally:
            server.close()
            if tasks:
                await asyncio.wait(tasks, timeout=_SERVER_TIMEOUT)
    finally:
        socket_path(name).unlink(missing_ok=True)
        listener.close()


async def _answer(
    handlers: Handlers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """ValueError if the request's line is too long."""
    line = await reader.readline()
    if not line:
        return
    writer.write(json.dumps(_reply(handlers, line)).encode() + b"\n")
    await writer.drain()
    writer.write_eof()


def _reply(handlers: Handlers, line: bytes) -> dict[str, Any]:
    try:
        handler = handlers[json.loads(line)["command"]]
    except (ValueError, KeyError, TypeError):
        return {"error": "the daemon does not know this request; is its version another?"}
    try:
        return {"result": handler()}
    except OperatorError as error:
        return {"error": str(error)}
    except Exception:
        log.exception("control socket: a bug")
        return {"error": "the daemon met a bug; its log has the traceback"}


def _listen(name: str) -> socket.socket:
    """The listening socket, in place of one that a dead daemon left."""
    make_run_directory()
    path = socket_path(name)
    with _locked(RUN_DIRECTORY):
        if is_up(name):
            raise OperatorError(f"{name} is up already")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before bind: the file is made with this mode.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(path))
            listener.listen()
        except OSError as error:
            listener.close()
            raise OperatorError(f"{path}: {error.strerror}") from error
    return listener


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two daemons that start at once must not take each other's socket for a dead one's."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# The operator's side.


def is_up(name: str) -> bool:
    """Whether a daemon listens on the control socket of `name`."""
    try:
        _connect(name).close()
    except NotUp:
        return False
    return True


def running() -> list[str]:
    """The interfaces that have a daemon, sorted. OperatorError without the right to look."""
    try:
        names = sorted(path.stem for path in RUN_DIRECTORY.iterdir() if path.suffix == ".sock")
    except FileNotFoundError:
        return []
    except PermissionError:
        raise OperatorError(f"{RUN_DIRECTORY}: permission denied; run this as root") from None
    return [name for name in names if is_up(name)]


def request(name: str, command: str) -> dict[str, Any]:
    """The result of a command. NotUp without a daemon, OperatorError if it refuses or is slow."""
    with _connect(name) as connection:
        return _exchange(name, connection, command)


def stop(name: str, timeout: float = 15.0) -> None:
    """Tells the daemon to stop and waits until its process has ended. Raises as `request` does."""
    with _connect(name) as connection, _watched(name, connection) as (pid, process):
        _exchange(name, connection, "down")
        ended, _, _ = select.select([process], [], [], timeout)
    if not ended:
        raise OperatorError(f"{name}: the daemon (process {pid}) does not end; see its log")


def restart(name: str, timeout: float) -> None:
    """Tells the daemon to start anew and waits until it is ready. Raises as `request` does."""
    before = request(name, "status")["started"]
    with _connect(name) as connection, _watched(name, connection) as (pid, process):
        _exchange(name, connection, "restart")
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if select.select([process], [], [], _RESTART_POLL)[0]:
                raise OperatorError(
                    f"{name}: the daemon could not start anew; see its log. "
                    f"Packets go on for at most three minutes: ebpfvpn up {name}"
                )
            with contextlib.suppress(NotUp):
                if request(name, "status")["started"] != before:
                    return
    raise OperatorError(f"{name}: the daemon (process {pid}) does not get ready; see its log")


@contextlib.contextmanager
def _watched(name: str, connection: socket.socket) -> Iterator[tuple[int, int]]:
    """The daemon's process, and a descriptor that is readable when it has ended."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = struct.unpack("iII", credentials)[0]
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        message = f"{name}: the daemon's process {pid} cannot be watched: {error.strerror}"
        raise OperatorError(message + "; is it in another container?") from error
    try:
        yield pid, process
    finally:
        os.close(process)


def _connect(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_CLIENT_TIMEOUT)
    try:
        connection.connect(str(socket_path(name)))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise NotUp(name) from None
    except OSError as error:
        connection.close()
        hint = "; run this as root" if isinstance(error, PermissionError) else ""
        raise OperatorError(f"{socket_path(name)}: {error.strerror or error}{hint}") from error
    return connection


def _exchange(name: str, connection: socket.socket, command: str) -> dict[str, Any]:
    try:
        connection.sendall(json.dumps({"command": command}).encode() + b"\n")
        with connection.makefile("rb") as stream:
            reply = json.loads(stream.readline())
        if "error" in reply:
            raise OperatorError(f"{name}: {reply['error']}")
        result: dict[str, Any] = reply["result"]
    except TimeoutError:
        raise OperatorError(f"{name}: the daemon does not answer; see its log") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise OperatorError(f"{name}: the daemon broke off its answer; see its log") from None
    return result
