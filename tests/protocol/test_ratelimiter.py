from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from ebpfvpn import wire
from ebpfvpn.ratelimiter import LoadMeter, SourceLimiter


def test_load_is_a_number_of_messages_in_a_second() -> None:
    meter = LoadMeter()
    for number in range(wire.HANDSHAKES_UNDER_LOAD):
        now = 10 + number / wire.HANDSHAKES_UNDER_LOAD
        assert not meter.under_load(now)
        meter.count(now)
    assert meter.under_load(10.999)
    assert not meter.under_load(11.5)
    assert not meter.under_load(20.0)


def test_a_steady_rate_below_is_no_load_and_one_above_stays_load() -> None:
    for rate, expected in ((0.9, False), (1.2, True)):
        meter = LoadMeter()
        step = 1 / (rate * wire.HANDSHAKES_UNDER_LOAD)
        now = 10.0
        while now < 13:
            meter.count(now)
            if now > 12:
                assert meter.under_load(now) == expected
            now += step


def test_one_address_gets_its_share_each_second() -> None:
    limiter = SourceLimiter()
    address = IPv4Address("192.0.2.1")
    for second in (10.0, 11.0):
        passed = sum(limiter.allow(address, second + part / 100) for part in range(100))
        assert passed == wire.HANDSHAKES_PER_SOURCE
    assert limiter.allow(IPv4Address("192.0.2.2"), 11.99)


def test_ipv6_addresses_of_one_network_count_together() -> None:
    limiter = SourceLimiter()
    network = int(IPv6Address("2001:db8::"))
    passed = sum(limiter.allow(IPv6Address(network + host), 10.0) for host in range(100))
    assert passed == wire.HANDSHAKES_PER_SOURCE
    assert limiter.allow(IPv6Address("2001:db8:0:1::"), 10.0)


def test_memory_is_bounded() -> None:
    limiter = SourceLimiter()
    passed = sum(limiter.allow(IPv4Address(host), 10.0) for host in range(wire.MAX_SOURCES + 100))
    assert passed == wire.MAX_SOURCES
    assert limiter.allow(IPv4Address(0), 10.0)
    assert limiter.allow(IPv4Address(2**31), 11.0)
