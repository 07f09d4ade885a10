"""An OpenVPN tunnel between the two nodes of a lab: Debian's OpenVPN 2.6, point to point over UDP,
without its kernel module. Either end knows the other by its certificate's fingerprint.

Of OpenVPN's ciphers AES-256-GCM is its first choice, and faster than ChaCha20-Poly1305 where the
processor has AES instructions. Buffers and queues are its defaults.
"""

from __future__ import annotations

from pathlib import Path

from foreground import Foreground, reaches
from lab import Lab, run
from way import INSIDE, Way

CIPHER = "AES-256-GCM"
PORT = 51823
INTERFACE = "ovpn0"


class OpenvpnPair:
    """`up` brings up both ends; the lab takes them down."""

    addresses = INSIDE

    def __init__(self, lab: Lab, mtu: int) -> None:
        self.lab = lab
        self.mtu = mtu
        self.daemons: list[Foreground] = []

    def up(self) -> Way:
        prints = [self._certify(side) for side in (0, 1)]
        for side in (0, 1):
            path = self._path(side, "conf")
            path.write_text(self._config(side, prints[1 - side]))
            argv = ("openvpn", "--config", str(path))
            node = self.lab.nodes[side]
            self.daemons.append(Foreground(self.lab, node, self._path(side, "log"), *argv))
        self.daemons[0].wait_for(
            lambda: reaches(self.lab.left, self.addresses[1]), 15, "an answer to a ping"
        )
        return Way(INSIDE, (INTERFACE, INTERFACE))

    def _path(self, side: int, suffix: str) -> Path:
        return self.lab.directory / f"openvpn-{'lr'[side]}.{suffix}"

    def _certify(self, side: int) -> str:
        """Makes key and certificate; returns the certificate's fingerprint."""
        key, certificate = str(self._path(side, "key")), str(self._path(side, "crt"))
        request = ["openssl", "req", "-x509", "-noenc", "-days", "1", "-subj", "/CN=bench"]
        request += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        run([*request, "-keyout", key, "-out", certificate])
        line = run(["openssl", "x509", "-in", certificate, "-noout", "-fingerprint", "-sha256"])
        return line.strip().partition("=")[2]

    def _config(self, side: int, fingerprint: str) -> str:
        there = 1 - side
        lines = [
            f"dev {INTERFACE}",
            "dev-type tun",
            f"ifconfig {self.addresses[side]} {self.addresses[there]}",
            f"tun-mtu {self.mtu}",
            "proto udp4",
            f"port {PORT}",
            f"remote {self.lab.nodes[there].address} {PORT}",
            "tls-client" if side == 0 else "tls-server",
            f"cert {self._path(side, 'crt')}",
            f"key {self._path(side, 'key')}",
            f"peer-fingerprint {fingerprint}",
            f"data-ciphers {CIPHER}",
            "disable-dco",
            "verb 2",  # tells the cipher in use
            f"log {self._path(side, 'log')}",
        ]
        if side == 1:
            lines.append("dh none")
        return "\n".join(lines) + "\n"
