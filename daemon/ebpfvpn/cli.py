"""The command `ebpfvpn`. What goes wrong is one line on standard error and exit code 1."""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from ebpfvpn import __version__, background, config, control, keys, show
from ebpfvpn.datapath import DATAPATH_CHOICES, DatapathChoice
from ebpfvpn.errors import OperatorError
from ebpfvpn.handover import Next

TUN_DEVICE = Path("/dev/net/tun")
_CAP_NET_ADMIN = 12


class _Commands(click.Group):
    """Turns exceptions into lines for the operator."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except OperatorError as error:
            _say(str(error))
        except Exception as error:
            _say(background.bug(error, f"the traceback is in {_write_traceback()}"))
        raise click.exceptions.Exit(1)


def _say(line: str) -> None:
    click.echo(f"ebpfvpn: {line}", err=True)


def _write_traceback() -> str:
    fd, path = tempfile.mkstemp(prefix="ebpfvpn-", suffix=".log")
    with open(fd, "w") as file:
        traceback.print_exc(file=file)
    return path


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ebpfvpn", message="%(prog)s %(version)s")
def main() -> None:
    """A VPN that speaks WireGuard's protocol and moves its data packets in eBPF.

    NAME is an interface; its configuration, in the format of wg-quick, is /etc/ebpfvpn/NAME.conf
    or /etc/wireguard/NAME.conf. FILE is the path of such a file; the interface has its name.
    """


@main.command()
@click.argument("name_or_file", metavar="NAME|FILE")
@click.option("--foreground", is_flag=True, help="Stay, and log to standard error.")
@click.option(
    "--datapath",
    type=click.Choice(DATAPATH_CHOICES),
    help="What moves the packets, whatever the file says; `restart` keeps to it.",
)
@click.option("--resumed", is_flag=True, hidden=True)  # it was in the background before `restart`
def up(name_or_file: str, foreground: bool, datapath: DatapathChoice | None, resumed: bool) -> None:
    """Bring up the tunnel of NAME or FILE.

    Returns when the interface is ready; the daemon goes on in the background. If that fails,
    everything is undone and the exit code is 1.

    After a daemon was killed this goes on where it was: no packet of an established
    session is lost.
    """
    path = config.find(name_or_file).absolute()
    name = config.interface_name(name_or_file)
    _check_essentials()
    keys.forbid_core_dumps()
    if control.is_up(name):
        raise OperatorError(f"{name} is up already")
    configuration = config.load(path)
    for warning in configuration.warnings:
        _say(f"warning: {warning}")
    chosen: list[str] = []
    if datapath is not None:
        interface = replace(configuration.interface, datapath=datapath)
        configuration = replace(configuration, interface=interface)
        chosen = ["--datapath", datapath]
    if foreground:
        background.in_foreground(name, _daemon(configuration, "--foreground", *chosen))
    elif resumed:
        background.resume(name, _daemon(configuration, "--resumed", *chosen))
    else:
        # What was there before stays for the next try.
        undo = (lambda: None) if _left_over(name) else (lambda: _clean(name))
        daemon = _daemon(configuration, "--resumed", *chosen)
        background.start(name, daemon, undo, _start_timeout(configuration))


@main.command()
@click.argument("name_or_file", metavar="NAME|FILE")
def restart(name_or_file: str) -> None:
    """Start the daemon of NAME or FILE anew, in the version that is installed now.

    Reads the configuration again. The interface stays, and no packet of an established session is
    lost.
    """
    name = config.interface_name(name_or_file)
    status = cast(show.Status, control.request(name, "status"))
    configuration = config.load(Path(status["file"]))
    for warning in configuration.warnings:
        _say(f"warning: {warning}")
    control.restart(name, _start_timeout(configuration))


@main.command()
@click.argument("name_or_file", metavar="NAME|FILE")
def down(name_or_file: str) -> None:
    """Take down the tunnel of NAME or FILE.

    Returns when the interface is gone. Also takes away what a killed daemon left.
    """
    name = config.interface_name(name_or_file)
    try:
        control.stop(name)
    except control.NotUp:
        if not _left_over(name):
            raise
        _check_privileges()
        _clean(name)


@main.command("show")
@click.argument("name_or_file", metavar="[NAME]", required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: an object, or a list without NAME."
)
def show_(name_or_file: str | None, as_json: bool) -> None:
    """Show the state of NAME, or of all interfaces that are up.

    Endpoints, handshakes, traffic, sessions, how packets are moved and why some were dropped.
    """
    names = control.running() if name_or_file is None else [config.interface_name(name_or_file)]
    statuses = [cast(show.Status, control.request(name, "status")) for name in names]
    if as_json:
        click.echo(json.dumps(statuses if name_or_file is None else statuses[0], indent=2))
    else:
        click.echo("\n".join(show.text(status, time.time()) for status in statuses), nl=False)


@main.command()
def genkey() -> None:
    """Print a new private key."""
    _print_secret(keys.generate_private_key)


@main.command()
def genpsk() -> None:
    """Print a new preshared key."""
    _print_secret(keys.generate_preshared_key)


@main.command()
def pubkey() -> None:
    """Read a private key from standard input and print its public key."""
    keys.forbid_core_dumps()
    try:
        private_key = keys.decode_key(sys.stdin.read(1024).strip())
    except ValueError as error:
        raise OperatorError(f"standard input: {error}") from None
    click.echo(keys.encode_key(keys.public_key(private_key)))


def _print_secret(generate: Callable[[], bytes]) -> None:
    keys.forbid_core_dumps()
    output = os.fstat(1)
    if stat.S_ISREG(output.st_mode) and output.st_mode & 0o007:
        _say("warning: the key goes to a file that others may access; run umask 077 before")
    click.echo(keys.encode_key(generate()))


def _daemon(configuration: config.Config, *options: str) -> background.Run:
    """The daemon with its failures as OperatorError. The one that follows it is started with the
    options."""

    def run(ready: Callable[[], None]) -> Next | None:
        # Here, because only `up` needs them.
        from ebpfvpn import lifetime
        from ebpfvpn.datapath import DatapathError

        try:
            descriptors = lifetime.run(configuration, ready)
        except DatapathError as error:
            raise OperatorError(f"{configuration.name}: {error}") from error
        if descriptors is None:
            return None
        return Next(["up", *options, str(configuration.path)], descriptors)

    return run


def _start_timeout(configuration: config.Config) -> float:
    peers = len(configuration.peers)
    return background.START_TIMEOUT + peers * background.START_TIMEOUT_PER_PEER


def _left_over(name: str) -> bool:
    # Here, because `genkey` and the like do not need it.
    from ebpfvpn.kernel import generation

    return bool(generation.directories(name)) or control.socket_path(name).exists()


def _clean(name: str) -> None:
    """Takes away what a daemon left that could not do it, but nothing of one that runs."""
    if _left_over(name) and not control.is_up(name):
        from ebpfvpn.datapath import DatapathError
        from ebpfvpn.kernel import leftovers

        try:
            leftovers.clean(name)
        except DatapathError as error:
            raise OperatorError(str(error)) from error
        control.socket_path(name).unlink(missing_ok=True)


def _check_essentials() -> None:
    """OperatorError, one line with what to do, if this machine cannot run a tunnel."""
    _check_privileges()
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise OperatorError(
            f"{TUN_DEVICE}: {error.strerror}; run modprobe tun, or give the container this device"
        ) from error


def _check_privileges() -> None:
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    if not capabilities >> _CAP_NET_ADMIN & 1:
        raise OperatorError("not enough rights: run this as root (CAP_NET_ADMIN)")
