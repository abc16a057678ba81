"""What is bridged and which patches are valid: the errors that faults leave in valid patches of a prepared record."""

from types import SimpleNamespace

import edfio
import numpy as np
import pytest
from scipy import signal

from physiofast import conditioning
from physiofast.io import open_recording
from physiofast.preparation import ModalitySettings, PrepareConfig, inspect_recording, prepare, scanning
from physiofast.preparation.config import FilterPlan
from physiofast.preparation.faults import find_faults, mostly_constant
from physiofast.store import Store
from tests.filters import band_pass
from tests.test_prepare import RATE, open_wfdb, write_wfdb
from tests.test_scanning import scan

SECONDS = 120
SATURATION = (65535 / 100, -32768)
"""Gain and baseline of the Challenge's SaO2."""


def prepared(tmp_path, name, *columns):
    """The same channel in records of these raw samples, as one prepared record each."""
    for number, column in enumerate(columns):
        write_wfdb(tmp_path / "in", f"r{number}", (name,), np.rint(column).astype(np.int16)[:, None])
    prepare(tmp_path / "in", tmp_path / "out")
    store = Store.open(tmp_path / "out")
    return store.montage.index(name), {record.record: record for record in store.records}


def noise(size, sd, seed=0):
    """Noise of 1 to 30 Hz."""
    white = np.random.default_rng(seed).normal(size=size)
    x = signal.sosfiltfilt(signal.butter(2, (1, 30), "bandpass", fs=RATE, output="sos"), white)
    return x * sd / x.std()


def largest_error(records, channel, broken="r1", clean="r0"):
    """Largest difference to the clean record within valid patches of the broken one, in the store's unit."""
    valid = np.repeat(records[broken].valid[channel], 128)
    return np.abs(records[broken].physical(channel) - records[clean].physical(channel))[valid].max()


@pytest.mark.parametrize(("low", "high"), [(0.3, 35.0), (0.5, 40.0), (None, 1.0)])
def test_reach_of_a_step_by_definition(low, high):
    shares, n = np.array([0.5, 0.02, 0.005, 1e-9]), 40_000
    step = (np.arange(2 * n) >= n).astype(float)
    left = np.abs(band_pass(step, RATE, low, high) - (step if low is None else 0))
    reach_s = conditioning.step_reach_s(shares, RATE, low, high)
    away_s = np.where(np.arange(2 * n) >= n, np.arange(2 * n) - n, n - 1 - np.arange(2 * n)) / RATE
    for share, reach in zip(shares[:3], reach_s[:3], strict=True):
        assert left[away_s >= reach].max() <= share * (1 + 1e-6)
        assert reach == 0 or left[away_s >= reach - 1.5 / RATE].max() > share
    assert reach_s[3] == np.ceil(8 * RATE / (low or high)) / RATE  # no farther than is looked
    assert conditioning.step_reach_s(np.empty(0), RATE, low, high).size == 0


@pytest.mark.parametrize("jump_uv", [1100.0, 3000.0, 9000.0, -3000.0])
@pytest.mark.parametrize("seconds_of_decay", [None, 1.0])
def test_what_a_pop_leaves_in_valid_patches(tmp_path, jump_uv, seconds_of_decay):
    """A change of level for good, or one that decays as a capacitor does."""
    clean, t = noise(SECONDS * RATE, 15.0), np.arange(SECONDS * RATE) / RATE - 60.3
    pop = np.where(t >= 0, jump_uv * (1.0 if seconds_of_decay is None else np.exp(-t / seconds_of_decay)), 0)
    channel, records = prepared(tmp_path, "C3-M2", clean, clean + pop)
    invalid = np.flatnonzero(~records["r1"].valid[channel])
    assert 60 in invalid and 3 <= invalid.size <= 13
    assert largest_error(records, channel) < 0.02 * 1000 + 1.0  # and rounding


@pytest.mark.parametrize("level_uv", [0, 4000])
def test_a_lead_that_is_off_is_bridged_from_where_it_comes_off(tmp_path, level_uv):
    """Flat, in the middle of a patch, at another level, in millivolts; a change of level that no rule calls a pop."""
    clean = 1000 * noise(SECONDS * RATE, 0.2)
    broken = clean.copy()
    begin, end = round(60.3 * RATE), round(75.7 * RATE)
    broken[begin:end] = level_uv + np.random.default_rng(1).integers(0, 2, end - begin)
    channel, records = prepared(tmp_path, "ECG", clean, broken)
    assert np.flatnonzero(~records["r1"].valid[channel]).tolist() == list(range(60, 76))
    assert largest_error(records, channel) < 0.15  # what a bridge over 15 s does to a signal of 0.2 mV
    said = inspect_recording(open_wfdb(tmp_path / "in", "r1"), PrepareConfig()).channels[channel]
    assert said.flat_share == pytest.approx(14 / SECONDS)


def saturation(percent):
    gain, baseline = SATURATION
    return percent * gain + baseline


@pytest.mark.parametrize("unlikely", [0.0, 30.0])
def test_an_oximeter_without_a_finger_is_no_saturation(tmp_path, unlikely):
    rng = np.random.default_rng(3)
    clean = 96 + signal.sosfiltfilt(signal.butter(2, 0.05, fs=RATE, output="sos"), rng.normal(0, 8, SECONDS * RATE))
    broken = clean.copy()
    broken[round(40.5 * RATE) : round(70.5 * RATE)] = unlikely
    channel, records = prepared(tmp_path, "SaO2", saturation(clean), saturation(broken))
    assert np.flatnonzero(~records["r1"].valid[channel]).tolist() == list(range(39, 72))
    assert largest_error(records, channel) < 0.5
    assert records["r1"].scale[channel] == pytest.approx(records["r0"].scale[channel], rel=0.2)
    said = inspect_recording(open_wfdb(tmp_path / "in", "r1"), PrepareConfig()).channels[channel]
    assert said.out_of_range_share == pytest.approx(31 / SECONDS)
    low = ModalitySettings(high_hz=1.0, flat_lsb=None, clipping=False, least=20.0)
    told = inspect_recording(open_wfdb(tmp_path / "in", "r1"), PrepareConfig(spo2=low)).channels[channel]
    assert (told.out_of_range_share == 0) == (unlikely > 20)


def test_values_outside_by_definition():
    x = np.repeat([0, 10, 20, 30], 200).astype(np.int16)
    x[610] = -32768
    found = scan(x, -32768)
    np.testing.assert_array_equal(scanning.out_of_range_runs(found, 5, 25), [[0, 200], [600, 800]])
    assert not len(scanning.out_of_range_runs(found, -np.inf, np.inf))


def test_a_coarse_belt_is_clipped_at_the_limits_of_its_header_and_an_oximeter_may_rest_at_its(tmp_path):
    t = np.arange(SECONDS * RATE) / RATE
    belt = (1.6 * np.sin(2 * np.pi * 0.2 * t)).clip(-1, 1)
    percent = np.repeat(np.where(np.arange(SECONDS) < 100, 100.0, 97.0), RATE)
    signals = [
        edfio.EdfSignal(
            x, RATE, label=label, physical_dimension=unit, physical_range=physical, digital_range=(0, digital)
        )
        for label, unit, x, physical, digital in (
            ("ABD", "mV", belt, (-1, 1), 27232),
            ("CHEST", "mV", belt, (-1, 1), 255),
            ("SaO2", "%", percent, (0, 100), 100),
        )
    ]
    edfio.Edf(signals).write(tmp_path / "r.edf")
    said = {c.name: c for c in inspect_recording(open_recording(tmp_path / "r.edf"), PrepareConfig()).channels}
    fine, rough = said["ABD"], said["CHEST"]
    assert fine.clipped_share == pytest.approx(0.57, abs=0.01)
    assert rough.clipped_share == pytest.approx(fine.clipped_share, abs=0.005)
    assert said["SaO2"].clipped_share == 0 and said["SaO2"].valid_share == 1


@pytest.mark.parametrize("gain", [2.0, -2.0])
def test_values_outside_are_found_whatever_the_sign_of_the_gain(gain):
    """Patches of 99, 40, 97 and 120 %."""
    rng = np.random.default_rng(2)
    x = np.rint(gain * np.repeat([99.0, 40.0, 97.0, 120.0], 200) + 7 + rng.integers(0, 2, 800)).astype(np.int16)
    oximeter = SimpleNamespace(gain=gain, baseline=7, unit="%", rate_hz=200.0)
    found = find_faults(scan(x), x, oximeter, "SPO2", PrepareConfig().spo2, 1.0)
    np.testing.assert_array_equal(found.out_of_range, [[200, 400], [600, 800]])


@pytest.mark.parametrize("jump_uv", [3000, -12_000])
@pytest.mark.parametrize("gap", ["missing", "flat", "rail", "flat before"])
def test_a_change_of_level_across_a_gap_is_a_pop(tmp_path, gap, jump_uv):
    """The bridge over a gap is a slope then, which is as slow to ring out as a jump."""
    clean, at = noise(SECONDS * RATE, 15.0), round(60.3 * RATE)
    broken = clean.copy()
    t = np.arange(clean.size - at) / RATE
    if gap == "missing":
        broken[at:] += jump_uv
        broken[at - 2 : at + 1] = -32768
    elif gap == "flat":
        broken[at:] += jump_uv
        broken[at - 100 : at + 160] = 40
    elif gap == "rail":  # the amplifier saturates, and comes back as a capacitor does
        pop = 4.0 * jump_uv * np.exp(-t)
        broken[at:] = (broken[at:] + pop).clip(-32767, 32767)
        broken[at : at + 40] = np.sign(jump_uv) * 32767
    else:
        broken[at - 260 : at - 10] = 40
        broken[at + 30 :] += jump_uv
    channel, records = prepared(tmp_path, "C3-M2", clean, broken)
    invalid = np.flatnonzero(~records["r1"].valid[channel])
    assert 60 in invalid and invalid.size <= 18
    assert largest_error(records, channel) < 0.02 * 1000 + 12.0  # and what the bridge does beside it to 15 uV


def test_a_channel_slower_than_patches_is_dropped_and_the_record_goes_on(tmp_path):
    eeg = edfio.EdfSignal(noise(SECONDS * RATE, 30.0), RATE, label="C3-M2", physical_dimension="uV")
    slow = edfio.EdfSignal(np.linspace(93, 97, SECONDS // 2), 0.5, label="SaO2", physical_dimension="%")
    (tmp_path / "in").mkdir()
    edfio.Edf([eeg, slow], data_record_duration=2).write(tmp_path / "in" / "night.edf")
    assert prepare(tmp_path / "in", tmp_path / "out").processed == ("night",)
    (record,) = Store.open(tmp_path / "out").records
    assert "native rate 0.5 Hz is too low" in record.drops["SaO2"]


def test_whether_a_signal_is_mostly_constant_is_asked_of_its_valid_patches():
    x = np.repeat(np.arange(10), 200).astype(np.int16)
    x[:1200] = 7
    found = scan(x)
    assert mostly_constant(found, x, np.ones(10, bool), 200.0)
    assert not mostly_constant(found, x, np.arange(10) > 3, 200.0)
    assert mostly_constant(found, x, np.arange(8) < 7, 200.0)  # patches of a recording that this channel outlasts
    assert not mostly_constant(found, x, np.zeros(10, bool), 200.0)


@pytest.mark.parametrize("spread", [0.3, 0.5, 1.0, 2.0])
def test_whole_percents_have_a_scale_of_their_own_spread(tmp_path, spread):
    """An oximeter that rests on one value for most of the night: its IQR is the filter's ripple, or nothing."""
    rng = np.random.default_rng(4)
    slow = signal.sosfiltfilt(signal.butter(2, 0.02, fs=4, output="sos"), rng.normal(size=4 * 1200))
    level = 96 + spread * slow / slow.std()
    for begin in rng.integers(0, 4 * 1150, 4):
        level[begin : begin + 80] -= 4 * np.hanning(80)
    percent = np.repeat(np.rint(level.clip(max=100)), RATE // 4)
    channel, records = prepared(tmp_path, "SaO2", saturation(percent))
    valid = np.repeat(records["r0"].valid[channel], 128)
    assert valid.all()
    z = records["r0"].samples[: valid.size] * records["r0"].scale[channel] + records["r0"].shift[channel]
    assert 0.5 < z.std() < 2.5


def test_bounds_of_values_are_in_order():
    with pytest.raises(ValueError, match=r"least must be below most, or None; found 105 and 50"):
        ModalitySettings(high_hz=1, least=105, most=50)


def test_the_plan_of_a_modality_says_how_far_its_steps_reach():
    plan = FilterPlan.of(PrepareConfig(), "EEG", 128.0)
    np.testing.assert_array_equal(
        plan.step_reach_s(200.0, np.array([0.02])), conditioning.step_reach_s(np.array([0.02]), 200.0, 0.3, 35.0)
    )
