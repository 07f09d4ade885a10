"""The segmenter in use: its programs, and the daemon's sockets on it. All of it is made anew when
somebody deletes it."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
from dataclasses import replace

from ebpfvpn.datapath import TooLong
from ebpfvpn.kernel import hooks, layout, segmenter
from ebpfvpn.kernel.attach import AttachMode
from ebpfvpn.kernel.frames import FrameSocket, MessageSocket
from ebpfvpn.kernel.generation import Generation
from ebpfvpn.kernel.hooks import Filter
from ebpfvpn.kernel.layout import number, octets
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.links import Links
from ebpfvpn.kernel.objects import Object
from ebpfvpn.kernel.segmenter import Segmenter
from ebpfvpn.netlink import Netlink

_FIRST_HANDLE = 1
_NATIVE_MODES = ("auto", "native")
_NO_SEGMENTER = Segmenter(0, 0, b"", False)
_SIOCGIFNAME, _SIOCGIFFLAGS = 0x8910, 0x8913
_IFF_UP = 1
_XDP_LATER = 0.2
"""Seconds, in which the daemon sends what waits."""
_NAME = struct.Struct("=16si20x")
_FLAGS = struct.Struct("=16sH22x")


class Sealing:
    """Of one generation."""

    def __init__(
        self, netlink: Netlink, of: Generation, loaded: Object, mark: bytes, mtu: int,
        mode: AttachMode, poll: select.epoll,
    ) -> None:  # fmt: skip
        """In the network namespace of this thread. `poll` is told when `sent_up` has something.
        DatapathError."""
        self._netlink = netlink
        self._of = of
        self._loaded = loaded
        self._mark = mark
        self._mtu = mtu
        self._mode: AttachMode = mode
        self._poll = poll
        self._closing = contextlib.ExitStack()
        self._left_out = False
        self._asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._segmenter = segmenter.find(netlink, of.label, mtu) or segmenter.create(
                netlink, of.label, mtu
            )
            self._attach_filters()
            self._attach_xdp()
            self._open_sockets()
            self._configure(self._segmenter)
        except BaseException:
            self.close()
            raise

    def _configure(self, to: Segmenter) -> None:
        facts = self._of.facts
        config = layout.Config(
            mark=octets(self._mark),
            listen_port=facts.port,
            tun_ifindex=facts.tun,
            outer_ifindex=to.outer,
            inner_ifindex=to.inner,
            mtu=self._mtu,
            fwmark=facts.fwmark,
            seals_in_threads=self._in_threads,
        )
        self._loaded.maps["config"].update(number(0), bytes(config))

    def _filters(self) -> dict[str, Filter]:
        """By program."""
        outer, inner = self._segmenter.outer, self._segmenter.inner
        return {
            name: Filter(ifindex, hooks.INGRESS, _FIRST_HANDLE, priority)
            for ifindex, priority, name in (
                (outer, hooks.DELIVER_PRIORITY, "deliver"),
                (outer, hooks.OPEN_PRIORITY, "open_tc"),
                (inner, hooks.SEAL_PRIORITY, "seal_tc"),
            )
        }

    def _attach_filters(self) -> None:
        """In the place of what is there. BpfError."""
        hooks.add_clsact(self._segmenter.outer)
        hooks.add_clsact(self._segmenter.inner)
        for name, filter_ in self._filters().items():
            filter_.attach(self._loaded.programs[name], self._loaded.maps["config"])

    def _attach_xdp(self) -> None:
        self._in_threads = False
        self.seal, self.reason = self._try_xdp()
        """How packets can be sealed ("xdp" or "tc"), and why not in XDP."""
        self._xdp_due = 0.0

    def _try_xdp(self) -> tuple[str, str]:
        if self._mode not in _NATIVE_MODES:
            return "tc", f"attach mode {self._mode}"
        if self._segmenter.jumbo:
            return "tc", "MTU too large for XDP"
        try:
            program = self._loaded.programs["seal_xdp"]
            inner, ours = self._segmenter.inner, self._loaded.maps["config"]
            hooks.attach_xdp(inner, program, hooks.XDP_NATIVE, ours)
        except BpfError as error:
            return "tc", f"XDP on the segmenter refused: {error.reason}"
        self._in_threads = segmenter.seal_in_threads(self._segmenter)
        return "xdp", ""

    def _open_sockets(self) -> None:
        with contextlib.ExitStack() as opened:
            self._outer = FrameSocket(self._segmenter.outer)
            opened.callback(self._outer.close)
            self._inner = FrameSocket(self._segmenter.inner)
            opened.callback(self._inner.close)
            self._up = [MessageSocket(self._segmenter.inner, version) for version in (4, 6)]
            for sock in self._up:
                opened.callback(sock.close)
                self._poll.register(sock.fileno(), select.EPOLLIN)
            self._closing = opened.pop_all()

    @property
    def mac(self) -> bytes:
        """Of the outer end."""
        return self._segmenter.outer_mac

    def send(self, frame: bytes) -> bool:
        """Towards `seal`. False: the kernel did not take it."""
        return self._outer.send(frame)

    def reinject(self, frame: bytes) -> bool:
        """Towards `open`."""
        return self._inner.send(frame)

    def stop_opening(self) -> None:
        """What is reinjected goes up to the daemon again. BpfError."""
        self._filters()["open_tc"].detach(self._loaded.maps["config"])

    def sent_up(self) -> list[TooLong]:
        return [self._in_zone(message) for sock in self._up for message in sock.receive()]

    def _in_zone(self, message: TooLong) -> TooLong:
        """The outer packet does not say which device a link-local endpoint is behind."""
        to = message.endpoint
        if to.address.version == 4 or not to.address.is_link_local:
            return message
        key = layout.pack_address(to.address) + layout.pack_address(to.local)
        raw = self._loaded.maps["routes"].lookup(key)
        ifindex = layout.Route.from_buffer_copy(raw).ifindex if raw is not None else 0
        return replace(message, endpoint=replace(to, ifindex=ifindex))

    def lost(self) -> int:
        """Messages for which there was no room in the queues of `sent_up`."""
        return sum(sock.lost() for sock in self._up)

    def stands(self) -> bool:
        """Whether both ends are there and up: asked without the lock for which whoever deletes
        one makes others wait."""
        return all(self._is_up(end) for end in (self._segmenter.outer, self._segmenter.inner))

    def _is_up(self, ifindex: int) -> bool:
        try:
            named = fcntl.ioctl(self._asking, _SIOCGIFNAME, _NAME.pack(b"", ifindex))
            name = _NAME.unpack(named)[0]
            flags = fcntl.ioctl(self._asking, _SIOCGIFFLAGS, _FLAGS.pack(name, 0))
        except OSError:
            return False
        return bool(_FLAGS.unpack(flags)[1] & _IFF_UP)

    def leave_out(self) -> None:
        """From now on packets go to the daemon instead: `steer` passes them, `open_tc` too."""
        self._left_out = True
        self._configure(_NO_SEGMENTER)

    def finish(self, now: float) -> None:
        """The rest of `repair`, when it is due."""
        if self._xdp_due and now >= self._xdp_due and not self._left_out:
            self._attach_xdp()
            self._configure(self._segmenter)

    def missing(self, links: Links) -> list[str]:
        """What must be made anew, with the packets left out: devices, or their links."""
        inner = links.state(self._segmenter.inner)
        outer = links.state(self._segmenter.outer)
        if inner is None or outer is None:
            return ["device"]
        # One that went down may have come back by itself meanwhile.
        return ["link"] if self._left_out or not (inner.up and outer.up) else []

    def missing_programs(self, links: Links) -> list[str]:
        """What can be attached again in its place, for others do its work meanwhile or that of
        the packets is none."""
        inner = links.state(self._segmenter.inner)
        if inner is None:
            return []
        found = [
            f"filter {name}"
            for name, filter_ in self._filters().items()
            if filter_.program_id() != self._loaded.programs[name].id
        ]
        if self.seal == "xdp" and inner.native != self._loaded.programs["seal_xdp"].id:
            found.append("XDP program")
        return found

    def repair(self, now: float) -> None:
        """Devices and links; packets take them from the moment they are written to the map.
        DatapathError, OSError: it cannot be."""
        found = segmenter.find(self._netlink, self._of.label, self._mtu)
        if found == self._segmenter:
            for end in (found.outer, found.inner):
                self._netlink.set_up(end)
        else:
            segmenter.remove(self._netlink, self._of.label)
            self._segmenter = segmenter.create(self._netlink, self._of.label, self._mtu)
            # XDP on veth can take the kernel a tenth of a second: without it there is tc.
            self.seal, self.reason = "tc", "the segmenter was made anew just now"
            self._in_threads = False
            self._xdp_due = now + _XDP_LATER
        self._attach_filters()
        self._outer.bind(self._segmenter.outer)
        self._inner.bind(self._segmenter.inner)
        for sock in self._up:
            sock.bind(self._segmenter.inner)
        self._configure(self._segmenter)
        self._left_out = False

    def repair_programs(self) -> None:
        """In their places. BpfError."""
        self._attach_filters()
        self._attach_xdp()
        self._configure(self._segmenter)

    def close(self) -> None:
        """Lets go of the sockets."""
        self._closing.close()
        self._asking.close()
