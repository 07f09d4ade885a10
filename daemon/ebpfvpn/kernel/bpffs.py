"""Where the kernel datapath leaves its traces: pins on bpffs, locks and the mark under /run.

/sys/fs/bpf/ebpfvpn/NAME/               maps and programs of a tunnel (generation.py)
/sys/fs/bpf/ebpfvpn/NAME%oldN/          those of an older generation
/sys/fs/bpf/ebpfvpn/@NETNS-IFINDEX/     an underlay device: its dispatcher, its tunnels (attach.py)
/run/ebpfvpn/NAME.lock                  held by the process that runs NAME
/run/ebpfvpn/lock                       held while device attachments change
/run/ebpfvpn/mark                       the machine's secret MAC address
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import select
from collections.abc import Iterator
from pathlib import Path

from ebpfvpn.datapath import DatapathError

BPFFS = Path("/sys/fs/bpf")
PINS = BPFFS / "ebpfvpn"
RUN = Path("/run/ebpfvpn")

_DYING = 5.0  # seconds
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8


def mount() -> None:
    """Mounts bpffs where it isn't, and makes PINS, for root alone. DatapathError."""
    if not _is_mounted():
        libc = ctypes.CDLL(None, use_errno=True)
        where = os.fsencode(BPFFS)
        if libc.mount(b"bpf", where, b"bpf", _MS_NOSUID_NODEV_NOEXEC, b"mode=0700") != 0:
            reason = os.strerror(ctypes.get_errno())
            raise DatapathError(f"cannot mount bpffs at {BPFFS}: {reason}")
    try:
        PINS.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DatapathError(f"cannot make {PINS}: {error.strerror}") from None


def _is_mounted() -> bool:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == str(BPFFS) and after.split()[0] == "bpf":
            return True
    return False


def pin_directory(name: str) -> Path:
    """Of the tunnel NAME; bpffs allows no dot in names."""
    return PINS / name.replace("%", "%25").replace(".", "%2E")


def device_directory(netns: int, ifindex: int) -> Path:
    """Of an underlay device. No tunnel is called so: "@" is kept for it."""
    return PINS / f"@{netns}-{ifindex}"


def remove(directory: Path) -> None:
    """Unpins all that is in a directory, and the directory. Nothing happens without it."""
    with contextlib.suppress(FileNotFoundError):
        for entry in directory.iterdir():
            if entry.is_dir():
                entry.rmdir()
            else:
                entry.unlink()
        directory.rmdir()


def netns_inode() -> int:
    """What identifies the network namespace of this thread."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def _run_directory() -> Path:
    RUN.mkdir(mode=0o700, exist_ok=True)
    return RUN


class NameLock:
    """Says that NAME runs in this process, in whatever network namespace."""

    def __init__(self, name: str) -> None:
        """DatapathError where another process, or this one, runs it."""
        self._path = _run_directory() / f"{name}.lock"
        while True:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self._holder()
                os.close(self._fd)
                if _await_death(holder):
                    continue
                raise DatapathError(
                    f"{name} is in use already, by process {holder}: ebpfvpn down {name}"
                ) from None
            if self._is_current():
                # It may have let go of this, but not of its devices and ports yet.
                _await_death(self._holder())
                break
            os.close(self._fd)  # its holder removed it before we had it
        os.truncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _holder(self) -> str:
        return os.pread(self._fd, 32, 0).decode().strip() or "unknown"

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def _await_death(pid: str) -> bool:
    """Whether the process is dead, or was dying and is dead now."""
    try:
        process = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    try:
        os.readlink(f"/proc/{pid}/exe")
    except OSError:  # its memory is gone already, its descriptors maybe not
        return bool(select.select([process], [], [], _DYING)[0])
    finally:
        os.close(process)
    return False


@contextlib.contextmanager
def devices_lock() -> Iterator[None]:
    """Held by one process at a time, for as long as a few system calls take."""
    fd = os.open(_run_directory() / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def mark() -> bytes:
    """The machine's secret: 6 bytes, a unicast and locally administered MAC address. Frames
    between our own programs have it as their destination; it is made once per boot, because
    tunnels share it through the dispatcher of a device."""
    path = _run_directory() / "mark"
    if not path.exists():
        address = bytearray(secrets.token_bytes(6))
        address[0] = address[0] & 0xFC | 2
        draft = path.with_name(f"mark.{secrets.token_hex(8)}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(address)
        # Whoever comes second keeps the first one's; nobody sees half a file.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    found = path.read_bytes()
    if len(found) != 6:
        raise DatapathError(f"{path} does not hold 6 bytes: stop all tunnels and remove it")
    return found
