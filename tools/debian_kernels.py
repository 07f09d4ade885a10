"""Debian's kernels, unpacked under build/kernels without being installed, and booted in a VM.

The VM sees this machine's file system read-only, the kernel's own modules, and no network.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "kernels"

MODULES = ("tun", "veth", "cls_bpf", "sch_ingress")
"""What the kernel path needs and Debian builds as modules."""


class KernelUnavailable(Exception):
    """The kernel or what boots it is not to be had here; the text is one line that says why."""


class VmFailed(Exception):
    """The VM did not run the command to its end; the text has the end of its console."""


@dataclass(frozen=True, slots=True)
class Kernel:
    release: str
    """As `uname -r` says it."""
    image: Path


def _run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise KernelUnavailable(f"{' '.join(argv[:3])} failed: {reason}")
    return done.stdout


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))


def _cached(series: str) -> list[Kernel]:
    found = [
        Kernel(image.parent.parent.name, image)
        for image in CACHE.glob(f"{series}.*/boot/vmlinuz-*")
    ]
    return sorted(found, key=lambda kernel: _version(kernel.release))


def offered(series: str) -> list[str]:
    """The releases of this series that apt can download, oldest first."""
    listing = _run("apt-cache", "search", "--names-only", f"^linux-image-{series}[.]")
    pattern = re.compile(rf"linux-image-({re.escape(series)}[\d.]*(?:-\d+|\+\w+)-amd64)")
    names = (line.split()[0] for line in listing.splitlines())
    return sorted((match[1] for name in names if (match := pattern.fullmatch(name))), key=_version)


def _unpack(release: str) -> Kernel:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".unpack-") as name:
        work = Path(name)
        _run("apt-get", "download", f"linux-image-{release}", cwd=work)
        (package,) = work.glob("*.deb")
        tree = work / "tree"
        _run("dpkg-deb", "-x", str(package), str(tree))
        if not (tree / "lib").exists():
            (tree / "lib").symlink_to("usr/lib")
        _run("depmod", "-a", "-b", str(tree), release)
        target = CACHE / release
        if not target.exists():
            tree.rename(target)
    return Kernel(release, CACHE / release / "boot" / f"vmlinuz-{release}")


def get(series: str) -> Kernel:
    """The newest Debian kernel of a series ("6.1"), from build/kernels or else from apt.

    Raises KernelUnavailable.
    """
    if os.uname().machine != "x86_64":
        raise KernelUnavailable(f"VMs of {os.uname().machine} are not set up, only of x86_64")
    if cached := _cached(series):
        return cached[-1]
    if not shutil.which("apt-cache"):
        raise KernelUnavailable(f"no apt here to get Debian's {series} kernel from")
    releases = offered(series)
    if not releases:
        raise KernelUnavailable(f"this machine's package lists have no Debian kernel {series}")
    return _unpack(releases[-1])


def _script(kernel: Kernel, argv: list[str], directory: Path, results: Path) -> str:
    # From the unpacked tree, for a machine without a kernel of its own has no /lib/modules.
    modprobe = f"modprobe -d {shlex.quote(str(kernel.image.parent.parent))}"
    lines = [
        "export HOME=/root LC_ALL=C.UTF-8 TMPDIR=/dev/shm PYTHONDONTWRITEBYTECODE=1",
        f"export PATH={shlex.quote(os.environ['PATH'])}:/usr/sbin:/sbin",
        f"exec >{shlex.quote(str(results / 'output'))} 2>&1 </dev/null",
        f"cd {shlex.quote(str(directory))}",
        *(f"{modprobe} {module}" for module in MODULES),
        "mount -t bpf bpf /sys/fs/bpf",
        "ip link set lo up",
        shlex.join(argv),
        f"echo $? >{shlex.quote(str(results / 'status'))}",
    ]
    return "\n".join(lines) + "\n"


def _boot(kernel: Kernel, script: Path, results: Path, timeout: float) -> str:
    """Runs the VM until it powers off; returns its console."""
    argv = [
        str(ROOT / ".venv/bin/virtme-run"),
        *("--kimg", str(kernel.image), "--mods=auto", "--disable-kvm", "--memory=2G", "--cpus=2"),
        *("--pwd", f"--rwdir={results}={results}", "--show-boot-console", "--verbose"),
        *("--script-sh", f"sh {shlex.quote(str(script))}"),
    ]
    try:
        vm = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise KernelUnavailable(f"no {error.filename}: run `make .venv`") from error
    try:
        console, _ = vm.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(vm.pid, signal.SIGKILL)
        console, _ = vm.communicate()
        console += f"\nnot done within {timeout:.0f} s\n".encode()
    except BaseException:
        os.killpg(vm.pid, signal.SIGKILL)
        vm.wait()
        raise
    return console.decode(errors="replace")


def run(
    kernel: Kernel, argv: list[str], *, directory: Path = ROOT, timeout: float = 300
) -> tuple[int, str]:
    """Runs a command as root under this kernel, in this directory; returns its exit status and
    output. Raises VmFailed, also when it takes longer than `timeout` seconds."""
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="vm-") as name:
        results = Path(name)
        script = results / "script"
        script.write_text(_script(kernel, argv, directory, results))
        console = _boot(kernel, script, results, timeout)
        output = results / "output"
        text = output.read_text(errors="replace") if output.exists() else ""
        try:
            return int((results / "status").read_text()), text
        except (FileNotFoundError, ValueError):
            tail = "\n".join(console.splitlines()[-20:])
            raise VmFailed(f"Linux {kernel.release}: no exit status\n{text}{tail}") from None
