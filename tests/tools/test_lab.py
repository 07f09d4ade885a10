"""The lab leaves nothing behind, and the generator's packets are all counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lab
import measure
from lab import Lab, LabError

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
import lab
def body(here):
    here.right.start("sleep", "60")
    print("up", here.directory, flush=True)
    here.left.run("sleep", "60", timeout=70, can_wait=False)
lab.in_lab("hold", body)
"""


def namespaces(pid: int, name: str) -> list[Path]:
    return list(Path("/run/netns").glob(f"{name}-{pid}-*"))


def test_body_runs_between_two_joined_nodes() -> None:
    def body(here: Lab) -> Path:
        here.left.run("ping", "-c", "1", "-W", "2", here.right.address)
        assert here.directory.stat().st_mode & 0o777 == 0o700
        return here.directory

    directory = lab.in_lab("joined", body)
    assert not directory.exists()
    assert not namespaces(os.getpid(), "joined")


def test_failure_leaves_nothing() -> None:
    def body(here: Lab) -> None:
        here.right.start("sleep", "60")
        here.left.run("ip", "link", "show", "nonesuch")

    with pytest.raises(LabError, match=r"nonesuch.*does not exist"):
        lab.in_lab("failure", body)
    assert not namespaces(os.getpid(), "failure")


def test_failed_cleanup_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def stuck() -> None:
        raise LabError("stuck")

    with pytest.raises(LabError, match="could not be taken away"):
        lab.in_lab("stuck", lambda here: here.defer(stuck))
    assert "left behind: stuck" in capsys.readouterr().err
    assert not namespaces(os.getpid(), "stuck")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("delay", [None, 0.05, 0.1])
def test_interruption_leaves_nothing(number: signal.Signals, delay: float | None) -> None:
    """When all is up, and that long after it began, whatever it does then."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lab.ROOT / "tools")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        if delay is None:
            directory = Path(process.stdout.readline().split()[1])
        else:
            lab.wait_for(lambda: bool(namespaces(process.pid, "hold")), 5, "the lab to begin")
            time.sleep(delay)
        process.send_signal(number)
        process.send_signal(number)  # an impatient user
        process.communicate(timeout=20)
    assert process.returncode
    assert not namespaces(process.pid, "hold")
    if delay is None:
        assert not directory.exists()


def test_every_packet_is_counted() -> None:
    def body(here: Lab) -> None:
        with measure.sink(here.right, here.right.address) as pid:
            paced = measure.transfer(here, here.right.address, pid, size=64, rate=2000, seconds=0.5)
            assert paced.sent == pytest.approx(1000, rel=0.1)
            assert paced.received == paced.sent

    lab.in_lab("counted", body)
