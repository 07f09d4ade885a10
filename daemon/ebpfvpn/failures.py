"""Failures that must not keep what follows them from happening."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ebpfvpn.datapath import DatapathError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def logged(what: str) -> Iterator[None]:
    """What the body raises ends here, in the log. `what`: the operator is told that it failed."""
    try:
        yield
    except Exception as error:
        log.error("%s: %s", what, reason(error))


def reason(error: Exception) -> str:
    """For the operator. Of an error that nobody expected the traceback goes into the log."""
    if isinstance(error, (DatapathError, OSError)):
        return str(error)
    log.error("a bug", exc_info=error)
    return type(error).__name__
