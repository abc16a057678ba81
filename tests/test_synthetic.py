import dataclasses
import filecmp
import os

import numpy as np
import pytest
import wfdb
from scipy import signal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from physiofast.montage import MONTAGES
from physiofast.predictability import predictable_share
from physiofast.probing.bandpower import band_power
from physiofast.synthetic import (
    ABSENT_CANDIDATES,
    SIMPLIFICATIONS,
    CohortConfig,
    Night,
    challenge2018,
    cohort,
    record_name,
    simulate_night,
    write_cohort,
)
from tests.filters import band_pass

RATE_HZ = 200
MONTAGE = MONTAGES["cinc2018"]
MODALITY = [channel.modality for channel in MONTAGE.channels]
BAND_HZ = {
    "EEG": (0.3, 35.0),
    "EOG": (0.3, 15.0),
    "EMG": (10.0, 60.0),
    "ECG": (0.5, 40.0),
    "RESP": (0.05, 5.0),
    "SPO2": (None, 5.0),
}
TINY = CohortConfig(subjects=3, hours=0.15, seed=5, absent_share=0.0)


def robust(x: np.ndarray) -> np.ndarray:
    low, middle, high = np.percentile(x, [25, 50, 75])
    return ((x - middle) * (1.349 / (high - low))).astype(np.float32)


def conditioned(night: Night) -> np.ndarray:
    """float32 [13, n] at 128 Hz, robust scaled, in the montage's order; NaN rows for absent channels."""
    rows: list[np.ndarray | None] = []
    for channel in MONTAGE.channels:
        if channel.name not in night.names:
            rows.append(None)
            continue
        x = night.digital[:, night.names.index(channel.name)].astype(np.float64)
        x = band_pass(x, RATE_HZ, *BAND_HZ[channel.modality])
        rows.append(robust(signal.resample_poly(x, 16, 25)))
    length = max(len(row) for row in rows if row is not None)
    return np.stack([np.full(length, np.nan, np.float32) if row is None else row for row in rows])


def probe_accuracy(nights: list[Night], train: int) -> float:
    """Balanced accuracy of five stages from log band powers on the subjects from number `train` on."""
    features, stages, subject = [], [], []
    for number, night in enumerate(nights):
        epochs = len(night.stages)
        x = np.zeros((13, epochs, 30 * RATE_HZ), np.float32)
        for column, name in enumerate(night.names):
            row = [c.name for c in challenge2018.CHANNELS].index(name)
            x[row] = robust(night.digital[: epochs * 30 * RATE_HZ, column]).reshape(epochs, -1)
        features.append(band_power(list(x), [RATE_HZ] * 13))
        stages.append(night.stages)
        subject.append(np.full(epochs, number))
    x, y, who = np.concatenate(features), np.concatenate(stages), np.concatenate(subject)
    x, y, who = x[y >= 0], y[y >= 0], who[y >= 0]
    mean, spread = np.nanmean(x[who < train], axis=0), np.nanstd(x[who < train], axis=0)
    x = np.nan_to_num((x - mean) / spread)
    model = LogisticRegression(C=0.05, max_iter=400, class_weight="balanced")
    model.fit(x[who < train], y[who < train])
    return balanced_accuracy_score(y[who >= train], model.predict(x[who >= train]))


@pytest.fixture(scope="module")
def nights():
    config = CohortConfig(subjects=12, hours=0.6, seed=0)
    return [simulate_night(config, subject) for subject in range(config.subjects)]


def test_a_band_power_probe_is_neither_trivial_nor_hopeless(nights):
    assert 0.75 < probe_accuracy(nights, 8) < 0.90


@pytest.mark.slow
def test_a_band_power_probe_on_the_demo_cohort():
    config = CohortConfig()
    nights = [simulate_night(config, subject) for subject in range(config.subjects)]
    assert 0.75 < probe_accuracy(nights, 16) < 0.90


def test_predictable_share_of_each_modality(nights):
    part = [dataclasses.replace(n, digital=n.digital[: 1500 * RATE_HZ]) for n in nights[:9]]
    share = predictable_share([conditioned(n) for n in part], MODALITY, 128)
    assert list(share) == ["EEG", "EOG", "EMG", "ECG", "RESP", "SPO2"]
    assert 0.75 < share["EEG"].from_channels <= share["EEG"].total < 0.97
    assert share["EEG"].from_neighbours < 0.45
    assert 0.65 < share["EOG"].from_channels < 0.95
    assert abs(share["EMG"].total) < 0.02
    assert abs(share["ECG"].from_channels) < 0.02
    assert share["ECG"].total < 0.1
    assert share["RESP"].from_channels > 0.8 and share["RESP"].from_neighbours > 0.8
    assert share["SPO2"].from_neighbours > 0.9 and share["SPO2"].from_channels < 0.1


def test_all_stages_have_a_usable_share(nights):
    scored = np.concatenate([n.stages[n.stages >= 0] for n in nights])
    assert np.bincount(scored, minlength=5).min() > 0.06 * len(scored)


def test_a_night_is_a_function_of_seed_and_subject():
    one, again = simulate_night(TINY, 1), simulate_night(TINY, 1)
    assert np.array_equal(one.digital, again.digital) and one.events == again.events
    more = simulate_night(dataclasses.replace(TINY, subjects=50), 1)
    assert np.array_equal(one.digital, more.digital) and np.array_equal(one.stages, more.stages)
    assert not np.array_equal(one.digital[:5000], simulate_night(TINY, 2).digital[:5000])
    other_seed = simulate_night(dataclasses.replace(TINY, seed=6), 1)
    assert not np.array_equal(one.digital[:5000], other_seed.digital[:5000])


def test_a_night_has_the_stated_form():
    night = simulate_night(TINY, 0)
    assert night.record == record_name(0) == "tr90-0001"
    assert night.names == tuple(c.name for c in challenge2018.CHANNELS) and night.absent is None
    seconds, rest = divmod(len(night.digital), RATE_HZ)
    assert rest == 0 and 540 <= seconds < 570
    assert len(night.stages) == seconds // 30 and night.stages[0] == -1
    physical = (night.digital[:, 11].astype(float) + 32768) / 655.35
    assert physical.min() > 75 and physical.max() <= 100 and 88 < np.median(physical) < 99
    ecg_mv = night.digital[:, 12] / 1000
    assert 0.5 < np.percentile(ecg_mv, 99.5) < 3
    for name in ("F3-M2", "C3-M2", "O1-M2", "E1-M2"):
        assert 10 < night.digital[:, night.names.index(name)].std() < 90, name


def test_an_absent_channel_is_missing_from_the_file(tmp_path):
    config = dataclasses.replace(TINY, subjects=2, absent_share=1.0)
    records = write_cohort(tmp_path, config)
    for subject, record in enumerate(records):
        night = simulate_night(config, subject)
        assert night.absent in ABSENT_CANDIDATES
        header = wfdb.rdheader(str(tmp_path / record / record))
        assert header.n_sig == 12 and night.absent not in header.sig_name
        signals = wfdb.rdrecord(str(tmp_path / record / record), physical=False, return_res=16)
        assert np.array_equal(signals.d_signal, night.digital)


def test_files_do_not_depend_on_workers_or_the_cohorts_size(tmp_path):
    seen = []
    names = write_cohort(tmp_path / "a", TINY, lambda *progress: seen.append(progress))
    assert names == ["tr90-0001", "tr90-0002", "tr90-0003"]
    assert seen == [(name, i + 1, 3) for i, name in enumerate(names)]
    again = write_cohort(tmp_path / "b", dataclasses.replace(TINY, subjects=2), workers=2)
    for name in again:
        files = [f"{name}{end}" for end in (".hea", ".mat", ".arousal", "-arousal.mat")]
        assert sorted(p.name for p in (tmp_path / "b" / name).iterdir()) == sorted(files)
        same, different, broken = filecmp.cmpfiles(tmp_path / "a" / name, tmp_path / "b" / name, files, shallow=False)
        assert (same, different, broken) == (files, [], [])
    rows = (tmp_path / "a" / "age-sex.csv").read_text().splitlines()
    people = [simulate_night(TINY, i) for i in range(3)]
    assert rows == ["Record,Age,Sex", *(f"{p.record},{p.age_years},{p.sex}" for p in people)]
    assert (tmp_path / "b" / "RECORDS").read_text() == "tr90-0001/\ntr90-0002/\n"


def test_the_packages_reader_finds_the_cohort(tmp_path):
    from physiofast.io import find_records, open_recording
    from physiofast.labels import stage_epochs

    write_cohort(tmp_path, dataclasses.replace(TINY, subjects=2))
    found = find_records(tmp_path)
    assert len(found) == 2
    night = simulate_night(TINY, 1)
    recording = open_recording(tmp_path / "tr90-0002" / "tr90-0002.hea")
    assert (recording.age_years, recording.sex) == (night.age_years, night.sex)
    assert np.array_equal(stage_epochs(recording)[: len(night.stages)], night.stages)
    assert np.array_equal(np.stack(recording.digital(range(13))), night.digital.T)


def test_pops_and_hum_are_where_the_config_puts_them():
    quiet = dataclasses.replace(TINY, pops_per_hour=0.0)
    loud = dataclasses.replace(TINY, pops_per_hour=200.0)
    a, b = (simulate_night(c, 0).digital[:, :8].astype(float) for c in (quiet, loud))
    change = np.abs(b - a)
    assert 50 < np.percentile(change.max(axis=1), 99) < 500
    assert np.mean(change.max(axis=1) > 20) < 0.1
    frequency, density = signal.welch(a[:, 0], RATE_HZ, nperseg=RATE_HZ * 10)
    beside = (abs(frequency - 60) > 1) & (abs(frequency - 60) < 3)
    assert density[abs(frequency - 60) < 0.3].max() > 1.5 * density[beside].mean()
    assert density[abs(frequency - 60) < 0.3].max() < density[(frequency > 0.5) & (frequency < 4)].mean()


@pytest.mark.parametrize(
    ("field", "value"), [("subjects", 0), ("hours", 0.01), ("seed", -1), ("overlap", 0.6), ("hours", float("nan"))]
)
def test_config_refuses_what_it_cannot_do(field, value):
    with pytest.raises(ValueError, match=rf"CohortConfig\.{field} must be .*at least .*; found {value}"):
        CohortConfig(**{field: value})


def test_a_worker_that_dies_ends_the_cohort_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(cohort, "_write_night", _die)
    with pytest.raises(
        OSError, match="a worker process died; it was killed or ran out of memory, of which fewer workers"
    ):
        write_cohort(tmp_path, TINY, workers=2)


def _die(*job):
    os._exit(9)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        write_cohort(tmp_path, TINY, workers=0)


def test_simplifications_are_sentences():
    assert len(SIMPLIFICATIONS) >= 10
    assert all(line[0].isupper() and line.endswith(".") for line in SIMPLIFICATIONS)


def test_an_error_stops_a_cohort_early(tmp_path):
    def stop(record, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path, CohortConfig(subjects=16, hours=0.1), stop, workers=2)
    assert len(list(tmp_path.glob("*/*.hea"))) < 16
