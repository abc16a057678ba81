"""Draw the per-op rows of `benchmarks.run ops --json` or `benchmarks.gate --json`: every provider's time, by case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.attentioncases import CASES as ATTENTION
from benchmarks.opcases import OPCASES
from benchmarks.table import ratio, seconds

CASES = (*OPCASES, *ATTENTION)
"""What is drawn here; of whole chains and steps only what ours is against the fastest peer is drawn, elsewhere."""
_COLOURS = {"ours": "#1f5f8b", "peer": "#d08c3f", "also": "#c9c9c9", "copy": "#7aa874"}
_NAMES = {"ours": "physiofast", "peer": "peer", "also": "for comparison", "copy": "copy of the same bytes"}
_INK, _FAINT, _BAD = "#222222", "#777777", "#c62828"
_HEIGHT, _GAP = 0.21, 1.3  # inches of a bar; bars between cases


def has_ops(document: dict[str, Any]) -> bool:
    """Whether there is something to draw."""
    return any(row["case"] in CASES for row in document["rows"])


def timings(document: dict[str, Any]) -> Figure:
    """Horizontal bars, a group for each case and patch length, a wrong provider named and without a bar."""
    groups = _groups(document["rows"])
    bars = sum(len(rows) for _, rows in groups) + _GAP * len(groups)
    figure, axes = plt.subplots(figsize=(9.6, 1.2 + _HEIGHT * bars), layout="constrained")
    place, ticks = 0.0, []
    for title, rows in groups:
        axes.text(0, place - 0.75, title, size=8, weight="bold", color=_INK, transform=axes.get_yaxis_transform())
        for row in rows:
            _bar(axes, place, row, rows)
            ticks.append((place, row["provider"]))
            place += 1
        place += _GAP
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], size=7)
    axes.set_ylim(place - _GAP, -1.6)
    axes.set_xscale("log")
    times = [row["seconds"] for _, rows in groups for row in rows if row["seconds"]]
    axes.set_xlim(min(times) / 3, max(times) * 6)
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in _COLOURS.values()]
    place_of_legend = {"loc": "lower center", "bbox_to_anchor": (0.4, 1.0)}
    axes.legend(handles, list(_NAMES.values()), ncols=4, frameon=False, fontsize=8, **place_of_legend)
    axes.set_xlabel(_where(document), size=7, color=_FAINT)
    return figure


def _groups(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["case"] in CASES:
            shape = row["shape"]
            patch = f", P {shape['patch']}" if shape["patch"] > 1 else ""
            title = f"{row['case']}: B {shape['windows']}, {shape['tokens']} tokens{patch}, D {shape['width']}"
            if row["case"] == "sample_plan":
                title = f"{row['case']}: B {shape['windows']}, {shape['tokens']} tokens"
            found.setdefault(f"{title}, {shape['dtype']}", []).append(row)
    return list(found.items())


def _bar(axes: Axes, place: float, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    if row["seconds"] is None:
        axes.text(0.005, place, f"wrong: {row['problem']}"[:110], va="center", size=7, color=_BAD,
                  transform=axes.get_yaxis_transform())  # fmt: skip
        return
    axes.barh(place, row["seconds"], height=0.8, color=_COLOURS[row["role"]], zorder=2)
    text = f" {seconds(row['seconds'])}"
    ours = next((other["seconds"] for other in rows if other["role"] == "ours"), None)
    if row["role"] == "ours" and row["share_of_copy"]:
        text += f", {row['share_of_copy']:.0%} of a copy"
    elif row["role"] in ("peer", "also") and ours:
        text += f", {ratio(row['seconds'] / ours)} ours"
    axes.text(row["seconds"], place, text, va="center", size=7, color=_INK)


def _where(document: dict[str, Any]) -> str:
    """Machine, device and date."""
    machine = document["machine"]
    gpu = document.get("gpu") or machine.get("gpu") or {}
    device = gpu.get("name") or f"{machine['cpu']}, {machine['cores']} cores"
    versions = document["versions"]
    return f"{device}; torch {versions.get('torch')}, commit {document['commit']}, {document['date'][:10]}"
