"""Programs that somebody else has attached to an underlay device: they stay, and run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echo import ping
from kernel.compiler import compile_bpf
from netns import Namespace
from tunnels.nodes import INNER, introduce, node, underlay, wait_for
from tunnels.traffic import Numbered, tcp

pytestmark = pytest.mark.alone

FOREIGN = """
#include <linux/bpf.h>
__attribute__((section("xdp"), used)) int foreign_xdp(struct xdp_md *p) { return XDP_PASS; }
__attribute__((section("tc"), used)) int foreign_tc(struct __sk_buff *p) { return -1; }
char LICENSE[] __attribute__((section("license"))) = "GPL";
"""


def xdp_id(ns: Namespace) -> int:
    (link,) = json.loads(ns.run("ip", "-j", "-d", "link", "show", "under0"))
    return int(link.get("xdp", {}).get("prog", {}).get("id", 0))


@pytest.mark.parametrize("kind", ["xdpdrv", "xdpgeneric"])
def test_a_foreign_xdp_program_stays_and_tc_is_chosen(kind: str, tmp_path: Path) -> None:
    compiled = str(compile_bpf(FOREIGN, tmp_path))
    with underlay() as (a, b), node(a) as one, node(b) as other:
        b.run("ip", "link", "set", "under0", kind, "object", compiled, "section", "xdp")
        foreign = xdp_id(b)
        assert foreign
        introduce(one, other)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        tcp(a, b, INNER[1])
        tcp(b, a, INNER[0])
        assert other.device()["open"] == "tc"
        assert "native XDP refused: " in other.device()["reason"]
        assert "generic XDP refused: " in other.device()["reason"]
        assert "open by tc" in other.log()
        assert xdp_id(b) == foreign
        other.down()
        assert xdp_id(b) == foreign


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_mode_that_was_asked_for_and_is_taken_goes_in_userspace(
    mode: str, tmp_path: Path
) -> None:
    """It is slow, but nothing is thrown out, and `show` says why."""
    compiled = str(compile_bpf(FOREIGN, tmp_path))
    with underlay() as (a, b), node(a) as one, node(b) as other:
        b.run("ip", "link", "set", "under0", "xdpdrv", "object", compiled, "section", "xdp")
        foreign = xdp_id(b)
        introduce(one, other, AttachMode=mode)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        with Numbered(a, b, INNER[1], rate=300) as flow:
            flow.wait_for_more(200)
        assert (flow.lost, flow.duplicates) == ([], [])
        # At first through the socket; then, as no device takes a program, in userspace.
        wait_for(lambda: other.show()["datapath"]["path"] == "userspace")
        assert f"{mode} XDP refused: " in other.show()["datapath"]["reason"]
        assert xdp_id(b) == foreign


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_a_foreign_filter_stays(mode: str, tmp_path: Path) -> None:
    compiled = str(compile_bpf(FOREIGN, tmp_path))
    with underlay() as (a, b), node(a) as one, node(b) as other:
        b.run("tc", "qdisc", "add", "dev", "under0", "clsact")
        for hook in ("ingress", "egress"):
            b.run("tc", "filter", "add", "dev", "under0", hook, "prio", "3", "bpf", "da",
                  "obj", compiled, "sec", "tc")  # fmt: skip
        filters = [b.run("tc", "filter", "show", "dev", "under0", h) for h in ("ingress", "egress")]
        assert all("foreign_tc" in listed for listed in filters)
        introduce(one, other, AttachMode=mode)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        tcp(a, b, INNER[1])
        assert other.device()["open"] == mode
        other.down()
        assert filters == [
            b.run("tc", "filter", "show", "dev", "under0", h) for h in ("ingress", "egress")
        ]
        assert "clsact" in b.run("tc", "qdisc", "show", "dev", "under0")
