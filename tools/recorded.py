"""Recorded frames, which BPF programs get again and again (ebpf/tests/recorded.bpf.c)."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable

from lab import ROOT, LabError

sys.path += [str(ROOT / "daemon"), str(ROOT / "tests")]

from ebpfvpn.kernel import objects
from ebpfvpn.kernel.layout import number
from ebpfvpn.kernel.program import Program

OBJECT = ROOT / "build" / "recorded.bpf.o"
FRAMES = 16384
"""That there is room for."""
_LONGEST = 1528
_FRAME = struct.Struct(f"=I4x{_LONGEST}s")
_TURN = struct.Struct("=IIi4x")


class Recorded:
    def __init__(self) -> None:
        if not OBJECT.exists():
            raise LabError(f"{OBJECT} is missing: run make bpf")
        self._loaded = objects.load(OBJECT)
        self.close = self._loaded.close
        self._program = self._loaded.programs["next_frame"]

    def record(self, frames: Iterable[bytes]) -> None:
        for at, frame in enumerate(frames):
            if at >= FRAMES or len(frame) > _LONGEST:
                raise LabError("more to record than there is room for")
            entry = _FRAME.pack(len(frame), frame)
            self._loaded.maps["recorded_frames"].update(number(at), entry)

    def measure(self, program: Program | None) -> None:
        """What the frames go to; None: nothing, a run makes the frame and passes it."""
        measured = self._loaded.maps["measured"]
        if program is None:
            measured.delete(number(0))
        else:
            measured.update(number(0), number(program.fd))

    def rewind(self, turns: list[tuple[int, int]], moved: int = 0) -> None:
        """The first frame of each CPU, and the step to its next one. `moved`: bytes that the
        program puts before a packet, so that they can be taken away again."""
        raw = b"".join(_TURN.pack(first, step, moved) for first, step in turns)
        self._loaded.maps["recorded_turns"].update(number(0), raw)

    def run(self, frame: bytes, repeat: int, wanted: int) -> int:
        """Nanoseconds for each. `frame`: the first one; `wanted`: what the last run returns."""
        result = self._program.test_run(frame, repeat=repeat, data_size_out=4096)
        if result.retval != wanted:
            raise LabError(f"a measured program returned {result.retval}, not {wanted}")
        return result.duration_ns
