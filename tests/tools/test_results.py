"""Runs of the bench: read, joined, refused; their table and their plot."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import results
import table
from results import Results, ResultsError

SETTINGS = {
    "cpu": "Z80",
    "cpus": 2,
    "kernel": "6.18",
    "underlay": "gro",
    "napi_threaded": False,
    "durations": {"tcp": "--time=4", "flood": 2},
}
VERSIONS: dict[str, Any] = {
    "ebpfvpn-tc": {"version": "1", "sha256": "ab"},
    "tinc": {"version": "1.0", "cipher": "aes"},
    "fastd": {"version": "22", "cipher": "salsa"},
    "none": {},
}


def example() -> Results:
    values = {
        "ebpfvpn-tc": {"ping_p50": [20.0, 10.0, 40.0], "udp_64_flood": [300_000.0]},
        "tinc": {"ping_p50": [50.0], "udp_64_flood": [90_000.0]},
        "fastd": {"ping_p50": [40.0], "udp_64_flood": [100_000.0]},
        "none": {"ping_p50": [5.0]},
    }
    return Results(copy.deepcopy(SETTINGS), copy.deepcopy(VERSIONS), values)


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    value = {"candidate": "tinc", "round": 1, "measurement": "ping_p50", "unit": "µs"}
    path = write(
        tmp_path / "run",
        example().header(command="tools/bench"),
        {"candidate": "tinc", "round": 1, "quiet": False, "busy_cpus": 2},
        {**value, "value": 50},
        {"candidate": "fastd", "round": 1, "quiet": True, "busy_cpus": 0},
        {"candidate": "fastd", "round": 1, "error": "did not start"},
        {**value, "value": 60, "round": 2},
    )
    found = results.read(path)
    assert found.settings == SETTINGS
    assert found.versions == VERSIONS
    assert found.values == {"tinc": {"ping_p50": [50.0, 60.0]}, "fastd": {}}
    assert (found.busy, found.turns) == (1, 2)


@pytest.mark.parametrize(
    ("text", "line"),
    [("", 1), ("{}", 1), ("nonsense\n", 1), ('{"settings":{},"versions":{}}\n[]', 2)],
)
def test_other_files_are_refused(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    with pytest.raises(ResultsError, match=f"line {line} is none that tools/bench writes"):
        results.read(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"nowhere: No such file or directory$"):
        results.read(tmp_path / "nowhere")


def test_runs_are_joined() -> None:
    other = Results(SETTINGS, {"none": {}}, {"none": {"ping_p50": [6.0], "tcp_1": [9.0]}}, 1, 2)
    merged = results.merge({"a": example(), "b": other})
    assert merged.values["none"] == {"ping_p50": [5.0, 6.0], "tcp_1": [9.0]}
    assert merged.values["tinc"] == example().values["tinc"]
    assert (merged.busy, merged.turns) == (1, 2)


def test_another_setting_is_refused() -> None:
    for name in SETTINGS:
        other = example()
        if name == "durations":
            other.settings["durations"]["flood"] = 3
            expected = "durations.flood is 2 there and 3 here"
        else:
            other.settings[name] = "other"
            expected = f"{name} is {SETTINGS[name]} there and other here"
        with pytest.raises(ResultsError) as caught:
            results.merge({"a": example(), "b": other})
        assert str(caught.value) == f"a and b cannot be compared: {expected}"


def test_another_version_is_refused() -> None:
    other = example()
    other.versions["tinc"]["version"] = "1.1"
    with pytest.raises(ResultsError, match=r"tinc version is 1\.0 there and 1\.1 here$"):
        results.merge({"a": example(), "b": other})


def test_a_version_of_somebody_else_does_not_matter() -> None:
    other = Results(SETTINGS, {"wg-new": {"version": "2"}}, {"wg-new": {"ping_p50": [1.0]}})
    merged = results.merge({"a": example(), "b": other})
    assert merged.versions["wg-new"] == {"version": "2"}


def test_table() -> None:
    caption, empty, *rows = table.markdown(example()).splitlines()
    assert caption.startswith("2 CPUs (Z80); Linux 6.18; underlay gro: real packets")
    assert "tinc 1.0 (aes), fastd 22 (salsa)" in caption
    assert not empty
    assert rows == [
        "| | ebpfvpn-tc | tinc | fastd | none |",
        "|---|---|---|---|---|",
        # The best of the peers is the least of a latency, the greatest of a rate.
        "| ping p50, µs | 20 (10..40) ×0.50 | 50 | 40 | 5 |",
        "| 64-byte UDP, flood, packets/s | 300,000 ×3.00 | 90,000 | 100,000 | - |",
    ]


def test_table_tells_that_the_machine_was_busy() -> None:
    busy = example()
    busy.busy, busy.turns = 2, 7
    assert "the machine was not quiet in 2 of 7 turns" in table.caption(busy)
    assert "not quiet" not in table.caption(example())


def test_plot(tmp_path: Path) -> None:
    import plot

    path = tmp_path / "run.svg"
    plot.draw(example(), path)
    drawn = path.read_text()
    # Letters are drawn as curves, with the text in a comment.
    for text in ("ebpfvpn-tc", "ping_p50", "Small packets, packets/s", "Z80, Linux 6.18"):
        assert f"<!-- {text}" in drawn
