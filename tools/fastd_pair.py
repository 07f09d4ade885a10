"""A fastd tunnel between the two nodes of a lab: Debian's fastd 22, layer 3, in user space.

Of its methods salsa2012+umac is the one that its manual recommends, and the fastest that encrypts:
Salsa20 of 12 rounds (256 bits of key) and 16 bytes of UMAC. ChaCha20-Poly1305 and AES-GCM it does
not have; salsa20+poly1305 is the next of kin, and slower.
"""

from __future__ import annotations

import re

from foreground import Foreground, reaches
from lab import Lab, run
from way import INSIDE, Way

METHOD = "salsa2012+umac"
PORT = 51825
INTERFACE = "fastd0"


class FastdPair:
    """`up` brings up both ends; the lab takes them down."""

    addresses = INSIDE

    def __init__(self, lab: Lab, mtu: int) -> None:
        self.lab = lab
        self.mtu = mtu
        self.daemons: list[Foreground] = []

    def up(self) -> Way:
        keys = [_genkey(), _genkey()]
        for side in (0, 1):
            path = self.lab.directory / f"fastd-{'lr'[side]}.conf"
            path.touch(mode=0o600)
            path.write_text(self._config(side, keys[side][0], keys[1 - side][1]))
            log = self.lab.directory / f"fastd-{'lr'[side]}.log"
            # It logs to standard error alone, or to syslog.
            argv = ("sh", "-c", f"exec fastd --config {path} 2>{log}")
            self.daemons.append(
                Foreground(self.lab, self.lab.nodes[side], log, *argv, name="fastd")
            )
        left = self.daemons[0]
        left.wait_for(lambda: reaches(self.lab.left, INSIDE[1]), 15, "an answer to a ping")
        return Way(INSIDE, (INTERFACE, INTERFACE))

    def _config(self, side: int, secret: str, public: str) -> str:
        # One end alone begins: where both do, each may end up with the other handshake's key.
        remote = f"remote {self.lab.right.address}:{PORT};" if side == 0 else ""
        address = f"ip address add {INSIDE[side]}/24 dev {INTERFACE}"
        return f"""
log level verbose;
mode tun;
interface "{INTERFACE}";
method "{METHOD}";
mtu {self.mtu};
bind {self.lab.nodes[side].address}:{PORT};
secret "{secret}";
on up "{address} && ip link set {INTERFACE} up";
peer "other" {{
	key "{public}";
	{remote}
}}
"""


def _genkey() -> tuple[str, str]:
    """A secret and its public key, hexadecimal."""
    text = run(["fastd", "--generate-key"])
    found = dict(re.findall(r"^(\w+): ([0-9a-f]{64})$", text, re.MULTILINE))
    return found["Secret"], found["Public"]
