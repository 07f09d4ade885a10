"""A lab: two network namespaces joined by a veth pair, and what runs in them.

Nothing of it is left behind: `in_lab` takes all away when its body ends, fails or is interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
EBPFVPN = ROOT / ".venv" / "bin" / "ebpfvpn"

UNDERLAY = "net0"
"""The veth's name in either namespace."""

T = TypeVar("T")
L = TypeVar("L", bound="Lab")


class LabError(Exception):
    """A step failed; the text is one line."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came; `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def run(argv: Sequence[str], *, stdin: str = "", timeout: float = 20, can_wait: bool = True) -> str:
    """Runs a command; returns its standard output. Raises LabError when it fails or takes longer
    than `timeout` seconds.

    When the lab is interrupted meanwhile, the command is waited for, so that nothing is left
    half done, unless not `can_wait`: then it is ended.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the lab alone
    )
    try:
        output, errors = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        end(process)
        raise LabError(f"{argv[0]}: not done within {timeout:g} s ({' '.join(argv)})") from None
    except Interrupted:
        if can_wait:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=timeout)
        end(process)
        raise
    if process.returncode:
        reason = (errors.strip() or output.strip() or "no reason given").splitlines()[-1]
        raise LabError(f"{' '.join(argv)}: {reason} (exit code {process.returncode})")
    return output


def end(process: subprocess.Popen[str], timeout: float = 3) -> None:
    """Ends a process and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Raises LabError when the condition stays false for `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Node:
    """One of the two namespaces. Only the network is entered: /sys/fs/bpf stays in sight."""

    namespace: str
    address: str
    """On the underlay."""

    def argv(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *argv]

    def run(self, *argv: str, stdin: str = "", timeout: float = 20, can_wait: bool = True) -> str:
        return run(self.argv(*argv), stdin=stdin, timeout=timeout, can_wait=can_wait)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A process that the lab ends with the namespace, if nobody did before."""
        return subprocess.Popen(
            self.argv(*argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def offload(self, device: str, **features: bool) -> None:
        """Sets offloads by their names of ethtool -K, `_` for `-`."""
        words = [
            word
            for feature, on in features.items()
            for word in (feature.replace("_", "-"), "on" if on else "off")
        ]
        self.run("ethtool", "-K", device, *words)

    def sysfs(self, script: str) -> None:
        """Runs a shell script that sees this namespace's devices in /sys/class/net, which
        `nsenter --net` alone does not change."""
        prepare = "mount -t sysfs sysfs /sys && "
        self.run("unshare", "--mount", "sh", "-c", prepare + script)


class Lab:
    def __init__(self, name: str) -> None:
        self.closing = False
        """Clean-up has begun; it is not interrupted."""
        self.problems: list[str] = []
        """What clean-up could not do."""
        self._cleanups: list[Callable[[], object]] = []
        names = [f"{name}-{os.getpid()}-{side}" for side in ("left", "right")]
        self.left = Node(names[0], "192.0.2.1")
        self.right = Node(names[1], "192.0.2.2")
        self._directory: Path | None = None

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.left, self.right

    @property
    def directory(self) -> Path:
        """For configuration files: nobody else may enter it."""
        assert self._directory is not None
        return self._directory

    def defer(self, cleanup: Callable[[], object]) -> None:
        """Has `cleanup` called at the end, last come first served. Call it before the step that
        it undoes: it must bear that the step was not done."""
        self._cleanups.append(cleanup)

    def create(self) -> None:
        for node in self.nodes:
            self.add(node)
        self.connect()
        self.defer(lambda: shutil.rmtree(self._directory or "", ignore_errors=True))
        self._directory = Path(tempfile.mkdtemp(prefix="ebpfvpn-lab-"))

    def add(self, node: Node) -> None:
        self.defer(partial(_remove_namespace, node))
        run(["ip", "netns", "add", node.namespace])
        node.run("ip", "link", "set", "lo", "up")

    def connect(self) -> None:
        """Joins the nodes by what lies between them."""
        join(self.left, UNDERLAY, self.right, UNDERLAY)
        for node in self.nodes:
            node.run("ip", "address", "add", f"{node.address}/24", "dev", UNDERLAY)

    def close(self) -> None:
        while self._cleanups:
            try:
                self._cleanups.pop()()
            except (LabError, OSError) as error:
                self.problems.append(str(error))


def join(one: Node, device: str, other: Node, other_device: str) -> None:
    """A veth pair between two namespaces, both ends up."""
    link = ["ip", "link", "add", device, "netns", one.namespace, "type", "veth"]
    run([*link, "peer", "name", other_device, "netns", other.namespace])
    one.run("ip", "link", "set", device, "up")
    other.run("ip", "link", "set", other_device, "up")


def _pids(node: Node) -> list[int]:
    return [int(pid) for pid in run(["ip", "netns", "pids", node.namespace]).split()]


def _remove_namespace(node: Node) -> None:
    """Ends what still runs in the namespace, then removes it."""
    if not Path("/run/netns", node.namespace).exists():
        return
    with contextlib.suppress(LabError):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in _pids(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(LabError):
                wait_for(lambda: not _pids(node), 3, "processes of the lab to end")
                break
    run(["ip", "netns", "delete", node.namespace])


@contextlib.contextmanager
def _interruptible(lab: Lab) -> Iterator[None]:
    def interrupt(number: int, _frame: FrameType | None) -> None:
        if not lab.closing:
            lab.closing = True
            raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_lab(name: str, body: Callable[[Lab], T]) -> T:
    """`within` a lab of this name."""
    return within(Lab(name), body)


def within(lab: L, body: Callable[[L], T]) -> T:
    """Makes the lab, calls `body` with it and takes the lab away, whatever happens. Raises LabError
    if that leaves something behind, and Interrupted."""
    with _interruptible(lab):
        try:
            # Two blocks, so that no signal falls between the body and the clean-up.
            try:
                lab.create()
                result = body(lab)
            finally:
                lab.closing = True
        finally:
            lab.close()
            for problem in lab.problems:
                print(f"left behind: {problem}", file=sys.stderr)
    if lab.problems:
        raise LabError("the lab could not be taken away")
    return result
