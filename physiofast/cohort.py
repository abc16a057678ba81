"""A store split by subject: who is trained on, and who is held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from physiofast.splits import subject_split
from physiofast.store import Store
from physiofast.support.messages import first_names
from physiofast.windows import WindowIndex, WindowsConfig, index_windows


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A store split by subject, with the windows of both sides."""

    store: Store
    train: WindowIndex
    test: WindowIndex
    train_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]


def open_cohort(store: Store, config: WindowsConfig) -> Cohort:
    """Split a store's subjects as the config says and index both sides.

    Raises:
        ValueError: fewer than two subjects, or a side without usable windows.
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
