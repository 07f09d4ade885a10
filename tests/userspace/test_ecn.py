"""Congestion marks: RFC 6040, figure 4, and the IPv4 checksum."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn.userspace import ecn
from rows.packets import checksum, ipv4, ipv6

NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3
# By the inner field, then by the outer one; None: dropped.
FIGURE_4: dict[int, dict[int, int | None]] = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}


def test_figure_4() -> None:
    found = {i: {o: ecn.combine(i, o) for o in range(4)} for i in range(4)}
    assert found == FIGURE_4


@given(tos=st.integers(0, 255), field=st.integers(0, 3))
@settings(max_examples=300, database=None)
def test_nothing_else_changes(tos: int, field: int) -> None:
    there, here = ("10.5.0.9", "fd05::9"), ("10.1.0.1", "fd01::1")
    wanted = tos & ~3 | field
    four = ipv4(there[0], here[0], b"payload", tos=tos, identification=tos)
    assert ecn.of(four) == tos & 3
    assert ecn.put(four, field) == ipv4(
        there[0], here[0], b"payload", tos=wanted, identification=tos
    )
    six = ipv6(there[1], here[1], b"payload", traffic_class=tos)
    labelled = six[:1] + bytes([six[1] | 0x0F]) + b"\xff\xff" + six[4:]
    assert ecn.of(labelled) == tos & 3
    changed = ipv6(there[1], here[1], b"payload", traffic_class=wanted)
    assert (
        ecn.put(labelled, field)
        == changed[:1] + bytes([changed[1] | 0x0F]) + b"\xff\xff" + (changed[4:])
    )


@pytest.mark.parametrize(("old", "new"), [(ECT0, ECT1), (ECT0, CE), (ECT1, CE)])
def test_the_ipv4_checksum_for_all_values(old: int, new: int) -> None:
    for number in range(65536):
        packet = ipv4("10.5.0.9", "10.1.0.1", tos=old, identification=number)
        changed = ecn.put(packet, new)
        assert checksum(changed) == 0, number
        # No negative zero, which others would not have written.
        assert changed[10:12] != b"\xff\xff"


@given(header=st.binary(min_size=20, max_size=20), field=st.integers(0, 3))
@settings(max_examples=500, database=None)
def test_a_wrong_checksum_stays_as_wrong(header: bytes, field: int) -> None:
    packet = b"\x45" + header[1:]
    assert checksum(ecn.put(packet, field)) % 0xFFFF == checksum(packet) % 0xFFFF
