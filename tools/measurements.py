"""What tools/bench measures, in the order of its tables: names, units, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass

ACCEPTED_LOSS = 0.001
"""Of the packets sent, at the highest rate that a tunnel carries."""


@dataclass(frozen=True, slots=True)
class Measurement:
    label: str
    unit: str
    more_is_better: bool


def _latency(label: str) -> Measurement:
    return Measurement(label, "µs", False)


def _throughput(label: str) -> Measurement:
    return Measurement(label, "Gbit/s", True)


def _cpu(label: str) -> Measurement:
    return Measurement(label, "CPU s per GB", False)


def _packets(label: str) -> Measurement:
    return Measurement(label, "packets/s", True)


_LOSS = f"at most {ACCEPTED_LOSS:.1%} loss"

MEASUREMENTS = {
    "ping_p50": _latency("ping p50"),
    "ping_p99": _latency("ping p99"),
    "tcp_1": _throughput("TCP, 1 stream"),
    "tcp_1_cpu": _cpu("TCP, 1 stream"),
    "tcp_1_back": _throughput("TCP, 1 stream back"),
    "tcp_1_back_cpu": _cpu("TCP, 1 stream back"),
    "tcp_4": _throughput("TCP, 4 streams"),
    "tcp_4_cpu": _cpu("TCP, 4 streams"),
    "tcp_4_back": _throughput("TCP, 4 streams back"),
    "tcp_4_back_cpu": _cpu("TCP, 4 streams back"),
    "udp_64_flood": _packets("64-byte UDP, flood"),
    "udp_64_0.1%_loss": _packets(f"64-byte UDP, {_LOSS}"),
    "udp_1300_flood": _throughput("1300-byte UDP, flood"),
    "udp_8800_flood": _throughput("8800-byte UDP, flood"),
    "site_64_flood": _packets("64-byte UDP site to site, flood"),
    "site_64_0.1%_loss": _packets(f"64-byte UDP site to site, {_LOSS}"),
}
