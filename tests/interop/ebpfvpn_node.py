"""A node of ours in a network namespace: `ebpfvpn up`, `show` and `down`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from both_paths import in_userspace
from ebpfvpn.show import PeerStatus, Status
from lab import EBPFVPN
from netns import Namespace


class EbpfvpnNode:
    """One interface. `configuration` is a wg-quick file's text, which says nothing of a path. A
    context manager: brings the tunnel up on the way in and takes it down on the way out."""

    def __init__(self, ns: Namespace, interface: str, configuration: str) -> None:
        self.ns = ns
        self.interface = interface
        path = "#! Datapath = userspace\n" if in_userspace() else ""
        self.configuration = configuration.replace("[Interface]\n", f"[Interface]\n{path}")

    def __enter__(self) -> EbpfvpnNode:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        with tempfile.TemporaryDirectory() as directory:  # 0700, for the file holds keys
            path = Path(directory, f"{self.interface}.conf")
            path.touch(mode=0o600)
            path.write_text(self.configuration)
            # The daemon would keep a captured pipe open if it ever inherited one.
            errors = Path(directory, "errors")
            with errors.open("w") as file:
                code = subprocess.run(
                    self.ns.command(str(EBPFVPN), "up", str(path)), stderr=file, timeout=20
                ).returncode
            assert code == 0, errors.read_text()

    def stop(self) -> None:
        self.ns.run(str(EBPFVPN), "down", self.interface)

    def status(self) -> Status:
        status: Status = json.loads(self.ns.run(str(EBPFVPN), "show", "--json", self.interface))
        return status

    def peer(self, public_key: str) -> PeerStatus:
        """Of the status."""
        return next(p for p in self.status()["peers"] if p["public_key"] == public_key)


def nothing_failed(status: Status) -> None:
    """No packet was lost by what should never happen."""
    own = ("send_failed", "stack_refused") if in_userspace() else ("helper_failed",)
    for reason in ("bad_tag", "malformed_inner", "source_not_allowed", *own):
        assert status["drops"][reason] == 0, reason
