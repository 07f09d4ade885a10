"""The plot of what tools/bench has measured: medians, with the least and the greatest value."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt

from measurements import MEASUREMENTS
from results import Results

PANELS = {
    "Throughput": "Gbit/s",
    "Small packets": "packets/s",
    "Latency": "µs",
    "CPU": "CPU s per GB",
}
"""Titles, and the unit of the measurements that each shows."""


def draw(results: Results, path: Path) -> None:
    """In the format of the path's suffix. OSError."""
    figure, axes = plt.subplots(2, 2, figsize=(15, 10), layout="constrained")
    for axis, (title, unit) in zip(axes.flat, PANELS.items(), strict=True):
        _panel(axis, results, title, unit)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    settings = results.settings
    figure.suptitle(
        f"{settings['cpu']}, Linux {settings['kernel']}, underlay {settings['underlay']}"
    )
    figure.savefig(path)
    plt.close(figure)


def _panel(axis: Any, results: Results, title: str, unit: str) -> None:
    shown = [name for name, what in MEASUREMENTS.items() if what.unit == unit]
    candidates = [name for name, values in results.values.items() if values]
    drawn = False
    width = 0.8 / max(1, len(candidates))
    for i, candidate in enumerate(candidates):
        places, medians, below, above = [], [], [], []
        for place, name in enumerate(shown):
            found = results.values[candidate].get(name, [])
            # On a logarithmic axis nothing has no place.
            if found and min(found) > 0:
                median = statistics.median(found)
                places.append(place + (i - (len(candidates) - 1) / 2) * width)
                medians.append(median)
                below.append(median - min(found))
                above.append(max(found) - median)
        axis.errorbar(places, medians, (below, above), fmt="o", label=candidate, capsize=2)
        drawn = drawn or bool(places)
    axis.set_title(f"{title}, {unit}")
    axis.set_xticks(range(len(shown)), shown, rotation=20)
    if drawn:
        # No tunnel is so much faster that the others would be flat.
        axis.set_yscale("log")
