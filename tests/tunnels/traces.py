"""What a tunnel may leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tunnels.nodes import PINS, RUN, Node


def traces(node: Node) -> dict[str, Any]:
    """All that a tunnel may leave: in the kernel's tables and on the file systems."""
    ns = node.ns
    inode = os.stat(ns.path).st_ino
    links = json.loads(ns.run("ip", "-j", "-d", "link"))
    return {
        "links": [(link["ifname"], link["flags"], link.get("xdp")) for link in links],
        "addresses": ns.run("ip", "-br", "address"),
        "routes": ns.run("ip", "route", "show", "table", "all"),
        "routes6": ns.run("ip", "-6", "route", "show", "table", "all"),
        "rules": ns.run("ip", "rule") + ns.run("ip", "-6", "rule"),
        "qdiscs": ns.run("tc", "qdisc"),
        "filters": [
            ns.run("tc", "filter", "show", "dev", link["ifname"], hook, check=False)
            for link in links
            for hook in ("ingress", "egress")
        ],
        "sockets": ns.run("ss", "-Huan"),
        "pins": sorted(map(str, [*PINS.glob(f"{node.name}*"), *PINS.glob(f"@{inode}-*")])),
        "run": sorted(map(str, RUN.glob(f"{node.name}*"))),
    }


def refuse(one: Node, *words: str, command: Sequence[str] = ()) -> None:
    """`up` (or another command) fails with one line that has these words, and leaves nothing."""
    before = traces(one)
    log = str(RUN / f"{one.name}.log")
    done = subprocess.run(
        command or one.ns.command(sys.executable, "-m", "ebpfvpn", "up", str(one.path)),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ebpfvpn: ")
    assert done.stderr.count("\n") == 1
    assert "bug" not in done.stderr
    for word in words:
        assert word in done.stderr
    after = traces(one)
    # The log of a daemon that failed may be read.
    after["run"] = [path for path in after["run"] if path != log]
    before["run"] = [path for path in before["run"] if path != log]
    assert after == before
    assert one.private_key not in done.stderr
