"""Figures of the report, as SVG that takes its colours from the page's style sheet.

Matplotlib draws with placeholder colours; each is replaced by a CSS variable, so one file serves light and
dark pages. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from physiofast.engine import runs
from physiofast.montage import MODALITIES
from physiofast.probing.metrics import METRICS
from physiofast.probing.results import TaskResult

# Placeholder -> variable. The series colours are Okabe and Ito's, told apart by colour-blind readers.
_VARIABLES = {
    "#010001": "--ink",
    "#010002": "--muted",
    "#010003": "--line",
    "#010004": "--hidden",
    "#010005": "--rebuilt",
    "#010011": "--c-eeg",
    "#010012": "--c-eog",
    "#010013": "--c-emg",
    "#010014": "--c-ecg",
    "#010015": "--c-resp",
    "#010016": "--c-spo2",
}
_INK, _MUTED, _LINE, _HIDDEN, _REBUILT, *_SERIES = _VARIABLES
_MODALITY = dict(zip(MODALITIES, _SERIES, strict=True))
_MODEL = (_MODALITY["EEG"], _MUTED, _MODALITY["RESP"], _MODALITY["SPO2"], _MODALITY["ECG"])

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _MUTED,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.09,
    "font.size": 9.5,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "path.simplify_threshold": 0.3,
    "svg.fonttype": "none",
    "svg.hashsalt": "physiofast",
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}

# Clinical order from the top down; N3 is deepest.
_STAGE_HEIGHT = {"W": 4, "R": 3, "N1": 2, "N2": 1, "N3": 0}


def training_curves(
    loss: Mapping[str, tuple[np.ndarray, np.ndarray]],
    error: Mapping[str, tuple[np.ndarray, np.ndarray]],
    lr: tuple[np.ndarray, np.ndarray],
) -> str:
    """Loss, held-out error and learning rate over the steps.

    Args:
        loss: `total` or a modality -> (steps, values).
        error: Modality -> (steps, hidden-patch error over predicting the mean); needs two evaluations.
        lr: (steps, values).
    """
    with matplotlib.rc_context(_STYLE):
        figure = _figure(10.6, 3.3)
        several = any(len(steps) > 1 for steps, _ in error.values())
        panels = figure.subplots(1, 3 if several else 2, width_ratios=[1, 1, 0.72] if several else [1, 0.6])
        left, right = panels[0], panels[-1]
        for name, (steps, values) in loss.items():
            is_total = name == "total"
            colour = _INK if is_total else _colour(name)
            left.plot(steps, values, color=colour, alpha=0.15, linewidth=0.6)
            left.plot(steps, _smooth(values), color=colour, linewidth=2.0 if is_total else 1.3, label=_plain(name))
        if several:
            for name, (steps, values) in error.items():
                panels[1].plot(steps, values, color=_colour(name), marker="o", markersize=3)
            panels[1].axhline(1.0, color=_MUTED, linestyle=(0, (4, 3)), linewidth=1)
            _label(panels[1], "held-out error / predicting the mean", "step", "ratio (below 1 is better)")
        right.plot(*lr, color=_INK)
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _label(left, "training loss (smoothed)", "step", "loss")
        _label(right, "learning rate", "step", "")
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _limit_to_bulk(left, [_smooth(values) for _, values in loss.values()])
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), handlelength=1.4)
        return _svg(figure, "curves", "Training loss, held-out error and learning rate over the steps")


def probe_scores(tasks: Sequence[TaskResult]) -> str:
    """The headline score of each task and feature set with its interval, and chance."""
    with matplotlib.rc_context(_STYLE):
        rows = max(len(task.models) for task in tasks)
        figure = _figure(10.6, 0.9 + 0.36 * rows)
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for position, (axes, task) in enumerate(zip(panels, tasks, strict=True)):
            for row, model in enumerate(task.models.values()):
                found = model.scores[task.headline]
                colour = _MODEL[row % len(_MODEL)]
                axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
                axes.plot(found.value, row, "o", color=colour, markersize=7)
                axes.annotate(
                    f"{found.value:.2f}",
                    (found.value, row),
                    (0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
            axes.axvline(task.chance[task.headline], color=_MUTED, linestyle=(0, (4, 3)), linewidth=1)
            names = [_plain(name.replace("_", " ")) for name in task.models] if position == 0 else []
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(rows - 0.5, -0.75)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
            _label(axes, task.task, METRICS[task.headline].label, "")
            axes.xaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, "probes", "Headline score of every probe with its interval; dashed line: chance")


def reconstruction(
    names: Sequence[str],
    units: Sequence[str],
    rates_hz: Sequence[float],
    true: Sequence[np.ndarray],
    rebuilt: Sequence[np.ndarray],
    hidden: Sequence[np.ndarray],
    patch_s: float,
) -> str:
    """Several channels of one window, true against rebuilt, in physical units.

    Args:
        names: Channel names, C of them.
        units: Unit of each channel.
        rates_hz: Rate of each channel.
        true: For each channel float [T_i].
        rebuilt: For each channel float [T_i], NaN where the patch was visible.
        hidden: For each channel bool [S].
        patch_s: Duration of a patch in seconds.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _figure(10.6, 0.5 + 0.92 * len(names))
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for i, axes in enumerate(panels):
            time_s = np.arange(len(true[i])) / rates_hz[i]
            for start, stop in zip(*runs(hidden[i]), strict=True):
                axes.axvspan(start * patch_s, stop * patch_s, color=_HIDDEN, linewidth=0)
            axes.plot(time_s, true[i], color=_INK, linewidth=0.7, label="recorded")
            axes.plot(time_s, rebuilt[i], color=_REBUILT, linewidth=1.2, label="rebuilt")
            _limit_to_bulk(axes, [true[i], rebuilt[i]], share=0.001)
            axes.set_ylabel(f"{_plain(names[i])}\n({_unit(units[i])})", rotation=0, ha="right", va="center", labelpad=8)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.grid(visible=False)
            axes.margins(x=0)
        panels[-1].set_xlabel("time in the window (s)")
        handles, labels = panels[0].get_legend_handles_labels()
        shade = matplotlib.patches.Patch(color=_HIDDEN, label="hidden from the encoder")
        figure.legend([*handles, shade], [*labels, "hidden from the encoder"], loc="outside upper left", ncols=3)
        return _svg(figure, "rebuilt", "Recorded and rebuilt signals of one window; hidden spans are shaded")


def spectra(density: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, str]]) -> str:
    """Power spectral density of hidden spans, true against rebuilt.

    Args:
        density: Modality -> (frequency in Hz, true, rebuilt, unit of the signal).
    """
    with matplotlib.rc_context(_STYLE):
        columns = min(3, len(density))
        lines = -(-len(density) // columns)
        figure = _figure(10.6, 0.4 + 2.3 * lines)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, (modality, (frequency, true, rebuilt, unit)) in zip(panels, density.items(), strict=False):
            axes.semilogy(frequency, true, color=_INK, label="recorded")
            axes.semilogy(frequency, rebuilt, color=_REBUILT, label="rebuilt")
            _label(axes, _plain(modality), "frequency (Hz)", f"{_unit(unit)}²/Hz")
            both = np.concatenate([true, rebuilt])
            both = both[both > 0]
            if len(both):
                axes.set_ylim(max(both.min() * 0.5, both.max() * 1e-6), both.max() * 3)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
            axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
            axes.minorticks_off()
            axes.margins(x=0)
        for axes in panels[len(density) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)
        return _svg(figure, "psd", "Power spectral density of hidden spans, recorded and rebuilt")


def hypnogram(epoch: np.ndarray, true: np.ndarray, predicted: np.ndarray, stages: Sequence[str], epoch_s: float) -> str:
    """Scored and predicted stages of one recording.

    Args:
        epoch: int [k], epoch numbers in order.
        true: int [k], scored stages; -1 is unscored.
        predicted: int [k], predicted stages.
        stages: Stage names by code.
        epoch_s: Duration of an epoch in seconds.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _figure(10.6, 3.6)
        rows = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1, 0.12])
        grid = np.arange(epoch[0], epoch[-1] + 1)
        true, predicted = (_on_grid(codes, epoch - epoch[0], len(grid)) for codes in (true, predicted))
        hours = np.append(grid, grid[-1] + 1) * epoch_s / 3600
        for axes, codes, title, colour in (
            (rows[0], true, "scored", _INK),
            (rows[1], predicted, "predicted from the frozen embedding", _REBUILT),
        ):
            height = np.array([_STAGE_HEIGHT[name] for name in stages] + [np.nan])[codes]
            axes.stairs(height, hours, baseline=None, color=colour, linewidth=1.2)
            rem = np.where(codes == stages.index("R"), height, np.nan) if "R" in stages else height * np.nan
            axes.stairs(rem, hours, baseline=None, color=_MODALITY["EEG"], linewidth=3.5)
            axes.set_yticks(list(_STAGE_HEIGHT.values()), list(_STAGE_HEIGHT))
            axes.set_ylim(-0.4, 4.4)
            axes.set_title(title)
        wrong = np.flatnonzero((true != predicted) & (true >= 0))
        rows[2].vlines(hours[wrong], 0, 1, color=_REBUILT, linewidth=0.9)
        rows[2].set_yticks([0.5], ["differs"])
        rows[2].grid(visible=False)
        rows[2].set_xlabel("time from the start of the recording (h)")
        rows[2].set_xlim(hours[0], hours[-1])
        return _svg(figure, "hypnogram", "Sleep stages scored by people and predicted, over the recording")


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure, name: str, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Ids must be unique on the page that holds several figures.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    label = f'<svg role="img" aria-label="{escape(description)}" '
    return text.replace("<svg ", label, 1)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _colour(modality: str) -> str:
    return _MODALITY.get(modality, _MUTED)


def _unit(unit: str) -> str:
    return _plain(re.sub(r"^u(?=[VA])", "µ", unit))


def _plain(text: str) -> str:
    # Matplotlib would read a pair of dollar signs as mathematics.
    return text.replace("$", r"\$")


def _power_of_ten(value: float, _: int) -> str:
    exponent = str(round(float(np.log10(value))))
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _smooth(values: np.ndarray) -> np.ndarray:
    width = max(1, len(values) // 40)
    kernel = np.ones(2 * width + 1)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="full")[width:-width]
    count = np.convolve(known.astype(float), kernel, mode="full")[width:-width]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _limit_to_bulk(axes: Axes, series: Sequence[np.ndarray], share: float = 0.002) -> None:
    # One spike must not flatten everything else.
    pooled = np.concatenate([np.ravel(values) for values in series]) if series else np.zeros(0)
    pooled = pooled[np.isfinite(pooled)]
    if not len(pooled):
        return
    low, high = np.quantile(pooled, [share, 1 - share])
    margin = 0.12 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _on_grid(codes: np.ndarray, position: np.ndarray, count: int) -> np.ndarray:
    dense = np.full(count, -1)
    dense[position] = codes
    return dense
