"""The command `ebpfvpn` with a daemon that moves no packet.

    python fake_node.py RUN_DIRECTORY BEHAVIOUR ARGUMENT...

BEHAVIOUR is what its daemon does: serves, refuses, bug, dies.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ebpfvpn
from ebpfvpn import cli, control
from ebpfvpn.config import Config
from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel import leftovers

RUN_DIRECTORY = Path(sys.argv[1])


async def serve(config: Config, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def down() -> dict[str, Any]:
        stop.set()
        return {}

    def status() -> dict[str, Any]:
        result: dict[str, Any] = json.loads((RUN_DIRECTORY.parent / "status.json").read_text())
        return result | {"interface": config.name, "pid": os.getpid()}

    (RUN_DIRECTORY.parent / "datapath").write_text(config.interface.datapath)
    async with control.serve(config.name, {"status": status, "down": down}):
        ready()
        await stop.wait()


def run(config: Config, ready: Callable[[], None]) -> None:
    match sys.argv[2]:
        case "serves":
            asyncio.run(serve(config, ready))
        case "refuses":
            raise DatapathError("eth7 is gone")
        case "bug":
            raise ZeroDivisionError("a secret")
        case "dies":
            (RUN_DIRECTORY / f"{config.name}.sock").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def clean(name: str) -> None:
    (RUN_DIRECTORY.parent / f"{name}.cleaned").touch()


control.RUN_DIRECTORY = RUN_DIRECTORY
lifetime = types.ModuleType("ebpfvpn.lifetime")
lifetime.run = run  # type: ignore[attr-defined]
leftovers.clean = clean
sys.modules[lifetime.__name__] = ebpfvpn.lifetime = lifetime  # type: ignore[attr-defined,unused-ignore]
cli.main(sys.argv[3:], prog_name="ebpfvpn")
