"""The tables that probes are fitted and scored on: standardised features and a target, per window or per subject."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.sparse

from physiofast.montage import nearest
from physiofast.probing.results import TASKS, Task
from physiofast.support.messages import first_names


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that probes are fitted and scored on: windows, or subjects."""

    features: dict[str, np.ndarray]  # float32 [n, F], standardised
    subject: np.ndarray  # int [n], index of the subject
    train: np.ndarray  # bool [n]
    test: np.ndarray  # bool [n]


def check_inputs(
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    names: np.ndarray,
    index: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
) -> None:
    """Check the arguments of `compare_probes`.

    Raises:
        ValueError: the errors that `compare_probes` documents.
    """
    if not features:
        raise ValueError("no feature set was given")
    for key in labels:
        if key not in TASKS:
            raise ValueError(f"labels have an unknown key {key!r}{nearest(key, TASKS)}")
    sized = {f"features[{name!r}]": values for name, values in features.items()}
    sized |= {f"labels[{key!r}]": values for key, values in labels.items()} | {"train": train, "test": test}
    for name, values in sized.items():
        if len(values) != len(index):
            raise ValueError(f"{name} has {len(values)} rows, but there are {len(index)} windows")
    for name, values in features.items():
        if train.any() and not np.isfinite(np.asarray(values)[train]).any():
            raise ValueError(
                f"features[{name!r}] have no finite value in any training window, so a probe could only guess. An "
                "encoder gives such when its weights are not finite: train it anew with a smaller learning rate, or "
                "leave this set out"
            )
    both = np.intersect1d(index[train], index[test])
    if len(both):
        raise ValueError(f"subjects both in training and test: {first_names(names[both].tolist())}; split by subject")
    for side, mask in (("training", train), ("test", test)):
        if not mask.any():
            raise ValueError(f"no {side} windows; check the split by subject")


def target_of(task: Task, labels: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """The labels of a task as float64 [n], NaN where unknown: one form for classes and values."""
    if task.name not in labels:
        return np.full(count, np.nan)
    target = np.asarray(labels[task.name]).astype(np.float64)
    if not task.classes:
        return np.where(np.isfinite(target), target, np.nan)
    known = np.isfinite(target) & (target >= 0)
    if np.any(target[known] >= len(task.classes)):
        raise ValueError(
            f"labels[{task.name!r}] has a class {int(target[known].max())}; allowed are -1 (unknown) and "
            + ", ".join(f"{i} ({name})" for i, name in enumerate(task.classes))
        )
    return np.where(known, target, np.nan)


def standardise(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Standardise features by the training rows, float32 [n, F]; values that are not finite become the mean, 0."""
    fitted = values[train].astype(np.float64)
    known = np.isfinite(fitted)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, fitted, 0.0).sum(0) / count
    deviation = np.sqrt(np.square(np.where(known, fitted - mean, 0.0)).sum(0) / count)
    deviation[deviation <= 1e-9 * np.maximum(1.0, np.abs(mean))] = np.inf
    scaled = (values - mean) / deviation
    return np.where(np.isfinite(values), scaled, 0.0).astype(np.float32)


def pool(features: Mapping[str, np.ndarray], windows: Table, subjects: int) -> Table:
    """Pool windows per subject: the mean of each feature's finite values, standardised again."""
    used = windows.train | windows.test
    rows = np.flatnonzero(used)
    member = scipy.sparse.csr_array(
        (np.ones(len(rows), np.float64), (windows.subject[rows], rows)), shape=(subjects, len(used))
    )
    train, test = (np.bincount(windows.subject[mask], minlength=subjects) > 0 for mask in (windows.train, windows.test))
    pooled = {}
    for name, values in features.items():
        known = np.isfinite(values)
        total = member @ np.where(known, values, 0.0)
        count = member @ known.astype(np.float64)
        mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        pooled[name] = standardise(mean, train)
    return Table(pooled, np.arange(subjects), train, test)


def pool_target(target: np.ndarray, index: np.ndarray, subjects: int) -> np.ndarray:
    """The mean of each subject's known labels, since age may differ between nights a year apart."""
    known = np.isfinite(target)
    count = np.bincount(index[known], minlength=subjects)
    total = np.bincount(index[known], target[known], minlength=subjects)
    return np.divide(total, count, out=np.full(subjects, np.nan), where=count > 0)
