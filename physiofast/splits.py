"""Split of subjects into training and test: all windows of a subject are on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def subject_split(subjects: Sequence[str], test_share: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide subjects into training and test, each sorted by name.

    A subject's rank is a hash of (seed, name), so the split depends on the set of subjects only, not on
    their order or on how many recordings each has, and adding a few subjects moves few of the others.

    Args:
        subjects: subject ids; repetitions count once.
        test_share: share of the subjects to hold out. At least one subject goes to each side.
        seed: another seed gives another split.

    Returns:
        (training subjects, test subjects).

    Raises:
        ValueError: there are fewer than two subjects, or the share is outside (0, 1).
    """
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share is {test_share}; choose a share of the subjects between 0 and 1, such as 0.33")
    names = sorted(set(subjects))
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        raise ValueError(
            f"a split by subject needs at least 2 subjects, found {found}; "
            "prepare more recordings, or check the subject ids in manifest.json"
        )
    held_out = min(max(round(test_share * len(names)), 1), len(names) - 1)
    ranked = sorted(names, key=lambda name: _rank(name, seed))
    return tuple(sorted(ranked[held_out:])), tuple(sorted(ranked[:held_out]))


def _rank(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(errors="surrogateescape"), digest_size=16).digest()
