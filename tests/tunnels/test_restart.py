"""A restart that nobody notices: graceful, or after kill -9, with traffic in both directions."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tunnels import versions
from tunnels.nodes import (
    INNER,
    INNER6,
    MODES,
    OUTER,
    PINS,
    Node,
    introduce,
    node,
    pair,
    underlay,
    wait_for,
)
from tunnels.traffic import Numbered, ping


def restart(node: Node) -> None:
    node.restart()


def kill_and_up(node: Node) -> None:
    node.kill()
    node.up()


WAYS = pytest.mark.parametrize("way", [restart, kill_and_up])


@WAYS
@pytest.mark.parametrize("mode", MODES)
def test_no_packet_is_lost(mode: str, way: Callable[[Node], None]) -> None:
    with pair(AttachMode=mode) as (one, other):
        assert ping(one.ns, INNER[1]) == ping(one.ns, INNER6[1]) == 3
        before = one.show()
        with (
            Numbered(one.ns, other.ns, INNER[1]) as there,
            Numbered(other.ns, one.ns, INNER6[0]) as back,
        ):
            for node in (one, other, one):
                there.wait_for_more(100)
                back.wait_for_more(100)
                way(node)
            there.wait_for_more(100)
            back.wait_for_more(100)
        for flow in (there, back):
            assert (flow.lost, flow.duplicates, flow.refused) == ([], [], 0)
        after = one.show()
        (session,) = after["peers"][0]["sessions"]
        assert session["local_index"] == before["peers"][0]["sessions"][0]["local_index"]
        assert after["peers"][0]["tx_packets"] > before["peers"][0]["tx_packets"] + 300
        assert after["datapath"]["devices"] == before["datapath"]["devices"]
        assert after["started"] > before["started"]
        assert ping(one.ns, INNER[1], 20) == ping(one.ns, INNER6[1], 20) == 20


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return versions.another_layout(tmp_path_factory.mktemp("versions"))


@contextlib.contextmanager
def upgraded(
    one: Node, other: Node, way: Callable[[Node], None], trees: Sequence[Path]
) -> Iterator[tuple[Numbered, Numbered]]:
    """Numbered packets flow while `one` goes through the versions; the body says how long."""
    with tempfile.TemporaryDirectory(prefix="ebpfvpn-test-") as directory:
        version = versions.Version(Path(directory))
        version.install(trees[0])
        node = dataclasses.replace(one, python_path=version.python_path)
        node.up()
        other.up()
        assert ping(one.ns, INNER[1]) == ping(one.ns, INNER6[1]) == 3
        with (
            Numbered(one.ns, other.ns, INNER[1]) as there,
            Numbered(other.ns, one.ns, INNER6[0]) as back,
        ):
            for tree in trees[1:]:
                there.wait_for_more(100)
                back.wait_for_more(100)
                version.install(tree)
                way(node)
            yield there, back
            there.wait_for_more(100)
            back.wait_for_more(100)
        try:
            for flow in (there, back):
                assert (flow.lost, flow.duplicates, flow.refused) == ([], [], 0)
        finally:
            node.down()


@WAYS
@pytest.mark.parametrize("mode", MODES)
def test_an_upgrade_to_another_layout(
    mode: str, way: Callable[[Node], None], another: Path
) -> None:
    """The old programs go on with the old maps, until new sessions have taken their place."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, OUTER, AttachMode=mode)
        trees = [versions.ROOT, another]
        with upgraded(one, other, way, trees) as (there, back):
            assert len(list(PINS.glob(f"{one.name}*"))) == 2
            wait_for(lambda: other.show()["peers"][0]["sessions"][-1]["role"] == "responder")
            wait_for(lambda: one.show()["peers"][0]["tx_packets"] > 100)
            wait_for(lambda: one.show()["peers"][0]["rx_packets"] > 100)
        assert list(PINS.glob(f"{one.name}*")) == []
