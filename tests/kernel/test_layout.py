"""daemon/ebpfvpn/kernel/layout.py against ebpf/layout.h, as the compiler sees it."""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import subprocess
from ipaddress import ip_address
from typing import Any

import pytest

from ebpfvpn.datapath import REPLAY_WINDOW
from ebpfvpn.kernel import layout, objects, window
from ebpfvpn.kernel.btf import field_names
from kernel.compiler import EBPF, compile_bpf

Types = dict[str, dict[str, Any]]


ENUMS = {"route_flags": "ROUTE_", "event_type": "EVENT_", "set_peer_fields": "SET_"}


@pytest.fixture(scope="module")
def btf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Types]:
    """Every type of ebpf/layout.h as the compiler lays it out: by kind, by name. (The objects
    themselves have only those that a map or a program's arguments name.)"""
    uses = [f"struct {name} a_{name};" for name in layout.STRUCTURES]
    uses += [f"enum {name} a_{name};" for name in ENUMS]
    source = "\n".join(['#include "layout.h"', *uses])
    compiled = compile_bpf(source, tmp_path_factory.mktemp("btf"))
    dump = ["bpftool", "btf", "dump", "file", str(compiled), "-j"]
    kinds: dict[str, Types] = {}
    for entry in json.loads(subprocess.run(dump, capture_output=True, check=True).stdout)["types"]:
        kinds.setdefault(entry["kind"], {}).setdefault(entry["name"], entry)
    return kinds


@pytest.mark.parametrize("name", layout.STRUCTURES)
def test_structure(btf: dict[str, Types], name: str) -> None:
    structure = layout.STRUCTURES[name]
    compiled = btf["STRUCT"][name]
    assert ctypes.sizeof(structure) == compiled["size"]
    ours = {field[0]: getattr(structure, field[0]).offset * 8 for field in structure._fields_}
    assert ours == {member["name"]: member["bits_offset"] for member in compiled["members"]}


@pytest.mark.parametrize(("enum", "prefix"), ENUMS.items())
def test_constants(btf: dict[str, Types], enum: str, prefix: str) -> None:
    ours = {k: v for k, v in vars(layout).items() if k.startswith(prefix) and isinstance(v, int)}
    assert ours == {value["name"]: value["val"] for value in btf["ENUM"][enum]["values"]}


def test_drop_reasons() -> None:
    """Of the object that is shipped, and in the order of its header."""
    written = re.findall(r"^\t__u64 (\w+);", (EBPF / "drops.h").read_text(), re.MULTILINE)
    assert field_names(objects.TC_OBJECT, "drops") == written
    assert {"bad_tag", "replayed", "pass_no_peer"} < set(written)


def test_the_window_that_is_compiled_in() -> None:
    """It is that of an object which is loaded as it is."""
    source = (EBPF / "layout.h").read_text()
    size, order = (
        int(re.findall(rf"^#define {name} (\d+)$", source, re.MULTILINE)[0])
        for name in ("WINDOW_SIZE", "WINDOW_ORDER")
    )
    assert size == REPLAY_WINDOW
    assert order == window.geometry(size).order


def test_addresses() -> None:
    for text in ("192.0.2.1", "2001:db8::1"):
        address = ip_address(text)
        assert layout.unpack_address(layout.pack_address(address)) == address
    assert layout.unpack_address(layout.pack_address(None)) is None


def test_another_layout_has_another_number() -> None:
    """What is in the maps outlives a daemon. Who changes it raises LAYOUT, and writes the digest of
    the new one here."""
    digest = hashlib.sha256()
    for header in ("layout.h", "drops.h", "maps.h"):
        code = re.sub(r"/\*.*?\*/", "", (EBPF / header).read_text(), flags=re.DOTALL)
        digest.update("".join(code.split()).encode())
    assert (layout.LAYOUT, digest.hexdigest()[:16]) == (7, "012936cc12783ebb")
