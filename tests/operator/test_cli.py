"""The command: what it prints, where, and with which exit code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ebpfvpn import __version__, cli, config, control, keys, show
from ebpfvpn.errors import OperatorError
from ebpfvpn.kernel import leftovers

FAKE_NODE = Path(__file__).with_name("fake_node.py")
PACKAGES = Path(cli.__file__).parents[1]
PRIVATE = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(run_directory: Path) -> Invoke:
    def run(*arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(cli.main, arguments, input=stdin, prog_name="ebpfvpn")

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "wgfake.conf"
    path.write_text(f"[Interface]\nPrivateKey = {PRIVATE}\n")
    path.chmod(0o600)
    return path


class Node:
    """Runs the command in processes of its own, with the daemon of fake_node.py."""

    def __init__(self, directory: Path, status: show.Status) -> None:
        self.directory = directory
        (directory / "status.json").write_text(json.dumps(status))

    def command(self, *arguments: str | Path, behaviour: str = "serves") -> list[str]:
        run = self.directory / "run"
        python = ["env", f"PYTHONPATH={PACKAGES}", sys.executable]
        return [*python, str(FAKE_NODE), str(run), behaviour, *map(str, arguments)]

    def __call__(
        self, *arguments: str | Path, behaviour: str = "serves"
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, behaviour=behaviour),
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def node(tmp_path: Path, run_directory: Path, status: show.Status) -> Iterator[Node]:
    yield Node(tmp_path, status)
    for name in control.running():
        with contextlib.suppress(OperatorError):
            control.stop(name)


def one_line(result: subprocess.CompletedProcess[str] | Result) -> str:
    """What is on standard error, which must be all that there is."""
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("ebpfvpn: ")
    return result.stderr.removeprefix("ebpfvpn: ").rstrip("\n")


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").output == f"ebpfvpn {__version__}\n"


@pytest.mark.parametrize("command", ["", "up", "down", "show", "genkey", "pubkey", "genpsk"])
def test_help(invoke: Invoke, command: str) -> None:
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: ebpfvpn {command}".rstrip())
    assert len(result.output.splitlines()) > 5


def test_help_names_every_command(invoke: Invoke) -> None:
    for command in cli.main.commands:
        assert f"\n  {command} " in invoke("--help").output


@pytest.mark.parametrize(
    "arguments",
    [["up"], ["nonsense"], ["up", "a", "b"], ["up", "--datapath", "ebpf", "a"], ["show", "--xml"]],
)
def test_wrong_usage(invoke: Invoke, arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_keys(invoke: Invoke) -> None:
    private_key = invoke("genkey").output
    public_key = invoke("pubkey", stdin=private_key).output
    expected = keys.public_key(keys.decode_key(private_key.strip()))
    assert public_key == keys.encode_key(expected) + "\n"
    assert len(keys.decode_key(invoke("genpsk").output.strip())) == 32
    assert invoke("genpsk").output != invoke("genpsk").output


def test_pubkey_of_nonsense(invoke: Invoke) -> None:
    result = invoke("pubkey", stdin=PRIVATE[:-2])
    assert result.exit_code == 1
    assert one_line(result).startswith("standard input: is not a key")
    assert PRIVATE[:10] not in result.stderr


def test_genkey_warns_of_a_file_that_others_may_read(node: Node, tmp_path: Path) -> None:
    for mode, warned in ((0o644, True), (0o600, False)):
        path = tmp_path / f"key{mode:o}"
        path.touch()
        path.chmod(mode)
        with path.open("w") as output:
            result = subprocess.run(
                node.command("genkey"), stdout=output, stderr=subprocess.PIPE, text=True
            )
        assert ("others may access" in result.stderr) == warned
        assert len(keys.decode_key(path.read_text().strip())) == 32


def test_up_show_down(node: Node, file: Path, run_directory: Path) -> None:
    result = node("up", file)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    status = json.loads(node("show", "wgfake", "--json").stdout)
    pid = status["pid"]
    assert status["interface"] == "wgfake"
    assert json.loads(node("show", "--json").stdout) == [status]
    assert node("show", file).stdout.startswith("interface: wgfake\n  public key: ")
    # The time passes between the two.
    both = node("show").stdout, node("show", "wgfake").stdout
    assert len({re.sub("latest handshake: .*", "", shown) for shown in both}) == 1
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)

    again = node("up", file)
    assert again.returncode == 1
    assert one_line(again) == "wgfake is up already"
    assert Path(f"/proc/{pid}").exists()

    result = node("down", "wgfake")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    with contextlib.suppress(FileNotFoundError):
        assert "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    assert list(run_directory.iterdir()) == []
    assert one_line(node("down", file)) == "wgfake is not up"
    assert node("down", file).returncode == 1


@pytest.mark.parametrize(
    ("line", "option", "expected"),
    [
        ("", [], "auto"),
        ("#! Datapath = kernel\n", [], "kernel"),
        ("", ["--datapath", "userspace"], "userspace"),
        ("#! Datapath = kernel\n", ["--datapath", "auto"], "auto"),
    ],
)
def test_the_option_goes_before_the_file(
    node: Node, file: Path, tmp_path: Path, line: str, option: list[str], expected: str
) -> None:
    file.write_text(file.read_text() + line)
    result = node("up", file, *option)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "datapath").read_text() == expected


def test_show_of_several(node: Node, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "wgother.conf"
    other.write_text(file.read_text())
    other.chmod(0o600)
    node("up", file)
    node("up", other)
    shown = node("show").stdout
    assert [line for line in shown.splitlines() if line.startswith("interface")] == [
        "interface: wgfake",
        "interface: wgother",
    ]
    assert "\n\ninterface: wgother\n" in shown
    node("down", other)
    assert "wgother" not in node("show").stdout


def test_show_of_nothing(invoke: Invoke) -> None:
    assert (invoke("show").exit_code, invoke("show").output) == (0, "")
    assert invoke("show", "--json").output == "[]\n"
    result = invoke("show", "wgfake")
    assert (result.exit_code, one_line(result)) == (1, "wgfake is not up")


@pytest.mark.parametrize("foreground", [[], ["--foreground"]])
def test_a_failure_of_the_datapath(node: Node, file: Path, foreground: list[str]) -> None:
    result = node("up", file, *foreground, behaviour="refuses")
    assert result.returncode == 1
    assert one_line(result) == "wgfake: eth7 is gone"


def test_a_bug_in_the_background(node: Node, file: Path, run_directory: Path) -> None:
    result = node("up", file, behaviour="bug")
    assert result.returncode == 1
    log = run_directory / "wgfake.log"
    expected = f"this is a bug in ebpfvpn (ZeroDivisionError); the traceback is in {log}"
    assert one_line(result) == expected
    assert "Traceback" in log.read_text()


def test_a_bug_in_the_foreground(node: Node, file: Path) -> None:
    result = node("up", file, "--foreground", behaviour="bug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == ("ebpfvpn: this is a bug in ebpfvpn (ZeroDivisionError); the traceback is above")


def test_a_bug_in_a_command(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def running() -> list[str]:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(control, "running", running)
    result = invoke("show")
    assert result.exit_code == 1
    line = one_line(result)
    assert "(ZeroDivisionError)" in line
    path = Path(line.rpartition(" ")[2])
    try:
        assert "in running" in path.read_text()
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        path.unlink()


def test_a_killed_daemon_is_cleaned_up_after(node: Node, file: Path, tmp_path: Path) -> None:
    result = node("up", file, behaviour="dies")
    assert result.returncode == 1
    assert "the daemon ended by signal 9, without a word" in one_line(result)
    assert (tmp_path / "wgfake.cleaned").exists()


def test_down_cleans_up_after_a_daemon_that_was_killed(
    node: Node, file: Path, tmp_path: Path
) -> None:
    node("up", file)
    pid = json.loads(node("show", "wgfake", "--json").stdout)["pid"]
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    with open(process):
        assert select.select([process], [], [], 30)[0]  # it has ended
    assert not (tmp_path / "wgfake.cleaned").exists()
    assert node("down", "wgfake").returncode == 0
    assert (tmp_path / "wgfake.cleaned").exists()
    assert node("down", "wgfake").returncode == 1


def test_foreground_stays_until_it_is_stopped(node: Node, file: Path) -> None:
    process = subprocess.Popen(
        node.command("up", file, "--foreground"), stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr
        assert process.stderr.readline() == "INFO ebpfvpn.background: wgfake is up\n"
        assert json.loads(node("show", "wgfake", "--json").stdout)["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_warnings_do_not_keep_it_from_starting(node: Node, file: Path) -> None:
    file.write_text(file.read_text() + "DNS = 10.0.0.1\n")
    file.chmod(0o644)
    result = node("up", file)
    assert result.returncode == 0
    assert [line.split(": ")[:2] for line in result.stderr.splitlines()] == [
        ["ebpfvpn", "warning"]
    ] * 2


def test_errors_of_the_configuration(invoke: Invoke, file: Path) -> None:
    file.write_text("[Interface]\nPrivateKey = x\n")
    result = invoke("up", str(file))
    assert result.exit_code == 1
    assert one_line(result).startswith(f"{file}:2: PrivateKey: is not a key")
    assert "no configuration; write /etc/ebpfvpn/nosuchtunnel.conf" in one_line(
        invoke("up", "nosuchtunnel")
    )
    assert "cannot be the name" in one_line(invoke("down", ".."))


def test_essentials(
    invoke: Invoke, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cli, "TUN_DEVICE", tmp_path / "tun")
        assert one_line(invoke("up", str(file))).endswith(
            "tun: No such file or directory; run modprobe tun, or give the container this device"
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights")
@pytest.mark.parametrize(
    ("drop", "enough"),
    [("-all", False), ("-net_admin", False), ("-bpf,-sys_admin", True)],
)
def test_rights(node: Node, file: Path, drop: str, enough: bool) -> None:
    result = subprocess.run(
        ["setpriv", f"--bounding-set={drop}", *node.command("up", file, behaviour="refuses")],
        capture_output=True,
        text=True,
    )
    expected = (
        "wgfake: eth7 is gone" if enough else "not enough rights: run this as root (CAP_NET_ADMIN)"
    )
    assert (result.returncode, one_line(result)) == (1, expected)


def test_the_configuration_is_never_written(node: Node, file: Path) -> None:
    file.chmod(0o400)
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    node("up", file)
    node("down", file)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_names_are_looked_up(
    node: Node, file: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke
) -> None:
    monkeypatch.setattr(config, "DIRECTORIES", (file.parent,))
    monkeypatch.setattr(control, "is_up", lambda name: True)
    assert one_line(invoke("up", "wgfake")) == "wgfake is up already"


def test_a_daemon_that_runs_is_never_cleaned_up_after(
    monkeypatch: pytest.MonkeyPatch, run_directory: Path
) -> None:
    run_directory.mkdir()
    control.socket_path("wgfake").touch()
    cleaned: list[str] = []
    monkeypatch.setattr(leftovers, "clean", cleaned.append)
    monkeypatch.setattr(control, "is_up", lambda name: True)
    cli._clean("wgfake")
    assert cleaned == []
    monkeypatch.setattr(control, "is_up", lambda name: False)
    cli._clean("wgfake")
    assert cleaned == ["wgfake"]
    cli._clean("wgfake")
    assert cleaned == ["wgfake"]
