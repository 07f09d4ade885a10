"""What several of these tests need."""

from __future__ import annotations

from pathlib import Path

import pytest

from ebpfvpn import control, show

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
OTHER_KEY = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /run/ebpfvpn; not made yet."""
    monkeypatch.setattr(control, "RUN_DIRECTORY", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def status() -> show.Status:
    """As a daemon would report it."""
    name = "wg7"
    return {
        "interface": name,
        "public_key": "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
        "listen_port": 51820,
        "fwmark": 0xCA6C,
        "mtu": 1420,
        "sockets": {"send_buffer": 106496, "recv_buffer": 4 << 20},
        "tx_queue_length": 1000,
        "pid": 4321,
        "started": 99.5,
        "file": f"/etc/ebpfvpn/{name}.conf",
        "datapath": {
            "path": "kernel",
            "reason": "first choice",
            "devices": [
                {
                    "name": "eth7",
                    "open": "tc",
                    "seal": "tc",
                    "spread": 0,
                    "reason": "MTU 9001 is above 3498",
                },
                {
                    "name": "eth8",
                    "open": "native",
                    "seal": "xdp",
                    "spread": 4,
                    "reason": "first choice",
                },
            ],
            "pins": f"/sys/fs/bpf/ebpfvpn/{name}",
        },
        "peers": [
            {
                "public_key": KEY,
                "endpoint": "[2001:db8::7]:51820",
                "allowed_ips": ["10.0.0.0/24", "fd00::/64"],
                "latest_handshake": 1_000_000,
                "rx_bytes": 1023,
                "tx_bytes": 3 << 20,
                "rx_packets": 7,
                "tx_packets": 2400,
                "late": 3,
                "replayed": 12,
                "max_lateness": 9120,
                "persistent_keepalive": 25,
                "flow_ports": 4,
                "sessions": [
                    {
                        "local_index": 305419896,
                        "role": "initiator",
                        "state": "current",
                        "age": 63.9,
                        "send_counter": 2400,
                    }
                ],
            },
            {
                "public_key": OTHER_KEY,
                "endpoint": None,
                "allowed_ips": [],
                "latest_handshake": None,
                "rx_bytes": 0,
                "tx_bytes": 0,
                "rx_packets": 0,
                "tx_packets": 0,
                "late": 0,
                "replayed": 0,
                "max_lateness": 0,
                "persistent_keepalive": 0,
                "flow_ports": 1,
                "sessions": [],
            },
        ],
        "drops": {"bad_tag": 2, "replayed": 0, "pass_no_usable_session": 1, "lost_in_tun": 9},
        "refused": {"bad_mac1": 0},
        "daemon": {"queued_packets": 5},
    }
