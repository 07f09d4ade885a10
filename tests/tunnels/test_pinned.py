"""What bpftool shows of a running tunnel."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

from ebpfvpn import keys
from ebpfvpn.userspace.datapath import OWN_REASONS
from echo import ping
from tunnels.nodes import INNER, INNER6, OUTER, PORT, pair

COUNTED_ELSEWHERE = {
    "daemon_send_failed",
    "lost_in_segmenter",
    "lost_in_socket",
    "lost_in_stack",
    "lost_in_tun",
    *OWN_REASONS,
}
"""Not by the programs."""
BPFTOOL = shutil.which("bpftool", path="/usr/sbin:/sbin:/usr/bin") or "bpftool"


def dump(path: Path) -> list[dict[str, Any]]:
    """Entries of a pinned map, by field name and raw."""
    done = subprocess.run(
        [BPFTOOL, "-j", "map", "dump", "pinned", str(path)], capture_output=True, check=True
    )
    entries: list[dict[str, Any]] = json.loads(done.stdout)
    return entries


def formatted(path: Path) -> list[Any]:
    return [entry["formatted"]["value"] for entry in dump(path)]


def raw(path: Path) -> bytes:
    """All values of all entries, one after the other."""
    found = b""
    for entry in dump(path):
        for value in (
            [entry["value"]] if "value" in entry else [v["value"] for v in entry["values"]]
        ):
            found += bytes(int(byte, 16) for byte in value) + b"|"
    return found


def test_maps_show_fields_by_name_and_keys_in_one_place_only() -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1], 5) == 5
        status = one.show()
        (session,) = status["peers"][0]["sessions"]
        pins = Path(status["datapath"]["pins"])
        assert pins == one.pins
        assert stat.S_IMODE(os.stat(pins).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(pins.parent).st_mode) == 0o700

        (peer,) = formatted(pins / "peers")
        assert bytes(peer["public_key"]) == keys.decode_key(other.public_key)
        assert peer["current"] == session["local_index"]
        assert peer["usable"] == 1
        assert peer["tx_packets"] == status["peers"][0]["tx_packets"] >= 5
        assert peer["rx_bytes"] == status["peers"][0]["rx_bytes"] > 0

        (entry,) = dump(pins / "sessions")
        assert entry["formatted"]["key"] == session["local_index"]
        value = entry["formatted"]["value"]
        assert value["send_counter"] == session["send_counter"] >= 5
        assert value["initiator"] == 1
        assert value["receive_highest"] >= 5

        (endpoint,) = formatted(pins / "endpoints")
        assert bytes(endpoint["remote"])[-4:] == bytes(map(int, OUTER[1].split(".")))
        assert endpoint["remote_port"].to_bytes(2, "little") == PORT.to_bytes(2, "big")

        (config,) = formatted(pins / "config")
        assert config["mtu"] == status["mtu"]
        assert config["tun_ifindex"] == one.ns.ifindex(one.name)

        (per_cpu,) = dump(pins / "drops")
        drops = per_cpu["formatted"]["values"][0]["value"]
        assert set(drops) == set(status["drops"]) - COUNTED_ELSEWHERE
        assert len(formatted(pins / "routes")) == 1
        assert len(dump(pins / "allowed_ips4")) == 1
        assert len(dump(pins / "allowed_ips6")) == 1

        (secret,) = formatted(pins / "keys")
        secrets = [bytes(secret["send"]), bytes(secret["receive"])]
        assert all(len(set(key)) > 8 for key in secrets)
        secrets.append(keys.decode_key(one.private_key))
        readable = [path for path in pins.iterdir() if is_readable_map(path)]
        assert {path.name for path in readable} >= {"peers", "sessions", "endpoints", "windows"}
        for path in readable:
            if path.name != "keys":
                held = raw(path)
                assert not any(key in held for key in secrets), path.name
        assert ping(one.ns, INNER6[1]) == 3


def is_readable_map(path: Path) -> bool:
    """A map that has values to look at: no ring buffer, no map of programs."""
    shown = subprocess.run(
        [BPFTOOL, "-j", "map", "show", "pinned", str(path)], capture_output=True, text=True
    )
    if shown.returncode != 0:
        return False
    return json.loads(shown.stdout)["type"] in ("array", "percpu_array", "hash", "lpm_trie")


def test_keys_are_not_left_in_files_or_arguments() -> None:
    with pair() as (one, _):
        assert ping(one.ns, INNER[1]) == 3
        for pid in one.processes():
            for part in ("cmdline", "environ"):
                assert one.private_key.encode() not in Path(f"/proc/{pid}/{part}").read_bytes()
        assert one.private_key not in one.log()
        assert one.private_key not in json.dumps(one.show())
