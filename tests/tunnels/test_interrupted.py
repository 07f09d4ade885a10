"""What is left by who dies between two steps is known to the next `up` and `down`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

import pytest

from ebpfvpn.kernel import attach, bpffs, layout, leftovers, sessions
from ebpfvpn.kernel.map import Map
from echo import ping
from tunnels.nodes import INNER, PINS, PORT, RUN, Node, node, pair, underlay


def die(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("then", ["up", "down"])
@pytest.mark.parametrize(
    ("module", "step"),
    [(attach, "detach"), (sessions, "wipe_leftover"), (leftovers, "_remove_tun"),
     (bpffs, "remove")],
)  # fmt: skip
def test_a_removal(module: object, step: str, then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon goes on with sessions whose keys were being overwritten."""
    with pair() as (one, _):
        assert ping(one.ns, INNER[1]) == 3
        one.kill()
        with monkeypatch.context() as dying:
            dying.setattr(module, step, die)
            with pytest.raises(KeyboardInterrupt):
                leftovers.clean(one.name)
        if then == "up":
            one.up()
            assert one.show()["peers"][0]["sessions"] == []
            assert ping(one.ns, INNER[1]) == 3
        one.down()
        assert f" {one.name}:" not in one.ns.run("ip", "link")
        assert not [*PINS.glob(f"{one.name}*")]


def put_aside(node: Node) -> None:
    node.pins.rename(node.pins.with_name(f"{node.name}%old0"))


def put_aside_and_begin(node: Node) -> None:
    put_aside(node)
    node.pins.mkdir()


@pytest.mark.parametrize("then", ["up", "down"])
@pytest.mark.parametrize("step", [put_aside, put_aside_and_begin])
def test_a_start_beside_an_older_generation(step: Callable[[Node], None], then: str) -> None:
    with pair() as (one, _):
        assert ping(one.ns, INNER[1]) == 3
        one.kill()
        (RUN / f"{one.name}.sock").unlink()
        step(one)
        assert ping(one.ns, INNER[1]) == 3
        if then == "up":
            one.up()
            assert ping(one.ns, INNER[1]) == 3
        one.down()
        assert not [*PINS.glob(f"{one.name}*")]


def test_a_port_of_a_dispatcher() -> None:
    """Its program and the directory that tells of it go one after the other."""
    with pair(AttachMode="native") as (one, _):
        assert ping(one.ns, INNER[1]) == 3
        one.kill()
        (directory,) = PINS.glob(f"@{os.stat(one.ns.path).st_ino}-*")
        ports = Map.pinned(directory / "ports")
        assert ports.delete(layout.number(PORT))
        ports.close()
        one.down()
        assert not directory.exists()
        assert "xdp" not in one.ns.run("ip", "link", "show", "under0")


def test_down_of_what_is_starting() -> None:
    with pair() as (one, _):
        one.kill()
        with open(RUN / f"{one.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            done = one.command("down", one.name)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "in use already" in done.stderr


def test_a_name_with_a_dot() -> None:
    with underlay() as (a, _), node(a) as one:
        path = one.path.with_name(f"{one.name[:8]}.1.conf")
        dotted = Node(a, path, one.private_key, one.public_key)
        dotted.configure({"Address": f"{INNER[0]}/24"}, [])
        done = dotted.command("down", dotted.name)
        assert (done.returncode, done.stderr) == (1, f"ebpfvpn: {dotted.name} is not up\n")
        dotted.up()
        dotted.kill()
        (RUN / f"{dotted.name}.sock").unlink()
        dotted.down()
        assert dotted.name not in a.run("ip", "link")
        (RUN / f"{dotted.name}.log").unlink(missing_ok=True)
