"""A restart that nobody notices: graceful, or after kill -9, with traffic in both directions."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from both_paths import in_userspace
from ebpfvpn import keys
from ebpfvpn.kernel import hooks, layout
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.program import Program
from echo import ping
from netns import address, namespace
from tunnels import versions
from tunnels.nodes import (
    INNER,
    INNER6,
    MODES,
    OUTER,
    PINS,
    PORT,
    Node,
    connect,
    endpoint,
    frozen,
    introduce,
    node,
    pair,
    underlay,
    wait_for,
)
from tunnels.traffic import Numbered

pytestmark = pytest.mark.alone


def restart(node: Node) -> None:
    node.restart()


def kill_and_up(node: Node) -> None:
    node.kill()
    node.up()


@contextlib.contextmanager
def lossless(one: Node, other: Node) -> Iterator[tuple[Numbered, Numbered]]:
    """Numbered packets both ways, before, during and after the body; none may be lost."""
    with (
        Numbered(one.ns, other.ns, INNER[1]) as there,
        Numbered(other.ns, one.ns, INNER6[0]) as back,
    ):
        there.wait_for_more(100)
        back.wait_for_more(100)
        yield there, back
        there.wait_for_more(100)
        back.wait_for_more(100)
    for flow in (there, back):
        assert (flow.lost, flow.duplicates, flow.refused) == ([], [], 0)


WAYS = pytest.mark.parametrize("way", [restart, kill_and_up])
UPGRADES = pytest.mark.parametrize(
    ("mode", "way"),
    [
        ("native", restart),
        ("native", kill_and_up),
        ("generic", restart),
        ("tc", kill_and_up),
    ],
)
"""Each mode and each way: all of both take minutes, and are no different from each other."""


@WAYS
@pytest.mark.parametrize("mode", MODES)
def test_no_packet_is_lost(mode: str, way: Callable[[Node], None]) -> None:
    with pair(AttachMode=mode) as (one, other):
        assert ping(one.ns, INNER[1]) == ping(one.ns, INNER6[1]) == 3
        before = one.show()
        with lossless(one, other) as (there, back):
            for node in (one, other, one):
                there.wait_for_more(100)
                back.wait_for_more(100)
                way(node)
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
        try:
            with lossless(one, other) as (there, back):
                for tree in trees[1:]:
                    there.wait_for_more(100)
                    back.wait_for_more(100)
                    version.install(tree)
                    way(node)
                yield there, back
        finally:
            node.down()


@dataclasses.dataclass(frozen=True)
class Attached:
    """What moves the packets of a node: ids, and the tag of `seal`."""

    sessions: int
    seal: int
    seal_tag: str
    steer: int

    @classmethod
    def of(cls, one: Node) -> Attached:
        """Of what is pinned; which is what is attached."""
        config = layout.Config.from_buffer_copy(
            Map.pinned(one.pins / "config").lookup(layout.number(0)) or b""
        )
        seal = Program.pinned(one.pins / "seal_tc")
        found = cls(
            Map.pinned(one.pins / "sessions").id, seal.id, seal.tag,
            Program.pinned(one.pins / "steer").id,
        )  # fmt: skip
        inner, tun = config.inner_ifindex, config.tun_ifindex
        seal_filter = hooks.Filter(inner, hooks.INGRESS, 1, hooks.SEAL_PRIORITY)
        assert one.ns.call(seal_filter.program_id) == found.seal
        assert one.ns.call(hooks.steer_filter(tun, tun).program_id) == found.steer
        if (one.pins / "seal_xdp").exists():
            there = one.ns.call(hooks.xdp_program_id, inner)
            assert there in (0, Program.pinned(one.pins / "seal_xdp").id)
        return found


@UPGRADES
def test_other_programs_take_the_place_of_the_old_ones(
    mode: str, way: Callable[[Node], None], tmp_path: Path
) -> None:
    """On the same maps."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, OUTER, AttachMode=mode)
        before: list[Attached] = []

        def upgrade(upgrading: Node) -> None:
            before.append(Attached.of(one))
            way(upgrading)

        with upgraded(one, other, upgrade, [versions.ROOT, versions.another_program(tmp_path)]):
            after = Attached.of(one)
        assert after.sessions == before[0].sessions
        assert after.seal_tag != before[0].seal_tag
        assert after.steer != before[0].steer


@UPGRADES
def test_an_upgrade_to_another_layout(
    mode: str, way: Callable[[Node], None], another: Path
) -> None:
    """The old programs go on with the old maps, until new sessions have taken their place."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, OUTER, AttachMode=mode)
        trees = [versions.ROOT, another]
        with contextlib.ExitStack() as freezing:

            def upgrade(upgrading: Node) -> None:
                freezing.enter_context(frozen(other))
                way(upgrading)

            with upgraded(one, other, upgrade, trees) as (there, back):
                # Nobody answers the new daemon's handshakes.
                there.wait_for_more(300)
                back.wait_for_more(300)
                assert len(list(PINS.glob(f"{one.name}*"))) == 2
                assert one.show()["peers"][0]["sessions"] == []
                freezing.close()
                wait_for(lambda: one.show()["peers"][0]["tx_packets"] > 100, 20)
                wait_for(lambda: one.show()["peers"][0]["rx_packets"] > 100)
                wait_for(lambda: len(list(PINS.glob(f"{one.name}*"))) == 1)
        assert list(PINS.glob(f"{one.name}*")) == []


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = versions.earlier(tmp_path_factory.mktemp("versions"))
    if tree is None:
        pytest.skip("no history here")
    return tree


@UPGRADES
def test_an_upgrade_from_the_programs_before_these(
    mode: str, way: Callable[[Node], None], earlier: Path
) -> None:
    """And back again."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, OUTER, AttachMode=mode)
        with upgraded(one, other, way, [earlier, versions.ROOT, earlier, versions.ROOT]):
            pass


def replace(one: Node, old: str, new: str) -> None:
    """In its file."""
    text = one.path.read_text()
    assert old in text
    one.path.write_text(text.replace(old, new))


@WAYS
@pytest.mark.parametrize(
    ("old", "new"),
    [("AttachMode = auto", "AttachMode = tc"), ("AttachMode = tc", "AttachMode = auto"),
     ("AttachMode = generic", "AttachMode = native"), ("MTU = 1400", "MTU = 1300"),
     ("MTU = 1400", "MTU = 4000"), ("RekeyAfterTime = 120", "RekeyAfterTime = 60")],
)  # fmt: skip
def test_a_changed_configuration(old: str, new: str, way: Callable[[Node], None]) -> None:
    """Whether or not its maps and programs suit the new one."""
    key, _, value = old.partition(" = ")
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, OUTER, **{key: value})
        one.up()
        other.up()
        assert ping(one.ns, INNER[1]) == ping(one.ns, INNER6[1]) == 3
        with lossless(one, other) as (there, back):
            replace(one, old, new)
            way(one)
            there.wait_for_more(200)
            back.wait_for_more(200)
        assert ping(one.ns, INNER[1]) == ping(one.ns, INNER6[1]) == 3
        if key == "AttachMode":
            assert one.device()["open"] == new.split()[-1].replace("auto", "native")
        elif key == "MTU":
            assert f"mtu {new.split()[-1]}" in one.ns.run("ip", "link", "show", one.name)


@WAYS
def test_another_port(way: Callable[[Node], None]) -> None:
    """What the peer sends there before it has the new session is lost, and no more."""
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        with Numbered(other.ns, one.ns, INNER6[0]) as back:
            back.wait_for_more(100)
            replace(one, f"ListenPort = {PORT}", f"ListenPort = {PORT + 1}")
            way(one)
            back.wait_for_more(300)
        # In userspace nobody is there while the next daemon starts.
        assert len(back.lost) < (1500 if in_userspace() else 300)
        assert one.show()["listen_port"] == PORT + 1
        assert other.show()["peers"][0]["endpoint"] == endpoint(OUTER[0], PORT + 1)
        assert ping(one.ns, INNER[1]) == ping(other.ns, INNER6[0]) == 3


@contextlib.contextmanager
def star() -> Iterator[tuple[Node, list[Node]]]:
    """A hub that is down, and three sites that are up; site N has 10.66.0.N behind 198.51.N.2."""
    with contextlib.ExitStack() as undo:
        a = undo.enter_context(namespace())
        hub = undo.enter_context(node(a))
        sites = []
        for number in (1, 2, 3):
            b = undo.enter_context(namespace())
            connect(a, b, f"under{number}")
            address(a, f"under{number}", f"198.51.{number}.1/24")
            address(b, f"under{number}", f"198.51.{number}.2/24")
            site = undo.enter_context(node(b))
            site.configure(
                {"ListenPort": PORT, "Address": f"10.66.0.{number}/24"},
                [hub.peer("10.66.0.0/24", endpoint=endpoint(f"198.51.{number}.1"))],
            )
            site.up()
            sites.append(site)
        yield hub, sites


@WAYS
def test_peers_come_and_go(way: Callable[[Node], None]) -> None:
    """The session of the one that stays is not touched, whatever its place in the file."""
    with star() as (hub, sites):
        peers = [
            site.peer(f"10.66.0.{number}", endpoint=endpoint(f"198.51.{number}.2"))
            for number, site in enumerate(sites, start=1)
        ]
        interface = {"ListenPort": PORT, "Address": "10.66.0.100/24"}
        hub.configure(interface, [peers[1], peers[0]])
        hub.up()
        assert ping(hub.ns, "10.66.0.1") == ping(hub.ns, "10.66.0.2") == 3
        # Somebody else's.
        hub.ns.run("ip", "address", "add", "10.66.0.200/24", "dev", hub.name)
        hub.ns.run("ip", "route", "add", "198.18.0.0/24", "dev", hub.name)
        before = {p["public_key"]: p["sessions"] for p in hub.show()["peers"]}
        with Numbered(hub.ns, sites[0].ns, "10.66.0.1") as there:
            there.wait_for_more(100)
            interface["Address"] = "10.66.0.101/24"
            hub.configure(interface, [peers[0], peers[2]])
            way(hub)
            there.wait_for_more(100)
        assert (there.lost, there.duplicates) == ([], [])
        after = {p["public_key"]: p["sessions"] for p in hub.show()["peers"]}
        assert set(after) == {sites[0].public_key, sites[2].public_key}
        (session,) = after[sites[0].public_key]
        assert session["local_index"] == before[sites[0].public_key][0]["local_index"]
        assert ping(hub.ns, "10.66.0.3") == 3
        assert ping(hub.ns, "10.66.0.2", 1) == 0
        addresses = hub.ns.run("ip", "-br", "address", "show", hub.name)
        assert "10.66.0.101/24" in addresses
        assert "10.66.0.100/24" not in addresses
        assert "10.66.0.200/24" in addresses
        routes = hub.ns.run("ip", "route", "show", "dev", hub.name)
        assert "10.66.0.3 " in routes
        assert "10.66.0.2 " not in routes
        assert "198.18.0.0/24 " in routes


@WAYS
def test_another_key_is_another_tunnel(way: Callable[[Node], None]) -> None:
    with pair() as (one, _):
        assert ping(one.ns, INNER[1]) == 3
        key = keys.encode_key(keys.generate_private_key())
        replace(one, one.private_key, key)
        way(one)
        assert one.show()["peers"][0]["sessions"] == []
        assert ping(one.ns, INNER[1], 1) == 0
        replace(one, key, one.private_key)
        way(one)
        assert ping(one.ns, INNER[1]) == 3


@WAYS
def test_a_file_with_an_error_changes_nothing(way: Callable[[Node], None]) -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        before = one.show()
        good = one.path.read_text()
        one.path.write_text(good + "Nonsense = 1\n")
        if way is restart:
            done = one.command("restart", one.name)
        else:
            one.kill()
            done = one.command("up", str(one.path))
        assert done.returncode == 1
        assert "Nonsense" in done.stderr
        assert done.stderr.count("\n") == 1
        assert ping(one.ns, INNER[1]) == ping(other.ns, INNER6[0]) == 3
        if way is restart:
            assert one.show()["started"] == before["started"]
        else:
            one.path.write_text(good)
            one.up()
            assert ping(one.ns, INNER[1]) == 3


def test_a_start_that_fails_leaves_what_was_there() -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        one.kill()
        with one.ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("", PORT))
            done = one.command("up", str(one.path))
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            assert "in use" in done.stderr
            assert ping(one.ns, INNER[1]) == ping(other.ns, INNER6[0]) == 3
        one.up()
        assert ping(one.ns, INNER[1]) == 3


def test_restart_without_a_daemon() -> None:
    with pair() as (one, _):
        one.kill()
        done = one.command("restart", one.name)
        assert (done.returncode, done.stderr) == (1, f"ebpfvpn: {one.name} is not up\n")


def test_a_new_generation_that_dies_before_it_has_sessions() -> None:
    """The one after it renews those of the older one too."""
    with pair(AttachMode="auto") as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        with Numbered(one.ns, other.ns, INNER[1]) as there:
            with frozen(other):
                replace(one, "AttachMode = auto", "AttachMode = tc")
                one.restart()
                there.wait_for_more(100)
                kill_and_up(one)
                assert one.show()["peers"][0]["sessions"] == []
                there.wait_for_more(100)
            wait_for(lambda: one.show()["peers"][0]["tx_packets"] > 10, 20)
        assert (there.lost, there.duplicates) == ([], [])
