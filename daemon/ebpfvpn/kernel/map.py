"""A map: entries of bytes, and events of a ring buffer."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from ctypes import byref, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from pathlib import Path

from ebpfvpn.kernel.libbpf import (
    BpfError,
    Descriptor,
    SampleFunction,
    call,
    call_pointer,
    get_pinned,
    library,
    possible_cpus,
)

BPF_ANY = 0
BPF_F_LOCK = 4

_PERCPU_TYPES = {5, 6, 10, 21}  # hash, array, LRU hash, cgroup storage
_BATCH = 4096


class _BatchOptions(ctypes.Structure):
    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class _MapInfo(ctypes.Structure):
    """The first fields of struct bpf_map_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
    )


class Map(Descriptor):
    """A map; keys and values are bytes. Values of per-CPU maps are those of all possible CPUs,
    each padded to 8 bytes, one after the other."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        info = _MapInfo()
        call(f"asking about {name}", "bpf_obj_get_info_by_fd", fd, byref(info),
             byref(c_uint32(sizeof(info))))  # fmt: skip
        self.type: int = info.type
        self.kernel_name: str = info.name.decode()
        self.id: int = info.id
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.max_entries: int = info.max_entries
        self.btf_id: int = info.btf_id
        """0: it has none."""
        self.btf_value_type: int = info.btf_value_type_id
        self._stride: int = self.value_size
        if self.type in _PERCPU_TYPES:
            self._stride = -(-self.value_size // 8) * 8 * possible_cpus()

    @classmethod
    def pinned(cls, path: Path) -> Map:
        """BpfError with ENOENT where nothing is pinned."""
        return cls(get_pinned(path), path.name)

    @classmethod
    def by_id(cls, number: int) -> Map:
        """One that is loaded, with the name that the kernel knows (15 bytes of it). BpfError with
        ENOENT where none has this id."""
        found = cls(call(f"opening map {number}", "bpf_map_get_fd_by_id", number), str(number))
        found.name = found.kernel_name
        return found

    def _check(self, key: bytes, value: bytes | None = None) -> None:
        if len(key) != self.key_size:
            raise ValueError(f"{self.name}: key of {len(key)} bytes, not {self.key_size}")
        if value is not None and len(value) != self._stride:
            raise ValueError(f"{self.name}: value of {len(value)} bytes, not {self._stride}")

    def lookup(self, key: bytes, flags: int = 0) -> bytes | None:
        """None: no such entry."""
        self._check(key)
        value = ctypes.create_string_buffer(self._stride)
        try:
            call(f"reading {self.name}", "bpf_map_lookup_elem_flags", self.fd, key, value,
                 c_uint64(flags))  # fmt: skip
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        self._check(key, value)
        call(f"writing {self.name}", "bpf_map_update_elem", self.fd, key, value, c_uint64(flags))

    def delete(self, key: bytes) -> bool:
        """Whether there was such an entry."""
        self._check(key)
        try:
            call(f"deleting from {self.name}", "bpf_map_delete_elem", self.fd, key)
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def keys(self) -> Iterator[bytes]:
        """In the map's order. Starts over where an entry is deleted while it is the last seen:
        collect them before deleting."""
        key: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        while True:
            try:
                call(f"reading {self.name}", "bpf_map_get_next_key", self.fd, key, following)
            except BpfError as error:
                if error.errno != errno.ENOENT:
                    raise
                return
            key = following.raw
            yield key

    def items(self, flags: int = 0) -> list[tuple[bytes, bytes]]:
        """Everything, by batches: for arrays, hashes and LPM tries."""
        found: list[tuple[bytes, bytes]] = []
        # A batch of a hash must hold a whole bucket; `cursor` holds a key or a bucket's number.
        cursor = ctypes.create_string_buffer(max(self.key_size, 8))
        start = None
        size = min(_BATCH, self.max_entries)
        options = _BatchOptions(sizeof(_BatchOptions), flags, 0)
        while True:
            count = c_uint32(size)
            keys = ctypes.create_string_buffer(size * self.key_size)
            values = ctypes.create_string_buffer(size * self._stride)
            try:
                call(f"reading {self.name}", "bpf_map_lookup_batch", self.fd, start, cursor, keys,
                     values, byref(count), byref(options))  # fmt: skip
                last = False
            except BpfError as error:
                if error.errno == errno.ENOSPC:
                    size *= 2
                    continue
                if error.errno != errno.ENOENT:
                    raise
                last = True
            for i in range(count.value):
                key = keys.raw[i * self.key_size : (i + 1) * self.key_size]
                found.append((key, values.raw[i * self._stride : (i + 1) * self._stride]))
            if last:
                return found
            start = cursor


class RingBuffer:
    """The reading end of a BPF_MAP_TYPE_RINGBUF."""

    def __init__(self, map_: Map) -> None:
        self._samples: list[bytes] = []
        # Kept here: C holds on to it.
        self._callback: Callable[..., int] = SampleFunction(self._take)
        self._handle: c_void_p | None = c_void_p(
            call_pointer(
                f"reading {map_.name}", "ring_buffer__new", map_.fd, self._callback, None, None
            )
        )

    def _take(self, _: int, data: int, size: int) -> int:
        self._samples.append(ctypes.string_at(data, size))
        return 0

    def fileno(self) -> int:
        """Readable while there are samples."""
        return call("reading events", "ring_buffer__epoll_fd", self._handle)

    def consume(self) -> list[bytes]:
        call("reading events", "ring_buffer__consume", self._handle)
        samples, self._samples = self._samples, []
        return samples

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            library().ring_buffer__free(handle)
