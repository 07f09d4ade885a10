"""The daemon in the background: `up` returns when it is ready, or says why it is not.

The child is one fork away: it leaves its parent's session, terminal and files and tells the
parent by a pipe, in one line, that it is ready or what went wrong.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ebpfvpn import control, handover
from ebpfvpn.errors import OperatorError
from ebpfvpn.handover import Next

START_TIMEOUT = 10.0
"""Seconds until the daemon must be ready,"""
START_TIMEOUT_PER_PEER = 0.01
"""and so many more for each peer."""
STOP_TIMEOUT = 5.0
"""Seconds that a daemon which is not wanted any more has to undo what it did."""
SYSLOG = "/dev/log"
LOG_LIMIT = 1 << 20
"""Bytes: then the log file starts again, so that it cannot fill /run."""

Run = Callable[[Callable[[], None]], Next | None]
"""The daemon: blocks until it is stopped, calls its argument when it is ready, returns who follows
it, and raises OperatorError if it cannot go on (after undoing what it did)."""

_FORMAT = "%(levelname)s %(name)s: %(message)s"

log = logging.getLogger(__name__)


def log_path(name: str) -> Path:
    return control.RUN_DIRECTORY / f"{name}.log"


def start(name: str, run: Run, undo: Callable[[], None], timeout: float = START_TIMEOUT) -> int:
    """Runs the daemon of `name` in the background and returns its process when it is ready.

    Raises OperatorError if the daemon fails, ends without a word or takes longer than `timeout`
    seconds. It has ended then, and `undo` is called for one that could not clean up by itself.
    """
    control.make_run_directory()
    log_fd = _open_log(log_path(name))
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(name, run, writer, log_fd)
    os.close(writer)
    os.close(log_fd)
    try:
        word = _read_word(reader, time.monotonic() + timeout)
    except BaseException:
        _end(pid)
        undo()
        raise
    finally:
        os.close(reader)
    if word == "ready":
        return pid
    if word is None:
        _end(pid)
        undo()
        raise OperatorError(f"{name}: not ready after {timeout:g} s; see {log_path(name)}")
    _, status = os.waitpid(pid, 0)
    if word:
        raise OperatorError(word)
    undo()
    code = os.waitstatus_to_exitcode(status)
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    raise OperatorError(f"{name}: the daemon ended {how}, without a word; see {log_path(name)}")


def in_foreground(name: str, run: Run) -> None:
    """Runs the daemon of `name` in this process, with its log on standard error. Raises
    OperatorError if it fails."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT, force=True)
    try:
        following = run(lambda: log.info("%s is up", name))
    except OperatorError:
        raise
    except Exception as error:
        log.exception("a bug")
        raise OperatorError(bug(error, "the traceback is above")) from error
    if following is not None:
        handover.execute(following)


def resume(name: str, run: Run) -> NoReturn:
    """Runs the daemon of `name` in this process, which was its daemon in the background before."""
    _log_to_file_and_syslog(name)
    _serve(name, run, lambda word: None)


def bug(error: BaseException, where: str) -> str:
    """The operator's line for what should not happen; the text of `error` might hold a secret."""
    return f"this is a bug in ebpfvpn ({type(error).__name__}); {where}"


def _open_log(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}") from error
    os.fchmod(fd, 0o600)
    return fd


def _read_word(reader: int, deadline: float) -> str | None:
    """What the child says: "" if it ended without a word, None if it said nothing in time."""
    data = b""
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(reader, 4096)
        if not chunk:
            return data.decode(errors="replace")
        data += chunk
    return None


def _end(pid: int) -> None:
    """Ends the child, which gets time to undo what it did, and waits for it."""
    process = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        if not select.select([process], [], [], STOP_TIMEOUT)[0]:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(process)


def _child(name: str, run: Run, writer: int, log_fd: int) -> NoReturn:
    said = False

    def say(word: str) -> None:
        nonlocal said
        if not said:
            said = True
            # The parent may have been killed; the daemon goes on without it.
            with contextlib.suppress(BrokenPipeError):
                os.write(writer, word.encode())
            os.close(writer)

    try:
        writer = _detach(writer, log_fd)
        _log_to_file_and_syslog(name)
    except BaseException as error:
        say(bug(error, f"it could not be put in the background; see {log_path(name)}"))
        os._exit(1)
    _serve(name, run, say)


def _serve(name: str, run: Run, say: Callable[[str], None]) -> NoReturn:
    code = 1
    try:
        following = run(lambda: say("ready"))
        if following is not None:
            handover.execute(following)
        log_path(name).unlink(missing_ok=True)
        code = 0
    except OperatorError as error:
        log.error("%s", error)
        say(str(error))
    except BaseException as error:
        log.exception("a bug")
        say(bug(error, f"the traceback is in {log_path(name)}"))
    finally:
        logging.shutdown()
        os._exit(code)


def _detach(writer: int, log_fd: int) -> int:
    """Own session, nothing kept open but the log, as standard output and error, and the pipe."""
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    writer = os.dup2(writer, _spare(writer, log_fd, null), inheritable=False)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.closerange(3, writer)
    os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
    return writer


def _spare(*used: int) -> int:
    """A descriptor above all that are used and above standard error."""
    return max(2, *used) + 1


class _LogFile(logging.StreamHandler):  # type: ignore[type-arg]
    """Standard error, which is the log file; it starts again when it is full."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        info = os.fstat(2)
        if stat.S_ISREG(info.st_mode) and info.st_size > LOG_LIMIT:
            os.ftruncate(2, 0)


class _Syslog(logging.handlers.SysLogHandler):
    """A syslog that is stuck must not stop the daemon."""

    def __init__(self, name: str) -> None:
        super().__init__(SYSLOG, facility=self.LOG_DAEMON)
        self.ident = f"ebpfvpn[{name}]: "

    def createSocket(self) -> None:  # also called to connect again
        super().createSocket()
        self.socket.setblocking(False)  # type: ignore[attr-defined]


def _log_to_file_and_syslog(name: str) -> None:
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    # An error of a handler would go to the file, and could be one per line logged.
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [_LogFile(sys.stderr)]
    if os.path.exists(SYSLOG):
        with contextlib.suppress(OSError):
            handlers.append(_Syslog(name))
    # The caller's handlers are not ours to close, nor are their files open any more.
    logging.getLogger().handlers.clear()
    logging.basicConfig(level=logging.INFO, format=_FORMAT, handlers=handlers)
    handlers[0].setFormatter(logging.Formatter("%(asctime)s " + _FORMAT))
