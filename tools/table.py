"""The Markdown table of what tools/bench has measured."""

from __future__ import annotations

import statistics

from candidates import DEBIAN
from measurements import MEASUREMENTS, Measurement
from results import Results
from underlay import KINDS


def markdown(results: Results) -> str:
    """A caption, and the medians with the least and the greatest value. Beside those of others the
    ratio to the best of Debian's peers, if there is one."""
    names = [name for name, values in results.values.items() if values]
    lines = [caption(results), "", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for measurement, what in MEASUREMENTS.items():
        if any(measurement in results.values[name] for name in names):
            best = best_peer(results, measurement, what)
            cells = [cell(results.values[name].get(measurement), name, best) for name in names]
            lines.append(f"| {what.label}, {what.unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def caption(results: Results) -> str:
    settings = results.settings
    rounds = max((len(found) for v in results.values.values() for found in v.values()), default=0)
    said = [
        f"{settings['cpus']} CPUs ({settings['cpu']})",
        f"Linux {settings['kernel']}",
        f"underlay {settings['underlay']}: {KINDS[settings['underlay']].what}",
        f"NAPI {'in threads' if settings['napi_threaded'] else 'in softirq'}",
        f"medians of {rounds} {'round' if rounds == 1 else 'rounds (least..greatest)'}, "
        "× the best of Debian's peers",
    ]
    if results.busy:
        said.append(f"the machine was not quiet in {results.busy} of {results.turns} turns")
    versions = [
        f"{name} {told['version']}{f' ({cipher})' if (cipher := told.get('cipher')) else ''}"
        for name, told in results.versions.items()
        if told
    ]
    return f"{'; '.join(said)}. {', '.join(versions)}."


def best_peer(results: Results, measurement: str, what: Measurement) -> float | None:
    """The best median among Debian's peers."""
    medians = [
        statistics.median(found)
        for name, values in results.values.items()
        if name in DEBIAN and (found := values.get(measurement))
    ]
    if not medians:
        return None
    return max(medians) if what.more_is_better else min(medians)


def cell(values: list[float] | None, name: str, best: float | None) -> str:
    if not values:
        return "-"
    median = statistics.median(values)
    text = short(median)
    if len(values) > 1:
        text += f" ({short(min(values))}..{short(max(values))})"
    if best and name not in DEBIAN and name != "none":
        text += f" ×{median / best:.2f}"
    return text


def short(value: float) -> str:
    """Three digits, or thousands apart."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
