"""Opening, row by row: what arrives, what becomes of it, what is counted. Every row runs through
the XDP and the tc program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ebpfvpn.kernel.layout import EVENT_CONFIRMED, EVENT_ROAMED
from ebpfvpn.wire import REJECT_AFTER_MESSAGES
from rows import packets
from rows.packets import ethernet, ipv4, ipv6, pad
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    LOCAL_INDEX,
    LOOPBACK,
    OTHER_PEER,
    OUR_ADDRESS,
    PEER,
    PEER_ADDRESS,
    PEER_PORT,
    PORT,
    SEND_KEY,
    TUN,
    Tunnel,
    Verdict,
    marked,
    message,
    now,
    outer,
    retval,
    sk_buff,
)

HOOKS = ("open_xdp", "open_tc")
DATA = bytes(range(1, 102))


def inner(version: int, data: bytes = DATA, *, tos: int = 0) -> bytes:
    """What the peer sends through the tunnel."""
    text = packets.udp(INNER_THERE[version], 1234, INNER_HERE[version], 5678, data)
    return packets.ip(INNER_THERE[version], INNER_HERE[version], text, tos=tos)


def arriving(text: bytes, version: int = 4, *, counter: int = 0, tos: int = 0) -> bytes:
    return ethernet(outer(message(counter, text), version, tos=tos))


def nothing(_: Tunnel) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Row:
    description: str
    packet: bytes
    verdict: Verdict
    out: bytes | None = None
    """The inner packet that goes on."""
    counted: str | None = None
    before: Callable[[Tunnel], object] = nothing
    hooks: tuple[str, ...] = HOOKS


def goes(description: str, packet: bytes, out: bytes, **rest: object) -> Row:
    return Row(description, packet, Verdict.GO, out, **rest)  # type: ignore[arg-type]


def passes(description: str, packet: bytes, counted: str | None = None, **rest: object) -> Row:
    return Row(description, packet, Verdict.PASS, None, counted, **rest)  # type: ignore[arg-type]


def drops(description: str, packet: bytes, counted: str | None, **rest: object) -> Row:
    return Row(description, packet, Verdict.DROP, None, counted, **rest)  # type: ignore[arg-type]


def check(tunnel: Tunnel, hook: str, row: Row) -> None:
    row.before(tunnel)
    result = tunnel.run(hook, row.packet)
    counted = {row.counted: 1} if row.counted else {}
    assert (result.retval, tunnel.counted()) == (retval(hook, row.verdict), counted)
    if row.verdict is Verdict.PASS:
        assert result.data == row.packet
    if row.verdict is Verdict.GO:
        assert row.out is not None
        assert result.data == marked(TUN, row.out)


def parametrize(rows: list[Row]) -> pytest.MarkDecorator:
    cases = [
        pytest.param(hook, row, id=f"{row.description}-{hook}")
        for row in rows
        for hook in row.hooks
    ]
    return pytest.mark.parametrize(("hook", "row"), cases)


def without_udp_checksum(packet: bytes) -> bytes:
    """Of an IPv4 packet in Ethernet."""
    return packet[:40] + bytes(2) + packet[42:]


MESSAGE = message(0, pad(inner(4)))
ARRIVING = ethernet(outer(MESSAGE))

ACCEPTED = [
    *(
        goes(f"IPv{inside} in IPv{outside}", arriving(pad(inner(inside)), outside), inner(inside))
        for inside in (4, 6)
        for outside in (4, 6)
    ),
    goes("no padding", arriving(inner(4)), inner(4)),
    goes("padding of more than 16 bytes", arriving(pad(inner(4)) + bytes(48)), inner(4)),
    goes("padding that is not zero", arriving(inner(4) + b"\xff" * 5), inner(4)),
    goes("an inner packet of a header alone", arriving(pad(ipv4("10.5.0.9", "10.1.0.1"))),
         ipv4("10.5.0.9", "10.1.0.1")),
    goes("an inner IPv6 header alone", arriving(pad(ipv6("fd05::9", "fd01::1")), 6),
         ipv6("fd05::9", "fd01::1")),
    goes("the longest that a test run takes", arriving(pad(inner(4, bytes(3300)))),
         inner(4, bytes(3300))),
    goes("any counter", arriving(pad(inner(4)), counter=2**40), inner(4)),
    goes("Ethernet padding behind a short packet", arriving(inner(4, b"")) + bytes(30),
         inner(4, b"")),
    goes("a VLAN tag",
         ethernet(outer(MESSAGE), tags=((packets.VLAN, 100),), ethertype=0x0800), inner(4)),
    goes("two VLAN tags",
         ethernet(outer(MESSAGE), tags=((packets.QINQ, 7), (packets.VLAN, 100)), ethertype=0x0800),
         inner(4)),
    goes("two VLAN tags before IPv6",
         ethernet(outer(MESSAGE, 6), tags=((packets.VLAN, 7), (packets.VLAN, 1)), ethertype=0x86DD),
         inner(4)),
    *(
        goes(f"{length} bytes of IP options",
             ethernet(ipv4(PEER_ADDRESS[4], OUR_ADDRESS[4],
                           packets.udp(PEER_ADDRESS[4], PEER_PORT, OUR_ADDRESS[4], PORT, MESSAGE),
                           options=b"\x01" * length)),
             inner(4))
        for length in (4, 40)
    ),
    goes("no UDP checksum", without_udp_checksum(ARRIVING), inner(4)),
    goes("don't fragment",
         ethernet(ipv4(PEER_ADDRESS[4], OUR_ADDRESS[4], outer(MESSAGE)[20:], fragment=0x4000)),
         inner(4)),
]  # fmt: skip


@parametrize(ACCEPTED)
def test_accepted(tunnel: Tunnel, hook: str, row: Row) -> None:
    check(tunnel, hook, row)


LONG_UDP = packets.udp(PEER_ADDRESS[4], PEER_PORT, OUR_ADDRESS[4], PORT, MESSAGE + bytes(16))

PASSED = [
    passes("ARP", ethernet(bytes(46), ethertype=0x0806)),
    passes("shorter than an IP header", ethernet(outer(MESSAGE)[:19]),
           hooks=("open_xdp",)),  # no test run makes such a packet for tc
    passes("shorter than a UDP header", ethernet(outer(MESSAGE)[:27])),
    passes("TCP", ethernet(ipv4(PEER_ADDRESS[4], OUR_ADDRESS[4], bytes(64), protocol=6))),
    passes("ICMP in IPv6", ethernet(ipv6(PEER_ADDRESS[6], OUR_ADDRESS[6], bytes(64),
                                         next_header=58))),
    passes("another port", ethernet(outer(MESSAGE, port=PORT + 1))),
    passes("our port as the source", ethernet(outer(MESSAGE, source_port=PORT, port=1))),
    passes("an unknown receiver index",
           ethernet(outer(packets.data_message(SEND_KEY, LOCAL_INDEX + 1, 0, pad(inner(4)))))),
    *(
        passes(f"message type {kind}", ethernet(outer(bytes([kind, 0, 0, 0]) + MESSAGE[4:])))
        for kind in (0, 1, 2, 3, 5)
    ),
    passes("reserved bytes that are not zero", ethernet(outer(b"\x04\0\0\x01" + MESSAGE[4:]))),
    *(
        passes(f"a message of {length} bytes", ethernet(outer(MESSAGE[:length])))
        for length in (0, 3, 15, 31)
    ),
    passes("a UDP length below its header",
           ethernet(ipv4(PEER_ADDRESS[4], OUR_ADDRESS[4],
                         LONG_UDP[:4] + b"\0\x07" + LONG_UDP[6:]))),
    passes("a UDP length above any frame",
           ethernet(ipv4(PEER_ADDRESS[4], OUR_ADDRESS[4],
                         LONG_UDP[:4] + b"\xff\xff" + LONG_UDP[6:]))),
    passes("a first fragment",
           ethernet(ipv4(PEER_ADDRESS[4], OUR_ADDRESS[4], outer(MESSAGE)[20:], fragment=0x2000)),
           "pass_fragment"),
    passes("a later fragment",
           ethernet(ipv4(PEER_ADDRESS[4], OUR_ADDRESS[4], outer(MESSAGE)[20:], fragment=0x0010))),
    passes("a first fragment for another port",
           ethernet(ipv4(PEER_ADDRESS[4], OUR_ADDRESS[4], outer(MESSAGE, port=1)[20:],
                         fragment=0x2000))),
    passes("an IPv6 extension header",
           ethernet(ipv6(PEER_ADDRESS[6], OUR_ADDRESS[6],
                         bytes([packets.UDP, 0]) + bytes(6) + outer(MESSAGE, 6)[40:],
                         next_header=packets.HOP_BY_HOP))),
    passes("IPv4 with a header length of 16", ethernet(b"\x44" + outer(MESSAGE)[1:])),
    passes("IPv4 whose version is 5", ethernet(b"\x55" + outer(MESSAGE)[1:], ethertype=0x0800)),
    passes("IPv6 whose version is 7", ethernet(b"\x70" + outer(MESSAGE, 6)[1:], ethertype=0x86DD)),
    passes("three VLAN tags",
           ethernet(outer(MESSAGE), tags=((packets.QINQ, 7),) * 3, ethertype=0x0800)),
]  # fmt: skip


@parametrize(PASSED)
def test_passed(tunnel: Tunnel, hook: str, row: Row) -> None:
    check(tunnel, hook, row)


def flipped(packet: bytes, at: int) -> bytes:
    changed = bytearray(packet)
    changed[at] ^= 1
    return bytes(changed)


def lose(name: str) -> Callable[[Tunnel], object]:
    key = PEER if name == "peers" else LOCAL_INDEX
    return lambda tunnel: tunnel.loaded.maps[name].delete(key.to_bytes(4, "little"))


def share_allowed_ips(tunnel: Tunnel) -> None:
    """10.5.0.0/16 and fd05::/32 are PEER's, parts of them OTHER_PEER's."""
    tunnel.add_peer(OTHER_PEER, "10.5.128.0/17", "10.5.0.9/32", "fd05::9/128", "10.0.0.0/8")


FROM_OUTSIDE = packets.ip("10.6.0.9", INNER_HERE[4], DATA)
FROM_OUTSIDE6 = packets.ip("fd06::9", INNER_HERE[6], DATA)
CUT = outer(MESSAGE)[:-1]

DROPPED = [
    drops("a wrong bit in the tag", flipped(ARRIVING, -1), "bad_tag"),
    drops("a wrong bit in the text", flipped(ARRIVING, 14 + 28 + 16), "bad_tag"),
    drops("a wrong bit in the counter", flipped(ARRIVING, 14 + 28 + 8), "bad_tag"),
    drops("a wrong key", ethernet(outer(message(0, pad(inner(4)), key=SEND_KEY))), "bad_tag"),
    drops("a message cut short", ethernet(outer(MESSAGE[:-16])), "bad_tag"),
    drops("a keepalive with a wrong tag", flipped(arriving(b""), -1), "bad_tag"),
    drops("a packet cut short", ethernet(CUT), "malformed_message"),
    drops("a packet cut within its text", ethernet(CUT[:90]), "malformed_message"),
    drops("a keepalive", arriving(b""), None),
    drops("a session past its time", ARRIVING, "expired_receive",
          before=lambda tunnel: tunnel.change_session(expires=now() - 1)),
    drops("a counter at REJECT_AFTER_MESSAGES",
          arriving(pad(inner(4)), counter=REJECT_AFTER_MESSAGES), "expired_receive"),
    drops("the last counter of all", arriving(pad(inner(4)), counter=2**64 - 1), "expired_receive"),
    drops("a session whose keys are gone", ARRIVING, "unknown_index", before=lose("keys")),
    drops("a session whose window is gone", ARRIVING, "unknown_index", before=lose("windows")),
    drops("a session whose peer is gone", ARRIVING, "unknown_index", before=lose("peers")),
    drops("a source outside allowed-ips", arriving(pad(FROM_OUTSIDE)), "source_not_allowed"),
    drops("an IPv6 source outside allowed-ips", arriving(pad(FROM_OUTSIDE6)), "source_not_allowed"),
    drops("a source that another peer has by a longer prefix", ARRIVING, "source_not_allowed",
          before=share_allowed_ips),
    drops("an IPv6 source that another peer has by a longer prefix",
          arriving(pad(inner(6))), "source_not_allowed", before=share_allowed_ips),
    *(
        drops(f"inner IP version {version}",
              arriving(pad(bytes([version << 4 | 5]) + inner(4)[1:])),
              "malformed_inner")
        for version in (0, 5, 7, 15)
    ),
    drops("an inner length above the text's", arriving(inner(4)[:-1]), "malformed_inner"),
    drops("an inner IPv6 length above the text's", arriving(inner(6)[:-1]), "malformed_inner"),
    drops("an inner length below the header's",
          arriving(pad(inner(4)[:2] + b"\0\x13" + inner(4)[4:])), "malformed_inner"),
    drops("an inner header length of 16", arriving(pad(b"\x44" + inner(4)[1:])), "malformed_inner"),
    drops("an inner header length above the packet's",
          arriving(pad(b"\x4f" + inner(4, b"")[1:])), "malformed_inner"),
    drops("16 bytes inside", arriving(inner(4)[:16]), "malformed_inner"),
    drops("one byte inside", arriving(b"\x45"), "malformed_inner"),
    drops("an inner IPv6 header cut short", arriving(inner(6)[:39]), "malformed_inner"),
    drops("padding alone", arriving(bytes(32)), "malformed_inner"),
]  # fmt: skip


@parametrize(DROPPED)
def test_dropped(tunnel: Tunnel, hook: str, row: Row) -> None:
    check(tunnel, hook, row)


@pytest.mark.parametrize("hook", HOOKS)
def test_longest_prefix_wins(tunnel: Tunnel, hook: str) -> None:
    share_allowed_ips(tunnel)
    own = packets.ip("10.5.0.8", INNER_HERE[4], DATA)
    assert tunnel.run(hook, arriving(pad(own))).data == marked(TUN, own)
    theirs = packets.ip("10.5.128.1", INNER_HERE[4], DATA)
    assert tunnel.run(hook, arriving(pad(theirs), counter=1)).retval == retval(hook, Verdict.DROP)
    assert tunnel.counted() == {"source_not_allowed": 1}

    tunnel.install(LOCAL_INDEX, OTHER_PEER)
    tunnel.set_endpoint(4, peer=OTHER_PEER)
    for counter, source in enumerate(("10.5.128.1", "10.5.0.9", "10.6.0.1")):
        packet = packets.ip(source, INNER_HERE[4], DATA)
        result = tunnel.run(hook, arriving(pad(packet), counter=counter))
        assert result.data == marked(TUN, packet), source


NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3
# RFC 6040, figure 4: by the inner field, then by the outer one; None: dropped.
ECN: dict[int, dict[int, int | None]] = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("inside", [4, 6])
@pytest.mark.parametrize("codepoint", [0, 0x2E, 0x3F])
def test_ecn(tunnel: Tunnel, hook: str, outside: int, inside: int, codepoint: int) -> None:
    dropped = 0
    for counter, (field, around) in enumerate((i, o) for i in range(4) for o in range(4)):
        text = pad(inner(inside, tos=codepoint << 2 | field))
        # Another codepoint outside, which must not come in.
        result = tunnel.run(hook, arriving(text, outside, counter=counter, tos=0x15 << 2 | around))
        expected = ECN[field][around]
        if expected is None:
            dropped += 1
            assert result.retval == retval(hook, Verdict.DROP)
            assert tunnel.counted() == {"ecn": dropped}
        else:
            changed = inner(inside, tos=codepoint << 2 | expected)
            assert result.data == marked(TUN, changed), f"{field} in {around}"
    assert dropped == 1


@pytest.mark.parametrize("hook", HOOKS)
def test_congestion_marks_keep_any_ipv4_checksum_right(tunnel: Tunnel, hook: str) -> None:
    for counter in range(1000):
        identification = counter * 65521 % 65536

        def packet(tos: int, identification: int = identification) -> bytes:
            return ipv4(INNER_THERE[4], INNER_HERE[4], identification=identification, tos=tos)

        result = tunnel.run(hook, arriving(pad(packet(ECT0)), counter=counter, tos=CE))
        assert result.data == marked(TUN, packet(CE))


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
def test_authenticated_packet_moves_the_endpoint(tunnel: Tunnel, hook: str, version: int) -> None:
    moved = {4: "198.51.100.7", 6: "2001:db8:ffff::7"}[version]

    def arrive(counter: int, port: int) -> None:
        text = message(counter, pad(inner(4)))
        tunnel.run(hook, ethernet(outer(text, version, source=moved, source_port=port)))

    arrive(0, 1111)
    assert tunnel.endpoint() == (moved, 1111, OUR_ADDRESS[version], LOOPBACK)
    assert tunnel.events() == [(EVENT_ROAMED, PEER, 0)]
    arrive(1, 1111)
    assert tunnel.events() == []
    arrive(2, 2222)
    assert tunnel.endpoint() == (moved, 2222, OUR_ADDRESS[version], LOOPBACK)
    assert tunnel.events() == [(EVENT_ROAMED, PEER, 0)]


@pytest.mark.parametrize("hook", HOOKS)
def test_another_device_or_local_address_moves_the_endpoint(tunnel: Tunnel, hook: str) -> None:
    tunnel.set_endpoint(4, ifindex=LOOPBACK + 1)
    tunnel.run(hook, ARRIVING)
    assert tunnel.endpoint() == (PEER_ADDRESS[4], PEER_PORT, OUR_ADDRESS[4], LOOPBACK)
    assert tunnel.events() == [(EVENT_ROAMED, PEER, 0)]

    elsewhere = packets.udp(PEER_ADDRESS[4], PEER_PORT, "192.0.2.77", PORT, message(1, b""))
    tunnel.run(hook, ethernet(ipv4(PEER_ADDRESS[4], "192.0.2.77", elsewhere)))
    assert tunnel.endpoint() == (PEER_ADDRESS[4], PEER_PORT, "192.0.2.77", LOOPBACK)
    assert tunnel.events() == [(EVENT_ROAMED, PEER, 0)]


@pytest.mark.parametrize("hook", HOOKS)
def test_what_is_not_accepted_moves_nothing(tunnel: Tunnel, hook: str) -> None:
    tunnel.change_peer(next=LOCAL_INDEX, current=0)
    assert tunnel.run(hook, arriving(b"", counter=9)).retval == retval(hook, Verdict.DROP)
    assert tunnel.events() == [(EVENT_CONFIRMED, PEER, LOCAL_INDEX)]
    tunnel.change_peer(next=LOCAL_INDEX, current=0)
    before = bytes(tunnel.peer()), bytes(tunnel.session()), tunnel.endpoint()

    elsewhere = {"source": "198.51.100.7"}
    for refused in (
        flipped(ethernet(outer(message(20, pad(inner(4))), **elsewhere)), -1),  # type: ignore[arg-type]
        ethernet(outer(message(9, b""), **elsewhere)),  # type: ignore[arg-type]
        ethernet(outer(message(REJECT_AFTER_MESSAGES, b""), **elsewhere)),  # type: ignore[arg-type]
    ):
        assert tunnel.run(hook, refused).retval == retval(hook, Verdict.DROP)
    assert tunnel.counted() == {"bad_tag": 1, "replayed": 1, "expired_receive": 1}
    assert tunnel.peer().replayed == 1
    tunnel.change_peer(replayed=0)
    assert (bytes(tunnel.peer()), bytes(tunnel.session()), tunnel.endpoint()) == before
    assert tunnel.events() == []


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("text", [b"", pad(inner(4))], ids=["keepalive", "data"])
def test_first_packet_confirms_the_session(tunnel: Tunnel, hook: str, text: bytes) -> None:
    confirmed, older = LOCAL_INDEX + 1, LOCAL_INDEX
    tunnel.install(confirmed, current=False)
    tunnel.change_peer(next=confirmed)

    tunnel.run(hook, arriving(text))
    assert (tunnel.peer().current, tunnel.peer().next) == (older, confirmed)
    assert tunnel.events() == []

    first = packets.data_message(bytes(range(32, 64)), confirmed, 0, text)
    tunnel.run(hook, ethernet(outer(first)))
    peer = tunnel.peer()
    assert (peer.current, peer.next) == (confirmed, 0)
    assert peer.expires == tunnel.session(confirmed).expires
    assert tunnel.events() == [(EVENT_CONFIRMED, PEER, confirmed)]


@pytest.mark.parametrize("hook", HOOKS)
def test_traffic(tunnel: Tunnel, hook: str) -> None:
    start = now()
    tunnel.change_peer(unanswered_since=start)
    tunnel.run(hook, arriving(b"", counter=0))
    keepalive = tunnel.peer()
    assert (keepalive.rx_packets, keepalive.rx_bytes) == (1, 32)
    assert start < keepalive.last_received < now()
    assert (keepalive.unanswered_since, keepalive.last_data_received) == (0, 0)
    assert keepalive.unacknowledged_since == 0

    tunnel.run(hook, arriving(pad(inner(4)), counter=1))
    first = tunnel.peer()
    assert (first.rx_packets, first.rx_bytes) == (2, 32 + 32 + len(pad(inner(4))))
    assert first.last_data_received == first.last_received > keepalive.last_received
    assert first.unacknowledged_since == first.last_data_received

    tunnel.run(hook, arriving(pad(inner(4)), counter=2))
    second = tunnel.peer()
    assert second.last_data_received > first.last_data_received
    assert second.unacknowledged_since == first.unacknowledged_since
    assert (second.tx_packets, second.tx_bytes, second.last_sent) == (0, 0, 0)


def test_reinjected_message_counts_for_the_device_it_came_by(tunnel: Tunnel) -> None:
    came_by = 4711
    tunnel.configure(outer_ifindex=LOOPBACK)
    frame = ethernet(outer(MESSAGE), source=came_by.to_bytes(4, "little") + bytes(2))
    assert tunnel.run("open_tc", frame).data == marked(TUN, inner(4))
    assert tunnel.endpoint() == (PEER_ADDRESS[4], PEER_PORT, OUR_ADDRESS[4], came_by)


def test_aggregate_of_messages_passes(tunnel: Tunnel) -> None:
    ctx = sk_buff(gso_size=len(MESSAGE), gso_segments=2)
    result = tunnel.run("open_tc", ethernet(outer(MESSAGE * 2)), ctx)
    assert result.retval == retval("open_tc", Verdict.PASS)
    assert tunnel.counted() == {"pass_aggregate": 1}


def test_nothing_is_opened_without_configuration(tunnel: Tunnel) -> None:
    config = tunnel.loaded.maps["config"]
    config.update(bytes(4), bytes(config.value_size))
    for hook in HOOKS:
        check(tunnel, hook, passes("not configured", ARRIVING))


def test_without_a_segmenter_messages_go_to_the_daemon(tunnel: Tunnel) -> None:
    """In tc, where they would go through it; and they are as new when they come back."""
    tunnel.configure(inner_ifindex=0)
    check(tunnel, "open_tc", passes("no segmenter", ARRIVING))
    check(tunnel, "open_xdp", goes("needs none", ARRIVING, inner(4)))
