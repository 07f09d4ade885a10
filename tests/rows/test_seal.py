"""Sealing, row by row: a frame on the segmenter, what becomes of it, what is counted. Every row
runs through the XDP and the tc program; what they make is compared with packets built from the
RFCs, checksums included."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ebpfvpn.kernel.layout import EVENT_MESSAGES_USED, ROUTE_NEIGHBOUR, ROUTE_XDP
from ebpfvpn.wire import REJECT_AFTER_MESSAGES
from rows import packets
from rows.packets import HERE, THERE, ethernet, ipv4, ipv6, pad
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    LOCAL_INDEX,
    MARK,
    MTU,
    OUR_ADDRESS,
    PEER,
    PEER_ADDRESS,
    PEER_PORT,
    PORT,
    REMOTE_INDEX,
    SEND_KEY,
    Tunnel,
    Verdict,
    marked,
    now,
    retval,
)

HOOKS = ("seal_xdp", "seal_tc")
TC_ACT_OK = 0
DATA = bytes(range(1, 102))
KEEPALIVE = marked(PEER, bytes(20), keepalive=True, ethertype=0x0800)


def inner(version: int, data: bytes = DATA, *, tos: int = 0) -> bytes:
    """What we send through the tunnel."""
    text = packets.udp(INNER_HERE[version], 1234, INNER_THERE[version], 5678, data)
    return packets.ip(INNER_HERE[version], INNER_THERE[version], text, tos=tos)


def sealed(
    text: bytes, version: int = 4, *, counter: int = 0, ecn: int = 0, receiver: int = REMOTE_INDEX
) -> bytes:
    """The outer IP packet that leaves; `text` with its padding."""
    remote, local = PEER_ADDRESS[version], OUR_ADDRESS[version]
    message = packets.data_message(SEND_KEY, receiver, counter, text)
    datagram = packets.udp(local, PORT, remote, PEER_PORT, message)
    if version == 4:
        return ipv4(local, remote, datagram, tos=ecn, identification=counter % 65536)
    return ipv6(local, remote, datagram, traffic_class=ecn)


def ready(version: int) -> Callable[[Tunnel], object]:
    """With an endpoint and a route over IPv4 or IPv6."""

    def prepare(tunnel: Tunnel) -> None:
        tunnel.set_endpoint(version)
        tunnel.set_route(version)

    return prepare


OVER_IPV4 = ready(4)


def then(*steps: Callable[[Tunnel], object]) -> Callable[[Tunnel], object]:
    return lambda tunnel: [step(tunnel) for step in steps]


@dataclass(frozen=True, slots=True)
class Row:
    description: str
    frame: bytes
    verdict: Verdict
    out: bytes | None = None
    """The outer IP packet."""
    counted: str | None = None
    before: Callable[[Tunnel], object] = OVER_IPV4
    hooks: tuple[str, ...] = HOOKS


def goes(description: str, frame: bytes, out: bytes, version: int = 4) -> Row:
    return Row(description, frame, Verdict.GO, out, before=ready(version))


def drops(
    description: str,
    frame: bytes,
    counted: str,
    before: Callable[[Tunnel], object] = OVER_IPV4,
) -> Row:
    return Row(description, frame, Verdict.DROP, None, counted, before)


def check(tunnel: Tunnel, hook: str, row: Row) -> None:
    row.before(tunnel)
    first = tunnel.session().send_counter
    result = tunnel.run(hook, row.frame)
    counted = {row.counted: 1} if row.counted else {}
    assert (result.retval, tunnel.counted()) == (retval(hook, row.verdict), counted)
    if row.verdict is Verdict.GO:
        assert row.out is not None
        assert result.data[14:] == row.out
        if hook == "seal_xdp":  # in tc, the kernel writes it
            assert result.data[:14] == ethernet(row.out, destination=THERE, source=HERE)[:14]
        assert tunnel.session().send_counter == first + 1
    else:
        assert tunnel.session().send_counter == first
        assert tunnel.peer().tx_packets == 0
    if row.verdict is Verdict.PASS:
        assert result.data == row.frame


def parametrize(rows: list[Row]) -> pytest.MarkDecorator:
    cases = [
        pytest.param(hook, row, id=f"{row.description}-{hook}")
        for row in rows
        for hook in row.hooks
    ]
    return pytest.mark.parametrize(("hook", "row"), cases)


def sized(length: int, version: int = 4) -> bytes:
    """An inner packet of so many bytes."""
    return inner(version, bytes(i % 251 for i in range(length - len(inner(version, b"")))))


SENT = [
    *(
        goes(f"IPv{inside} in IPv{outside}", marked(PEER, inner(inside)),
             sealed(pad(inner(inside)), outside), outside)
        for inside in (4, 6)
        for outside in (4, 6)
    ),
    *(
        goes(f"a keepalive over IPv{version}", KEEPALIVE,
             sealed(b"", version), version)
        for version in (4, 6)
    ),
    *(
        goes(f"padding of {length} bytes", marked(PEER, sized(length)), sealed(pad(sized(length))))
        for length in range(96, 113)
    ),
    *(
        goes(f"{length} bytes in an MTU of {MTU}", marked(PEER, sized(length)),
             sealed(sized(length) + bytes(MTU - length)))
        for length in (MTU - 11, MTU - 1, MTU)
    ),
    goes(f"no padding below an MTU of {MTU}", marked(PEER, sized(MTU - 12)),
         sealed(sized(MTU - 12))),
    goes("above the MTU", marked(PEER, sized(MTU + 1)), sealed(pad(sized(MTU + 1)))),
    goes("the longest that a test run takes", marked(PEER, sized(3400)), sealed(pad(sized(3400)))),
    goes("a header alone", marked(PEER, ipv4("10.1.0.1", "10.5.0.9")),
         sealed(pad(ipv4("10.1.0.1", "10.5.0.9")))),
    goes("an IPv6 header alone", marked(PEER, ipv6("fd01::1", "fd05::9")),
         sealed(pad(ipv6("fd01::1", "fd05::9")), 6), 6),
    *(
        goes(f"{rest} bytes behind the inner packet", marked(PEER, inner(4) + b"\xee" * rest),
             sealed(pad(inner(4))))
        for rest in (1, 15, 16, 17, 32, 33, 100)
    ),
    goes("an outer IPv6 packet, bytes behind the inner one", marked(PEER, inner(6) + b"\xee" * 40),
         sealed(pad(inner(6)), 6), 6),
    *(
        goes(f"ECN {ecn}, inner IPv{inside}, outer IPv{outside}",
             marked(PEER, inner(inside, tos=0x2E << 2 | ecn)),
             sealed(pad(inner(inside, tos=0x2E << 2 | ecn)), outside, ecn=ecn), outside)
        for ecn in range(4)
        for inside in (4, 6)
        for outside in (4, 6)
    ),
]  # fmt: skip


@parametrize(SENT)
def test_sent(tunnel: Tunnel, hook: str, row: Row) -> None:
    check(tunnel, hook, row)


def lose(name: str, key: int) -> Callable[[Tunnel], object]:
    return lambda tunnel: tunnel.loaded.maps[name].delete(key.to_bytes(4, "little"))


def change(**fields: int) -> Callable[[Tunnel], object]:
    return lambda tunnel: tunnel.change_session(**fields)


FRAME = marked(PEER, inner(4))
TOO_LONG = inner(4)[:2] + struct.pack("!H", len(inner(4)) + 1) + inner(4)[4:]

DROPPED = [
    drops("not our mark", marked(PEER, inner(4), mark=MARK[:5] + b"\xff"), "malformed_frame"),
    *(
        drops(f"IP version {version}",
              marked(PEER, bytes([version << 4 | 5]) + inner(4)[1:], ethertype=0x0800),
              "malformed_frame")
        for version in (0, 5, 7)
    ),
    drops("a length above the frame's", marked(PEER, TOO_LONG), "malformed_frame"),
    drops("a length below the header's", marked(PEER, inner(4)[:2] + b"\0\x13" + inner(4)[4:]),
          "malformed_frame"),
    drops("an IPv6 length above the frame's", marked(PEER, inner(6)[:-1]), "malformed_frame"),
    drops("an unknown peer", marked(PEER + 10, inner(4)), "no_session"),
    drops("a peer without a session", FRAME, "no_session",
          then(OVER_IPV4, lambda tunnel: tunnel.change_peer(current=0))),
    drops("a session whose keys are gone", FRAME, "no_session",
          then(OVER_IPV4, lose("keys", LOCAL_INDEX))),
    drops("a session past its time", FRAME, "expired_send", then(OVER_IPV4, change(expires=1))),
    drops("a keepalive on a session past its time", KEEPALIVE,
          "expired_send", then(OVER_IPV4, change(expires=1))),
    drops("no counter left", FRAME, "expired_send",
          then(OVER_IPV4, change(send_counter=REJECT_AFTER_MESSAGES))),
    drops("no counter left below a limit of the daemon's", FRAME, "expired_send",
          then(OVER_IPV4, change(send_counter=10, send_limit=10))),
    drops("no endpoint", FRAME, "no_endpoint", then(OVER_IPV4, lose("endpoints", PEER))),
    Row("neither a route nor a device", FRAME, Verdict.DROP, None, "no_route",
        lambda tunnel: tunnel.set_endpoint(4, ifindex=0), ("seal_tc",)),
    drops("an endpoint without a port", FRAME, "no_endpoint",
          then(OVER_IPV4, lambda tunnel: tunnel.set_endpoint(4, port=0))),
]  # fmt: skip


@parametrize(DROPPED)
def test_dropped(tunnel: Tunnel, hook: str, row: Row) -> None:
    check(tunnel, hook, row)


def test_dropped_when_the_session_is_gone(tunnel: Tunnel) -> None:
    OVER_IPV4(tunnel)
    lose("sessions", LOCAL_INDEX)(tunnel)
    for times, hook in enumerate(HOOKS, 1):
        assert tunnel.run(hook, FRAME).retval == retval(hook, Verdict.DROP)
        assert tunnel.counted() == {"no_session": times}


def left_to_tc(description: str, before: Callable[[Tunnel], object], frame: bytes = FRAME) -> Row:
    return Row(description, frame, Verdict.PASS, None, "pass_seal_in_tc", before, ("seal_xdp",))


LEFT_TO_TC = [
    left_to_tc("no route", lambda tunnel: tunnel.set_endpoint(4)),
    left_to_tc("a route of the other family",
               then(ready(6), lambda tunnel: tunnel.set_endpoint(4))),
    left_to_tc("a device that takes no redirected frames",
               lambda tunnel: tunnel.set_route(4, flags=ROUTE_NEIGHBOUR)),
    left_to_tc("a neighbour that is not resolved",
               lambda tunnel: tunnel.set_route(4, flags=ROUTE_XDP)),
    left_to_tc("no room behind the packet", OVER_IPV4, marked(PEER, sized(3500))),
]  # fmt: skip


@parametrize(LEFT_TO_TC)
def test_left_to_tc(tunnel: Tunnel, hook: str, row: Row) -> None:
    check(tunnel, hook, row)
    # And there it goes, also without a route.
    result = tunnel.run("seal_tc", row.frame)
    assert result.retval == retval("seal_tc", Verdict.GO)
    length = struct.unpack_from("!H", row.frame, 16)[0]
    assert result.data[14:] == sealed(pad(row.frame[14 : 14 + length]))


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("start", [2**16 - 2, 2**32 - 2, REJECT_AFTER_MESSAGES - 4])
def test_counters_on_their_way_up(tunnel: Tunnel, hook: str, start: int) -> None:
    OVER_IPV4(tunnel)
    tunnel.change_session(send_counter=start)
    for counter in range(start, start + 4):
        assert tunnel.run(hook, FRAME).data[14:] == sealed(pad(inner(4)), counter=counter)


@pytest.mark.parametrize("hook", HOOKS)
def test_no_counter_beyond_the_limit(tunnel: Tunnel, hook: str) -> None:
    OVER_IPV4(tunnel)
    last = REJECT_AFTER_MESSAGES - 1
    tunnel.change_session(send_counter=last)
    assert tunnel.run(hook, FRAME).data[14:] == sealed(pad(inner(4)), counter=last)
    for refused in range(1, 6):
        assert tunnel.run(hook, FRAME).retval == retval(hook, Verdict.DROP)
        assert tunnel.counted() == {"expired_send": refused}
    assert tunnel.session().send_counter == REJECT_AFTER_MESSAGES


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
def test_udp_checksum_of_zero_is_sent_as_ones(tunnel: Tunnel, hook: str, version: int) -> None:
    # The receiver index is summed up but not encrypted, so that it can be chosen for the sum.
    ready(version)(tunnel)
    at = {4: 26, 6: 46}[version]
    (check,) = struct.unpack_from("!H", sealed(pad(inner(4)), version, receiver=0), at)
    receiver = int.from_bytes(struct.pack("!H", check), "little")
    tunnel.change_session(remote_index=receiver)
    expected = sealed(pad(inner(4)), version, receiver=receiver)
    assert expected[at : at + 2] == b"\xff\xff"
    assert tunnel.run(hook, FRAME).data[14:] == expected


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
def test_checksums_of_many_packets(tunnel: Tunnel, hook: str, version: int) -> None:
    ready(version)(tunnel)
    for counter in range(500):
        packet = sized(60 + counter)
        result = tunnel.run(hook, marked(PEER, packet))
        padded = pad(packet)[:MTU]
        assert result.data[14:] == sealed(padded, version, counter=counter)


@pytest.mark.parametrize("hook", HOOKS)
def test_traffic(tunnel: Tunnel, hook: str) -> None:
    OVER_IPV4(tunnel)
    start = now()
    tunnel.change_peer(unacknowledged_since=start)
    tunnel.run(hook, KEEPALIVE)
    keepalive = tunnel.peer()
    assert (keepalive.tx_packets, keepalive.tx_bytes) == (1, 32)
    assert start < keepalive.last_sent < now()
    assert (keepalive.unacknowledged_since, keepalive.last_data_sent) == (0, 0)
    assert keepalive.unanswered_since == 0

    tunnel.run(hook, FRAME)
    first = tunnel.peer()
    assert (first.tx_packets, first.tx_bytes) == (2, 32 + 32 + len(pad(inner(4))))
    assert first.last_data_sent == first.last_sent > keepalive.last_sent
    assert first.unanswered_since == first.last_data_sent

    tunnel.run(hook, FRAME)
    second = tunnel.peer()
    assert second.last_data_sent > first.last_data_sent
    assert second.unanswered_since == first.unanswered_since
    assert (second.rx_packets, second.rx_bytes, second.last_received) == (0, 0, 0)


@pytest.mark.parametrize("seal", HOOKS)
@pytest.mark.parametrize("open_", ["open_xdp", "open_tc"])
@pytest.mark.parametrize("length", [20, 21, 79, 80, 81, 1419, 1420, 2900])
def test_sealed_here_opened_there(tunnel: Tunnel, seal: str, open_: str, length: int) -> None:
    OVER_IPV4(tunnel)
    tunnel.install(LOCAL_INDEX, receive_key=SEND_KEY, remote_index=LOCAL_INDEX)
    packet = ipv4(INNER_THERE[4], INNER_HERE[4], bytes(length - 20))
    frame = bytearray(tunnel.run(seal, marked(PEER, packet)).data)
    frame[12:14] = b"\x08\0"
    frame[36:38] = struct.pack("!H", PORT)
    assert tunnel.run(open_, bytes(frame)).data[14:] == packet


@pytest.mark.parametrize("version", [4, 6])
def test_too_long_for_the_way(tunnel: Tunnel, version: int) -> None:
    """Sealed all the same, and left to the daemon's packet socket: the stack drops it by its MAC
    address. The packet that just fits goes."""
    wanted = sealed(pad(sized(112)), version)
    tunnel.set_endpoint(version)
    tunnel.set_route(version, mtu=len(wanted) - 1)
    frame = marked(PEER, sized(112))
    assert tunnel.run("seal_xdp", frame).retval == retval("seal_xdp", Verdict.PASS)
    assert tunnel.counted() == {"pass_seal_in_tc": 1}
    result = tunnel.run("seal_tc", frame)
    assert (result.retval, result.data[14:]) == (TC_ACT_OK, wanted)
    assert tunnel.counted() == {"pass_seal_in_tc": 1, "pass_too_long": 1}
    tunnel.set_route(version, mtu=len(wanted))
    for hook in HOOKS:
        assert tunnel.run(hook, frame).retval == retval(hook, Verdict.GO)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_daemon_is_told_once_that_messages_are_used(tunnel: Tunnel, hook: str) -> None:
    OVER_IPV4(tunnel)
    tunnel.change_session(rekey_at=3)
    told = [
        (tunnel.run(hook, marked(PEER, inner(4))).retval == retval(hook, Verdict.GO))
        and tunnel.events()
        for _ in range(6)
    ]
    assert told == [[], [], [], [(EVENT_MESSAGES_USED, PEER, LOCAL_INDEX)], [], []]
