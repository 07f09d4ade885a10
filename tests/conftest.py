"""Runs the tests of tunnels on both paths (both_paths.py), many tests at once (turns.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import both_paths
from turns import turn

_TESTS = Path(__file__).parent
_FIXTURE = "moved_by"


@pytest.fixture(autouse=True)
def among_others(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[None]:
    if worker_id == "master" or request.node.get_closest_marker("kernels"):
        yield
        return
    # The parent is the same for all workers.
    directory = tmp_path_factory.getbasetemp().parent
    with turn(directory, alone=request.node.get_closest_marker("alone") is not None):
        yield


@pytest.fixture(autouse=True)
def moved_by(request: pytest.FixtureRequest) -> Iterator[both_paths.Path]:
    """The path that the test's nodes use."""
    path: both_paths.Path = getattr(request, "param", "kernel")
    with both_paths.on(path):
        yield path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    file = Path(str(metafunc.module.__file__)).relative_to(_TESTS)
    paths = both_paths.of(f"{file}::{metafunc.function.__name__}")
    if paths:
        metafunc.parametrize(_FIXTURE, paths, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen: set[str] = set()
    items[:] = [item for item in items if _is_run(item, seen)]
    # The longest first; last those that have only one processor's work in them.
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    names = [marker.name for marker in item.iter_markers()]
    return -1 if "kernels" in names else 1 if "alone" in names else 0


def _is_run(item: pytest.Item, seen: set[str]) -> bool:
    """`seen`: what has been so far in userspace."""
    call = getattr(item, "callspec", None)
    if call is None or call.params.get(_FIXTURE) != "userspace":
        return True
    test, _, ids = item.nodeid.removeprefix("tests/").rstrip("]").partition("[")
    found = both_paths.different(test, call.params, ids.split("-"))
    if found is None or repr(found) in seen:
        return False
    seen.add(repr(found))
    return True
