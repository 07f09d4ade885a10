"""The daemon in the background, with daemons that do nothing but succeed or fail."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpfvpn import background
from ebpfvpn.errors import OperatorError

pytestmark = pytest.mark.usefixtures("run_directory")


class Undo:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.fixture
def undo() -> Undo:
    return Undo()


@contextlib.contextmanager
def started(run: background.Run, undo: Undo) -> Iterator[int]:
    pid = background.start("wg0", run, undo)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def wait_for_signal(ready: Callable[[], None]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ready()
    signal.sigwait({signal.SIGTERM})


def no_child_is_left() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return True


def test_ready(undo: Undo, run_directory: Path) -> None:
    inside, outside = os.pipe()
    try:
        with started(wait_for_signal, undo) as pid:
            assert os.getsid(pid) == pid
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
            files = {
                int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
            }
            log = str(run_directory / "wg0.log")
            assert [files.pop(fd) for fd in range(3)] == ["/dev/null", log, log]
            # Nothing of the caller's stays open (a pipe would make it wait for the daemon).
            syslog = "socket:" if os.path.exists(background.SYSLOG) else "none"
            assert not [target for target in files.values() if not target.startswith(syslog)]
            assert Path(log).stat().st_mode & 0o777 == 0o600
            os.kill(pid, signal.SIGTERM)
            assert os.waitpid(pid, 0)[1] == 0
            assert not Path(log).exists()
    finally:
        os.close(inside)
        os.close(outside)
    assert undo.calls == 0


def test_a_failure_is_reported_in_its_own_words(undo: Undo) -> None:
    def run(ready: Callable[[], None]) -> None:
        raise OperatorError("wg0: eth7 is\non fire")

    with pytest.raises(OperatorError, match=r"^wg0: eth7 is on fire$"):
        background.start("wg0", run, undo)
    assert undo.calls == 0  # it undid everything itself
    assert no_child_is_left()


def test_a_bug_is_reported_without_its_text(undo: Undo, run_directory: Path) -> None:
    def run(ready: Callable[[], None]) -> None:
        raise ZeroDivisionError("a secret")

    with pytest.raises(OperatorError) as caught:
        background.start("wg0", run, undo)
    log = run_directory / "wg0.log"
    assert str(caught.value) == (
        f"this is a bug in ebpfvpn (ZeroDivisionError); the traceback is in {log}"
    )
    assert "Traceback (most recent call last)" in log.read_text()
    assert no_child_is_left()


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os._exit(3), "with exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "by signal 9"),
    ],
)
def test_a_silent_death_is_reported_and_undone(
    end: Callable[[], None], how: str, undo: Undo
) -> None:
    with pytest.raises(OperatorError, match=rf"^wg0: the daemon ended {how}, without a word; see"):
        background.start("wg0", lambda ready: end(), undo)
    assert undo.calls == 1
    assert no_child_is_left()


def test_a_daemon_that_returns_before_it_is_ready_is_reported(undo: Undo) -> None:
    with pytest.raises(OperatorError, match="with exit code 0, without a word"):
        background.start("wg0", lambda ready: None, undo)
    assert no_child_is_left()


def test_a_daemon_that_is_too_slow_is_ended(undo: Undo) -> None:
    with pytest.raises(OperatorError, match=r"^wg0: not ready after 0\.2 s; see "):
        background.start("wg0", lambda ready: time.sleep(60), undo, timeout=0.2)
    assert undo.calls == 1
    assert no_child_is_left()


def test_a_daemon_that_does_not_end_is_killed(undo: Undo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STOP_TIMEOUT", 0.2)

    def run(ready: Callable[[], None]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(60)

    with pytest.raises(OperatorError, match="not ready after"):
        background.start("wg0", run, undo, timeout=0.5)
    assert undo.calls == 1
    assert no_child_is_left()


def test_a_failure_after_ready_is_in_the_log(undo: Undo, run_directory: Path) -> None:
    def run(ready: Callable[[], None]) -> None:
        ready()
        print("printed")
        logging.getLogger("ebpfvpn").info("logged")
        raise OperatorError("the device went away")

    with started(run, undo) as pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    log = (run_directory / "wg0.log").read_text()
    assert "printed\n" in log
    assert "INFO ebpfvpn: logged\n" in log
    assert "ERROR ebpfvpn.background: the device went away\n" in log


def test_the_log_does_not_grow_without_end(undo: Undo, run_directory: Path) -> None:
    def run(ready: Callable[[], None]) -> None:
        ready()
        for number in range(2500):
            logging.getLogger("ebpfvpn").info("%d %s", number, "x" * 1000)
        raise OperatorError("the last words")

    with started(run, undo) as pid:
        os.waitpid(pid, 0)
    log = run_directory / "wg0.log"
    assert log.stat().st_size < background.LOG_LIMIT
    assert "the last words" in log.read_text()


def test_a_link_in_place_of_the_log_is_not_followed(
    undo: Undo, run_directory: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run_directory.mkdir()
    (run_directory / "wg0.log").symlink_to(victim)
    with pytest.raises(OperatorError, match=r"wg0.log: Too many levels of symbolic links"):
        background.start("wg0", wait_for_signal, undo)
    assert victim.read_text() == "precious"
