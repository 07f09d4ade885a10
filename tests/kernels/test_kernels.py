"""The packet rows under Debian's kernels, whose verifiers see the programs differently.

Choose with `pytest tests/kernels -k 6.12`; leave out with `pytest -m "not kernels"`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import pytest

import debian_kernels as kernels

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(1200)]


@contextlib.contextmanager
def idle() -> Iterator[None]:
    """The VM emulates its processors: other tests that run meanwhile go first."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_rows(series: str) -> None:
    try:
        kernel = kernels.get(series)
    except kernels.KernelUnavailable as error:
        pytest.skip(str(error))
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=3"]
    with idle():
        status, output = kernels.run(
            kernel, [*pytest_, "tests/rows"], directory=kernels.ROOT, timeout=1140
        )
    assert status == 0, f"under Linux {kernel.release}:\n{output}"
    assert re.search(r"^\d+ passed", output.splitlines()[-1]), output
