"""Draw what `python -m benchmarks.run --json FILE` measured: `python -m benchmarks.plot FILE`.

Speed-ups go to FILE with `.png`, growth with hours and channels to FILE's name with `_scaling.png`, the times of ops
(of `benchmarks.gate` too) to that with `_ops.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks import plot_ops
from benchmarks.table import ratio, seconds

_SHADES = ("#1f5f8b", "#6fa8c9", "#b3d1e3")
_INK, _FAINT, _GOOD, _BAD = "#222222", "#777777", "#2e7d32", "#c62828"
_GAP = " "  # the line below a job's name, where its peer stands


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("file", type=Path, help="JSON file of benchmarks.run")
    print("wrote", ", ".join(map(str, draw(parser.parse_args(arguments).file))))
    return 0


def draw(path: Path) -> list[Path]:
    """Draw everything that a JSON file holds, beside it; returns the pictures."""
    document = json.loads(path.read_text())
    drawn = []
    if plot_ops.has_ops(document):
        drawn.append(_save(plot_ops.timings(document), path.with_name(f"{path.stem}_ops.png")))
    document["rows"] = [row for row in document["rows"] if row["case"] not in plot_ops.CASES]
    if any(row["ratio"] is not None for row in document["rows"]):
        drawn.append(_save(speedups(document), path.with_suffix(".png")))
    if "scaling" in document.get("studies", {}):
        stem = path.stem if path.stem.endswith("_scaling") else f"{path.stem}_scaling"
        drawn.append(_save(growth(document), path.with_name(f"{stem}.png")))
    return drawn


def speedups(document: dict[str, Any]) -> Figure:
    """Horizontal bars, one per job and number of threads, with marks for what is required and aimed at."""
    rows = [row for row in document["rows"] if row["role"] == "ours" and row["ratio"] is not None]
    jobs = list(dict.fromkeys(row["case"] for row in rows))
    shades = dict(zip(sorted({row["threads"] for row in rows}), _SHADES, strict=False))
    figure, axes = plt.subplots(figsize=(9.6, 1.4 + 0.27 * (len(rows) + 0.9 * len(jobs))), layout="constrained")
    place, ticks, labels = 0.0, [], []
    for job in jobs:
        mine = [row for row in rows if row["case"] == job]
        for number, row in enumerate(mine):
            _bar(axes, place + number, row, shades.get(row["threads"], _FAINT))
        ticks.append(place + (len(mine) - 1) / 2)
        labels.append((textwrap.fill(mine[0]["title"], 66), f"{mine[0]['peer']}, {_peer_seconds(document, mine[0])}"))
        place += len(mine) + 0.9
    _finish_speedups(axes, ticks, labels, shades, rows)
    figure.text(0.995, 0.004, _where(document), ha="right", va="bottom", size=7, color=_FAINT)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    return figure


def _bar(axes: Axes, place: float, row: dict[str, Any], shade: str) -> None:
    axes.barh(place, row["ratio"] - 1, left=1, height=0.82, color=shade, zorder=2)
    for key, style in (("required", "-"), ("goal", ":")):
        if row[key] is not None:
            axes.plot([row[key]] * 2, [place - 0.46, place + 0.46], style, color=_INK, linewidth=1.8, zorder=4)
    text = f" {ratio(row['ratio'])} ({seconds(row['seconds_min'])})"
    ink = {True: _GOOD, False: _BAD, None: _INK}[row["holds"]]
    beyond = max(1, row["ratio"], row["required"] or 0, row["goal"] or 0)
    axes.text(beyond, place, text, va="center", ha="left", size=8, color=ink, zorder=5)


def _finish_speedups(
    axes: Axes, ticks: list[float], labels: list[tuple[str, str]], shades: dict[int, str], rows: list[dict[str, Any]]
) -> None:
    axes.set_yticks(ticks, [f"{title}\n{_GAP}" for title, _ in labels], size=8)
    for tick, (title, peer) in zip(ticks, labels, strict=True):
        lines = title.count("\n") + 2
        place = {"xytext": (-3.5, -4.6 * lines), "textcoords": "offset points", "xycoords": ("axes fraction", "data")}
        axes.annotate(peer, (0, tick), ha="right", va="bottom", size=7, color=_FAINT, annotation_clip=False, **place)
    axes.invert_yaxis()
    axes.set_xscale("log")
    furthest = max(max(row["ratio"], row["goal"] or 0) for row in rows)
    axes.set_xlim(min(0.5, *(row["ratio"] / 1.5 for row in rows)), furthest * 3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(axis="x", labelsize=8)
    axes.axvline(1, color=_FAINT, linewidth=0.8, zorder=1)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("times as fast as the fastest peer (smallest times)", size=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=shade) for shade in shades.values()]
    names = [f"physiofast, {count} thread" + "s" * (count > 1) for count in shades]
    handles += [plt.Line2D([], [], color=_INK, linestyle=style, linewidth=1.8) for style in ("-", ":")]
    place = {"loc": "lower center", "bbox_to_anchor": (0.4, 1.0)}
    axes.legend(handles, [*names, "required", "goal"], ncols=4, frameon=False, fontsize=8, **place)


def growth(document: dict[str, Any]) -> Figure:
    """Seconds of the full chain against hours and against channels, with the line through the usual record."""
    rows = document["studies"]["scaling"]["rows"]
    usual = next(row for row in rows if row["hours"] == document["settings"]["hours"] and row["channels"] == 13)
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    for axes, over in zip(panels, ("hours", "channels"), strict=True):
        mine = [row for row in rows if row["over"] == over]
        sizes = [row[over] for row in mine]
        times = [row["seconds_min"] for row in mine]
        other = "channels" if over == "hours" else "hours"
        most = sizes[-1] / usual[over] * usual["seconds_min"]
        axes.plot([0, sizes[-1]], [0, most], "--", color=_FAINT, linewidth=1, label="proportional to the usual record")
        axes.plot(sizes, times, "o", color=_SHADES[0], markersize=5, label="measured", zorder=3)
        axes.set_xlabel(f"{over} ({other}: {mine[0][other]:g})", size=9)
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes], size=8)
        axes.set_xlim(0, sizes[-1] * 1.04)
        axes.set_ylim(0, max(*times, most) * 1.08)
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds, full chain on one thread", size=9)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.text(0.995, 0.004, _where(document), ha="right", va="bottom", size=7, color=_FAINT)
    figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))
    return figure


def _peer_seconds(document: dict[str, Any], row: dict[str, Any]) -> str:
    peers = [r for r in document["rows"] if r["case"] == row["case"] and r["provider"] == row["peer"]]
    return seconds(peers[0]["seconds_min"])


def _where(document: dict[str, Any]) -> str:
    machine, hours = document["machine"], document["settings"]["hours"]
    is_of_batches = document["rows"] and all(row.get("shape") for row in document["rows"])
    night = "" if is_of_batches else f"; {hours:g} h x 13 channels x 200 Hz"
    return f"{machine['cpu']}, {machine['cores']} cores{night}; {document['date'][:10]}"


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main())
