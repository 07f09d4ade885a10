"""A nebula tunnel between the two nodes of a lab: Debian's nebula 1.6. Either knows the other's
address, so there is no lighthouse. Cipher (its default), queues and routines are its defaults."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from foreground import Foreground, reaches
from lab import Lab, run
from way import INSIDE, SITES, Way

CIPHER = "AES-256-GCM"
PORT = 51824
INTERFACE = "nebula0"


class NebulaPair:
    """`up` brings up both ends; the lab takes them down."""

    addresses = INSIDE

    def __init__(self, lab: Lab, mtu: int) -> None:
        self.lab = lab
        self.mtu = mtu
        self.daemons: list[Foreground] = []

    def up(self) -> Way:
        authority = ["-ca-crt", str(self._path("ca.crt")), "-ca-key", str(self._path("ca.key"))]
        run(["nebula-cert", "ca", "-name", "bench", "-out-crt", authority[1], "-out-key",
             authority[3]])  # fmt: skip
        for side, node in enumerate(self.lab.nodes):
            name = "lr"[side]
            sign = ["nebula-cert", "sign", *authority, "-name", name]
            sign += ["-ip", f"{INSIDE[side]}/24", "-subnets", SITES[side]]
            sign += ["-out-crt", str(self._path(f"{name}.crt")), "-out-key"]
            run([*sign, str(self._path(f"{name}.key"))])
            config, log = self._path(f"{name}.yml"), self._path(f"{name}.log")
            config.write_text(self._config(side))
            # It logs to standard output alone.
            argv = ("sh", "-c", f"exec nebula -config {config} >{log}")
            self.daemons.append(Foreground(self.lab, node, log, *argv, name="nebula"))
        self.daemons[0].wait_for(
            partial(reaches, self.lab.left, INSIDE[1]), 15, "an answer to a ping"
        )
        return Way(INSIDE, (INTERFACE, INTERFACE))

    def _path(self, name: str) -> Path:
        return self.lab.directory / f"nebula-{name}"

    def _config(self, side: int) -> str:
        there, name = 1 - side, "lr"[side]
        certificate, key = self._path(f"{name}.crt"), self._path(f"{name}.key")
        return f"""
pki: {{ca: {self._path("ca.crt")}, cert: {certificate}, key: {key}}}
static_host_map: {{"{INSIDE[there]}": ["{self.lab.nodes[there].address}:{PORT}"]}}
lighthouse: {{am_lighthouse: false}}
listen: {{host: {self.lab.nodes[side].address}, port: {PORT}}}
punchy: {{punch: false}}
cipher: aes
tun:
  dev: {INTERFACE}
  mtu: {self.mtu}
  unsafe_routes: [{{route: {SITES[there]}, via: {INSIDE[there]}}}]
logging: {{level: info}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""
