"""Every test of a tunnel runs on both paths, but for those that both_paths.py lists."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from both_paths import DIRECTORIES, KERNEL_ALONE, ONCE, USERSPACE_ALONE

TESTS = Path(__file__).parent
Found = dict[str, list[list[str]]]


@pytest.fixture(scope="module")
def collected() -> Found:
    """By test the parameters' ids of each run, "userspace" and "kernel" among them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", *DIRECTORIES],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    found: Found = defaultdict(list)
    for line in done.stdout.splitlines():
        if "::" in line:
            test, _, ids = line.removeprefix("tests/").rstrip("]").partition("[")
            found[test].append(ids.split("-"))
    return found


def left_out(test: str) -> bool:
    return bool({test, test.partition("::")[0]} & (KERNEL_ALONE.keys() | USERSPACE_ALONE.keys()))


def test_what_is_listed_exists(collected: Found) -> None:
    files = {test.partition("::")[0] for test in collected}
    parameters = {f"{test}[{each}]" for test, runs in collected.items() for r in runs for each in r}
    known = collected.keys() | files | parameters
    for table in (KERNEL_ALONE, USERSPACE_ALONE, ONCE):
        assert table.keys() - known == set()
        assert all(table.values())  # reasons
    assert all(not left_out(test) for test in ONCE)
    assert not KERNEL_ALONE.keys() & USERSPACE_ALONE.keys()


def test_exactly_these_are_left_out(collected: Found) -> None:
    assert len(collected) > 80
    for test, runs in collected.items():
        userspace = [ids for ids in runs if "userspace" in ids]
        kernel = [ids for ids in runs if "kernel" in ids]
        if left_out(test):
            assert not userspace, test
            assert not kernel, test
            continue
        assert len(userspace) + len(kernel) == len(runs), test
        listed = {each for r in kernel for each in r if f"{test}[{each}]" in KERNEL_ALONE}
        # Modes are the same in userspace, so other parameters are compared.
        modes = {"native", "generic", "tc", "xdp", "userspace", "kernel"}
        there = {frozenset(ids) - modes for ids in userspace}
        expected = {frozenset(ids) - modes for ids in kernel if not listed & set(ids)}
        assert len(there) == len(userspace), test  # none twice
        assert there == expected or (test in ONCE and len(there) == 1 and there < expected), test


def test_none_is_skipped_otherwise() -> None:
    """A skip would go unseen: who wants one in userspace has to list it."""
    for directory in DIRECTORIES:
        for path in (TESTS / directory).glob("*.py"):
            text = path.read_text()
            skips = re.findall(r"(?:pytest\.|mark\.|\.import)skip\S*", text)
            assert skips in ([], ['pytest.skip("no']), path  # "no history here"
