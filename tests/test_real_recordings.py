"""Real recordings: samples against wfdb and against plain decoding, labels against the official arrays."""

import json
import shutil
from pathlib import Path

import edfio
import h5py
import numpy as np
import pytest

from physiofast import labels
from physiofast.io import find_records, open_recording
from physiofast.io.wfdb_samples import call_wfdb

WFDB_RECORDS = (
    "wfdb-abdominal/a01",
    "wfdb/100",
    "wfdb/100-no-len",
    "wfdb/100_3chan",
    "wfdb/100s",
    "wfdb/100skew",
    "wfdb/3000003_0003",
    "wfdb/310derive",
    "wfdb/310derive_2",
    "wfdb/310derive_3",
    "wfdb/311derive",
    "wfdb/311derive_2",
    "wfdb/311derive_3",
    "wfdb/311derive_4",
    "wfdb/a103l",
    "wfdb/a103l-no-len",
    "wfdb/binformats",
    "wfdb/flacformats",
    "wfdb/mixedsignals",
    "wfdb/s0010_re",
    "wfdb/test01_00s",
    "wfdb/test01_00s_frame",
    "wfdb/test01_00s_skew",
    "wfdb/test01_00s_skewframe",
    "wfdb/multi-segment/041s/041s",
    "wfdb/multi-segment/fixed1/v102s",
    "wfdb/multi-segment/s00001/s00001-2896-10-09-01-56",
    "wfdb/multi-segment/s00001/s00001-2896-10-09-01-56n",
    "wfdb/multi-segment/s00001/s00001-2896-10-10-00-31n",
)
EDF_FILES = (
    "edf/chtypes_edf.edf",
    "edf/evt.bdf",
    "edf/sample.edf",
    "edf/subsecond_starttime.edf",
    "edf/test_edf_overlapping_annotations.edf",
    "edf/test_reduced.edf",
    "edf/test_subsecond.edf",
    "edf/test_uneven_samp.edf",
    "edf/test_utf8_annotations.edf",
    "sleep-edfx/short_psg.bdf",
    "sleep-edfx/short_psg.edf",
)
NPZ_CODES = np.array([-1, 3, 2, 1, 4, 0], np.int8)


@pytest.mark.parametrize("name", WFDB_RECORDS)
def test_wfdb_values_equal_wfdb(real_data: Path, name: str) -> None:
    recording = open_recording(real_data / name)
    expected = call_wfdb("rdrecord", str(real_data / name), smooth_frames=False)
    assert recording.names == tuple(text.strip() for text in expected.sig_name)
    assert len(recording.signals) == len(expected.e_p_signal)
    for i, values in enumerate(expected.e_p_signal):
        np.testing.assert_array_equal(recording.physical(i), values)
        n = values.size
        assert recording.signals[i].num_samples == n
        np.testing.assert_array_equal(recording.physical(i, n // 3, n - n // 5), values[n // 3 : n - n // 5])


def test_wfdb_formats_keep_their_integers(real_data: Path) -> None:
    recording = open_recording(real_data / "wfdb/binformats")
    digital = recording.digital(range(10))
    header = call_wfdb("rdheader", str(real_data / "wfdb/binformats"))
    assert [int(x[0]) for x in digital] == header.init_value
    assert [int(x.sum(dtype=np.int64)) & 0xFFFF for x in digital] == [c & 0xFFFF for c in header.checksum]
    assert digital[2].dtype == np.int16  # big-endian in the file


def test_skew_ends_invalid(real_data: Path) -> None:
    recording = open_recording(real_data / "wfdb/100skew")
    plain = open_recording(real_data / "wfdb/100")
    skewed = recording.physical(1)
    np.testing.assert_array_equal(skewed[:-3], plain.physical(1)[3:])
    assert np.isnan(skewed[-3:]).all()
    np.testing.assert_array_equal(recording.physical(1, 1000, 2000), plain.physical(1, 1003, 2003))
    np.testing.assert_array_equal(np.isnan(recording.physical(1, 649_990)), np.arange(10) >= 7)


def test_mixed_rates(real_data: Path) -> None:
    recording = open_recording(real_data / "wfdb/mixedsignals")
    np.testing.assert_allclose([s.rate_hz for s in recording.signals], 62.4725 * np.array([4, 4, 4, 2, 2, 1]))
    assert [s.num_samples for s in recording.signals] == [57600] * 3 + [28800] * 2 + [14400]


@pytest.mark.parametrize(("start", "stop"), [(0, 12_002), (3_000, 11_000), (14_428_365, 14_518_365)])
def test_variable_layout_converts_each_segment_by_its_gain(real_data: Path, start: int, stop: int) -> None:
    path = real_data / "wfdb/multi-segment/s00001/s00001-2896-10-10-00-31"
    recording = open_recording(path)
    expected = call_wfdb("rdrecord", str(path), sampfrom=start, sampto=stop, smooth_frames=False)
    for i, values in enumerate(expected.e_p_signal):
        np.testing.assert_array_equal(recording.physical(i, start, stop), values)
    assert [s.name for s in recording.signals if not s.uniform] == ["II", "V", "MCL1", "ABP"]
    with pytest.raises(ValueError, match=r"segments differ in the calibration of signal 0 \(II\)"):
        recording.digital([0], start, stop)


def test_layout_with_absent_segments(real_data: Path) -> None:
    path = real_data / "wfdb/multi-segment/p000878/p000878-2137-10-26-16-57"
    recording = open_recording(path)
    assert recording.duration_s == 52_725_000 / 125
    assert recording.warnings[0].startswith("30 segment headers are missing: 3269321_0003")
    expected = call_wfdb("rdrecord", str(path), sampfrom=3_000, sampto=7_500, smooth_frames=False)
    for i, values in enumerate(expected.e_p_signal):
        np.testing.assert_array_equal(recording.physical(i, 3_000, 7_500), values)
    uniform = recording.digital([0], 0, 7_500)[0]
    assert uniform.dtype == np.int32
    physical = np.where(uniform == recording.signals[0].invalid, np.nan, (uniform + 128.0) / 255)
    np.testing.assert_array_equal(physical, recording.physical(0, 0, 7_500))
    with pytest.raises(FileNotFoundError, match="3269321_0003"):
        recording.physical(0)


def test_segment_file_missing(real_data: Path) -> None:
    recording = open_recording(real_data / "wfdb/multi-segment/s00001/s00001-2896-10-10-00-31")
    assert (
        "segment 3975656_0009: signal file 3975656_0009.dat is missing, so no sample can be read" in recording.warnings
    )
    with pytest.raises(FileNotFoundError, match=r"3975656_0009\.dat: no such signal file"):
        recording.physical(1)


@pytest.mark.parametrize("name", EDF_FILES)
@pytest.mark.filterwarnings("ignore:Incomplete data record")
def test_edf_values_equal_edfio(real_data: Path, name: str) -> None:
    path = real_data / name
    recording = open_recording(path)
    expected = (edfio.read_bdf if path.suffix == ".bdf" else edfio.read_edf)(path)
    assert recording.names == expected.labels
    for i, signal in enumerate(expected.signals):
        values = signal.data
        assert recording.signals[i].rate_hz == signal.sampling_frequency
        np.testing.assert_allclose(recording.physical(i), values, rtol=1e-9, atol=1e-9)
        n = values.size
        part = recording.digital([i], n // 3, n - n // 5)[0]
        np.testing.assert_array_equal(part, signal.digital[n // 3 : n - n // 5])


def test_sleep_edfx_excerpt_against_plain_decoding(real_data: Path) -> None:
    """The format by hand: 10 records of (3000, 3000, 3000, 30, 30, 30, 30) int16 after 2048 header bytes."""
    path = real_data / "sleep-edfx/short_psg.edf"
    recording = open_recording(path)
    reference = json.loads((real_data / "sleep-edfx/short_psg_header_reference.json").read_text())
    for signal, expected in zip(recording.signals, reference, strict=True):
        assert (signal.name, signal.rate_hz) == (expected["label"], expected["sampling_frequency"])
        for end in ("min", "max"):
            physical = (expected[f"digital_{end}"] - signal.baseline) / signal.gain
            assert physical == pytest.approx(expected[f"physical_{end}"], abs=1e-9)
    records = np.frombuffer(path.read_bytes()[2048:], "<i2").reshape(10, 9120)
    ends = np.cumsum([0, 3000, 3000, 3000, 30, 30, 30, 30])
    fields = path.read_bytes()[256:2048]
    for i in range(7):
        # Physical then digital minimum and maximum lie after label (16), transducer (80) and unit (8).
        low, high, least, most = (float(fields[7 * 104 + 56 * k + 8 * i :][:8]) for k in range(4))
        digital = records[:, ends[i] : ends[i + 1]].reshape(-1)
        np.testing.assert_array_equal(recording.digital([i])[0], digital)
        physical = low + (digital - least) * (high - low) / (most - least)
        np.testing.assert_allclose(recording.physical(i), physical, atol=1e-9)
    assert [s.unit for s in recording.signals] == ["uV", "uV", "uV", "", "uV", "DegC", ""]
    assert (recording.age_years, recording.sex) == (33.0, "F")


def test_bdf_and_edf_of_the_same_recording_agree(real_data: Path) -> None:
    edf, bdf = (open_recording(real_data / f"sleep-edfx/short_psg.{suffix}") for suffix in ("edf", "bdf"))
    for i, signal in enumerate(edf.signals):
        np.testing.assert_allclose(bdf.physical(i), edf.physical(i), atol=1.01 / abs(signal.gain))


def test_edf_annotations(real_data: Path) -> None:
    overlapping = open_recording(real_data / "edf/test_edf_overlapping_annotations.edf")
    first = overlapping.annotations[1]
    assert (first.sample, first.duration, first.aux) == (1375, 5125, "T1")
    assert open_recording(real_data / "edf/test_utf8_annotations.edf").annotations[1].aux == "仰卧"
    assert len(open_recording(real_data / "edf/evt.bdf").annotations) == 1081
    age = open_recording(real_data / "edf/subsecond_starttime.edf").age_years
    assert age == pytest.approx(22.01, abs=0.01)


def test_discontinuous_edf_is_refused(real_data: Path) -> None:
    with pytest.raises(ValueError, match=r"discontinuous\.edf: byte 244: .* in a discontinuous file; convert"):
        open_recording(real_data / "edf/discontinuous.edf")


def test_bytes_after_the_last_record_are_noted(real_data: Path) -> None:
    assert "bytes after the last data record" in open_recording(real_data / "edf/test_uneven_samp.edf").warnings[0]


def test_find_records_in_real_folders(real_data: Path) -> None:
    found = find_records(real_data / "wfdb")
    names = [record.record_id for record in found]
    assert {"100", "a103l", "041s", "v102s", "test_edfann"} <= set(names)
    # Segments and layouts are parts of records.
    assert not {"041s01", "v102s_2", "3975656_layout", "3975656_0005"} & set(names)
    assert all(record.problem is None for record in found)
    twice = [record for record in find_records(real_data / "sleep-edfx") if record.problem]
    assert [record.path.name for record in twice] == ["short_psg.edf"]


def test_every_real_record_opens(real_data: Path) -> None:
    found = find_records(real_data)
    assert len(found) > 50
    for record in found:
        if record.record_id != "discontinuous":
            assert open_recording(record.path).record_id == record.record_id


@pytest.mark.parametrize(
    ("name", "age_years", "sex", "subject"),
    [
        ("wfdb/100", 69.0, "M", "100"),
        ("wfdb/test01_00s", 25.0, "M", "test01_00s"),
        ("wfdb/s0010_re", 81.0, "F", "s0010_re"),
        ("wfdb/12726", 28.0, "M", "12726"),
        ("wfdb/multi-segment/s00001/s00001-2896-10-09-01-56", 60.0, "F", "s00001-2896-10-09-01-56"),
        ("slpdb/slp01b", 44.0, "M", "slp01"),
        ("sleep-edfx/SC4002EC-Hypnogram.edf", 33.0, "F", "SC400"),
        ("cinc2018/tr03-0005", None, None, "tr03-0005"),
    ],
)
def test_demographics(real_data: Path, name: str, age_years: float | None, sex: str | None, subject: str) -> None:
    recording = open_recording(real_data / name)
    assert (recording.age_years, recording.sex, recording.subject_id) == (age_years, sex, subject)


@pytest.mark.parametrize(("name", "annotator"), [("100", "qrs"), ("1003", "atr"), ("12726", "wabp")])
def test_annotation_samples_equal_wfdb(real_data: Path, name: str, annotator: str) -> None:
    recording = open_recording(real_data / "wfdb" / name, annotator=annotator)
    expected = call_wfdb("rdann", str(real_data / "wfdb" / name), annotator)
    # wfdb leaves out notes at sample 0; what wrote some of these files left one there.
    found = [a for a in recording.annotations if (a.sample, a.symbol) != (0, '"')]
    assert [a.sample for a in found] == expected.sample.tolist()
    assert [a.symbol for a in found] == expected.symbol
    assert recording.annotation_rate_hz == expected.fs


def test_challenge_stages_equal_the_official_ones(real_data: Path) -> None:
    folder = real_data / "cinc2018"
    recording = open_recording(folder / "tr03-0005")
    stages = labels.stage_epochs(recording)
    derived = NPZ_CODES[np.load(folder / "hypnograms_30s.npz")["tr03-0005"]]
    np.testing.assert_array_equal(stages, derived)
    official = labels.read_official_stages(folder / "tr03-0005-arousal.mat")
    np.testing.assert_array_equal(stages, official[::6000][: stages.size])
    # An unscored lead-in of 360 s, and N2 first at 780 s: nothing is shifted to the first onset.
    assert (stages[:12] == labels.UNSCORED).all()
    assert np.flatnonzero(stages == labels.STAGES.index("N2"))[0] * 30 == 780


def test_official_stages_change_one_sample_early(real_data: Path) -> None:
    path = real_data / "cinc2018/tr03-0005-arousal.mat"
    with h5py.File(path) as file:
        wake = file["data/sleep_stages/wake"][()].ravel()
    assert np.flatnonzero(wake)[0] == 71_999
    ours = labels.read_official_stages(path)
    assert np.flatnonzero(ours >= 0)[0] == 72_000
    assert ours[-1] == labels.STAGES.index("W")


def test_arousal_target_equals_the_official_one(real_data: Path) -> None:
    folder = real_data / "cinc2018"
    recording = open_recording(folder / "tr03-0005")
    official = labels.read_official_arousal(folder / "tr03-0005-arousal.mat")
    derived = labels.arousal_target(recording)
    assert derived.shape == official.shape
    assert (derived == official).mean() == 1.0
    found, unpaired = labels.events(recording)
    assert (len(found), unpaired) == (70, [])
    # The official target calls the lead-in 0 though nobody scored it; windows there have no label.
    windows = labels.arousal_windows(recording)
    assert windows.size == 857
    assert (windows[:12] == labels.UNSCORED).all()
    expected = labels.reduce_to_windows(official, 6000)
    np.testing.assert_array_equal(windows[12:], expected[12:])


def test_apnea_windows(real_data: Path) -> None:
    recording = open_recording(real_data / "cinc2018/tr03-0005")
    windows = labels.apnea_windows(recording)
    found, _ = labels.events(recording)
    touched = sorted({k for e in found if e.is_apnea for k in range(e.start // 6000, (e.stop - 1) // 6000 + 1)})
    assert np.flatnonzero(windows == 1).tolist() == touched
    assert (windows[:12] == labels.UNSCORED).all()
    assert (windows[12:] >= 0).all()


def test_true_header_joined_with_samples(real_data: Path, tmp_path: Path) -> None:
    """The true header and annotations, with samples that fit their initial values and checksums."""
    for suffix in ("hea", "arousal"):
        shutil.copy(real_data / f"cinc2018/tr03-0005.{suffix}", tmp_path)
    header = call_wfdb("rdheader", str(tmp_path / "tr03-0005"))
    rest = np.subtract(header.checksum, header.init_value)
    with (tmp_path / "tr03-0005.mat").open("wb") as file:
        file.write(bytes(24) + np.array(header.init_value, "<i2").tobytes())
        file.write((rest & 0xFFFF).astype(np.uint16).view("<i2").tobytes())
        file.truncate(24 + 2 * 13 * header.sig_len)
    recording = open_recording(tmp_path)
    planes = recording.digital(range(13))
    assert [int(plane[0]) for plane in planes] == header.init_value
    assert {plane.size for plane in planes} == {5_147_000}
    assert not any(plane[2:].any() for plane in planes)
    assert recording.physical(11, 0, 1)[0] == (30496 + 32768) / 655.35
    stages = labels.stage_epochs(recording)
    assert np.flatnonzero(stages == labels.STAGES.index("N2"))[0] * 30 == 780


def test_slpdb_stages(real_data: Path) -> None:
    recording = open_recording(real_data / "slpdb/slp45")
    stages = labels.stage_epochs(recording)
    aux = [a.aux for a in recording.annotations]
    first = recording.annotations[0].sample
    assert first == 1
    assert stages.size == len(aux) == 760
    plain = {"W": 0, "1": 1, "2": 2, "3": 3, "4": 3, "R": 4, "MT": -1, "M": -1}
    assert stages.tolist() == [plain[text.split()[0]] for text in aux]
    # slp14 is scored from 180 s on: six epochs stay unscored.
    late = labels.stage_epochs(open_recording(real_data / "slpdb/slp14"))
    assert (late[:6] == -1).all()
    assert late[6] >= 0


def test_slpdb_apneas(real_data: Path) -> None:
    recording = open_recording(real_data / "slpdb/slp01a")
    words = [set(a.aux.split()) & {"H", "HA", "OA", "X", "CA", "CAA"} for a in recording.annotations]
    windows = labels.apnea_windows(recording)
    stages = labels.stage_epochs(recording)
    expected = [(-1 if s < 0 else int(bool(w))) for s, w in zip(stages, words, strict=False)]
    assert windows[: len(expected)].tolist() == expected
    assert (labels.arousal_windows(recording) == labels.UNSCORED).all()


def test_every_slpdb_annotation_is_a_stage(real_data: Path) -> None:
    for header in sorted((real_data / "slpdb").glob("*.hea")):
        recording = open_recording(header)
        assert len(labels.stage_spans(recording)) == len(recording.annotations), header.name


@pytest.mark.parametrize("name", ["SC4001EC", "SC4012EC", "SC4022EJ", "SC4042EC"])
def test_sleep_edfx_hypnograms(real_data: Path, name: str) -> None:
    path = real_data / f"sleep-edfx/{name}-Hypnogram.edf"
    stages = labels.stage_epochs(open_recording(path))
    codes = {"W": 0, "1": 1, "2": 2, "3": 3, "4": 3, "R": 4}
    expected = np.concatenate(
        [
            np.full(int(a.duration // 30), codes.get(a.text.removeprefix("Sleep stage "), -1), np.int8)
            for a in edfio.read_edf(path).annotations
        ]
    )
    np.testing.assert_array_equal(stages, expected)


def test_hypnogram_of_an_excerpt_and_by_name(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "sleep-edfx"
    scored = folder / "SC4001EC-Hypnogram.edf"
    explicit = open_recording(folder / "short_psg.edf", hypnogram=scored)
    assert labels.stage_epochs(explicit).tolist() == [0] * 10
    assert scored in explicit.files
    assert "no hypnogram" in open_recording(folder / "short_psg.edf").warnings[0]
    shutil.copy(folder / "short_psg.edf", tmp_path / "SC4001E0-PSG.edf")
    shutil.copy(scored, tmp_path)
    (found,) = find_records(tmp_path)
    paired = open_recording(found)
    assert paired.subject_id == "SC400"
    assert paired.annotations == explicit.annotations


def test_edfann_stages_with_other_annotations_between(real_data: Path) -> None:
    recording = open_recording(real_data / "wfdb/test_edfann.edf")
    names = [a.aux for a in recording.annotations if a.aux.startswith("Sleep stage")]
    assert len(labels.stage_spans(recording)) == len(names) > 700
