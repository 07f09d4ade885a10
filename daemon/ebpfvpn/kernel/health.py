"""Whether all that packets need is in place, and putting back what is not.

Each part says what is missing by a few messages to the kernel, and writes nothing while all is
well. A repair is done by whatever put the thing there at the start.
"""

from __future__ import annotations

import time

from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel import layout, steer
from ebpfvpn.kernel.devices import Devices
from ebpfvpn.kernel.generation import Generation
from ebpfvpn.kernel.links import Links
from ebpfvpn.kernel.objects import Object
from ebpfvpn.kernel.pins import Pins
from ebpfvpn.kernel.sealing import Sealing
from ebpfvpn.kernel.ways import Ways
from ebpfvpn.netlink import Netlink
from ebpfvpn.ratelimiter import Limiter
from ebpfvpn.tun import alias

_REPAIRS_PER_SECOND = 4
"""Of one part: against somebody who takes away again what is put back."""


class Health:
    """Of one tunnel that is complete, in the network namespace of the thread that makes it."""

    def __init__(
        self, netlink: Netlink, of: Generation, loaded: Object, sealing: Sealing, ways: Ways
    ) -> None:
        self._netlink = netlink
        self._of = of
        self._loaded = loaded
        self._sealing = sealing
        self._links = Links()
        self.pins = Pins(of, loaded)
        self._devices = Devices(netlink, self._links, ways)
        self._segmenter_repairs = Limiter(_REPAIRS_PER_SECOND)
        self._steer_repairs = Limiter(_REPAIRS_PER_SECOND)
        self._done: list[str] = []
        self._closed = False

    def check(self) -> list[str]:
        """See KernelDatapath.check. Nothing happens after `close`."""
        if self._closed:
            return []
        try:
            # By how much each costs while it is missing.
            now = time.monotonic()
            self._check_segmenter(now)
            self._check_tun()
            self._check_steer(now)
            self._done += self.pins.check()
            self._done += self._devices.check(now)
        except TimeoutError:
            # The kernel is busy with other devices (it has one lock for all): not known now.
            return []
        except OSError as error:
            raise DatapathError(f"{self._of.name}: {error.strerror or error}") from None
        if refusals := self._devices.refusals():
            raise DatapathError(f"{self._of.name}: no device takes a program: {refusals}")
        # What was done before something failed is told by the first call that does not.
        done, self._done = self._done, []
        return done

    def _check_tun(self) -> None:
        name = self._of.name
        state = self._links.state(self._of.facts.tun)
        if state is None:
            raise DatapathError(
                f"{name}: the TUN device has left this network namespace, or is gone: no packet "
                "can be redirected to it"
            )
        if state.name != name:
            raise DatapathError(
                f"{name}: the TUN device is called {state.name} now: name it {name} again"
            )
        if state.alias != alias(name):
            self._netlink.set_alias(self._of.facts.tun, alias(name))
            self._done.append(f"{name}: alias of the TUN device missing; put back")

    def _check_steer(self, now: float) -> None:
        facts = self._of.facts
        if steer.is_attached(facts, self._loaded) or not self._steer_repairs.allow(now):
            return
        self._queue_up()
        try:
            steer.attach(facts, self._loaded)
        except DatapathError as error:
            raise DatapathError(f"{self._of.name}: steer cannot be attached: {error}") from None
        self._done.append(f"{self._of.name}: filter steer missing; put back")

    def _check_segmenter(self, now: float) -> None:
        if not self._sealing.stands():
            self._sealing.leave_out()
        self._sealing.finish(now)
        devices = self._sealing.missing(self._links)
        missing = devices or self._sealing.missing_programs(self._links)
        if not missing or not self._segmenter_repairs.allow(now):
            return
        try:
            if devices:
                self._sealing.leave_out()
                self._queue_up()
                self._sealing.repair(now)
            else:
                self._sealing.repair_programs()
        except (DatapathError, OSError) as error:
            raise DatapathError(
                f"{self._of.name}: the segmenter cannot be made anew: {error}"
            ) from None
        self._done.append(f"{self._of.name}: segmenter: {', '.join(missing)} missing; put back")

    def _queue_up(self) -> None:
        """Packets are in the daemon's queue now: those that come later go there too, until the
        daemon has sent these."""
        for key, value in self._loaded.maps["peers"].items():
            if layout.Peer.from_buffer_copy(value).usable:
                to = layout.SetPeer(peer=layout.from_number(key), fields=layout.SET_USABLE)
                self._loaded.programs["set_peer"].syscall(to)

    def close(self) -> None:
        self._closed = True
        self._links.close()
        self._devices.close()
