"""Configuration: a wg-quick(8) file as it is, with keys of our own in `#! Key = value` lines.

Lines are read as wg(8) reads them: white space does not matter, upper and lower case of keys and
sections neither, and `#` starts a comment. The file is only ever read.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ebpfvpn import config_values, keys, wire
from ebpfvpn.config_values import HostPort as HostPort
from ebpfvpn.datapath import DATAPATH_CHOICES, REPLAY_WINDOW, DatapathChoice
from ebpfvpn.errors import OperatorError

DIRECTORIES = (Path("/etc/ebpfvpn"), Path("/etc/wireguard"))

MAX_MTU = 8921
"""What the cipher in eBPF takes: a jumbo frame of 9001 less IPv6, UDP, message header and tag."""

AttachMode = Literal["auto", "native", "generic", "tc"]

TX_QUEUE_LENGTH = 1000
"""Packets. Linux gives a TUN device 500."""
RECV_BUFFER = 4 << 20
"""Bytes. The kernel's default holds less than two hundred packets, which is a few milliseconds of
what passes there in userspace."""
_MOST_FLOW_PORTS = 64
_LEAST_BUFFER, _MOST_BUFFER = 4096, 2**30 - 1
"""Bytes; the kernel doubles them into an int."""


class ConfigError(OperatorError):
    """A configuration that cannot be used: `FILE:LINE: KEY: what is wrong and what to do`."""

    def __init__(self, file: Path, line: int, key: str, message: str) -> None:
        super().__init__(f"{file}:{line}: {key}: {message}")
        self.file, self.line, self.key, self.message = file, line, key, message


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    private_key: bytes = field(repr=False)
    """32 bytes."""
    listen_port: int = 0
    """0: the kernel chooses."""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    mtu: int | None = None
    """None: the daemon chooses."""
    fwmark: int = 0
    """0: off."""
    table: int | Literal["auto", "off"] = "auto"
    """The routing table for the peers' allowed-ips."""
    attach_mode: AttachMode = "auto"
    """How `open` is attached to the underlay's devices."""
    datapath: DatapathChoice = "auto"
    """What moves the data packets."""
    send_buffer: int | None = None
    """Bytes of each UDP socket of the tunnel; None: the kernel's default."""
    recv_buffer: int = RECV_BUFFER
    tx_queue_length: int = TX_QUEUE_LENGTH
    """Packets that wait in the TUN device for the daemon."""
    rekey_after_time: int = int(wire.REKEY_AFTER_TIME)
    """Seconds until the initiator of a session makes a new one."""
    rekey_after_messages: int = wire.REKEY_AFTER_MESSAGES
    """Messages sealed under a session until a new one is made."""
    replay_window: int = REPLAY_WINDOW
    """Packets."""


@dataclass(frozen=True, slots=True)
class PeerConfig:
    public_key: bytes
    preshared_key: bytes = field(default=wire.NO_PRESHARED_KEY, repr=False)
    """32 bytes; zeros: none."""
    allowed_ips: tuple[IPv4Network | IPv6Network, ...] = ()
    endpoint: HostPort | None = None
    persistent_keepalive: int = 0
    """Seconds; 0: off."""
    flow_ports: int = 1
    """Source ports of its data messages, and of ours for it, from the listening port on."""


@dataclass(frozen=True, slots=True)
class Config:
    path: Path
    name: str
    """Of the interface: the file's stem."""
    interface: InterfaceConfig
    peers: tuple[PeerConfig, ...]
    warnings: tuple[str, ...] = ()
    """What in the file has no effect, or another than it seems; one line each."""

    def flow_ports(self) -> int:
        """Of the peer that has most."""
        return max((peer.flow_ports for peer in self.peers), default=1)

    def networks(self) -> list[IPv4Network | IPv6Network]:
        """The allowed-ips of all peers."""
        return [network for peer in self.peers for network in peer.allowed_ips]


def interface_name(name_or_path: str | Path) -> str:
    """The interface that NAME or FILE stands for. OperatorError if it cannot be a device's name."""
    text = str(name_or_path)
    if not _is_path(text):
        name = text
    elif text.endswith(".conf"):
        name = Path(text).stem
    else:
        raise OperatorError(f"{text!r}: the file's name must be that of the interface and .conf")
    if not re.fullmatch(r"[a-zA-Z0-9_=+.-]{1,15}", name) or name in (".", ".."):
        raise OperatorError(
            f"{name!r} cannot be the name of an interface: use 1 to 15 of a-z A-Z 0-9 _ = + . -"
        )
    return name


def find(name_or_path: str) -> Path:
    """The file of a NAME, looked for in DIRECTORIES, or the path as it is. OperatorError if NAME
    has no file or cannot be an interface's name."""
    name = interface_name(name_or_path)
    if _is_path(name_or_path):
        return Path(name_or_path)
    candidates = [directory / f"{name}.conf" for directory in DIRECTORIES]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise OperatorError(f"{name}: no configuration; write {' or '.join(map(str, candidates))}")


def load(path: Path) -> Config:
    """Reads the file. OperatorError if that fails, ConfigError if its content cannot be used."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as error:
        raise OperatorError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, line, "text", "is not UTF-8; save the file as UTF-8") from None
    warnings = []
    if mode & 0o007:
        warnings.append(f"{path}: others may access it and the keys in it; run: chmod 600 {path}")
    return parse(text, path, warnings)


def parse(text: str, path: Path, warnings: list[str] | None = None) -> Config:
    """`path` (that of a .conf file) is for messages and names the interface; it is not read.
    `warnings` come before those that the text gives. Raises ConfigError."""
    return _Parser(path, [] if warnings is None else warnings).parse(text)


def _is_path(name_or_path: str) -> bool:
    return "/" in name_or_path or name_or_path.endswith(".conf")


class _Key(NamedTuple):
    field: str
    """Of InterfaceConfig or PeerConfig."""
    parse: Callable[[str], Any]
    several: bool = False
    """Values of repeated lines are joined; else the last counts."""


_KEYS = {
    "Interface": {
        "PrivateKey": _Key("private_key", keys.decode_key),
        "ListenPort": _Key("listen_port", config_values.number(0, 65535)),
        "Address": _Key("addresses", config_values.addresses, several=True),
        "MTU": _Key("mtu", config_values.number(68, MAX_MTU)),
        "FwMark": _Key("fwmark", config_values.number(0, 2**32 - 1, hexadecimal=True, off=0)),
        "Table": _Key("table", config_values.table),
    },
    "Peer": {
        "PublicKey": _Key("public_key", keys.decode_key),
        "PresharedKey": _Key("preshared_key", keys.decode_key),
        "AllowedIPs": _Key("allowed_ips", config_values.networks, several=True),
        "Endpoint": _Key("endpoint", config_values.endpoint),
        "PersistentKeepalive": _Key("persistent_keepalive", config_values.number(0, 65535, off=0)),
    },
}
_OWN_KEYS: dict[str, dict[str, _Key]] = {
    "Interface": {
        "AttachMode": _Key("attach_mode", config_values.choice(*get_args(AttachMode))),
        "Datapath": _Key("datapath", config_values.choice(*DATAPATH_CHOICES)),
        "SendBuffer": _Key("send_buffer", config_values.number(_LEAST_BUFFER, _MOST_BUFFER)),
        "RecvBuffer": _Key("recv_buffer", config_values.number(_LEAST_BUFFER, _MOST_BUFFER)),
        "TxQueueLen": _Key("tx_queue_length", config_values.number(1, 1_000_000)),
        "RekeyAfterTime": _Key(
            "rekey_after_time", config_values.number(5, int(wire.REKEY_AFTER_TIME))
        ),
        "RekeyAfterMessages": _Key(
            "rekey_after_messages", config_values.number(1000, wire.REKEY_AFTER_MESSAGES)
        ),
        "ReplayWindow": _Key("replay_window", config_values.number(64, 65536)),
    },
    "Peer": {"FlowPorts": _Key("flow_ports", config_values.number(1, _MOST_FLOW_PORTS))},
}
_IGNORED_KEYS = {
    "Interface": ("DNS", "PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig"),
    "Peer": (),
}


def _match(key: str, known: dict[str, _Key] | tuple[str, ...]) -> str | None:
    """The known key of this name, whatever its case."""
    return next((name for name in known if name.lower() == key.lower()), None)


class _Section:
    def __init__(self, kind: str, line: int) -> None:
        self.kind = kind
        self.line = line
        self.values: dict[str, Any] = {}
        """Parsed, by field."""
        self.lines: dict[str, int] = {}
        """Where they were given, by key."""


class _Parser:
    def __init__(self, path: Path, warnings: list[str]) -> None:
        self.path = path
        self.warnings = warnings

    def parse(self, text: str) -> Config:
        sections = self._sections(text)
        name = interface_name(self.path)
        interface = self._interface([s for s in sections if s.kind == "Interface"])
        peers = self._peers([s for s in sections if s.kind == "Peer"], interface)
        return Config(self.path, name, interface, peers, tuple(self.warnings))

    def _error(self, line: int, key: str, message: str) -> ConfigError:
        return ConfigError(self.path, line, key, message)

    def _warn(self, line: int, key: str, message: str) -> None:
        self.warnings.append(f"{self.path}:{line}: {key}: {message}")

    def _sections(self, text: str) -> list[_Section]:
        sections: list[_Section] = []
        for line, content, own in self._lines(text):
            if not own and content.startswith("["):
                sections.append(self._section(line, content))
                continue
            key, equals, value = content.partition("=")
            # What stands before "=" may be a secret that was pasted alone.
            shown = key if re.fullmatch(r"[A-Za-z0-9_-]{1,24}", key) else "line"
            if not equals:
                how = "; a comment must not begin with '#!'" if own else ""
                raise self._error(line, shown, f"is no 'Key = value'{how}")
            if not sections:
                raise self._error(line, shown, "stands before [Interface] or [Peer]; move it below")
            self._assign(sections[-1], line, key, shown, value, own=own)
        return sections

    def _lines(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """Line number, content without white space and comment, whether it is a `#!` line."""
        for number, raw in enumerate(text.split("\n"), start=1):
            content = "".join(raw.split())
            own = content.startswith("#!")
            content, _, comment = content.removeprefix("#!").partition("#")
            if comment.startswith("!"):
                raise self._error(number, "#!", "must be at the beginning of the line")
            if content or own:
                yield number, content, own

    def _section(self, line: int, content: str) -> _Section:
        for kind in _KEYS:
            if content.lower() == f"[{kind.lower()}]":
                return _Section(kind, line)
        raise self._error(
            line, "section", f"must be [Interface] or [Peer], not {config_values.quote(content)}"
        )

    def _assign(
        self, section: _Section, line: int, key: str, shown: str, value: str, *, own: bool
    ) -> None:
        if not own and (ignored := _match(key, _IGNORED_KEYS[section.kind])):
            self._warn(line, ignored, "is not supported yet and has no effect")
            return
        known = (_OWN_KEYS if own else _KEYS)[section.kind]
        name = _match(key, known)
        if name is None:
            raise self._error(line, shown, self._unknown(section.kind, key, own=own))
        spec = known[name]
        try:
            parsed = spec.parse(value)
        except ValueError as error:
            raise self._error(line, name, str(error)) from None
        if spec.several:
            parsed = section.values.get(spec.field, ()) + parsed
        elif name in section.lines:
            self._warn(line, name, f"replaces that of line {section.lines[name]}, as in wg")
        section.values[spec.field] = parsed
        section.lines[name] = line

    def _unknown(self, kind: str, key: str, *, own: bool) -> str:
        """What is wrong with a key that has no meaning where it stands, and what to do."""
        for other in _KEYS:
            own_name = _match(key, _OWN_KEYS[other])
            plain_name = _match(key, _KEYS[other]) or _match(key, _IGNORED_KEYS[other])
            if own_name and not own:
                return f"is a key of ebpfvpn alone, so that wg can read on: write '#! {own_name} ='"
            if plain_name and own:
                return f"is a key of WireGuard: write '{plain_name} =' without '#!'"
            if own_name or plain_name:
                return f"belongs in [{other}], not in [{kind}]"
        known = [*_OWN_KEYS[kind]] if own else [*_KEYS[kind], *_IGNORED_KEYS[kind]]
        close = difflib.get_close_matches(key.lower(), [name.lower() for name in known], n=1)
        if close:
            return f"is unknown in [{kind}]; did you mean {_match(close[0], tuple(known))}?"
        if own and known:
            return f"is no key of ebpfvpn in [{kind}]; those are {', '.join(known)}"
        return f"is unknown in [{kind}]; take it out"

    def _interface(self, sections: list[_Section]) -> InterfaceConfig:
        """Several [Interface] sections are one, as in wg(8)."""
        if not sections:
            raise self._error(1, "[Interface]", "is missing; the file needs one with a PrivateKey")
        merged = _Section("Interface", sections[0].line)
        for section in sections:
            addresses = merged.values.get("addresses", ()) + section.values.get("addresses", ())
            merged.values |= section.values | {"addresses": addresses}
            merged.lines |= section.lines
        # All zeros is wg's way to say that there is none.
        if not any(merged.values.get("private_key", b"")):
            line = merged.lines.get("PrivateKey", merged.line)
            raise self._error(line, "PrivateKey", "is missing; make one with ebpfvpn genkey")
        interface = InterfaceConfig(**merged.values)
        six = any(address.version == 6 for address in interface.addresses)
        # The kernel takes IPv6 off such a device.
        if six and interface.mtu is not None and interface.mtu < 1280:
            message = "must be 1280 or more with an IPv6 Address (RFC 8200)"
            raise self._error(merged.lines["MTU"], "MTU", message)
        return interface

    def _peers(
        self, sections: list[_Section], interface: InterfaceConfig
    ) -> tuple[PeerConfig, ...]:
        own_key = keys.public_key(interface.private_key)
        peers: list[PeerConfig] = []
        seen: dict[bytes, int] = {}
        holders: dict[IPv4Network | IPv6Network, int] = {}
        for section in sections:
            if "public_key" not in section.values:
                raise self._error(section.line, "PublicKey", "is missing in this [Peer]")
            peer = PeerConfig(**section.values)
            line = section.lines["PublicKey"]
            if peer.public_key in seen:
                first = seen[peer.public_key]
                message = f"is that of line {first} too; put both in one [Peer]"
                raise self._error(line, "PublicKey", message)
            seen[peer.public_key] = line
            if peer.public_key == own_key:
                self._warn(line, "PublicKey", "is this interface's own; the peer has no effect")
                continue
            if interface.listen_port + peer.flow_ports - 1 > 65535:
                message = f"leads from ListenPort {interface.listen_port} past the last port, 65535"
                raise self._error(section.lines["FlowPorts"], "FlowPorts", message)
            for network in peer.allowed_ips:
                if holders.setdefault(network, section.line) != section.line:
                    message = f"{network} moves here from the [Peer] of line {holders[network]}"
                    self._warn(section.lines["AllowedIPs"], "AllowedIPs", message + ", as in wg")
                    holders[network] = section.line
            peers.append(peer)
        return tuple(peers)
