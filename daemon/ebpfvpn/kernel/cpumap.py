"""Opening on other CPUs: for devices with one receive queue, while they are busy (ebpf/cpumap.h).

It is left to kernels whose CPU maps join packets again (GRO), from Linux 6.15 on: without that TCP
loses more than the other CPUs gain. All CPUs on which the daemon may run open messages: an operator
who keeps CPUs free for something else (isolcpus, cpusets, taskset) keeps them free of these, too.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from ctypes import c_uint32

from ebpfvpn.genetlink import has_one_receive_queue, xdp_features
from ebpfvpn.kernel import layout
from ebpfvpn.kernel.btf import kernel_fields
from ebpfvpn.kernel.layout import from_number, number
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.program import Program

MAP = "cpus"
CONSTANTS = ".rodata.cpus"
"""The section with struct cpu_list."""
PROGRAM = "open_cpu"

_DEVICES = "spread"
_QUEUE = 1024
"""Messages that may wait for one CPU: less than 10 ms of work (BUSY_FOR)."""
_XDP_REDIRECT = 2

log = logging.getLogger(__name__)


def constants(cpus: Sequence[int]) -> bytes:
    """What the section holds."""
    return bytes(layout.CpuList(len(cpus), (c_uint32 * layout.MOST_CPUS)(*cpus)))


def _told(section: Map | None) -> list[int]:
    raw = section.lookup(number(0)) if section is not None else None
    if raw is None:
        return []
    told = layout.CpuList.from_buffer_copy(raw)
    return list(told.cpus[: told.count])


def usable_cpus() -> list[int]:
    """Those among which messages may be shared out; none: they are opened where they arrive."""
    cpus = sorted(os.sched_getaffinity(0))[: layout.MOST_CPUS]
    return cpus if len(cpus) > 1 and _joins_packets() else []


@functools.cache
def _joins_packets() -> bool:
    try:
        return "gro" in kernel_fields("bpf_cpu_map_entry")
    except BpfError:  # no such structure, or no BTF
        return False


def may_spread(ifindex: int) -> bool:
    """Whether a device, in the namespace of this thread, has one receive queue, and a driver that
    can hand packets over."""
    try:
        features = xdp_features(ifindex)
        return bool((features or 0) & _XDP_REDIRECT) and has_one_receive_queue(ifindex)
    except OSError:  # gone
        return False


class CpuMap:
    """That of one tunnel."""

    def __init__(self, maps: Mapping[str, Map], programs: Mapping[str, Program]) -> None:
        """Without XDP programs nothing is spread."""
        self._cpus = _told(maps.get(CONSTANTS))
        self._devices = maps.get(_DEVICES)
        self._entries = maps.get(MAP)
        self._program = programs.get(PROGRAM)
        self._is_filled = False

    def spread(self, ifindex: int, wanted: bool) -> int:
        """Over how many CPUs messages from a device are spread from now on, while it is busy; 0:
        it is not wanted, or cannot be."""
        if self._devices is None:
            return 0
        key = number(ifindex)
        if not (wanted and self._cpus):
            self._devices.delete(key)
            return 0
        try:
            if not self._is_filled:
                self._fill()
            if self._devices.lookup(key) is None:
                self._devices.update(key, bytes(layout.Spread()))
        except BpfError as error:
            log.warning("messages are opened where they arrive: %s", error)
            return 0
        return len(self._cpus)

    def keep(self, devices: Collection[int]) -> None:
        """Others, an earlier daemon's, are forgotten. Of what is on its way to another CPU the
        daemon then gets the messages; programs that run go on."""
        for key in [*self._devices.keys()] if self._devices is not None else []:
            if from_number(key) not in devices:
                self.spread(from_number(key), False)

    def _fill(self) -> None:
        """With this daemon's program; what waits for an earlier one's is opened by that."""
        assert self._entries is not None
        assert self._program is not None
        value = bytes(layout.CpuEntry(queue=_QUEUE, program=self._program.fd))
        for cpu in range(self._entries.max_entries):
            if cpu in self._cpus:
                self._entries.update(number(cpu), value)
            else:
                self._entries.delete(number(cpu))
        self._is_filled = True
