from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physiofast.splits import subject_split

SUBJECTS = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=40, unique=True)


@given(SUBJECTS, st.floats(0.01, 0.99), st.integers(0, 2**31), st.randoms())
def test_split_is_a_partition_of_the_subjects(subjects, share, seed, random) -> None:
    train, test = subject_split(subjects, share, seed)
    assert set(train) | set(test) == set(subjects)
    assert not set(train) & set(test)
    assert train
    assert abs(len(test) - share * len(subjects)) <= 1
    assert len(test) >= 1
    shuffled = [name for name in subjects for _ in range(random.randint(1, 3))]
    random.shuffle(shuffled)
    assert subject_split(shuffled, share, seed) == (train, test)


@given(st.integers(0, 1000))
def test_a_new_subject_moves_at_most_one_other(seed: int) -> None:
    subjects = [f"tr{i:02d}" for i in range(24)]
    _, before = subject_split(subjects, 1 / 3, seed)
    _, after = subject_split([*subjects, "new"], 1 / 3, seed)
    assert len(set(before) - set(after)) <= 1


def test_seeds_give_different_splits_that_use_every_subject() -> None:
    subjects = [f"tr{i:02d}" for i in range(12)]
    held_out = [subject_split(subjects, 1 / 3, seed)[1] for seed in range(60)]
    assert len(set(held_out)) > 30
    counts = [sum(name in test for test in held_out) for name in subjects]
    assert min(counts) > 8


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 3.0])
def test_share_outside_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        subject_split(["a", "b"], share, 0)


@pytest.mark.parametrize(("subjects", "found"), [([], "none"), (["a", "a"], "only 'a'")])
def test_too_few_subjects_is_refused(subjects: list[str], found: str) -> None:
    with pytest.raises(ValueError, match=f"at least 2 subjects, found {found}"):
        subject_split(subjects, 0.5, 0)
