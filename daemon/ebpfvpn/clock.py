"""The clock of timers and sessions: it never goes back, and counts while the machine sleeps."""

from __future__ import annotations

import time


def now() -> float:
    """Seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
