"""Split of a store by subject into training and held-out windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from physiofast.splits import subject_split
from physiofast.store import Store
from physiofast.support.bounds import require_instance
from physiofast.support.messages import first_names
from physiofast.windows import WindowIndex, WindowsConfig, index_windows


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A store whose subjects are split into training and held-out ones, with the windows of both sides."""

    store: Store
    train: WindowIndex
    """Windows of the training subjects."""
    test: WindowIndex
    """Windows of the held-out subjects."""
    train_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]


def open_cohort(store: Store, config: WindowsConfig) -> Cohort:
    """Split a store's subjects as the config says, and index the windows of both sides.

    Raises:
        ValueError: there are fewer than two subjects, or a side has no usable window.
        TypeError: `store` is a path, or `config` is no WindowsConfig.
    """
    require_instance(Store, "store", store, "physiofast.Store.open(path) makes one")
    require_instance(WindowsConfig, "config", config, "physiofast.WindowsConfig(...) makes one")
    subjects = sorted({record.subject for record in store.records})
    train, test = subject_split(subjects, config.test_share, config.split_seed)
    return Cohort(
        store=store,
        train=_side(store, train, config, "training"),
        test=_side(store, test, config, "held-out"),
        train_subjects=tuple(train),
        test_subjects=tuple(test),
    )


def modalities_of(store: Store, index: WindowIndex) -> tuple[str, ...]:
    """The modalities that the recordings of some windows have, in the montage's order."""
    return tuple(store.montage.modalities[m] for m in sorted(set[int]().union(*modalities_by_record(store, index))))


def modalities_by_record(store: Store, index: WindowIndex) -> Iterator[set[int]]:
    """The numbers of the modalities that each recording of some windows has."""
    kinds = np.asarray(store.montage.channel_modality)
    return (set(kinds[store.records[r].plane_start >= 0].tolist()) for r in np.unique(index.record))


def describe_cohort(cohort: Cohort, windows_per_step: int) -> str:
    """Say what a run on these windows does not learn, does not measure or does in vain.

    Args:
        cohort: of the run.
        windows_per_step: how many windows one optimiser step takes.

    Returns:
        Sentences for the user; empty where there is nothing to say.
    """
    train, test = (modalities_of(cohort.store, index) for index in (cohort.train, cohort.test))
    unlearnt, unmeasured = (
        ", ".join(m for m in one if m not in other) for one, other in ((test, train), (train, test))
    )
    said = []
    if unlearnt:
        said.append(
            f"No training recording has {unlearnt}: nothing is learnt of that, and its hidden-patch error is one of "
            "random weights."
        )
    if unmeasured:
        said.append(f"No held-out recording has {unmeasured}: no hidden-patch error of that is measured.")
    if windows_per_step > len(cohort.train):
        said.append(
            f"A step takes {windows_per_step} windows, training.batch times training.accumulate, of which only "
            f"{len(cohort.train)} are different; within a step a window is masked alike each time, so repeats add "
            "nothing."
        )
    return " ".join(said)


def _side(store: Store, subjects: Sequence[str], config: WindowsConfig, name: str) -> WindowIndex:
    try:
        return index_windows(store, set(subjects), config.min_valid_share)
    except ValueError as error:
        raise ValueError(f"of the {len(subjects)} {name} subjects ({first_names(subjects)}): {error}") from error
