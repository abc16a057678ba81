import numpy as np
import pytest

from physiofast.predictability import predictable_share

PATCH = 64


def noise(seed: int, channels: int, seconds: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((channels, seconds * PATCH)).astype(np.float32)


def low_pass(x: np.ndarray) -> np.ndarray:
    """Noise with no more than 25 of 32 bins of a patch, so that the cosine coefficients hold nearly all of it."""
    spectrum = np.fft.rfft(x, axis=-1)
    spectrum[..., spectrum.shape[-1] // 5 :] = 0
    out = np.fft.irfft(spectrum, x.shape[-1], axis=-1)
    return (out / out.std(axis=-1, keepdims=True)).astype(np.float32)


def test_noise_has_no_share():
    share = predictable_share([noise(i, 4) for i in range(6)], ["EEG", "EEG", "EMG", "ECG"], PATCH)
    assert list(share) == ["EEG", "EMG", "ECG"]
    for value in share.values():
        assert abs(value.from_channels) < 0.01
        assert abs(value.from_neighbours) < 0.01
        assert abs(value.total) < 0.01


def test_share_of_a_noisy_copy_is_its_squared_correlation():
    records = []
    for i in range(9):
        base, rest = low_pass(noise(i, 1)), low_pass(noise(100 + i, 2))
        records.append(np.concatenate([base, 0.8 * base + 0.6 * rest[:1], rest[1:]]))
    share = predictable_share(records, ["EEG", "EOG", "EMG"], PATCH)
    assert share["EOG"].from_channels == pytest.approx(0.64, abs=0.03)
    assert share["EOG"].from_channels < share["EOG"].total < 0.85
    assert share["EEG"].from_channels == pytest.approx(0.64, abs=0.03)
    assert abs(share["EMG"].from_channels) < 0.02


def test_a_rhythm_of_one_frequency_is_known_from_its_neighbours_alone():
    t = np.arange(300 * PATCH) / PATCH
    rng = np.random.default_rng(1)
    records = [np.sin(2 * np.pi * 0.3 * t + rng.uniform(0, 6.3, (2, 1))) for _ in range(6)]
    share = predictable_share(records, ["RESP", "RESP"], PATCH)["RESP"]
    assert share.from_neighbours > 0.99
    assert share.from_channels < 0.1


def test_variance_is_that_around_the_channels_mean():
    base = [low_pass(noise(i, 1)) for i in range(9)]
    pairs = [np.concatenate([b, 0.8 * b + 0.6 * low_pass(noise(50 + i, 1))]) for i, b in enumerate(base)]
    plain = predictable_share(pairs, ["EEG", "EOG"], PATCH)
    shifted = predictable_share([p * 30 + 700 for p in pairs], ["EEG", "EOG"], PATCH)
    assert shifted["EOG"].from_channels == pytest.approx(plain["EOG"].from_channels, abs=0.01)


def test_absent_rows_and_broken_patches_are_left_out():
    records = []
    for i in range(12):
        base = low_pass(noise(i, 1))
        records.append(np.concatenate([base, 0.8 * base + 0.6 * low_pass(noise(50 + i, 1)), noise(90 + i, 1)]))
        records[-1][2, 1000 + 64 * i : 3000] = np.nan
    records[1][0] = np.nan
    records[2][1] = np.nan
    share = predictable_share(records, ["EEG", "EOG", "EMG"], PATCH)
    assert share["EOG"].from_channels == pytest.approx(0.62, abs=0.04)
    assert abs(share["EMG"].total) < 0.02


def test_held_out_records_are_the_ones_tested():
    good = [low_pass(noise(i, 1)) for i in range(6)]
    records = [np.concatenate([g, g]) for g in good]
    records[0] = low_pass(noise(77, 2))
    assert predictable_share(records, ["EEG", "EOG"], PATCH, held_out=[0])["EOG"].from_channels < 0.0
    assert predictable_share(records, ["EEG", "EOG"], PATCH, held_out=[5])["EOG"].from_channels > 0.6


def test_a_modality_that_is_nowhere_is_nan():
    records = [noise(i, 2) for i in range(4)]
    for record in records:
        record[1] = np.nan
    assert np.isnan(predictable_share(records, ["EEG", "ECG"], PATCH)["ECG"].total)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="3 or more"):
        predictable_share([noise(0, 1)] * 2, ["EEG"], PATCH)
    with pytest.raises(ValueError, match=r"record 1 has shape \(2, "):
        predictable_share([noise(0, 1), noise(0, 2), noise(0, 1)], ["EEG"], PATCH)
    with pytest.raises(
        ValueError, match=r"2 of 3 records are held out \(\[0, 1\]\); 1 or more .* 2 or more of the others"
    ):
        predictable_share([noise(0, 1)] * 3, ["EEG"], PATCH, held_out=[0, 1])
    with pytest.raises(ValueError, match=r"0 of 3 records are held out \(\[\]\)"):
        predictable_share([noise(0, 1)] * 3, ["EEG"], PATCH, held_out=[])
    with pytest.raises(ValueError, match=r"records \[0\] of 3 are there to fit, and none of them has a patch of "):
        predictable_share([noise(0, 1, 2)] * 3, ["EEG"], PATCH)


def test_a_part_whose_records_are_all_damaged_is_named():
    good, bad = noise(0, 1), np.where(np.arange(noise(0, 1).shape[1]) % PATCH == 3, np.nan, noise(0, 1))
    for records, said in (
        ([good, good, bad, good, good, bad], r"\[2, 5\] of 6 are there to test"),
        ([good, bad, good, good, good, good], r"\[1\] of 6 are there to choose the penalty"),
        ([bad, good, good, bad, bad, good], r"\[0, 3, 4\] of 6 are there to fit"),
    ):
        with pytest.raises(ValueError, match=said):
            predictable_share(records, ["EEG"], PATCH)
