"""Sessions in the maps: installed, looked at, retired."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ebpfvpn import clock
from ebpfvpn.datapath import Receiving, SessionState
from ebpfvpn.failures import logged
from ebpfvpn.kernel import layout, window
from ebpfvpn.kernel.layout import number
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.objects import Object
from ebpfvpn.kernel.program import Program
from ebpfvpn.keypair import Keypair, Session
from ebpfvpn.wire import KEY_LENGTH, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME

NANOSECONDS = 1_000_000_000
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_MEMBARRIER_CMD_GLOBAL = 1
_LONGER_THAN_A_PACKET = 0.1  # seconds


class Sessions:
    """Of one tunnel, by local index."""

    def __init__(self, loaded: Object, rekey_after_messages: int) -> None:
        self._rekey_after_messages = rekey_after_messages
        self._maps = loaded.maps
        self._set_peer = loaded.programs["set_peer"]
        self._wipe_keys = loaded.programs["wipe_keys"]
        self._peers: dict[int, int] = {}
        self._retired: list[int] = []
        self._lock = threading.Lock()
        self._wiper = ThreadPoolExecutor(1, "wipe-keys")
        self._adopt()

    def _adopt(self) -> None:
        """What an earlier daemon installed, or was about to install or to wipe when it died."""
        for state in self.states():
            self._peers[state.session.local_index] = state.peer
        for name in ("keys", "windows"):
            found = map(layout.from_number, self._maps[name].keys())
            self._retired += [index for index in found if index not in self._peers]
        if self._retired:
            self._wiper.submit(self._wipe_retired)

    def install(self, peer: int, keypair: Keypair, *, confirmed: bool) -> None:
        """See Datapath.install. The peer is in the map."""
        session = keypair.session
        key = number(session.local_index)
        expires = int((session.created + REJECT_AFTER_TIME) * NANOSECONDS)
        entry = layout.Session(
            peer=peer,
            remote_index=session.remote_index,
            created=int(session.created * NANOSECONDS),
            expires=expires,
            send_limit=REJECT_AFTER_MESSAGES,
            rekey_at=self._rekey_after_messages,
            initiator=session.initiator,
        )
        # The session last: without it nothing looks at the others.
        windows = self._maps["windows"]
        windows.update(key, bytes(windows.value_size))
        self._maps["keys"].update(key, keypair.send_key + keypair.receive_key)
        self._maps["sessions"].update(key, bytes(entry))
        self._peers[session.local_index] = peer
        if confirmed:
            # One that waits for its first packet must not take over any more when that comes.
            self.point(peer, current=session.local_index, next=0, expires=expires)
        else:
            self.point(peer, next=session.local_index)

    def point(
        self, peer: int, *, current: int | None = None, next: int | None = None, expires: int = 0
    ) -> None:
        """Says which sessions the peer uses, without touching its counters."""
        to = layout.SetPeer(peer=peer, expires=expires)
        if current is not None:
            to.fields |= layout.SET_CURRENT
            to.current = current
        if next is not None:
            to.fields |= layout.SET_NEXT
            to.next = next
        self._set_peer.syscall(to)

    def has(self, local_index: int) -> bool:
        return local_index in self._peers

    def of_peer(self, peer: int) -> list[int]:
        return [index for index, owner in self._peers.items() if owner == peer]

    def retire(self, local_index: int) -> None:
        """See Datapath.retire. The keys are overwritten a moment later, in a thread."""
        peer = self._peers.pop(local_index, None)
        if peer is None:
            return
        # Not found by any packet from now on, so no packet moves it from next to current.
        self._maps["sessions"].delete(number(local_index))
        entry = self._maps["peers"].lookup(number(peer))
        if entry is not None:
            pointers = layout.Peer.from_buffer_copy(entry)
            if pointers.current == local_index:
                self.point(peer, current=0)
            if pointers.next == local_index:
                self.point(peer, next=0)
        with self._lock:
            self._retired.append(local_index)
        self._wiper.submit(self._wipe_retired)

    def _wipe_retired(self) -> None:
        with self._lock:
            retired, self._retired = self._retired, []
        if not retired:
            return
        # A program that found the session before may be reading the keys: sealing with half of
        # them zero would tell the packet to everybody.
        await_programs()
        for index in retired:
            wiped = False
            with logged("keys of a session cannot be overwritten"):
                self._wipe_keys.syscall(layout.WipeKeys(index))
                self._maps["keys"].delete(number(index))
                self._maps["windows"].delete(number(index))
                wiped = True
            if not wiped:  # tried again with the next, and at the end
                with self._lock:
                    self._retired.append(index)

    def states(self) -> list[SessionState]:
        found = []
        for key, value in self._maps["sessions"].items():
            entry = layout.Session.from_buffer_copy(value)
            session = Session(
                layout.from_number(key),
                entry.remote_index,
                bool(entry.initiator),
                entry.created / NANOSECONDS,
            )
            found.append(
                SessionState(entry.peer, session, entry.send_counter, entry.receive_highest)
            )
        return found

    def receiving(self) -> list[Receiving]:
        """The receiving halves of those that are alive. No program opens meanwhile."""
        now = clock.now()
        found = []
        for state in self.states():
            index = number(state.session.local_index)
            keys, ring = self._maps["keys"].lookup(index), self._maps["windows"].lookup(index)
            if keys and ring and now < state.session.created + REJECT_AFTER_TIME:
                found.append(
                    Receiving(
                        state.peer,
                        state.session,
                        keys[KEY_LENGTH : 2 * KEY_LENGTH],
                        state.receive_highest,
                        *window.seen(ring, state.receive_highest),
                    )
                )
        return found

    def retire_all(self) -> None:
        for index in list(self._peers):
            self.retire(index)

    def close(self) -> None:
        """Waits until the keys of all that are retired have been overwritten."""
        self._wiper.submit(self._wipe_retired)
        self._wiper.shutdown()


def wipe_leftover(pins: Path) -> None:
    """Overwrites the keys that a dead daemon left pinned. Its programs are detached."""
    try:
        keys, wipe_keys = Map.pinned(pins / "keys"), Program.pinned(pins / "wipe_keys")
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return  # it did not come so far as to have any
    await_programs()
    for key in [*keys.keys()]:
        wipe_keys.syscall(layout.WipeKeys(layout.from_number(key)))
        keys.delete(key)


def await_programs() -> None:
    """Returns when every BPF program that runs now has ended (RCU: some milliseconds)."""
    with contextlib.suppress(OSError):
        _membarrier()
        return
    time.sleep(_LONGER_THAN_A_PACKET)


def _membarrier() -> None:
    """Linux waits for an RCU grace period here; not where CPUs run without a tick (EINVAL)."""
    call = _MEMBARRIER.get(platform.machine())
    if call is None:
        raise OSError(errno.ENOSYS, "membarrier")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(call, _MEMBARRIER_CMD_GLOBAL, 0) != 0:
        raise OSError(ctypes.get_errno(), "membarrier")
