"""What the terminal shows, and the tables of docs/performance.md, from a JSON file: `python -m benchmarks.table FILE`.

With `--short` and several files it prints the table of the README.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Demand, Row, fastest_peer

if TYPE_CHECKING:  # studies need peers' packages, which a machine for the gate does not have
    from benchmarks.studies import Study

_HEADS = ("job", "fastest peer", "peer", "threads", "ours", "ratio", "required", "goal", "")
_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


_BUSY = 0.75
"""Load of each core from which on others are at work."""
_SHORT = {
    "windows_100": "decode 8 h of 13 channels, resample 200 to 100 Hz, cut into windows",
    "chain_scipy": "decode, band-pass, notch, resample, scale, flags, windows: SciPy's filters",
    "chain_mne": "the same: MNE's filters",
    "edf": "EDF, 8 h, 13 signals at 200, 25 and 1 Hz, to float32",
    "random_open": "one random 30 s window, the record opened each time",
    "batch_numpy": "batch of 256 random windows, from window-major data",
    "batch_loops": "batch of 256 random windows, from planes",
    "token_ops": "token ops, forward and backward",
    "attention_few": "biased attention, forward and backward, 12 distinct lengths",
    "attention_all": "biased attention, forward and backward, all lengths distinct",
    "step_joint": "training step, joint decoder",
    "step_cross": "training step, cross decoder (the alternative's is joint)",
}
"""Case -> what the README calls it, in the order of its table."""


def heading(about: dict[str, Any]) -> str:
    """Where and of what is measured, and a warning where that machine has other work."""
    machine, versions = about["machine"], about["versions"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, load {machine['load']}, "
        f"copies {machine['copy_gb_per_s']} GB/s; commit {about['commit']}, {about['date']}",
        ", ".join(f"{name} {found}" for name, found in versions.items()),
    ]
    if machine["load"] > _BUSY * machine["cores"]:
        lines.append(
            f"WARNING: load {machine['load']} before the start; times and shares of a copy are of a busy machine"
        )
    return "\n".join(lines)


def details(rows: Sequence[Row], copy_gb_per_s: float) -> str:
    """Every provider of one case: smallest time, median, quantiles; for ours, bandwidth against a plain copy.

    Bandwidth and shares are of the smallest time on a CPU, of the median on a GPU (`Case.statistic`). What is timed
    but no peer comes with how many times as fast ours is on as many threads, of the same times.
    """
    first = rows[0]
    lines = [f"\n{first.case}: {first.title}"]
    for row in rows:
        name = f"{row.provider}, {_threads(row.threads)}" if row.provider.startswith("physiofast") else row.provider
        lines.append(f"  {row.role:<5}{name:<58}{_timing(row, copy_gb_per_s)}")
        lines += [f"       {demand_line(demand)}" for demand in row.demands]
    return "\n".join(lines)


def demand_line(demand: Demand) -> str:
    """What is required, what was found, and whether that is enough."""
    form = seconds if demand.text.startswith("seconds") else "{:.3g}".format
    found = "not measured" if demand.found is None else form(demand.found)
    word = "holds" if demand.holds else "FAILS"
    return f"{word}  {demand.text}: {found} ({form(demand.required)} required)"


def summary(rows: Sequence[Row]) -> str:
    """One line per job and number of threads."""
    lines = [_HEADS]
    for case in dict.fromkeys(row.case for row in rows):
        mine = [row for row in rows if row.case == case]
        peer = fastest_peer(mine)
        for number, row in enumerate(row for row in mine if row.role == "ours"):
            begin = (case, peer.provider if peer else "none", seconds(peer.seconds if peer else None))
            lines.append((*(begin if number == 0 else ("", "", "")), str(row.threads), *_verdict(row)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {2, 3, 4, 5, 6, 7}
    cells = [
        [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n" + "\n".join("  ".join(line).rstrip() for line in cells)


def markdown(document: dict[str, Any]) -> str:
    """The table that docs/performance.md has of what `benchmarks.run --json` wrote: a line for each job.

    Ours stands there on each number of threads. Times are the smallest, as those of every case on a CPU. The last
    column has who was timed beside the peers, and how many times as fast ours is on as many threads.
    """
    rows = [row for row in document["rows"] if row["role"] == "ours"]
    columns = sorted({row["threads"] for row in rows})
    heads = (
        "job",
        "fastest peer",
        "peer",
        *map(_threads, columns),
        "required",
        "ours against others",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = {row["threads"]: row for row in rows if row["case"] == case}
        first = mine[min(mine)]
        peer = next(row for row in document["rows"] if row["case"] == case and row["provider"] == first["peer"])
        cells = [_cell(mine.get(threads)) for threads in columns]
        required = " / ".join(f"{row['required']:g}x" for row in mine.values() if row["required"])
        found = seconds(peer["seconds_min"])
        others = "; ".join(
            f"{row['provider']} {ratio(row['ratio_of_ours'])}"
            for row in document["rows"]
            if row["case"] == case and row["ratio_of_ours"] and not row["provider"].startswith("physiofast")
        )
        lines.append(f"| {first['title']} | {first['peer']} | {found} | {' | '.join(cells)} | {required} | {others} |")
    return "\n".join(lines) + "\n"


def gate_markdown(document: dict[str, Any]) -> str:
    """The table that docs/performance.md has of what `benchmarks.gate --json` wrote: a line for each case.

    What is required stands in brackets. Times are medians, and ratios and shares are of them. Whoever is faster than
    all that something is required against stands there, too; where nothing is, the fastest.
    """
    heads = ("case", "time", "share of a copy of the same bytes", "of a large copy", "times as fast as")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in (row for row in document["rows"] if row["role"] == "ours" and row["seconds"]):
        asked = {demand["text"].removeprefix("times as fast as "): demand for demand in row["demands"]}
        share = next((demand for text, demand in asked.items() if "copy" in text), None)
        against = [
            f"{peer} {_asked(demand, ratio(demand['found']), _times(demand['required']))}"
            for peer, demand in asked.items()
            if "copy" not in peer and "seconds" not in peer
        ]
        against += [f"{peer} {ratio(found)}" for peer, found in _faster(document["rows"], row, asked)]
        most = next((demand for text, demand in asked.items() if "seconds" in text), None)
        time = seconds(row["seconds"])
        time = _asked(most, time, f"at most {seconds(most['required'])}") if most else time
        of_copy = f"{row['share_of_copy'] or 0:.0%}"
        of_copy = _asked(share, of_copy, f"{share['required']:.0%}") if share else of_copy
        name = f"`{row['case']}`, P {row['shape']['patch']}" if row["shape"].get("patch", 1) > 1 else f"`{row['case']}`"
        of_large = f"{row['share_of_large_copy'] or 0:.0%}"
        lines.append(f"| {name} | {time} | {of_copy} | {of_large} | {'; '.join(against)} |")
    return "\n".join(lines) + "\n"


def short_markdown(documents: Sequence[dict[str, Any]]) -> str:
    """The table of the README from several files of `benchmarks.run --json`: a line a job of `_SHORT`.

    The alternative is the fastest of all that were timed, peers or not, and ours runs on as many threads. Times are
    the smallest.
    """
    heads = ("job", "strongest alternative", "its time", "physiofast", "threads", "times as fast")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    timed = [row for document in documents for row in document["rows"] if row["seconds_min"]]
    for case, job in _SHORT.items():
        rows = [row for row in timed if row["case"] == case and row["role"] != "copy"]
        other = min(
            (row for row in rows if not row["provider"].startswith("physiofast")), key=lambda row: row["seconds_min"]
        )
        ours = next(row for row in rows if row["role"] == "ours" and row["threads"] == other["threads"])
        times = ratio(other["seconds_min"] / ours["seconds_min"]) + (", **missed**" if ours["holds"] is False else "")
        found = (other["provider"], seconds(other["seconds_min"]), seconds(ours["seconds_min"]))
        lines.append(f"| {job} | {' | '.join(found)} | {ours['threads']} | {times} |")
    return "\n".join(lines) + "\n"


def _faster(rows: Sequence[dict[str, Any]], ours: dict[str, Any], asked: Collection[str]) -> list[tuple[str, float]]:
    """Those of a case that are faster than all in `asked`, and how many times as fast ours is; else the fastest."""
    mine = [
        row
        for row in rows
        if (row["case"], row["shape"]) == (ours["case"], ours["shape"])
        and row["role"] in ("peer", "also")
        and row["seconds"]
    ]
    least = min((row["seconds"] for row in mine if row["provider"] in asked), default=None)
    others = sorted((row for row in mine if row["provider"] not in asked), key=lambda row: row["seconds"])
    found = others[:1] if least is None else [row for row in others if row["seconds"] < least]
    return [(row["provider"], row["seconds"] / ours["seconds"]) for row in found]


def _asked(demand: dict[str, Any], found: str, required: str) -> str:
    return f"{found} ({required}{'' if demand['holds'] else ', **missed**'})"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    missed = ", **missed**" if row["holds"] is False else ""
    return f"{seconds(row['seconds_min'])}, {ratio(row['ratio'])}{missed}"


def study(found: Study) -> str:
    lines = [f"\n{found.name}: {found.title}", *(f"  {line}" for line in found.lines)]
    words = {True: "holds", False: "FAILS", None: "noted"}
    return "\n".join(lines + [f"  {words[claim.holds]:<6} {claim.text}: {claim.found}" for claim in found.claims])


def seconds(value: float | None) -> str:
    """Three figures with a unit."""
    if value is None:
        return "-"
    unit, size = next((unit for unit in _UNITS if value >= 0.9995 * unit[1]), _UNITS[-1])
    scaled = value / size
    return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {unit}"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x" if value < 10 else f"{value:.1f}x"


def _timing(row: Row, copy_gb_per_s: float) -> str:
    if row.seconds_min is None:
        return f"WRONG  {row.problem}"
    low, median, high = (seconds(x) for x in (row.seconds_q20, row.seconds_median, row.seconds_q80))
    text = f"{seconds(row.seconds_min):>8}  (median {median}, {low} to {high})"
    if row.wall_seconds:
        text += f", {seconds(row.wall_seconds)} from Python"
    if row.share_of_copy and row.role != "copy":
        text += f"  {row.share_of_copy:.0%} of a copy"
    elif row.role == "ours" and row.gb_per_s:
        text += f"  {row.gb_per_s:.2f} GB/s, {row.gb_per_s / copy_gb_per_s:.0%} of a copy"
    if row.role == "ours" and row.windows_per_s:
        text += f", {row.windows_per_s:,.0f} windows/s"
    if row.ratio_of_ours:
        text += f"  ours is {ratio(row.ratio_of_ours)} as fast"
    return text


def _verdict(row: Row) -> tuple[str, str, str, str, str]:
    words = {True: "holds", False: "FAILS", None: ""}
    verdict = words[row.holds] if row.checked else "WRONG"
    if row.ratio is not None and row.goal is not None and row.ratio >= row.goal:
        verdict += ", goal reached"
    return seconds(row.seconds), ratio(row.ratio), _times(row.required), _times(row.goal), verdict


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:g}x"


def _threads(count: int) -> str:
    return f"{count} thread" + "s" * (count > 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="of benchmarks.run or benchmarks.gate")
    parser.add_argument("--short", action="store_true", help="the strongest alternative of each job, as in the README")
    options = parser.parse_args(arguments)
    documents = []
    for path in options.files:
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
        if not isinstance(document, dict) or "rows" not in document:
            parser.error(
                f"{path} has no rows, as benchmarks.run --json writes them, and benchmarks.gate that times ops"
            )
        documents.append(document)
    if options.short:
        print(short_markdown(documents), end="")
        return 0
    for document in documents:
        print((gate_markdown if "verdicts" in document else markdown)(document), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
