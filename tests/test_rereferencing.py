"""Differences of electrodes: which are taken, their values, and that a fault of either is one of theirs."""

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import edfio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physiofast.io import Recording, open_recording
from physiofast.io.wfdb_samples import NO_SAMPLE
from physiofast.montage import MONTAGES, Channel, Montage
from physiofast.preparation import PrepareConfig, inspect_recording, prepare, prepare_record
from physiofast.preparation.rereferencing import parts_of, with_differences
from physiofast.store import Store
from tests import signalfiles

MONTAGE = MONTAGES["cinc2018"]
RATE, SECONDS = 256, 120


def electrode(seed: int, label: str, rate: int = RATE, unit: str = "uV", span: float = 500.0) -> edfio.EdfSignal:
    data = np.random.default_rng(seed).normal(0, 20, SECONDS * rate)
    return edfio.EdfSignal(data, rate, label=label, physical_dimension=unit, physical_range=(-span, span))


def write(path: Path, signals: Sequence[edfio.EdfSignal]) -> Recording:
    edfio.Edf(signals).write(path)
    return open_recording(path)


def added(recording: Recording, montage: Montage = MONTAGE) -> dict[str, tuple[str, ...]]:
    """Names of the differences, and of what they are made of."""
    found = with_differences(recording, montage)
    return {found.names[i]: tuple(found.names[k] for k in pair) for i, pair in parts_of(found).items()}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("C3", "M2", "C4", "A1"), {"C3 - M2": ("C3", "M2"), "C4 - A1": ("C4", "A1")}),
        (("EEG C3-REF", "EEG A2-Ref"), {"C3 - A2": ("EEG C3-REF", "EEG A2-Ref")}),
        (("EEG C3-LE", "EEG A2-REF"), {}),  # against something else each
        (("EEG C3-AVG", "EEG M2-Avg"), {"C3 - M2": ("EEG C3-AVG", "EEG M2-Avg")}),
        (("F3-Fpz", "M2-FPZ", "C3-AVG"), {"F3 - M2": ("F3-Fpz", "M2-FPZ")}),
        (("C4-M2", "M1-M2", "C3-M2"), {"C4 - M1": ("C4-M2", "M1-M2")}),
        (("C4-M2", "M1-A2", "C3-O2", "M2-O2"), {}),
        (("C3-M2", "C3", "M2"), {}),  # it is there
        (("C3-A2", "C3", "M2"), {}),
        (("C3", "M1"), {}),
        (("E1", "M2", "Chin1", "Chin2"), {"E1 - M2": ("E1", "M2"), "Chin1 - Chin2": ("Chin1", "Chin2")}),
        (
            ("L Chin", "R Chin", "ECG L", "ECG R"),
            {"L Chin - R Chin": ("L Chin", "R Chin"), "ECG L - ECG R": ("ECG L", "ECG R")},
        ),
        (("Chin L", "Chin R"), {"Chin L - Chin R": ("Chin L", "Chin R")}),
        (("Left Chin", "Right Chin"), {"Left Chin - Right Chin": ("Left Chin", "Right Chin")}),
        (("Chin Left", "Chin Right"), {"Chin Left - Chin Right": ("Chin Left", "Chin Right")}),
        (("Chin L", "ECG"), {}),
        (("c3", "(M2)"), {}),
        (("ECG1", "ECG2", "EMG1", "EMG2"), {}),  # as often two leads
        (("EKG1-REF", "EKG2-REF"), {"EKG1 - EKG2": ("EKG1-REF", "EKG2-REF")}),
        (("oro", "nasal"), {}),
    ],
)
def test_which_differences_are_taken(tmp_path: Path, labels: Sequence[str], expected: dict) -> None:
    recording = write(tmp_path / "r.edf", [electrode(i, label) for i, label in enumerate(labels)])
    assert added(recording) == expected
    if not expected:
        assert with_differences(recording, MONTAGE) is recording


def test_values_are_differences(tmp_path: Path) -> None:
    recording = write(tmp_path / "r.edf", [electrode(1, "C3"), electrode(2, "O1"), electrode(3, "M2")])
    found = with_differences(recording, MONTAGE)
    assert found.names == ("C3", "O1", "M2", "C3 - M2", "O1 - M2")
    assert [found.source(i) is None for i in range(5)] == [False, False, False, True, True]
    assert with_differences(found, MONTAGE) is found
    c3, o1, m2 = (recording.physical(i) for i in range(3))
    raw = recording.digital([0, 2])
    start, stop = 1000, 4321
    values = found.physical([3, 0, 4], start, stop)
    np.testing.assert_array_equal(values[0], (c3 - m2)[start:stop])
    np.testing.assert_array_equal(values[1], c3[start:stop])
    np.testing.assert_array_equal(values[2], (o1 - m2)[start:stop])
    np.testing.assert_array_equal(found.physical(3, dtype=np.float32), (c3 - m2).astype(np.float32))
    out = [np.empty(stop - start)]
    assert found.physical([4], start, stop, out=out)[0] is out[0]
    np.testing.assert_array_equal(out[0], values[2])
    digital = found.digital([3])[0]
    assert digital.dtype == np.int32
    np.testing.assert_array_equal(digital, raw[0].astype(np.int32) - raw[1])
    signal = found.signals[3]
    assert (signal.rate_hz, signal.unit, signal.num_samples) == (RATE, "uV", c3.size)
    np.testing.assert_allclose((digital - signal.baseline) / signal.gain, c3 - m2, atol=1e-9)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2), st.integers(-(2**31), 2**31 - 1))
def test_stored_integers_of_32_bits(tmp_path_factory: pytest.TempPathFactory, first: list[int], second: int) -> None:
    """The sentinel of either is one of the difference, which is cut where it leaves 32 bits."""
    folder = tmp_path_factory.mktemp("wide")
    rows = [[first[0], second], [first[1], second]]
    (folder / "x.dat").write_bytes(signalfiles.encode(32, [*rows[0], *rows[1], 0, 0]))
    lines = ["x 2 100 3", "x.dat 32 200/uV 0 0 0 0 0 C3", "x.dat 32 200/uV 0 0 0 0 0 M2"]
    (folder / "x.hea").write_text("\n".join(lines) + "\n")
    found = with_differences(open_recording(folder / "x", sentinels=True), MONTAGE)
    wanted = [NO_SAMPLE if NO_SAMPLE in (a, b) else max(min(a - b, 2**31 - 1), 1 - 2**31) for a, b in rows]
    assert found.reader.digital([(2, 0, 2)])[0].tolist() == wanted


def test_different_gains(tmp_path: Path) -> None:
    """There is no difference of stored integers then, and the store has that of the values."""
    recording = write(tmp_path / "r.edf", [electrode(1, "C3"), electrode(2, "M2", span=300.0)])
    found = with_differences(recording, MONTAGE)
    with pytest.raises(ValueError, match="segments differ in the calibration of signal 2"):
        found.digital([2])
    prepared = prepare_record(recording, PrepareConfig(channels=("C3-M2",), labels="optional"))
    whole = electrode(1, "C3").data - electrode(2, "M2").data
    edfio.Edf([edfio.EdfSignal(whole, RATE, label="C3-M2", physical_dimension="uV", physical_range=(-500, 500))]).write(
        tmp_path / "d.edf"
    )
    direct = prepare_record(open_recording(tmp_path / "d.edf"), PrepareConfig(channels=("C3-M2",), labels="optional"))
    for one in (prepared, direct):
        assert one.valid.mean() > 0.9
    a, b = (one.samples * one.unit_scale[0] + one.unit_shift[0] for one in (prepared, direct))
    np.testing.assert_allclose(a, b, atol=0.1)


def test_values_of_one_difference_at_a_time_are_in_memory(tmp_path: Path) -> None:
    """Of electrodes of different gains: the stored integers of six differences and eight electrodes are 40 bytes."""
    labels = ("F3", "F4", "C3", "C4", "O1", "O2", "M1", "M2")
    recording = write(tmp_path / "r.edf", [electrode(i, label, span=400.0 + i) for i, label in enumerate(labels)])
    config = PrepareConfig(labels="optional")
    inspect_recording(recording, config)
    tracemalloc.start()
    inspect_recording(recording, config)
    most = tracemalloc.get_traced_memory()[1] / (SECONDS * RATE)
    tracemalloc.stop()
    assert most < 100


def test_spellings_of_one_unit_are_one(tmp_path: Path) -> None:
    recording = write(tmp_path / "r.edf", [electrode(1, "C3"), electrode(2, "M2", unit="UV")])
    assert added(recording) == {"C3 - M2": ("C3", "M2")}


@pytest.mark.parametrize("units", [("uV", "mV"), ("mV", "uV"), ("uV", "V")])
def test_a_voltage_is_converted_to_the_unit_of_the_other(tmp_path: Path, units: tuple[str, str]) -> None:
    labels, steps = ("C3", "M2"), [{"uV": 1.0, "mV": 1e-3, "V": 1e-6}[unit] for unit in units]
    microvolts = [electrode(i, label) for i, label in enumerate(labels)]
    signals = [
        edfio.EdfSignal(whole.data * k, RATE, label=label, physical_dimension=u, physical_range=(-500 * k, 500 * k))
        for whole, label, u, k in zip(microvolts, labels, units, steps, strict=True)
    ]
    found = with_differences(write(tmp_path / "r.edf", signals), MONTAGE)
    assert (found.names[2], found.signals[2].unit) == ("C3 - M2", units[0])
    first, second, difference = (found.physical(i) / steps[0] for i in range(3))
    np.testing.assert_allclose(difference, first - second * steps[0] / steps[1], atol=1e-9)
    config = PrepareConfig(channels=("C3-M2",), labels="optional")
    of_both = [prepare_record(recording, config) for recording in (found, write(tmp_path / "s.edf", microvolts))]
    assert of_both[0].valid.mean() > 0.9
    a, b = (one.samples * one.unit_scale[0] + one.unit_shift[0] for one in of_both)
    np.testing.assert_allclose(a, b, atol=0.1)


def test_the_next_reference_is_taken_where_the_first_does_not_fit(tmp_path: Path) -> None:
    signals = [electrode(1, "C3"), electrode(2, "M2", rate=128), electrode(3, "A2")]
    recording = write(tmp_path / "r.edf", signals)
    assert added(recording) == {"C3 - A2": ("C3", "A2")}
    assert not [note for note in with_differences(recording, MONTAGE).warnings if "is not made of" in note]


def test_why_no_channel_is_left_names_what_does_not_go_together(tmp_path: Path) -> None:
    recording = write(tmp_path / "r.edf", [electrode(1, "C3"), electrode(2, "M2", unit="mmHg")])
    (error,) = inspect_recording(recording, PrepareConfig(labels="optional")).errors
    why = "C3-M2 is not made of C3 and M2: their units are 'uV' and 'mmHg'"
    assert error.startswith(f"no channel is left (none of the montage; found C3, M2; {why}); montages to choose from")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"rate": 128}, "their rates are 256 and 128 Hz"),
        ({"unit": "mmHg"}, "their units are 'uV' and 'mmHg'"),
    ],
)
def test_electrodes_that_do_not_go_together_are_told(tmp_path: Path, other: dict, why: str) -> None:
    recording = write(tmp_path / "r.edf", [electrode(1, "C3"), electrode(2, "M2", **other), electrode(3, "ECG")])
    found = inspect_recording(recording, PrepareConfig())
    assert found.warnings[-1] == f"C3-M2 is not made of C3 and M2: {why}"
    assert found.channels[MONTAGE.index("C3-M2")].source is None


@pytest.mark.parametrize("faulty", ["C3", "M2"])
@pytest.mark.parametrize("fault", ["flat", "clipped"])
def test_a_fault_of_either_electrode_is_one_of_the_difference(tmp_path: Path, faulty: str, fault: str) -> None:
    """An electrode that has fallen off rests at a value, which its difference to another one does not."""
    signals = {label: electrode(i, label) for i, label in enumerate(("C3", "M2", "C4", "M1"))}
    data = signals[faulty].data.copy()
    at = slice(40 * RATE, 60 * RATE)
    data[at] = 0.0 if fault == "flat" else np.where(np.arange(20 * RATE) % 32 < 16, 500.0, data[at])
    signals[faulty] = edfio.EdfSignal(data, RATE, label=faulty, physical_dimension="uV", physical_range=(-500, 500))
    recording = write(tmp_path / "r.edf", list(signals.values()))
    prepared = prepare_record(recording, PrepareConfig(labels="optional"))
    c3, c4 = MONTAGE.index("C3-M2"), MONTAGE.index("C4-M1")
    assert not prepared.valid[c3, 40:60].any()
    assert prepared.valid[c3, 5:30].all()
    assert prepared.valid[c3, 70:115].all()
    assert prepared.valid[c4, 5:115].all()
    said = inspect_recording(recording, PrepareConfig()).channels[c3]
    assert said.source == "C3 - M2"
    share = said.flat_share if fault == "flat" else said.clipped_share
    assert share == pytest.approx(20 / SECONDS if fault == "flat" else 10 / SECONDS, abs=0.02)


def test_what_is_in_the_store_and_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Electrodes that were used are not told as ignored, and a second run finds nothing to do."""
    from physiofast.cli import main

    write(tmp_path / "in.edf", [electrode(1, "EEG C3"), electrode(2, "EEG A2"), electrode(3, "T3")])
    config = PrepareConfig(labels="optional")
    assert prepare(tmp_path / "in.edf", tmp_path / "store", config).processed == ("in",)
    assert prepare(tmp_path / "in.edf", tmp_path / "store", config).skipped == ("in",)
    record = Store.open(tmp_path / "store").records[0]
    assert record.valid.any(axis=1).nonzero()[0].tolist() == [MONTAGE.index("C3-M2")]
    assert main(["inspect", str(tmp_path / "in.edf")]) == 0
    said = capsys.readouterr().out
    assert "C3 - A2" in said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("ignored:")] == ["T3"]


def test_an_electrode_that_a_channel_is_known_by(tmp_path: Path) -> None:
    """LOC is E1-M2 where nothing better is there, and against A2 where that is."""
    number = MONTAGE.index("E1-M2")
    alone = inspect_recording(write(tmp_path / "a.edf", [electrode(1, "LOC")]), PrepareConfig())
    assert alone.channels[number].source == "LOC"
    both = write(tmp_path / "b.edf", [electrode(1, "LOC"), electrode(2, "A2")])
    found = inspect_recording(both, PrepareConfig())
    assert found.channels[number].source == "LOC - A2"
    assert (found.ignored, found.duplicates, found.near) == ((), {}, {})
    config = PrepareConfig(channels=("E1-M2",), labels="optional")
    prepared = prepare_record(both, config)
    plain = prepare_record(write(tmp_path / "c.edf", [electrode(1, "LOC"), electrode(3, "A2")]), config)
    assert not np.array_equal(prepared.samples, plain.samples)
    slower = write(tmp_path / "d.edf", [electrode(1, "LOC"), electrode(2, "A2", rate=128)])
    told = inspect_recording(slower, PrepareConfig())
    assert told.channels[number].source == "LOC"
    assert told.warnings[-1] == "E1-M2 is not made of LOC and A2: their rates are 256 and 128 Hz"


def test_a_montage_of_ones_own(tmp_path: Path) -> None:
    channels = (Channel(name="T3-T4", modality="EEG"), Channel(name="T4", modality="EEG"))
    montage = Montage(channels=channels, rate_hz={"EEG": 100})
    recording = write(tmp_path / "r.edf", [electrode(1, "T3"), electrode(2, "T4")])
    assert added(recording, montage) == {"T3 - T4": ("T3", "T4")}
    found = inspect_recording(recording, PrepareConfig(montage=montage))
    assert [channel.source for channel in found.channels] == ["T3 - T4", "T4"]
    assert found.ignored == ()
