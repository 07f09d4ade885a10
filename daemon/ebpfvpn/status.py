"""What the daemon tells of itself, for `show`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, cast

from ebpfvpn import keys
from ebpfvpn.datapath import SessionState, Traffic
from ebpfvpn.peer import NO_TRAFFIC
from ebpfvpn.show import DatapathStatus, PeerStatus, SessionStatus, Status

if TYPE_CHECKING:
    from ebpfvpn.daemon import Daemon


def of(daemon: Daemon) -> Status:
    """Of a running daemon; without secrets."""
    traffic = daemon.datapath.traffic()
    sessions = {session.local_index: session for session in daemon.datapath.sessions()}
    return {
        "interface": daemon.config.name,
        "public_key": keys.encode_key(daemon.device.public_key),
        "listen_port": daemon.interface.udp.port,
        "fwmark": daemon.interface.fwmark,
        "mtu": daemon.interface.mtu,
        "pid": os.getpid(),
        "datapath": cast(DatapathStatus, daemon.datapath.describe()),
        "peers": [
            _peer(daemon, number, traffic.get(number, NO_TRAFFIC), sessions)
            for number in range(len(daemon.config.peers))
        ],
        "drops": daemon.datapath.drops(),
        "refused": dict(daemon.device.refused),
        "daemon": dict(daemon.counters) | {"staged_dropped": daemon.staged.dropped},
    }


def _peer(
    daemon: Daemon, number: int, traffic: Traffic, sessions: dict[int, SessionState]
) -> PeerStatus:
    config = daemon.config.peers[number]
    state = daemon.device.status(number)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    found: list[SessionStatus] = []
    for name in ("previous", "current", "next"):
        keypair = getattr(state, name)
        if keypair is not None:
            session = sessions.get(keypair.local_index)
            found.append(
                {
                    "local_index": keypair.local_index,
                    "role": "initiator" if keypair.initiator else "responder",
                    "state": name,
                    "age": round(now - keypair.created, 3),
                    "send_counter": session.send_counter if session else 0,
                }
            )
    handshake = state.latest_handshake
    return {
        "public_key": keys.encode_key(config.public_key),
        "endpoint": str(state.endpoint) if state.endpoint else None,
        "allowed_ips": [str(network) for network in config.allowed_ips],
        "latest_handshake": None if handshake is None else int(time.time() - now + handshake),
        "rx_bytes": traffic.rx_bytes,
        "tx_bytes": traffic.tx_bytes,
        "rx_packets": traffic.rx_packets,
        "tx_packets": traffic.tx_packets,
        "late": traffic.late,
        "replayed": traffic.replayed,
        "max_lateness": traffic.max_lateness,
        "persistent_keepalive": config.persistent_keepalive,
        "sessions": found,
    }
