import numpy as np
import pytest

from physiofast.synthetic.sleep import (
    DWELL_MEDIAN_EPOCHS,
    N2,
    N3,
    REM,
    TRANSITION,
    WAKE,
    simulate_events,
    simulate_stages,
)


def bouts(stages: np.ndarray) -> list[tuple[int, int]]:
    """(stage, epochs) of the scored part."""
    scored = stages[stages >= 0]
    edges = np.concatenate([[0], np.flatnonzero(np.diff(scored)) + 1, [len(scored)]])
    return [(int(scored[a]), int(b - a)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def summarise(nights: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Share of each stage, bout lengths by stage, and transition probabilities."""
    share = np.bincount(np.concatenate([n[n >= 0] for n in nights]), minlength=5).astype(float)
    lengths: list[list[int]] = [[] for _ in range(5)]
    moves = np.zeros((5, 5))
    for night in nights:
        found = bouts(night)
        for stage, length in found:
            lengths[stage].append(length)
        for (a, _), (b, _) in zip(found[:-1], found[1:], strict=True):
            moves[a, b] += 1
    return share / share.sum(), [np.array(x) for x in lengths], moves / moves.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def nights():
    return [simulate_stages(np.random.default_rng(i), 940, 55) for i in range(80)]


def test_nights_match_published_sleep(nights):
    share, lengths, moves = summarise(nights)
    # W, N1, N2, N3, R over 994 Challenge recordings.
    np.testing.assert_allclose(share, [0.177, 0.154, 0.423, 0.115, 0.131], atol=0.03)
    for stage, median in enumerate(DWELL_MEDIAN_EPOCHS):
        assert abs(np.median(lengths[stage]) - median) <= 1.0
    np.testing.assert_allclose(moves, TRANSITION, atol=0.07)


def test_nights_match_the_real_hypnograms(real_data, nights):
    code = np.array([-1, N3, N2, 1, REM, WAKE])
    with np.load(real_data / "cinc2018" / "hypnograms_30s.npz") as file:
        real = [code[file[name]] for name in file.files]
    real_share, real_lengths, real_moves = summarise(real)
    share, lengths, moves = summarise(nights)
    np.testing.assert_allclose(share, real_share, atol=0.03)
    np.testing.assert_allclose(moves, real_moves, atol=0.07)
    for ours, theirs in zip(lengths, real_lengths, strict=True):
        for quantile in (0.5, 0.75, 0.9):
            assert np.quantile(ours, quantile) == pytest.approx(np.quantile(theirs, quantile), rel=0.35, abs=1.0)
    lead = np.median([np.argmax(n >= 0) for n in nights])
    assert lead == pytest.approx(np.median([np.argmax(n >= 0) for n in real]), abs=2)


def test_deep_sleep_comes_early_and_rem_late(nights):
    half = 470
    early, late = (np.concatenate([n[s] for n in nights]) for s in (slice(0, half), slice(half, None)))
    assert np.mean(early == N3) > 1.4 * np.mean(late == N3)
    assert np.mean(late == REM) > 1.2 * np.mean(early == REM)


def test_an_hour_passes_through_all_stages():
    hours = [simulate_stages(np.random.default_rng(i), 120, 55) for i in range(80)]
    share, _, _ = summarise(hours)
    assert share.min() > 0.07
    assert np.mean([len(np.unique(h[h >= 0])) == 5 for h in hours]) > 0.9
    assert all(1 <= np.argmax(h >= 0) <= 12 and h[np.argmax(h >= 0)] == WAKE for h in hours)


def test_age_adds_wake_and_takes_deep_sleep():
    young, old = (
        np.concatenate([simulate_stages(np.random.default_rng(i), 940, age) for i in range(40)]) for age in (25, 80)
    )
    assert np.mean(old == WAKE) > 1.1 * np.mean(young == WAKE)
    assert np.mean(young == N3) > 1.4 * np.mean(old == N3)


def test_events_lie_in_sleep_apart_and_at_the_asked_rate():
    stages = np.full(960, N2, np.int8)
    stages[:100] = WAKE
    stages[:20] = -1
    found = [e for i in range(20) for e in simulate_events(np.random.default_rng(i), stages, 12.0, 6.0)]
    hours = 20 * 860 / 120
    apneas = sum(e.name.startswith("resp") for e in found) / hours
    assert 9 < apneas < 12.5
    assert 4.5 < sum(e.name == "arousal_spontaneous" for e in found) / hours < 6.5
    assert min(e.start_s for e in found) >= 100 * 30
    assert all(9.99 < e.stop_s - e.start_s < 50.01 for e in found if e.name != "arousal_spontaneous")
    one = simulate_events(np.random.default_rng(0), stages, 60.0, 6.0)
    assert min(b.start_s - a.stop_s for a, b in zip(one[:-1], one[1:], strict=True)) >= 15


def test_no_sleep_no_events():
    assert simulate_events(np.random.default_rng(0), np.zeros(50, np.int8), 20.0, 20.0) == ()
