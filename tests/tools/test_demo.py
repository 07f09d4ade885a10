"""tools/demo shows what it promises and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

import lab

DEMO = str(lab.ROOT / "tools/demo")
PLACES = ("/run/netns", "/run/ebpfvpn", "/sys/fs/bpf/ebpfvpn")


def remains(pid: int) -> list[Path]:
    """What bears the demo's process number, in names of namespaces and interfaces."""
    return [path for place in PLACES for path in Path(place).glob(f"demo*{pid}*")]


def test_shows_the_tunnel() -> None:
    process = subprocess.Popen([DEMO], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert re.search(r"^rtt min/avg/max/mdev = [\d.]+/", output, re.MULTILINE)
    (rate,) = re.findall(r"^([\d.]+) Gbit/s$", output, re.MULTILINE)
    assert float(rate) > 0
    assert output.count("latest handshake:") == 2
    assert re.search(r"^net0: received packets are opened by \w+", output, re.MULTILINE)
    assert re.search(r"map dump pinned /sys/fs/bpf/ebpfvpn/demo\w+/sessions$", output, re.MULTILINE)
    assert '"send_counter"' in output
    assert not remains(process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("heading", ["== two nodes", "== round trip", "== one TCP stream"])
def test_interrupted(number: signal.Signals, heading: str) -> None:
    with subprocess.Popen(
        [DEMO], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(heading):
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert not remains(process.pid)
