"""The control socket, between a daemon's loop in a thread and clients; and other processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebpfvpn import control
from ebpfvpn.errors import OperatorError

pytestmark = pytest.mark.usefixtures("run_directory")


@contextlib.contextmanager
def serving(name: str, handlers: control.Handlers) -> Iterator[threading.Thread]:
    """Serves in a thread until the block ends or a handler "down" is called."""
    ready = threading.Event()
    errors: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def down() -> dict[str, Any]:
        stop.set()
        return {"stopping": True}

    async def serve() -> None:
        async with control.serve(name, {**handlers, "down": down}):
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except OperatorError as error:
            errors.append(error)
        finally:
            loop.close()
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(10)
        if errors:
            raise errors[0]
        yield thread
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: "down" was called
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


def raw(name: str, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(control.socket_path(name)))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return stream.read()


def test_round_trip() -> None:
    big = {"peers": ["x" * 100] * 50_000}  # a status can be large
    with serving("wg0", {"status": lambda: big}):
        assert control.request("wg0", "status") == big
        assert control.request("wg0", "status") == big
        assert control.is_up("wg0")
        assert control.running() == ["wg0"]


def test_a_handler_that_ends_the_daemon_is_answered() -> None:
    with serving("wg0", {}) as thread:
        assert control.request("wg0", "down") == {"stopping": True}
        thread.join(10)
        assert not thread.is_alive()
    assert not control.socket_path("wg0").exists()


def test_a_daemon_whose_process_goes_on_has_not_stopped() -> None:
    message = rf"^wg0: the daemon \(process {os.getpid()}\) does not end; see its log$"
    with serving("wg0", {}), pytest.raises(OperatorError, match=message):
        control.stop("wg0", timeout=0.1)


def test_errors_of_handlers() -> None:
    def refuse() -> dict[str, Any]:
        raise OperatorError("not now")

    def fail() -> dict[str, Any]:
        raise ZeroDivisionError("secret")

    with serving("wg0", {"refuse": refuse, "fail": fail}):
        with pytest.raises(OperatorError, match=r"^wg0: not now$"):
            control.request("wg0", "refuse")
        with pytest.raises(OperatorError, match=r"^wg0: the daemon met a bug; its log has"):
            control.request("wg0", "fail")
        with pytest.raises(OperatorError, match="does not know this request"):
            control.request("wg0", "other")


@pytest.mark.parametrize("data", [b"\n", b"[]\n", b"{}\n", b'{"command": []}\n', b"\xff\n", b"x"])
def test_malformed_requests_get_an_error(data: bytes) -> None:
    with serving("wg0", {"status": dict}):
        assert "does not know" in json.loads(raw("wg0", data))["error"]
        assert control.request("wg0", "status") == {}


def test_long_requests_are_cut_off() -> None:
    with serving("wg0", {"status": dict}):
        with contextlib.suppress(ConnectionError):
            assert raw("wg0", b"x" * 1_000_000) == b""
        assert control.request("wg0", "status") == {}


def test_slow_requests_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_SERVER_TIMEOUT", 0.1)
    with serving("wg0", {"status": dict}), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(control.socket_path("wg0")))
        assert connection.recv(1) == b""


def test_slow_daemons_are_reported(monkeypatch: pytest.MonkeyPatch, run_directory: Path) -> None:
    monkeypatch.setattr(control, "_CLIENT_TIMEOUT", 0.1)
    run_directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control.socket_path("wg0")))
        listener.listen()
        with pytest.raises(OperatorError, match=r"^wg0: the daemon does not answer"):
            control.request("wg0", "status")


def test_only_root_gets_there(run_directory: Path) -> None:
    with serving("wg0", {}):
        assert run_directory.stat().st_mode & 0o777 == 0o700
        assert control.socket_path("wg0").stat().st_mode & 0o777 == 0o600


def test_not_up(run_directory: Path) -> None:
    assert control.running() == []
    for command in (control.request, lambda name, _: control.stop(name)):
        with pytest.raises(control.NotUp, match=r"^wg0 is not up$"):
            command("wg0", "status")
    run_directory.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(control.socket_path("wg0")))
    with pytest.raises(control.NotUp):
        control.request("wg0", "status")
    assert control.running() == []


def test_a_second_daemon_is_refused_and_the_first_goes_on() -> None:
    with serving("wg0", {"status": lambda: {"first": True}}):
        with pytest.raises(OperatorError, match=r"^wg0 is up already$"), serving("wg0", {}):
            pass
        assert control.request("wg0", "status") == {"first": True}


def test_the_socket_of_a_dead_daemon_is_replaced(run_directory: Path) -> None:
    run_directory.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(control.socket_path("wg0")))
    with serving("wg0", {"status": dict}):
        assert control.request("wg0", "status") == {}


def test_names_do_not_meet() -> None:
    with serving("wg0", {"status": lambda: {"n": 0}}), serving("wg1", {"status": lambda: {"n": 1}}):
        assert control.running() == ["wg0", "wg1"]
        assert [control.request(name, "status")["n"] for name in ("wg0", "wg1")] == [0, 1]
