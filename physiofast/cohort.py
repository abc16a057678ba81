"""Split of a store by subject into training and held-out windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from physiofast.splits import subject_split
from physiofast.store import Store
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
    """
    subjects = sorted({record.subject for record in store.records})
    train, test = subject_split(subjects, config.test_share, config.split_seed)
    return Cohort(
        store=store,
        train=_side(store, train, config, "training"),
        test=_side(store, test, config, "held-out"),
        train_subjects=tuple(train),
        test_subjects=tuple(test),
    )


def _side(store: Store, subjects: Sequence[str], config: WindowsConfig, name: str) -> WindowIndex:
    try:
        return index_windows(store, set(subjects), config.min_valid_share)
    except ValueError as error:
        raise ValueError(f"of the {len(subjects)} {name} subjects ({first_names(subjects)}): {error}") from error
