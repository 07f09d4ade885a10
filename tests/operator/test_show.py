"""What `show` prints."""

from __future__ import annotations

import pytest

from ebpfvpn import show
from ebpfvpn.show import Status

EXPECTED = """\
interface: wg7
  public key: HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=
  listening port: 51820
  fwmark: 0xca6c
  mtu: 1420
  queues: send 104.00 KiB, receive 4.00 MiB, TUN 1000 packets
  path: kernel, first choice (process 4321)
    eth7: open tc, seal tc (MTU 9001 is above 3498)
    eth8: open native, seal xdp, spread over CPUs when busy (first choice)
  maps: /sys/fs/bpf/ebpfvpn/wg7

peer: xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
  endpoint: [2001:db8::7]:51820
  allowed ips: 10.0.0.0/24, fd00::/64
  latest handshake: 1 minute, 3 seconds ago
  transfer: 1023 B received (7 packets), 3.00 MiB sent (2400 packets)
  out of order: 3 late and 12 replayed dropped, at most 9120 packets behind
  persistent keepalive: every 25 seconds
  flow ports: 4
  current session: 305419896, initiator, 1 minute, 3 seconds old, next counter 2400

peer: TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=
  allowed ips: (none)

drops:
  bad tag: 2
  lost in tun: 9

handed on:
  no usable session: 1

daemon:
  queued packets: 5
"""


def test_text(status: Status) -> None:
    assert show.text(status, 1_000_063.9) == EXPECTED


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (0, "now"),
        (1, "1 second ago"),
        (60, "1 minute ago"),
        (3601, "1 hour, 1 second ago"),
        (86400 * 366 + 7325, "1 year, 1 day, 2 hours, 2 minutes, 5 seconds ago"),
        (-1, "in the future: the system clock was set back"),
    ],
)
def test_latest_handshake(status: Status, age: int, shown: str) -> None:
    assert f"  latest handshake: {shown}\n" in show.text(status, 1_000_000 + age)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (1, "1 B"),
        (1024, "1.00 KiB"),
        (1536 * 1024, "1.50 MiB"),
        (1 << 30, "1.00 GiB"),
        (5 << 40, "5.00 TiB"),
        (5000 << 40, "5000.00 TiB"),
    ],
)
def test_transfer(status: Status, count: int, shown: str) -> None:
    status["peers"][0]["rx_bytes"] = count
    assert f"transfer: {shown} received" in show.text(status, 0)


@pytest.mark.parametrize("counter", ["late", "replayed", "max_lateness"])
def test_out_of_order_is_shown_when_there_was_any(status: Status, counter: str) -> None:
    peer = status["peers"][1]
    peer[counter] = 5  # type: ignore[literal-required]
    late, replayed, most = peer["late"], peer["replayed"], peer["max_lateness"]
    line = f"  out of order: {late} late and {replayed} replayed dropped, at most {most} packets"
    assert line in show.text(status, 0).split("\npeer: ")[2]
    peer[counter] = 0  # type: ignore[literal-required]
    assert "out of order" not in show.text(status, 0).split("\npeer: ")[2]


def test_nothing_happened_yet(status: Status) -> None:
    status["drops"] = status["refused"] = status["daemon"] = {"some": 0}
    status["fwmark"] = 0
    shown = show.text(status, 0)
    assert shown.endswith("allowed ips: (none)\n")
    assert "fwmark" not in shown
