"""The status of a running interface: what the daemon reports, and its text for people.

The text follows `wg show`. Secrets are never part of a status.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NotRequired, TypedDict


class DeviceStatus(TypedDict):
    name: str
    open: str
    """How `open` is attached: native, generic or tc."""
    seal: str
    """How sealed packets leave: xdp or tc."""
    spread: int
    """Among how many CPUs messages are shared out while many come; 0: whichever they arrive at
    opens them."""
    reason: str
    """Why so."""


class DatapathStatus(TypedDict):
    path: str
    """"kernel" or "userspace"."""
    reason: str
    devices: list[DeviceStatus]
    pins: NotRequired[str]
    """Directory of the kernel path's pinned maps and programs."""


class SocketsStatus(TypedDict):
    """What the kernel granted, in bytes of each UDP socket."""

    send_buffer: int
    recv_buffer: int


class SessionStatus(TypedDict):
    local_index: int
    role: Literal["initiator", "responder"]
    state: str
    """previous, current, next or fading."""
    age: float
    """Seconds."""
    send_counter: int


class PeerStatus(TypedDict):
    public_key: str
    """Base64."""
    endpoint: str | None
    allowed_ips: list[str]
    latest_handshake: int | None
    """Seconds since 1970; None: never."""
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    late: int
    """Packets dropped, as they were behind the replay window."""
    replayed: int
    """Packets dropped, as they were seen already."""
    max_lateness: int
    """Packets that the latest one, accepted or not, was behind the newest."""
    persistent_keepalive: int
    """Seconds; 0: off."""
    flow_ports: int
    sessions: list[SessionStatus]


class Status(TypedDict):
    interface: str
    public_key: str
    """Base64."""
    listen_port: int
    fwmark: int
    """0: off."""
    mtu: int
    sockets: SocketsStatus
    tx_queue_length: int
    """Packets that may wait in the TUN device for the daemon."""
    pid: int
    started: float
    """When the daemon was, in seconds of CLOCK_BOOTTIME."""
    file: str
    """The configuration."""
    datapath: DatapathStatus
    peers: list[PeerStatus]
    drops: dict[str, int]
    """Packets by reason: of the datapath, and what the kernel lost behind and before it."""
    refused: dict[str, int]
    """Handshake messages by reason, of the protocol."""
    daemon: dict[str, int]
    """Other counters of the daemon."""


_PASS = "pass_"
"""Begins the reasons why a packet was not dropped but took another way."""


def text(status: Status, now: float) -> str:
    """For people; `now` is seconds since 1970. Ends with a newline."""
    lines = [*_interface(status)]
    for peer in status["peers"]:
        lines += ["", *_peer(peer, now)]
    passed = [name for name in status["drops"] if name.startswith(_PASS)]
    sections: dict[str, Mapping[str, int]] = {
        "drops": {name: n for name, n in status["drops"].items() if name not in passed},
        "handed on": {name.removeprefix(_PASS): status["drops"][name] for name in passed},
        "refused": status["refused"],
        "daemon": status["daemon"],
    }
    for title, counters in sections.items():
        shown = {name: count for name, count in counters.items() if count}
        if shown:
            lines += ["", f"{title}:"]
            lines += [f"  {name.replace('_', ' ')}: {count}" for name, count in shown.items()]
    return "\n".join(lines) + "\n"


def _interface(status: Status) -> Iterator[str]:
    datapath = status["datapath"]
    yield f"interface: {status['interface']}"
    yield f"  public key: {status['public_key']}"
    yield f"  listening port: {status['listen_port']}"
    if status["fwmark"]:
        yield f"  fwmark: {status['fwmark']:#x}"
    yield f"  mtu: {status['mtu']}"
    sockets = status["sockets"]
    sizes = f"send {_size(sockets['send_buffer'])}, receive {_size(sockets['recv_buffer'])}"
    yield f"  queues: {sizes}, TUN {status['tx_queue_length']} packets"
    yield f"  path: {datapath['path']}, {datapath['reason']} (process {status['pid']})"
    for device in datapath["devices"]:
        modes = f"open {device['open']}, seal {device['seal']}"
        if device["spread"]:
            modes += ", spread over CPUs when busy"
        yield f"    {device['name']}: {modes} ({device['reason']})"
    if "pins" in datapath:
        yield f"  maps: {datapath['pins']}"


def _peer(peer: PeerStatus, now: float) -> Iterator[str]:
    yield f"peer: {peer['public_key']}"
    if peer["endpoint"]:
        yield f"  endpoint: {peer['endpoint']}"
    yield f"  allowed ips: {', '.join(peer['allowed_ips']) or '(none)'}"
    if peer["latest_handshake"] is not None:
        yield f"  latest handshake: {_ago(int(now) - peer['latest_handshake'])}"
    if peer["rx_bytes"] or peer["tx_bytes"]:
        received = f"{_size(peer['rx_bytes'])} received ({peer['rx_packets']} packets)"
        sent = f"{_size(peer['tx_bytes'])} sent ({peer['tx_packets']} packets)"
        yield f"  transfer: {received}, {sent}"
    if peer["late"] or peer["replayed"] or peer["max_lateness"]:
        dropped = f"{peer['late']} late and {peer['replayed']} replayed dropped"
        yield f"  out of order: {dropped}, at most {peer['max_lateness']} packets behind"
    if peer["persistent_keepalive"]:
        yield f"  persistent keepalive: every {_duration(peer['persistent_keepalive'])}"
    if peer["flow_ports"] > 1:
        yield f"  flow ports: {peer['flow_ports']}"
    for session in peer["sessions"]:
        yield (
            f"  {session['state']} session: {session['local_index']}, {session['role']}, "
            f"{_duration(int(session['age']))} old, next counter {session['send_counter']}"
        )


def _ago(seconds: int) -> str:
    if seconds < 0:
        return "in the future: the system clock was set back"
    return "now" if seconds == 0 else f"{_duration(seconds)} ago"


def _duration(seconds: int) -> str:
    """As `wg show`: every unit that is not zero, "1 minute, 3 seconds"."""
    parts = []
    for unit, length in (("year", 31536000), ("day", 86400), ("hour", 3600), ("minute", 60)):
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {unit}{'s' if count > 1 else ''}")
    if seconds or not parts:
        parts.append(f"{seconds} second{'' if seconds == 1 else 's'}")
    return ", ".join(parts)


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.2f} {unit}"
    return f"{size / 1024:.2f} TiB"
