"""Configuration files: real ones, every error, and any text at all."""

from __future__ import annotations

import subprocess
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ebpfvpn import config, keys
from ebpfvpn.config import ConfigError, HostPort
from ebpfvpn.errors import OperatorError

PATH = Path("/etc/wireguard/wg0.conf")
PRIVATE = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PEER1 = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
PEER2 = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
PSK = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak="
INTERFACE = f"[Interface]\nPrivateKey = {PRIVATE}\n"
PEER = f"[Peer]\nPublicKey = {PEER1}\n"

# The examples of wg-quick(8), and files as providers and generators write them.
CLIENT = f"""\
[Interface]
Address = 10.200.100.8/24
DNS = 10.200.100.1
PrivateKey = {PRIVATE}
PostUp = iptables -I OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -j REJECT

[Peer]
PublicKey = {PEER1}
PresharedKey = {PSK}
AllowedIPs = 0.0.0.0/0
Endpoint = demo.wireguard.com:51820
"""
SERVER = f"""\
[Interface]
Address = 10.192.122.1/24
Address = 10.10.0.1/16
SaveConfig = true
PrivateKey = {PRIVATE}
ListenPort = 51820

[Peer]
PublicKey = {PEER1}
AllowedIPs = 10.192.122.3/32, 10.192.124.1/24

[Peer]
PublicKey = {PEER2}
AllowedIPs = 10.192.122.4/32, 192.168.0.0/16
"""
PROVIDER = f"""\
# made by a web page on some Windows machine\r
[Interface]\r
PrivateKey={PRIVATE}\r
Address=10.68.3.2/32,fc00:bbbb:bbbb:bb01::5:301/128 # both\r
MTU=1420\r
FwMark=0xca6c\r
Table=1234\r
\r
[Peer]\r
PublicKey={PEER1}\r
AllowedIPs=0.0.0.0/0,::0/0\r
Endpoint=[2001:db8::7]:51820\r
PersistentKeepalive=25\r
"""
OWN = f"""\
[interface]
privatekey = {PRIVATE}
#! AttachMode = TC
#!rekeyaftertime=10   # quicker than the protocol asks
#! RekeyAfterMessages = 1152921504606846975
#! Datapath = UserSpace
#! SendBuffer = 4096
#! RecvBuffer = 1073741823
#! TxQueueLen = 1000000

[PEER]
publickey = {PEER1}
allowedips =
"""


def parse(text: str) -> config.Config:
    return config.parse(text, PATH)


def test_client() -> None:
    result = parse(CLIENT)
    assert result.name == "wg0"
    assert result.interface == config.InterfaceConfig(
        private_key=keys.decode_key(PRIVATE), addresses=(ip_interface("10.200.100.8/24"),)
    )
    (peer,) = result.peers
    assert peer == config.PeerConfig(
        public_key=keys.decode_key(PEER1),
        preshared_key=keys.decode_key(PSK),
        allowed_ips=(ip_network("0.0.0.0/0"),),
        endpoint=HostPort("demo.wireguard.com", 51820),
    )
    assert result.warnings == (
        f"{PATH}:3: DNS: is not supported yet and has no effect",
        f"{PATH}:5: PostUp: is not supported yet and has no effect",
    )


def test_server() -> None:
    result = parse(SERVER)
    assert result.interface.listen_port == 51820
    assert [str(address) for address in result.interface.addresses] == [
        "10.192.122.1/24",
        "10.10.0.1/16",
    ]
    assert [[str(n) for n in peer.allowed_ips] for peer in result.peers] == [
        ["10.192.122.3/32", "10.192.124.0/24"],  # the host's bits are masked
        ["10.192.122.4/32", "192.168.0.0/16"],
    ]
    assert [peer.endpoint for peer in result.peers] == [None, None]
    assert [warning.split(": ")[1] for warning in result.warnings] == ["SaveConfig"]


def test_provider() -> None:
    result = parse(PROVIDER)
    interface = result.interface
    assert [str(a) for a in interface.addresses] == [
        "10.68.3.2/32",
        "fc00:bbbb:bbbb:bb01::5:301/128",
    ]
    assert (interface.mtu, interface.fwmark, interface.table) == (1420, 0xCA6C, 1234)
    (peer,) = result.peers
    assert peer.endpoint == HostPort("2001:db8::7", 51820)
    assert peer.persistent_keepalive == 25
    assert peer.preshared_key == bytes(32)
    assert result.warnings == ()


def test_own_keys_and_any_case() -> None:
    result = parse(OWN)
    assert result.interface.attach_mode == "tc"
    assert result.interface.rekey_after_time == 10
    assert result.interface.rekey_after_messages == 2**60 - 1
    assert result.interface.datapath == "userspace"
    assert (result.interface.send_buffer, result.interface.recv_buffer) == (4096, 2**30 - 1)
    assert result.interface.tx_queue_length == 1_000_000
    assert result.peers[0].allowed_ips == ()


def test_defaults() -> None:
    interface = parse(INTERFACE).interface
    assert interface == config.InterfaceConfig(private_key=keys.decode_key(PRIVATE))
    assert (interface.table, interface.attach_mode, interface.rekey_after_time) == (
        "auto",
        "auto",
        120,
    )


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("FwMark = off", "fwmark", 0),
        ("FwMark = 0xFFFFFFFF", "fwmark", 2**32 - 1),
        ("FwMark = 51820", "fwmark", 51820),
        ("Table = OFF", "table", "off"),
        ("Table = auto", "table", "auto"),
        ("Table = 0x10", "table", 16),
        ("ListenPort = 0", "listen_port", 0),
        ("MTU = 8921", "mtu", 8921),
        ("Address = 10.0.0.1", "addresses", (ip_interface("10.0.0.1/32"),)),
        ("Address = fd00::1", "addresses", (ip_interface("fd00::1/128"),)),
        ("#! ReplayWindow = 64", "replay_window", 64),
        ("#! ReplayWindow = 8191", "replay_window", 8191),
        ("#! ReplayWindow = 65536", "replay_window", 65536),
    ],
)
def test_interface_values(line: str, field: str, value: object) -> None:
    assert getattr(parse(INTERFACE + line).interface, field) == value


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("PersistentKeepalive = off", "persistent_keepalive", 0),
        ("PersistentKeepalive = 65535", "persistent_keepalive", 65535),
        ("Endpoint = 192.0.2.1:1", "endpoint", HostPort("192.0.2.1", 1)),
        ("Endpoint = [fe80::1%eth0]:51820", "endpoint", HostPort("fe80::1%eth0", 51820)),
        ("Endpoint = fd00::1:51820", "endpoint", HostPort("fd00::1", 51820)),
        ("Endpoint = a-b_c.example.:65535", "endpoint", HostPort("a-b_c.example.", 65535)),
        ("AllowedIPs = ::1", "allowed_ips", (ip_network("::1/128"),)),
        ("#! FlowPorts = 1", "flow_ports", 1),
        ("#! FlowPorts = 64", "flow_ports", 64),
    ],
)
def test_peer_values(line: str, field: str, value: object) -> None:
    assert getattr(parse(INTERFACE + PEER + line).peers[0], field) == value


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("", 1, "[Interface]", "is missing"),
        (PEER, 1, "[Interface]", "is missing"),
        ("[Interface]\n", 1, "PrivateKey", "is missing; make one with ebpfvpn genkey"),
        (f"[Interface]\nPrivateKey = {'A' * 43}=\n", 2, "PrivateKey", "is missing"),
        ("[Interface]\nPrivateKey = abc\n", 2, "PrivateKey", "44 characters of base64"),
        (INTERFACE.replace("Bmk=", "Bml="), 2, "PrivateKey", "44 characters of base64"),
        (INTERFACE + "[Peer]\n", 3, "PublicKey", "is missing in this [Peer]"),
        (INTERFACE + "[Pear]\n", 3, "section", "must be [Interface] or [Peer], not '[Pear]'"),
        ("MTU = 1420\n" + INTERFACE, 1, "MTU", "stands before [Interface]"),
        (INTERFACE + "nonsense\n", 3, "nonsense", "is no 'Key = value'"),
        (INTERFACE + "MTU = 67\n", 3, "MTU", "a number from 68 to 8921, not '67'"),
        (INTERFACE + "MTU = 8922\n", 3, "MTU", "a number from 68 to 8921, not '8922'"),
        (INTERFACE + "MTU = 1_4\n", 3, "MTU", "not '1_4'"),
        (INTERFACE + "MTU = 1279\nAddress = fd00::1/64\n", 3, "MTU", "must be 1280 or more"),
        (INTERFACE + "ListenPort = 65536\n", 3, "ListenPort", "from 0 to 65535"),
        (INTERFACE + "ListenPort =\n", 3, "ListenPort", "from 0 to 65535, not ''"),
        (INTERFACE + "FwMark = 0x100000000\n", 3, "FwMark", "'off' or a number"),
        (INTERFACE + "FwMark = 4294967296\n", 3, "FwMark", "'off' or a number"),
        (INTERFACE + "Table = main\n", 3, "Table", "'auto', 'off' or a table's number"),
        (INTERFACE + "Address = 10.0.0.0/33\n", 3, "Address", "must be like 10.0.0.1/24"),
        (INTERFACE + "Address = 10.0.0.1/255.0.0.0\n", 3, "Address", "must be like"),
        (INTERFACE + "Address = fe80::1%eth0/64\n", 3, "Address", "must be like"),
        (INTERFACE + "Address = 10.0.0.1,,10.0.0.2\n", 3, "Address", "not ''"),
        (INTERFACE + "AttachMode = tc\n", 3, "AttachMode", "write '#! AttachMode ='"),
        (INTERFACE + "#! AttachMod = tc\n", 3, "AttachMod", "did you mean AttachMode?"),
        (INTERFACE + "#! Colour = tc\n", 3, "Colour", "those are AttachMode, Datapath"),
        (INTERFACE + "#! AttachMode = xdp\n", 3, "AttachMode", "auto, native, generic or tc"),
        (INTERFACE + "#! Datapath = ebpf\n", 3, "Datapath", "auto, kernel or userspace"),
        (INTERFACE + "#! SendBuffer = 4095\n", 3, "SendBuffer", "from 4096 to 1073741823"),
        (INTERFACE + "#! RecvBuffer = 1073741824\n", 3, "RecvBuffer", "from 4096 to 1073741823"),
        (INTERFACE + "#! RecvBuffer = 4M\n", 3, "RecvBuffer", "from 4096 to 1073741823"),
        (INTERFACE + "#! TxQueueLen = 0\n", 3, "TxQueueLen", "from 1 to 1000000"),
        (INTERFACE + "#! RekeyAfterTime = 4\n", 3, "RekeyAfterTime", "from 5 to 120"),
        (INTERFACE + "#! RekeyAfterTime = 121\n", 3, "RekeyAfterTime", "from 5 to 120"),
        (INTERFACE + "#! ReplayWindow = 63\n", 3, "ReplayWindow", "from 64 to 65536, not '63'"),
        (INTERFACE + "#! ReplayWindow = 65537\n", 3, "ReplayWindow", "from 64 to 65536"),
        (INTERFACE + "#! ReplayWindow = 0x80\n", 3, "ReplayWindow", "from 64 to 65536"),
        (INTERFACE + "#! ReplayWindow = off\n", 3, "ReplayWindow", "from 64 to 65536"),
        (INTERFACE + "#! ReplayWindow =\n", 3, "ReplayWindow", "from 64 to 65536, not ''"),
        (INTERFACE + "ReplayWindow = 128\n", 3, "ReplayWindow", "write '#! ReplayWindow ='"),
        (INTERFACE + PEER + "#! ReplayWindow = 128\n", 5, "ReplayWindow", "in [Interface]"),
        (INTERFACE + "#! MTU = 1420\n", 3, "MTU", "write 'MTU =' without '#!'"),
        (INTERFACE + "#! AttachMode tc\n", 3, "AttachModetc", "must not begin with '#!'"),
        (INTERFACE + "#!\n", 3, "line", "must not begin with '#!'"),
        (INTERFACE + "MTU = 1420 #! AttachMode = tc\n", 3, "#!", "at the beginning of the line"),
        (INTERFACE + PEER + "#! AttachMode = tc\n", 5, "AttachMode", "belongs in [Interface]"),
        (INTERFACE + PEER + "AttachMode = tc\n", 5, "AttachMode", "key of ebpfvpn alone"),
        (INTERFACE + PEER + "#! Colour = red\n", 5, "Colour", "in [Peer]; those are FlowPorts"),
        (INTERFACE + PEER + "#! FlowPorts = 0\n", 5, "FlowPorts", "from 1 to 64, not '0'"),
        (INTERFACE + PEER + "#! FlowPorts = 65\n", 5, "FlowPorts", "from 1 to 64, not '65'"),
        (
            INTERFACE + "ListenPort = 65533\n" + PEER + "#! FlowPorts = 4\n",
            6,
            "FlowPorts",
            "leads from ListenPort 65533 past the last port",
        ),
        (INTERFACE + "#! FlowPorts = 2\n", 3, "FlowPorts", "belongs in [Peer], not in [Interface]"),
        (INTERFACE + PEER + "MTU = 1420\n", 5, "MTU", "belongs in [Interface], not in [Peer]"),
        (INTERFACE + PEER + "DNS = 10.0.0.1\n", 5, "DNS", "belongs in [Interface]"),
        (INTERFACE + "Endpoint = a:1\n", 3, "Endpoint", "belongs in [Peer], not in [Interface]"),
        (INTERFACE + "Adress = 10.0.0.1/24\n", 3, "Adress", "did you mean Address?"),
        (INTERFACE + "PostUpp = true\n", 3, "PostUpp", "did you mean PostUp?"),
        (INTERFACE + PEER + "AllowedIP = ::/0\n", 5, "AllowedIP", "did you mean AllowedIPs?"),
        (INTERFACE + PEER + "Colour = red\n", 5, "Colour", "is unknown in [Peer]; take it out"),
        (INTERFACE + PEER + "AllowedIPs = 10.0.0.0/8, x\n", 5, "AllowedIPs", "not 'x'"),
        (INTERFACE + PEER + "PresharedKey = x\n", 5, "PresharedKey", "44 characters of base64"),
        (INTERFACE + PEER + "PersistentKeepalive = -1\n", 5, "PersistentKeepalive", "not '-1'"),
        (INTERFACE + PEER + "Endpoint = a\n", 5, "Endpoint", "host:port or [IPv6 address]:port"),
        (INTERFACE + PEER + "Endpoint = a:0\n", 5, "Endpoint", "the port must be a number from 1"),
        (INTERFACE + PEER + "Endpoint = a:http\n", 5, "Endpoint", "the port must be"),
        (INTERFACE + PEER + "Endpoint = [::1]\n", 5, "Endpoint", "host:port"),
        (INTERFACE + PEER + "Endpoint = [1.2.3.4]:5\n", 5, "Endpoint", "host:port"),
        (INTERFACE + PEER + "Endpoint = 1.2.3:5\n", 5, "Endpoint", "host:port"),
        (INTERFACE + PEER + "Endpoint = bücher.example:5\n", 5, "Endpoint", "host:port"),
        (INTERFACE + PEER + "\n" + PEER, 7, "PublicKey", "is that of line 4 too"),
    ],
)
def test_errors(text: str, line: int, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    error = caught.value
    assert (error.file, error.line, error.key) == (PATH, line, key)
    assert message in error.message
    assert str(error) == f"{PATH}:{line}: {key}: {error.message}"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (INTERFACE + "MTU = 1400\nMTU = 1420\n", "4: MTU: replaces that of line 3, as in wg"),
        (
            f"{INTERFACE}{PEER}AllowedIPs = ::/0\n[Peer]\nPublicKey={PEER2}\nAllowedIPs = ::/0\n",
            "8: AllowedIPs: ::/0 moves here from the [Peer] of line 3, as in wg",
        ),
        (
            f"{INTERFACE}[Peer]\nPublicKey = "
            + keys.encode_key(keys.public_key(keys.decode_key(PRIVATE))),
            "4: PublicKey: is this interface's own; the peer has no effect",
        ),
    ],
)
def test_warnings(text: str, warning: str) -> None:
    assert parse(text).warnings == (f"{PATH}:{warning}",)


def test_the_last_of_a_repeated_key_counts() -> None:
    assert parse(INTERFACE + "MTU = 1400\nMTU = 1420\n").interface.mtu == 1420


def test_peer_that_is_the_interface_itself_is_left_out() -> None:
    own = keys.encode_key(keys.public_key(keys.decode_key(PRIVATE)))
    peers = parse(f"{INTERFACE}[Peer]\nPublicKey = {own}\n{PEER}").peers
    assert [keys.encode_key(peer.public_key) for peer in peers] == [PEER1]


def test_two_interface_sections_are_one() -> None:
    text = f"[Interface]\nAddress = 10.0.0.1/24\n{PEER}{INTERFACE}Address = 10.0.1.1/24\nMTU = 1300"
    interface = parse(text).interface
    assert [str(address) for address in interface.addresses] == ["10.0.0.1/24", "10.0.1.1/24"]
    assert interface.mtu == 1300


@pytest.mark.parametrize(
    "text",
    [
        PRIVATE,
        INTERFACE + PRIVATE,
        f"[{PRIVATE}]",
        f"{INTERFACE}#! {PRIVATE}",
        f"{INTERFACE}MTU = {PRIVATE}",
        f"{INTERFACE}Table = {PRIVATE}",
        f"{INTERFACE}Address = {PRIVATE}",
        f"{INTERFACE}PrivatKey = {PRIVATE}",
        f"{INTERFACE}#! AttachMode = {PRIVATE}",
        f"{INTERFACE}{PEER}Endpoint = {PRIVATE}:1",
        f"{INTERFACE}{PEER}PublicKey = {PRIVATE}x",
    ],
)
def test_errors_never_show_a_key(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for length in range(0, 36, 4):
        assert PRIVATE[length : length + 8] not in str(caught.value)


def test_representations_never_show_a_secret() -> None:
    shown = repr(parse(CLIENT))
    assert repr(keys.decode_key(PRIVATE))[2:10] not in shown
    assert repr(keys.decode_key(PSK))[2:10] not in shown


WORDS = """
    [Interface] [Peer] [ ] #! # = , : / %
    PrivateKey PublicKey Endpoint AllowedIPs MTU Table AttachMode DNS
    10.0.0.0/8 ::/0 off auto 0x1 -1 [::1]:1 99999999999
"""
words = st.sampled_from([*WORDS.split(), PRIVATE, PEER1, " ", "\n", "\r", "\0"])


@given(st.text() | st.lists(words | st.text(max_size=3)).map("".join))
@example("[Interface]\nPrivateKey=" + PRIVATE + "\n[Peer]\nPublicKey=" + "٣" * 44)
@example(INTERFACE + "MTU = ١٤٢٠")
def test_any_text_is_a_configuration_or_an_error_of_one_line(text: str) -> None:
    try:
        lines = parse(text).warnings
    except ConfigError as error:
        lines = (str(error),)
    for line in lines:
        assert len(line.splitlines()) == 1
        assert line.startswith(f"{PATH}:")


@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["{}", "0x{:x}", "0x{:X}"]), st.integers(68, 8921)
)
def test_numbers_come_back(mark: int, form: str, mtu: int) -> None:
    interface = parse(f"{INTERFACE}FwMark = {form.format(mark)}\nMTU={mtu}").interface
    assert (interface.fwmark, interface.mtu) == (mark, mtu)


@given(st.lists(st.ip_addresses(v=4) | st.ip_addresses(v=6), min_size=1), st.integers(0, 32))
def test_allowed_ips_come_back_masked(addresses: list[object], length: int) -> None:
    text = ", ".join(f"{address}/{length}" for address in addresses)
    peer = parse(f"{INTERFACE}{PEER}AllowedIPs = {text}").peers[0]
    expected = [ip_network(f"{address}/{length}", strict=False) for address in addresses]
    assert list(peer.allowed_ips) == expected


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    own, wireguard = tmp_path / "ebpfvpn", tmp_path / "wireguard"
    monkeypatch.setattr(config, "DIRECTORIES", (own, wireguard))
    own.mkdir()
    wireguard.mkdir()
    return own, wireguard


def test_find(directories: tuple[Path, Path]) -> None:
    own, wireguard = directories
    with pytest.raises(OperatorError, match=f"no configuration; write {own}/wg0.conf or"):
        config.find("wg0")
    (wireguard / "wg0.conf").touch()
    assert config.find("wg0") == wireguard / "wg0.conf"
    (own / "wg0.conf").touch()
    assert config.find("wg0") == own / "wg0.conf"
    assert config.find("/else/wg0.conf") == Path("/else/wg0.conf")
    assert config.find("wg0.conf") == Path("wg0.conf")


@pytest.mark.parametrize("name", ["wg0", "a", "a_b=c+d.e-f", "abcdefghijklmno", "w.g"])
def test_names(name: str) -> None:
    assert config.interface_name(name) == name
    assert config.interface_name(f"/etc/wireguard/{name}.conf") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "abcdefghijklmnop", "wg 0", "wg0\n", "wg%d", "./wg0", "../x", "a/wg0.cfg"],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(OperatorError) as caught:
        config.interface_name(name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o602, 1)])
def test_load_warns_of_a_file_that_others_may_access(
    tmp_path: Path, mode: int, warnings: int
) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text("\ufeff" + INTERFACE)
    path.chmod(mode)
    result = config.load(path)
    assert len(result.warnings) == warnings
    assert all(f"chmod 600 {path}" in warning for warning in result.warnings)


def test_load_errors(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    with pytest.raises(OperatorError, match=r"wg0.conf: cannot be read: No such file"):
        config.load(path)
    path.write_bytes(INTERFACE.encode() + b"# \xff\n")
    with pytest.raises(ConfigError, match=r"wg0.conf:3: text: is not UTF-8"):
        config.load(path)
    with pytest.raises(OperatorError, match="Is a directory"):
        config.load(tmp_path)


@pytest.mark.parametrize("text", [CLIENT, SERVER, PROVIDER, OWN])
def test_wg_and_wg_quick_read_what_we_read(tmp_path: Path, text: str) -> None:
    """No interface is needed: `wg setconf` parses first, and then misses the interface."""
    path = tmp_path / "wgtest.conf"
    path.write_text(text.replace("demo.wireguard.com", "192.0.2.1").replace("allowedips =\n", ""))
    path.chmod(0o600)
    config.load(path)
    strip = subprocess.run(["wg-quick", "strip", path], capture_output=True, text=True, check=True)
    stripped = tmp_path / "stripped"
    stripped.write_text(strip.stdout)
    result = subprocess.run(
        ["wg", "setconf", "no-such-device0", stripped], capture_output=True, text=True
    )
    assert "Unable to modify interface" in result.stderr
    assert "Configuration parsing error" not in result.stderr
