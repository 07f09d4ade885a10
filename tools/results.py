"""What runs of tools/bench have measured: JSON lines, and whether they may be compared.

The first line tells the settings, which all runs in one table share, and the versions of the
candidates, which must agree where a candidate is in more than one; each further line one value of
one candidate and round, or an error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO


class ResultsError(Exception):
    """A file cannot be read, or runs not compared; the text is one line."""


def emit(file: TextIO, line: dict[str, Any]) -> None:
    print(json.dumps(line, ensure_ascii=False), file=file, flush=True)


@contextlib.contextmanager
def opened(path: Path | None) -> Iterator[TextIO]:
    """A new file for JSON lines; None: standard output. ResultsError."""
    if path is None:
        yield sys.stdout
        return
    try:
        file = path.open("x")
    except FileExistsError:
        raise ResultsError(f"{path} exists: each run has a file of its own") from None
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    with file:
        yield file


@dataclass(slots=True)
class Results:
    settings: dict[str, Any]
    versions: dict[str, Any] = field(default_factory=dict)
    """By candidate."""
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By candidate and measurement, one of each round."""
    busy: int = 0
    """Turns of candidates during which the machine was not quiet."""
    turns: int = 0

    def header(self, **about: Any) -> dict[str, Any]:
        return {"settings": self.settings, "versions": self.versions, **about}

    def add(self, line: dict[str, Any]) -> None:
        """A line after the first. KeyError."""
        values = self.values.setdefault(line["candidate"], {})
        if "measurement" in line:
            values.setdefault(line["measurement"], []).append(float(line["value"]))
        elif "quiet" in line:
            self.turns += 1
            self.busy += not line["quiet"]


def read(path: Path) -> Results:
    """ResultsError."""
    at = 1
    try:
        first, *rest = path.read_text().splitlines()
        header = json.loads(first)
        results = Results(header["settings"], header["versions"])
        for line in rest:
            at += 1
            results.add(json.loads(line))
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ResultsError(f"{path}: line {at} is none that tools/bench writes") from None
    return results


def merge(runs: dict[str, Results]) -> Results:
    """All in one; `runs` by what they are called. ResultsError if settings or versions differ."""
    first, all_of = next(iter(runs.items()))
    merged = Results(all_of.settings)
    for name, run in runs.items():
        for what, ours, theirs in differences(all_of.settings, run.settings):
            raise ResultsError(_refusal(first, name, what, ours, theirs))
        for candidate in run.versions.keys() & merged.versions.keys():
            for what, ours, theirs in differences(
                merged.versions[candidate], run.versions[candidate], f"{candidate} "
            ):
                raise ResultsError(_refusal(first, name, what, ours, theirs))
        merged.versions.update(run.versions)
        merged.busy += run.busy
        merged.turns += run.turns
        for candidate, values in run.values.items():
            for measurement, found in values.items():
                into = merged.values.setdefault(candidate, {})
                into.setdefault(measurement, []).extend(found)
    return merged


def _refusal(one: str, other: str, what: str, ours: Any, theirs: Any) -> str:
    return f"{one} and {other} cannot be compared: {what} is {ours} there and {theirs} here"


def differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The names of what differs, `.` between levels, with both values; None: not told."""
    if isinstance(one, dict) and isinstance(other, dict):
        inside = f"{name}." if name and not name.endswith(" ") else name
        for key in [*one, *(key for key in other if key not in one)]:
            yield from differences(one.get(key), other.get(key), f"{inside}{key}")
    elif one != other:
        yield name, one, other
