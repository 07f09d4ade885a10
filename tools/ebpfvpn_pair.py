"""An ebpfvpn tunnel between the two nodes of a lab."""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from lab import EBPFVPN, Lab, LabError, Node, run
from way import INSIDE

PINS = Path("/sys/fs/bpf/ebpfvpn")
PORT = 51820


def genkey() -> tuple[str, str]:
    """A private key and its public key, base64."""
    private = run([str(EBPFVPN), "genkey"]).strip()
    return private, run([str(EBPFVPN), "pubkey"], stdin=private).strip()


class EbpfvpnPair:
    """`up` brings up both ends; the lab takes them down. One of them has the other's endpoint
    only from its first message, as a road warrior's server has."""

    addresses = INSIDE

    def __init__(
        self,
        lab: Lab,
        prefix: str,
        attach_mode: str | None = None,
        datapath: str | None = None,
        sites: tuple[str, str] | None = None,
        mtu: int | None = None,
    ) -> None:
        """`sites`: the networks behind the nodes."""
        self.lab = lab
        self.interfaces = tuple(f"{prefix}{os.getpid()}{side}" for side in "lr")
        self.attach_mode = attach_mode
        self.datapath = datapath
        self.mtu = mtu
        """None, of these: the daemon chooses."""
        self.sites = sites

    def up(self) -> None:
        keys = [genkey(), genkey()]
        for here, there in ((0, 1), (1, 0)):
            endpoint = self.lab.nodes[there].address if here == 0 else None
            text = self._config(keys[here][0], keys[there][1], here, there, endpoint)
            path = self.lab.directory / f"{self.interfaces[here]}.conf"
            path.touch(mode=0o600)
            path.write_text(text)
            node, interface = self.lab.nodes[here], self.interfaces[here]
            self.lab.defer(partial(down, node, interface))
            node.run(str(EBPFVPN), "up", str(path))

    def _config(
        self, private_key: str, public_key: str, here: int, there: int, endpoint: str | None
    ) -> str:
        lines = [
            "[Interface]",
            f"PrivateKey = {private_key}",
            f"Address = {self.addresses[here]}/24",
            f"ListenPort = {PORT}",
        ]
        if self.attach_mode:
            lines.append(f"#! AttachMode = {self.attach_mode}")
        if self.datapath:
            lines.append(f"#! Datapath = {self.datapath}")
        if self.mtu:
            lines.append(f"MTU = {self.mtu}")
        lines += ["", "[Peer]", f"PublicKey = {public_key}"]
        allowed = [f"{self.addresses[there]}/32"]
        if self.sites:
            allowed.append(self.sites[there])
        lines.append(f"AllowedIPs = {', '.join(allowed)}")
        if endpoint:
            lines.append(f"Endpoint = {endpoint}:{PORT}")
        return "\n".join(lines) + "\n"

    def show(self, side: int) -> str:
        return self.lab.nodes[side].run(str(EBPFVPN), "show", self.interfaces[side])

    def status(self, side: int) -> dict[str, Any]:
        node, interface = self.lab.nodes[side], self.interfaces[side]
        status: dict[str, Any] = json.loads(node.run(str(EBPFVPN), "show", "--json", interface))
        return status


def down(node: Node, interface: str) -> None:
    """Takes the interface down, if anything of it is there. Raises LabError if that fails."""
    pins, socket = PINS / interface, Path("/run/ebpfvpn", f"{interface}.sock")
    if not (pins.exists() or socket.exists()):
        return
    with contextlib.suppress(LabError):
        node.run(str(EBPFVPN), "down", interface)
    if pins.exists():
        raise LabError(f"{pins} is still there: remove it with rm -r")
