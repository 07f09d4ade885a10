from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import pytest

from ebpfvpn import resolver
from ebpfvpn.config_values import HostPort
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.resolver import Resolver

FOUND = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.9", 51820))]


def run(body: Callable[[Resolver, asyncio.Queue[tuple[int, Endpoint]]], Awaitable[None]]) -> None:
    async def main() -> None:
        answers: asyncio.Queue[tuple[int, Endpoint]] = asyncio.Queue()
        asked = Resolver(lambda peer, endpoint: answers.put_nowait((peer, endpoint)))
        try:
            async with asyncio.timeout(10):
                await body(asked, answers)
        finally:
            asked.close()

    asyncio.run(main())


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_an_address_needs_no_look_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)

    async def body(asked: Resolver, answers: asyncio.Queue[tuple[int, Endpoint]]) -> None:
        asked.want(3, HostPort(address, 51820))
        assert answers.get_nowait() == (3, Endpoint(ip_address(address), 51820))

    run(body)


def test_the_zone_of_an_address_is_its_device() -> None:
    """By name or by number."""
    index = socket.if_nametoindex("lo")

    async def body(asked: Resolver, answers: asyncio.Queue[tuple[int, Endpoint]]) -> None:
        for zone in ("lo", str(index)):
            asked.want(1, HostPort(f"fe80::1%{zone}", 51820))
            assert answers.get_nowait() == (1, Endpoint(ip_address("fe80::1"), 51820, None, index))

    run(body)


def test_a_device_that_is_not_there_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_FIRST_PAUSE", 0.01)
    look_up = socket.getaddrinfo
    tries = 0

    def tried(host: str, port: int, **options: int) -> object:
        nonlocal tries
        tries += 1
        return look_up(host if tries < 3 else "fe80::1%lo", port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", tried)
    index = socket.if_nametoindex("lo")

    async def body(asked: Resolver, answers: asyncio.Queue[tuple[int, Endpoint]]) -> None:
        asked.want(1, HostPort("fe80::1%nosuchdevice", 51820))
        assert answers.empty()
        found = Endpoint(ip_address("fe80::1"), 51820, None, index)
        assert await answers.get() == (1, found)

    run(body)
    assert tries == 3


def test_the_zone_of_a_name_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("fe80::9%lo", 51820, 0, 7))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    async def body(asked: Resolver, answers: asyncio.Queue[tuple[int, Endpoint]]) -> None:
        asked.want(1, HostPort("node.example", 51820))
        assert await answers.get() == (1, Endpoint(ip_address("fe80::9"), 51820, None, 7))

    run(body)


def test_a_name_is_looked_up_outside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def look_up(host: str, port: int, **_: object) -> object:
        threads.append(threading.current_thread())
        assert (host, port) == ("node.example", 51820)
        return FOUND

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def body(asked: Resolver, answers: asyncio.Queue[tuple[int, Endpoint]]) -> None:
        asked.want(1, HostPort("node.example", 51820))
        assert answers.empty()
        assert await answers.get() == (1, Endpoint(ip_address("192.0.2.9"), 51820))

    run(body)
    assert threads != [threading.main_thread()]


def test_it_asks_again_until_there_is_an_answer_and_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resolver, "_FIRST_PAUSE", 0.01)
    tries = 0

    def look_up(*_: object, **__: object) -> object:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise socket.gaierror(socket.EAI_AGAIN, "no server answers")
        return FOUND

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def body(asked: Resolver, answers: asyncio.Queue[tuple[int, Endpoint]]) -> None:
        asked.want(1, HostPort("node.example", 51820))
        assert await answers.get() == (1, Endpoint(ip_address("192.0.2.9"), 51820))

    with caplog.at_level(logging.WARNING):
        run(body)
    assert tries == 5
    assert len([record for record in caplog.records if "node.example" in record.message]) == 1


def test_a_stuck_name_server_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other peers nor the end of the loop."""
    release = threading.Event()
    answered = threading.Event()

    def look_up(host: str, *_: object, **__: object) -> object:
        if host == "stuck.example":
            release.wait(10)
            answered.set()
        return FOUND

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    results: list[tuple[int, Endpoint]] = []

    async def body(asked: Resolver, answers: asyncio.Queue[tuple[int, Endpoint]]) -> None:
        asked.want(1, HostPort("stuck.example", 1))
        asked.want(2, HostPort("node.example", 2))
        results.append(await answers.get())

    try:
        run(body)
    finally:
        release.set()
    assert results == [(2, Endpoint(ip_address("192.0.2.9"), 2))]
    # What it says in the end, when the loop is closed, harms nobody.
    assert answered.wait(5)
