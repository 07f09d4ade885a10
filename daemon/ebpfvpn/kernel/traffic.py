"""A peer's figures, as ebpf/traffic.h counts them in the map `peers`."""

from __future__ import annotations

from ebpfvpn.datapath import Traffic
from ebpfvpn.kernel import layout
from ebpfvpn.kernel.sessions import NANOSECONDS


def of(value: bytes) -> Traffic:
    peer = layout.Peer.from_buffer_copy(value)
    return Traffic(
        tx_packets=peer.tx_packets,
        tx_bytes=peer.tx_bytes,
        rx_packets=peer.rx_packets,
        rx_bytes=peer.rx_bytes,
        last_sent=peer.last_sent / NANOSECONDS,
        last_data_sent=peer.last_data_sent / NANOSECONDS,
        last_received=peer.last_received / NANOSECONDS,
        last_data_received=peer.last_data_received / NANOSECONDS,
        unanswered_since=peer.unanswered_since / NANOSECONDS,
        unacknowledged_since=peer.unacknowledged_since / NANOSECONDS,
        replayed=peer.replayed,
        late=peer.late,
        max_lateness=peer.max_lateness,
    )
