"""A generation: the pinned programs and maps of a tunnel that belong together.

A start of the daemon goes on with the generation that it finds, or, where its own programs and maps
must look different, begins the next one. The one before then lives on beside it, until none of its
sessions can be alive any more (`successor`).

What has to be known of a generation by a daemon that may not know its maps' layout is the name of a
directory among its pins: "@netns=4026531840,tun=7,...".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ebpfvpn.kernel import bpffs
from ebpfvpn.kernel.map import Map

_FACTS = "@"
_COMPLETE = "complete"
_OLD = "%old"
_NUMBER_SHIFT = 24


@dataclass(frozen=True, slots=True)
class Facts:
    """Those of a generation."""

    netns: int
    """Inode of the network namespace."""
    tun: int
    """The TUN device's ifindex."""
    number: int
    """0 for the first generation, and so on."""
    port: int
    """UDP port it listens on."""
    fwmark: int
    shape: str
    """Programs and maps of equal shape can take each other's place."""
    identity: str
    """What the interface was: its key, and whatever else must not change under its sessions."""

    @property
    def handle(self) -> int:
        """Of its tc filters: no other generation or tunnel in the namespace has it."""
        return self.number << _NUMBER_SHIFT | self.tun

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True, slots=True)
class Generation:
    """One that is pinned."""

    name: str
    """The tunnel's."""
    pins: Path
    facts: Facts
    complete: bool
    """Else it was left while it was being made."""

    @property
    def label(self) -> str:
        """What its devices are called by."""
        return label(self.name, self.facts.number)

    @property
    def directories(self) -> set[str]:
        """Names among the pins of one that is complete, that are no pins."""
        return {f"{_FACTS}{self.facts}", _COMPLETE}

    def state_facts(self) -> None:
        (self.pins / f"{_FACTS}{self.facts}").mkdir(exist_ok=True)

    def config(self) -> Map:
        """The map by which its programs are known. BpfError if it is missing."""
        return Map.pinned(self.pins / "config")


def label(name: str, number: int) -> str:
    return f"{name} {number}"


def begin(name: str, facts: Facts) -> Generation:
    """Makes the directory of its pins."""
    pins = bpffs.pin_directory(name)
    pins.mkdir(mode=0o700)
    found = Generation(name, pins, facts, complete=False)
    found.state_facts()
    return found


def complete(generation: Generation) -> None:
    """From now on a later daemon may go on with it."""
    (generation.pins / _COMPLETE).mkdir(exist_ok=True)


def abandon(generation: Generation) -> None:
    """From now on no daemon goes on with it."""
    with contextlib.suppress(FileNotFoundError):
        (generation.pins / _COMPLETE).rmdir()


def set_fwmark(generation: Generation, fwmark: int) -> Generation:
    facts = replace(generation.facts, fwmark=fwmark)
    if facts != generation.facts:
        (generation.pins / f"{_FACTS}{generation.facts}").rename(
            generation.pins / f"{_FACTS}{facts}"
        )
    return replace(generation, facts=facts)


def put_aside(generation: Generation) -> Generation:
    """Makes room for the next generation, in the directory that has the tunnel's name."""
    pins = generation.pins
    if _OLD not in pins.name:
        pins = pins.rename(pins.with_name(f"{pins.name}{_OLD}{generation.facts.number}"))
    return replace(generation, pins=pins)


def find(name: str) -> list[Generation]:
    """All of the tunnel NAME, the newest first."""
    return sorted(_find(name), key=lambda g: -g.facts.number)


def _find(name: str) -> Iterator[Generation]:
    for pins in directories(name):
        for entry in pins.glob(f"{_FACTS}*"):
            facts = _read(entry.name.removeprefix(_FACTS))
            if facts is not None:
                yield Generation(name, pins, facts, (pins / _COMPLETE).exists())


def directories(name: str) -> list[Path]:
    """That hold pins of the tunnel NAME, whatever they are."""
    own = bpffs.pin_directory(name).name
    if not bpffs.PINS.exists():
        return []
    return [
        path
        for path in bpffs.PINS.iterdir()
        if path.name == own or path.name.startswith(f"{own}{_OLD}")
    ]


def _read(text: str) -> Facts | None:
    """None: written by a version that knew other facts."""
    found = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        values = {
            field.name: int(found[field.name]) if field.type == "int" else found[field.name]
            for field in fields(Facts)
        }
    except (KeyError, ValueError):
        return None
    return Facts(**values)  # type: ignore[arg-type]
