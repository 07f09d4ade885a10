"""The tunnel that the rows run through, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rows.tunnel import Tunnel
from rows.tunnel import tunnel as loaded


@pytest.fixture(scope="session")
def programs() -> Iterator[Tunnel]:
    """As the test before left it: for tests that call `set_up` themselves."""
    with loaded() as found:
        yield found


@pytest.fixture
def tunnel(programs: Tunnel) -> Tunnel:
    """With one peer and a session; see Tunnel.set_up."""
    programs.set_up()
    return programs
