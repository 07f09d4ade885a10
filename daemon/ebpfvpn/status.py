"""What the daemon tells of itself, for `show`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, cast

from ebpfvpn import clock, keys
from ebpfvpn.datapath import SessionState, Traffic
from ebpfvpn.peer import NO_TRAFFIC
from ebpfvpn.show import DatapathStatus, PeerStatus, SessionStatus, Status

if TYPE_CHECKING:
    from ebpfvpn.daemon import Daemon


def of(daemon: Daemon) -> Status:
    """Of a running daemon; without secrets."""
    traffic = daemon.datapath.traffic()
    sessions = {state.session.local_index: state for state in daemon.datapath.sessions()}
    send_buffer, recv_buffer = daemon.interface.udp.granted()
    queue = daemon.interface.netlink.queue(daemon.interface.tun.ifindex)
    return {
        "interface": daemon.config.name,
        "public_key": keys.encode_key(daemon.device.public_key),
        "listen_port": daemon.interface.udp.port,
        "fwmark": daemon.interface.fwmark,
        "mtu": daemon.interface.mtu,
        "sockets": {"send_buffer": send_buffer, "recv_buffer": recv_buffer},
        "tx_queue_length": queue.length,
        "pid": os.getpid(),
        "started": round(daemon.started, 3),
        "file": str(daemon.config.path),
        "datapath": cast(DatapathStatus, daemon.datapath.describe()),
        "peers": [
            _peer(daemon, number, traffic.get(number, NO_TRAFFIC), sessions)
            for number in daemon.interface.peers
        ],
        "drops": daemon.interface.losses.drops(queue),
        "refused": dict(daemon.device.refused),
        "daemon": {
            **daemon.counters,
            **daemon.datapath.counters,
            "staged_dropped": daemon.staged.dropped,
        },
    }


def _peer(
    daemon: Daemon, number: int, traffic: Traffic, sessions: dict[int, SessionState]
) -> PeerStatus:
    config = daemon.interface.peers[number]
    state = daemon.device.status(number)
    now = clock.now()
    found: list[SessionStatus] = []
    kept = [("previous", state.previous), ("current", state.current), ("next", state.next)]
    for name, session in [*kept, *(("fading", session) for session in state.fading)]:
        if session is not None:
            seen = sessions.get(session.local_index)
            found.append(
                {
                    "local_index": session.local_index,
                    "role": "initiator" if session.initiator else "responder",
                    "state": name,
                    "age": round(now - session.created, 3),
                    "send_counter": seen.send_counter if seen else 0,
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
        "flow_ports": config.flow_ports,
        "sessions": found,
    }
