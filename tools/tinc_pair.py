"""A tinc tunnel between the two nodes of a lab: Debian's tinc, whose version is 1.0.

tinc 1.0 encrypts every packet with the IV of its key, so AEADs have no place in it, and CTR and
ChaCha20, which it accepts, would repeat their keystream. That leaves CBC, for which it is made: a
packet begins with its number. AES-128 is the faster one that is safe, HMAC-SHA-256 the fastest MAC
where the processor has SHA instructions; 16 bytes of it are sent, as with an AEAD, not tinc's 4.
"""

from __future__ import annotations

from pathlib import Path

import udp
from foreground import Foreground, reaches
from lab import Lab
from way import INSIDE, SITES, Way

CIPHER = "aes-128-cbc"
DIGEST = "sha256"
MAC_LENGTH = 16
PORT = 51822
INTERFACE = "tinc0"
NAMES = ("left", "right")
_RSA_BITS = "2048"


class TincPair:
    """`up` brings up both ends; the lab takes them down."""

    addresses = INSIDE

    def __init__(self, lab: Lab, mtu: int) -> None:
        self.lab = lab
        self.mtu = mtu
        self.daemons: tuple[Foreground, ...] = ()

    def up(self) -> Way:
        for side in (0, 1):
            self._configure(side)
        for side in (0, 1):
            name = NAMES[side]
            public = (self._directory(side) / "hosts" / name).read_text()
            (self._directory(1 - side) / "hosts" / name).write_text(public)
            self._make_device(side)
        right = self._start(1)
        # A connection that is refused is tried again after 5 seconds.
        right.wait_for(lambda: "Ready" in right.log(), 5, "to be ready")
        left = self._start(0)
        self.daemons = (left, right)
        left.wait_for(self._carries_by_udp, 10, "a ping in a UDP datagram")
        return Way(INSIDE, (INTERFACE, INTERFACE))

    def _directory(self, side: int) -> Path:
        return self.lab.directory / f"tinc-{NAMES[side]}"

    def _configure(self, side: int) -> None:
        directory = self._directory(side)
        (directory / "hosts").mkdir(parents=True)
        lines = [f"Name = {NAMES[side]}", f"Interface = {INTERFACE}", "Mode = router"]
        lines += ["DeviceType = tun", "AddressFamily = ipv4"]
        if side == 0:
            lines.append(f"ConnectTo = {NAMES[1]}")
        (directory / "tinc.conf").write_text("\n".join(lines) + "\n")
        host = [
            f"Address = {self.lab.nodes[side].address}",
            f"Port = {PORT}",
            f"Subnet = {self.addresses[side]}/32",
            f"Subnet = {SITES[side]}",
            f"Cipher = {CIPHER}",
            f"Digest = {DIGEST}",
            f"MACLength = {MAC_LENGTH}",
            "Compression = 0",
            # The device's MTU fits; until it is discovered, packets would go through TCP.
            "PMTUDiscovery = no",
        ]
        (directory / "hosts" / NAMES[side]).write_text("\n".join(host) + "\n")
        # Writes the private key into the directory, the public one to the end of the host's file.
        self.lab.nodes[side].run("tincd", f"--config={directory}", f"--generate-keys={_RSA_BITS}")

    def _make_device(self, side: int) -> None:
        node = self.lab.nodes[side]
        node.run("ip", "tuntap", "add", "dev", INTERFACE, "mode", "tun")
        node.run("ip", "address", "add", f"{self.addresses[side]}/24", "dev", INTERFACE)
        node.run("ip", "link", "set", INTERFACE, "mtu", str(self.mtu), "up")

    def _start(self, side: int) -> Foreground:
        directory = self._directory(side)
        log = directory / "log"
        options = (f"--config={directory}", f"--pidfile={directory}/pid", f"--logfile={log}")
        return Foreground(self.lab, self.lab.nodes[side], log, "tincd", "--no-detach", *options)

    def _carries_by_udp(self) -> bool:
        """Before they have each other's keys, daemons carry packets through TCP."""
        before = udp.counters(self.daemons[1].pid)["InDatagrams"]
        if not reaches(self.lab.left, self.addresses[1]):
            return False
        return udp.counters(self.daemons[1].pid)["InDatagrams"] > before
