"""KernelDatapath gives its sessions away and is taken away, whatever fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel import hooks
from kernel.nodes import Node, two_nodes


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    with two_nodes() as nodes:
        yield nodes


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def refuse(*_: object, **__: object) -> None:
    raise DatapathError("the kernel will not")


def steer(of: Node) -> int:
    """Id of the program."""
    facts = of.datapath._generation.facts
    return of.ns.call(hooks.steer_filter(facts.tun, facts.handle).program_id)


@pytest.mark.parametrize(
    "what",
    [
        "kernel.generation.abandon",
        "kernel.health.Health.close",
        "kernel.steer.detach",
        "kernel.dispatcher.unset_port",
    ],
)
def test_what_fails_keeps_no_session_from_being_given_away(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch, what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    one, _ = pair
    with monkeypatch.context() as patch:
        patch.setattr(f"ebpfvpn.{what}", read_only)
        (half,) = one.ns.call(one.datapath.release)
    assert half.session == one.datapath.sessions()[0].session
    assert bool(steer(one)) == (what == "kernel.steer.detach")
    (told,) = caplog.records
    assert told.getMessage().endswith("Read-only file system")
    assert "\n" not in caplog.text.rstrip()
