"""Readers for the files of a run folder, whose schemas are in `physiofast.runfolder`.

A missing file is a FileNotFoundError; one that cannot be understood is a ValueError that names it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from physiofast.analysis import AttentionShares
from physiofast.probing.results import ProbeReport
from physiofast.runfolder.metricslog import read_lines
from physiofast.runfolder.summary import load_summary
from physiofast.support.paths import given_path
from physiofast.support.strictjson import load_json


@dataclasses.dataclass(frozen=True)
class TrainingLog:
    """The columns of metrics.jsonl."""

    steps: dict[str, tuple[np.ndarray, np.ndarray]]
    """Column of the logged steps -> (steps int64 [k], values float64 [k])."""
    evaluations: dict[str, tuple[np.ndarray, np.ndarray]]
    """Column of the evaluations -> (steps, values)."""

    @property
    def last_step(self) -> int:
        """The last step of which anything was logged."""
        return int(max(steps[-1] for steps, _ in [*self.steps.values(), *self.evaluations.values()]))

    def errors(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Modality -> (steps, hidden-patch error over predicting the mean)."""
        return {
            name.removeprefix("error."): column
            for name, column in self.evaluations.items()
            if name.startswith("error.")
        }


@dataclasses.dataclass(frozen=True)
class Trace:
    """One channel of the reconstructed windows."""

    name: str
    """Channel name."""
    unit: str
    """Physical unit of the samples."""
    modality: str
    """Modality of the channel."""
    rate_hz: float
    """Samples per second."""
    true: np.ndarray
    """float [W, T], the recorded signal."""
    rebuilt: np.ndarray
    """float [W, T], the model's reconstruction, NaN in visible patches."""
    hidden: np.ndarray
    """bool [W, S], which patches the encoder did not see."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Windows as recorded and as reconstructed."""

    record: np.ndarray
    """str [W], recording of each window."""
    epoch: np.ndarray
    """int [W], epoch of each window within its recording."""
    patch_s: float
    """Duration of a patch in seconds."""
    traces: tuple[Trace, ...]
    """One trace for each channel."""
    step: int
    """Number of steps that the model was trained for."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """Scored and predicted sleep stages of held-out recordings."""

    record: np.ndarray
    """str [n], recording of each window."""
    epoch: np.ndarray
    """int [n], epoch of each window within its recording."""
    true: np.ndarray
    """int [n], scored stage; -1 where unscored."""
    predicted: np.ndarray
    """int [n], predicted stage."""
    epoch_s: float
    """Duration of an epoch in seconds."""
    step: int
    """Number of steps that the encoder was trained for."""


def load_metrics(path: str | os.PathLike[str]) -> TrainingLog:
    """Read the columns of metrics.jsonl.

    Raises:
        FileNotFoundError: there is no such file, or nothing in it yet.
        ValueError: a line is no JSON object with a step.
    """
    path = given_path(path)
    steps: dict[str, dict[int, float]] = {}
    evaluations: dict[str, dict[int, float]] = {}
    for entry in read_lines(_existing(path)):
        target, values = (evaluations, entry["eval"]) if "eval" in entry else (steps, entry)
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                target.setdefault(name, {})[int(entry["step"])] = float(value)
    if not steps and not evaluations:
        raise FileNotFoundError(f"{path} holds no logged step yet")
    return TrainingLog(_columns(steps), _columns(evaluations))


def load_probes(run: str | os.PathLike[str]) -> ProbeReport:
    """Read the probe results from probe.json, or from summary.json where that is missing.

    Raises:
        FileNotFoundError: neither has them.
        ValueError: they are no probe results of this version.
    """
    run = given_path(run)
    path = run / "probe.json"
    data = load_json(path) if path.exists() else load_summary(run).get("probes")
    if data is None:
        raise FileNotFoundError(f"{path} is not there")
    try:
        return ProbeReport.from_dict(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a probe result ({type(error).__name__}: {error})") from error


def load_attention(path: str | os.PathLike[str]) -> tuple[AttentionShares, int]:
    """Read attention.json; returns (attention shares, number of steps that the model was trained for).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    path = given_path(path)
    data = load_json(path)
    try:
        return AttentionShares.from_dict(data), int(data["step"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not what an encoder attends to ({reason})") from error


def load_stages(path: str | os.PathLike[str]) -> Stages:
    """Read the scored and predicted stages from predictions.npz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an array is missing or has another length.
    """
    path = given_path(path)
    arrays = _load_arrays(path, ("record", "epoch", "stage_true", "stage_pred", "epoch_s", "step"))
    lengths = {name: len(arrays[name]) for name in ("record", "epoch", "stage_true", "stage_pred")}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{path}: arrays differ in length: {lengths}")
    return Stages(
        record=arrays["record"],
        epoch=arrays["epoch"].astype(np.int64),
        true=arrays["stage_true"].astype(np.int64),
        predicted=arrays["stage_pred"].astype(np.int64),
        epoch_s=float(arrays["epoch_s"]),
        step=int(arrays["step"]),
    )


def load_reconstruction(path: str | os.PathLike[str]) -> Reconstruction:
    """Read the reconstructed windows from reconstruction.npz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an array is missing.
    """
    path = given_path(path)
    fields = ("names", "unit", "modality", "rate_hz")
    arrays = _load_arrays(path, ("record", "epoch", "patch_s", "step", *fields))
    count = len(arrays["names"])
    absent = [
        f"{kind}_{i}" for i in range(count) for kind in ("true", "rebuilt", "hidden") if f"{kind}_{i}" not in arrays
    ]
    if absent:
        raise ValueError(f"{path}: has no array {absent[0]!r}, though it names {count} channels")
    traces = tuple(
        Trace(
            name=str(arrays["names"][i]),
            unit=str(arrays["unit"][i]),
            modality=str(arrays["modality"][i]),
            rate_hz=float(arrays["rate_hz"][i]),
            true=arrays[f"true_{i}"],
            rebuilt=arrays[f"rebuilt_{i}"],
            hidden=arrays[f"hidden_{i}"].astype(bool),
        )
        for i in range(count)
    )
    return Reconstruction(arrays["record"], arrays["epoch"], float(arrays["patch_s"]), traces, int(arrays["step"]))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    return path


def _load_arrays(path: Path, required: tuple[str, ...]) -> dict[str, np.ndarray]:
    _existing(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path}: not a readable npz file ({error})") from error
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ValueError(f"{path}: has no array {missing[0]!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    return arrays


def _columns(values: Mapping[str, Mapping[int, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (np.array(sorted(column), np.int64), np.array([column[step] for step in sorted(column)]))
        for name, column in values.items()
    }
