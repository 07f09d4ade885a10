"""The packet rows under Debian's kernels, whose verifiers see the programs differently.

Choose with `pytest tests/kernels -k 6.12`; leave out with `pytest -m "not kernels"`.
"""

from __future__ import annotations

import re
import sys

import pytest

import debian_kernels as kernels

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(600)]


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_rows(series: str) -> None:
    try:
        kernel = kernels.get(series)
    except kernels.KernelUnavailable as error:
        pytest.skip(str(error))
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=3"]
    status, output = kernels.run(
        kernel, [*pytest_, "tests/rows"], directory=kernels.ROOT, timeout=540
    )
    assert status == 0, f"under Linux {kernel.release}:\n{output}"
    assert re.search(r"^\d+ passed", output.splitlines()[-1]), output
