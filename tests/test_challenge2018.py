import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import wfdb

from physiofast import labels
from physiofast.labels import STAGES, Event
from physiofast.synthetic import challenge2018
from physiofast.synthetic.challenge2018 import CHANNELS, EPOCH_SAMPLES

NAMES = tuple(channel.name for channel in CHANNELS)
STAGE_CODES = np.array([-1, -1, 0, 1, 2, 2, 3, 4, 0], np.int8)


def events():
    return [
        Event(start=30_000, stop=33_000, name="resp_hypopnea"),
        Event(start=38_000, stop=40_000, name="arousal_rera"),
        Event(start=44_001, stop=45_500, name="arousal_spontaneous"),
    ]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record") / "tr90-0001"
    rng = np.random.default_rng(0)
    digital = rng.integers(-3000, 3000, (9 * EPOCH_SAMPLES + 700, 13), dtype=np.int16)
    challenge2018.write_record(folder, "tr90-0001", digital, NAMES, STAGE_CODES, events())
    return folder, digital


def real(folder: Path) -> tuple[int, list[tuple[int, str]], list[Event]]:
    """Samples, stage change points and events of the public recording."""
    samples = wfdb.rdheader(str(folder / "tr03-0005")).sig_len
    notes = wfdb.rdann(str(folder / "tr03-0005"), "arousal")
    changes, spans, open_at = [], [], {}
    for at, note in zip(notes.sample, notes.aux_note, strict=True):
        if note in STAGES:
            changes.append((int(at), note))
        elif note.startswith("("):
            open_at[note[1:]] = int(at)
        else:
            spans.append(Event(start=open_at.pop(note[:-1]), stop=int(at), name=note[:-1]))
    assert not open_at
    return samples, changes, spans


def test_header_has_the_public_fields(real_data, record):
    public = (real_data / "cinc2018" / "tr03-0005.hea").read_text().splitlines()
    folder, digital = record
    ours = (folder / "tr90-0001.hea").read_text().splitlines()
    assert ours[0] == f"tr90-0001 13 200 {len(digital)}"
    assert len(ours) == len(public)
    for line, expected in zip(ours[1:], public[1:], strict=True):
        fields, model = line.split(" "), expected.split(" ")
        fields[0] = fields[0].replace("tr90-0001", "tr03-0005")
        # 5 and 6 are the first value and the checksum.
        assert [f for i, f in enumerate(fields) if i not in (5, 6)] == [
            f for i, f in enumerate(model) if i not in (5, 6)
        ]


def test_mat_is_a_matlab_4_matrix_to_the_byte(record):
    folder, digital = record
    data = (folder / "tr90-0001.mat").read_bytes()
    assert data[:24] == struct.pack("<IIIII", 30, 13, len(digital), 0, 4) + b"val\0"
    assert data[24:] == digital.astype("<i2").tobytes()
    assert np.array_equal(scipy.io.loadmat(folder / "tr90-0001.mat")["val"], digital.T)


def test_prolog_is_that_of_a_public_file(real_data):
    samples, channels = 82_500, 3
    public = (real_data / "wfdb" / "a103l.mat").read_bytes()[:24]
    assert challenge2018.mat4_prolog(samples, channels) == public


def test_wfdb_reads_it_and_its_checksums_hold(record):
    folder, digital = record
    read = wfdb.rdrecord(str(folder / "tr90-0001"), physical=False, return_res=16)
    assert np.array_equal(read.d_signal, digital)
    assert read.checksum == [int(np.int16(np.uint16(c & 0xFFFF))) for c in digital.sum(axis=0, dtype=np.int64)]
    assert read.calc_checksum() == [c & 0xFFFF for c in read.checksum]
    assert read.init_value == digital[0].tolist()
    physical = wfdb.rdrecord(str(folder / "tr90-0001"))
    assert physical.units == ["uV"] * 11 + ["%", "mV"]
    oxygen = (digital[:, 11].astype(float) + 32768) / 655.35
    np.testing.assert_allclose(physical.p_signal[:, 11], oxygen, rtol=1e-12)


def test_checksum_wraps_as_signed_16_bits():
    assert challenge2018.checksum(np.array([32767, 1], np.int16)) == -32768
    assert challenge2018.checksum(np.array([-32768, -1], np.int16)) == 32767
    assert challenge2018.checksum(np.full(65_536, 7, np.int16)) == 0


def test_digitise_rounds_clips_and_never_writes_the_invalid_value():
    out = np.empty(5, np.int16)
    CHANNELS[11].digitise(np.array([0.0, 100.0, 200.0, 95.0, 49.9995], np.float32), out)
    assert out.tolist() == [-32767, 32767, 32767, round(95 * 655.35) - 32768, -1]
    CHANNELS[0].digitise(np.array([0.4, 0.6, -1e6, -0.6, 3], np.float32), out)
    assert out.tolist() == [0, 1, -32767, -1, 3]


def test_annotations_rewrite_the_public_file_byte_for_byte(real_data, tmp_path):
    _, changes, spans = real(real_data / "cinc2018")
    challenge2018._write_annotations(tmp_path, "tr03-0005", changes, spans)
    written = (tmp_path / "tr03-0005.arousal").read_bytes()
    assert written == (real_data / "cinc2018" / "tr03-0005.arousal").read_bytes()


def test_targets_of_the_public_recording_are_exact(real_data, tmp_path):
    samples, changes, spans = real(real_data / "cinc2018")
    path = tmp_path / "tr03-0005-arousal.mat"
    challenge2018._write_targets(path, samples, changes, spans)
    with h5py.File(path) as ours, h5py.File(real_data / "cinc2018" / path.name) as public:
        assert ours.userblock_size == public.userblock_size
        assert set(ours["data"]) == set(public["data"])
        assert set(ours["data/sleep_stages"]) == set(public["data/sleep_stages"])
        names = ["data/arousals", *(f"data/sleep_stages/{name}" for name in public["data/sleep_stages"])]
        for name in names:
            assert ours[name].dtype == public[name].dtype
            assert ours[name].chunks == public[name].chunks
            assert ours[name].attrs["MATLAB_class"] == public[name].attrs["MATLAB_class"]
            assert np.array_equal(ours[name][:], public[name][:]), name
    assert path.read_bytes()[116:128] == (real_data / "cinc2018" / path.name).read_bytes()[116:128]


def test_files_agree_with_the_readers_of_this_package(record):
    from physiofast.io import open_recording

    folder, digital = record
    recording = open_recording(folder / "tr90-0001.hea")
    assert np.array_equal(np.stack(recording.digital(range(13))), digital.T)
    assert np.array_equal(labels.stage_epochs(recording)[:9], STAGE_CODES)
    found, unpaired = labels.events(recording)
    assert sorted(found, key=lambda e: e.start) == events() and not unpaired
    official = labels.read_official_arousal(folder / "tr90-0001-arousal.mat")
    assert np.array_equal(official, labels.arousal_target(recording))
    assert {-1, 0, 1} == set(np.unique(official))


EVENTS = [
    *(f"arousal_{name}" for name in ("bruxism", "noise", "plm", "rera", "snore", "spontaneous")),
    *(f"resp_{name}" for name in ("centralapnea", "cheynestokesbreath", "hypopnea", "hypoventilation")),
    *(f"resp_{name}" for name in ("mixedapnea", "obstructiveapnea", "partialobstructive")),
]
"""Every name of an event in the annotations of the Challenge."""


@pytest.mark.parametrize("name", EVENTS)
def test_written_target_is_what_the_annotations_say(name, tmp_path):
    from physiofast.io import open_recording

    digital = np.zeros((4 * EPOCH_SAMPLES, 1), np.int16)
    event, asleep = Event(start=9000, stop=10_000, name=name), np.full(4, 2, np.int8)
    challenge2018.write_record(tmp_path / "tr90-0001", "tr90-0001", digital, ["C3-M2"], asleep, [event])
    official = labels.read_official_arousal(tmp_path / "tr90-0001" / "tr90-0001-arousal.mat")
    assert np.array_equal(official, labels.arousal_target(open_recording(tmp_path / "tr90-0001")))
    inside = -1 if "apnea" in name or "hypopnea" in name else 1
    assert set(official[event.start : event.stop]) == {inside}


def test_stage_changes_skip_the_lead_in():
    changes = challenge2018.stage_changes(STAGE_CODES)
    expected = [(2, "W"), (3, "N1"), (4, "N2"), (6, "N3"), (7, "R"), (8, "W")]
    assert changes == [(epoch * EPOCH_SAMPLES, note) for epoch, note in expected]
    with pytest.raises(ValueError, match="lead-in only"):
        challenge2018.stage_changes(np.array([-1, 0, -1], np.int8))


def test_index_files(tmp_path):
    challenge2018.write_index(tmp_path, ["tr90-0001", "tr90-0002"], [54, 31], ["M", "F"])
    assert (tmp_path / "RECORDS").read_text() == "tr90-0001/\ntr90-0002/\n"
    assert (tmp_path / "age-sex.csv").read_text() == "Record,Age,Sex\ntr90-0001,54,M\ntr90-0002,31,F\n"


def test_bad_arrays_are_refused(tmp_path):
    digital = np.zeros((EPOCH_SAMPLES, 2), np.int16)
    stages = np.zeros(1, np.int8)
    with pytest.raises(ValueError, match="did you mean 'C3-M2'"):
        challenge2018.write_record(tmp_path, "x", digital, ("C3-M22", "ECG"), stages, [])
    with pytest.raises(ValueError, match=r"expected int16 \[n, 2\]"):
        challenge2018.write_record(tmp_path, "x", digital.astype(np.int32), ("C3-M2", "ECG"), stages, [])
