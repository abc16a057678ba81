"""EDF and EDF+ files: values, annotations, hypnograms, and one clear error for each kind of bad file."""

import tempfile
import tracemalloc
import warnings
from collections.abc import Sequence
from pathlib import Path

import edfio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast.engine import FileError
from physiofast.io import find_records, open_recording
from physiofast.prepare import PrepareConfig, refusals
from tests import signalfiles
from tests.memory import little_memory


def write_edf(path: Path, *, annotations: Sequence[edfio.EdfAnnotation] | None = None) -> edfio.Edf:
    rng = np.random.default_rng(5)
    signals = [
        edfio.EdfSignal(rng.normal(0, 50, 60 * 100), 100, label="EEG Fpz-Cz", physical_dimension="uV"),
        edfio.EdfSignal(rng.normal(0, 1, 60 * 4), 4, label="Resp oro-nasal"),
    ]
    edf = edfio.Edf(signals, annotations=annotations)
    edf.write(path)
    return edf


def test_edf_values_and_annotations(tmp_path: Path) -> None:
    stages = [edfio.EdfAnnotation(0, 30, "Sleep stage W"), edfio.EdfAnnotation(30.2504, None, "Lights off")]
    written = write_edf(tmp_path / "night.edf", annotations=stages)
    recording = open_recording(tmp_path / "night.edf")
    assert [(s.name, s.rate_hz, s.unit) for s in recording.signals] == [
        ("EEG Fpz-Cz", 100.0, "uV"),
        ("Resp oro-nasal", 4.0, ""),
    ]
    for i, signal in enumerate(written.signals):
        np.testing.assert_array_equal(recording.digital([i])[0], signal.digital)
        np.testing.assert_allclose(recording.physical(i), signal.data, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(recording.digital([0, 1], 33, 77)[1], written.signals[1].digital[33:77])
    assert [(a.sample, a.duration, a.aux) for a in recording.annotations] == [
        (0, 30_000, "Sleep stage W"),
        (30_250, None, "Lights off"),
    ]
    assert (recording.annotator, recording.duration_s) == ("edf+", 60.0)
    assert recording.digital([0], 3, 3)[0].size == 0


def patch(path: Path, offset: int, field: str, width: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + width] = field.ljust(width).encode()
    path.write_bytes(bytes(raw))


def test_bad_edf_files(tmp_path: Path) -> None:
    path = tmp_path / "night.edf"
    write_edf(path, annotations=[])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    message = (
        rf"byte {len(whole) - 100}: expected {len(whole)} bytes .* found {len(whole) - 100} bytes: truncated\. Fetch"
    )
    with pytest.raises(FileError, match=message):
        open_recording(path)
    path.write_bytes(whole[:300])
    with pytest.raises(FileError, match="byte 300: expected 3 signal headers, which end at byte 1024, found the end"):
        open_recording(path)
    path.write_bytes(b"not an EDF")
    with pytest.raises(ValueError, match="byte 0: expected an EDF or BDF file, found one that begins with b'not an E'"):
        open_recording(path)
    path.write_bytes(whole)
    patch(path, 236, "many", 8)
    with pytest.raises(ValueError, match="byte 236: expected a whole number of -1 or more, found b'many    '"):
        open_recording(path)
    path.write_bytes(whole)
    patch(path, 192, "EDF+D", 44)
    with pytest.raises(ValueError, match=r"a discontinuous file \(EDF\+D\)"):
        open_recording(path)
    path.write_bytes(whole)
    # Physical maximum of signal 0: after label, transducer, unit and physical minimum of all 3 signals.
    patch(path, 256 + 3 * (16 + 80 + 8), "5", 8)
    patch(path, 256 + 3 * (16 + 80 + 8 + 8), "5", 8)
    message = (
        r"byte 568: expected .* ranges of signal 0 \(EEG Fpz-Cz\) that both span .* physical range 5 to 5, digital"
    )
    with pytest.raises(FileError, match=message):
        open_recording(path)


@pytest.mark.parametrize(
    ("offset", "field", "message"),
    [
        (252, "-1", "byte 252: expected a whole number of 0 or more, found b'-1  '"),
        (252, "9999", r"expected 9999 signal headers, which end at byte 2560000, found the end of the file"),
        (236, "-2", "byte 236: expected a whole number of -1 or more, found b'-2      '"),
        (236, "99999999", r"expected 21400000810 bytes \(99999999 data records of 214 bytes from byte 1024\)"),
        (184, "1023", "byte 184: expected a whole number of 1024 or more, found b'1023    '"),
        (184, "99999999", r"expected 1000128.. bytes \(60 data records of 214 bytes from byte 99999999\)"),
        (244, "0", "byte 244: expected the seconds that a data record lasts, more than 0, found b'0       '"),
        (244, "-1", "byte 244: expected the seconds that a data record lasts, more than 0, found b'-1      '"),
        (244, "nan", "byte 244: expected a number, found b'nan     '"),
        (244, "1e999", "byte 244: expected a number, found b'1e999   '"),
        (244, "99999999", r"byte 244: expected 0 to 144000 seconds for each of 60 data records, 8\.64e\+06 in all"),
        (244, "144001", r"byte 244: expected 0 to 144000 seconds .* found b'144001  '"),
        (244, "100001", r"byte 904: expected 0\.001 to 100000 samples per second of signal 0 .* found 100 in 100001 s"),
        (592, "1e40", "byte 568: expected physical and digital ranges of signal 0 .* steps per unit and a baseline"),
        (244, "1e-300", r"byte 904: expected 0\.001 to 100000 samples per second of signal 0 .* found 100 in 1e-300 s"),
        (904, "0", "byte 904: expected a whole number of 1 or more, found b'0       '"),
        (904, "-5", "byte 904: expected a whole number of 1 or more, found b'-5      '"),
        (912, "99999999", r"expected 12000013264 bytes \(60 data records of 200000204 bytes"),
        (616, "32767", r"byte 568: expected physical and digital ranges of signal 0 .* digital range 32767 to 32767"),
        (640, "1.5", "byte 640: expected a whole number, found b'1.5     '"),
        (568, "inf", "byte 568: expected a number, found b'inf     '"),
        (568, "1_0", "byte 568: expected a number, found b'1_0     '"),
    ],
)
def test_lying_edf_headers(tmp_path: Path, offset: int, field: str, message: str) -> None:
    path = tmp_path / "night.edf"
    write_edf(path, annotations=[])
    assert path.read_bytes()[904:907] == b"100"
    patch(path, offset, field, 4 if offset == 252 else 8)
    tracemalloc.start()
    with little_memory(64 << 20), pytest.raises(FileError, match=rf"night\.edf: .*{message}"):
        open_recording(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # what 9,999 signal headers take


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_mutated_headers(data: st.DataObject) -> None:
    """Whatever a header says: a recording that reads within its file's size, or ValueError or OSError."""
    bdf, plus = data.draw(st.booleans()), data.draw(st.sampled_from((None, 0, 2)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.edf"
        planes = [np.arange(3 * k) for k in (4, 1)]
        signalfiles.write_edf(path, planes, (4, 1), bdf=bdf, annotations_at=plus)
        raw = bytearray(path.read_bytes())
        size = 256 * (3 if plus is None else 4)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, size - 1) | st.sampled_from((0, 184, 192, 236, 244, 252, size - 100)))
            new = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from(_FIELDS))
            raw[at : at + len(new)] = new
        path.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
        try:
            recording = open_recording(path)
            for i, signal in enumerate(recording.signals):
                assert signal.num_samples <= len(raw)
                assert recording.digital([i])[0].size == signal.num_samples
                assert not np.isnan(recording.physical(i)).any()
        except (ValueError, OSError):
            return


_FIELDS = tuple(
    text.ljust(8).encode()
    for text in (
        "0",
        "-1",
        "1",
        "2",
        "-0",
        "99999999",
        "-9999999",
        "1e9",
        "1e-9",
        "1e308",
        "nan",
        "inf",
        " ",
        "+3",
        "0.5",
    )
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_edf_and_bdf_equal_edfio(data: st.DataObject) -> None:
    bdf, duration = data.draw(st.booleans()), data.draw(st.sampled_from(("1", "0.25", "30", "10")))
    counts = data.draw(st.lists(st.sampled_from((1, 2, 5, 100, 333)), min_size=1, max_size=5))
    records, plus = data.draw(st.integers(1, 6)), data.draw(st.none() | st.integers(0, len(counts)))
    limit = 2**23 if bdf else 2**15
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    planes = [rng.integers(-limit, limit, records * k) for k in counts]
    bounds = ("-100", "-3.25", "1.5e3", "0.001", "77")
    pairs = st.tuples(st.sampled_from(bounds), st.sampled_from(bounds)).filter(lambda pair: pair[0] != pair[1])
    ranges = [data.draw(pairs) for _ in counts]
    unstated = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x.bdf" if bdf else "x.edf")
        number = -1 if unstated else None
        signalfiles.write_edf(
            path, planes, counts, bdf=bdf, duration=duration, annotations_at=plus, ranges=ranges, num_records=number
        )
        recording = open_recording(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = (edfio.read_bdf if bdf else edfio.read_edf)(path)
        read = recording.physical(range(len(counts)))
        single = recording.physical(range(len(counts)), dtype=np.float32)
        for i, signal in enumerate(expected.signals):
            np.testing.assert_array_equal(recording.digital([i])[0], planes[i])
            np.testing.assert_array_equal(signal.digital, planes[i])
            # edfio adds an offset and then multiplies; the range of the signal is the unit of rounding.
            span = max(abs(bound) for bound in signal.physical_range)
            np.testing.assert_allclose(read[i], signal.data, rtol=0, atol=1e-12 * span)
            np.testing.assert_allclose(single[i], read[i], rtol=1.2e-7)
            assert recording.signals[i].rate_hz == signal.sampling_frequency
            first, last = sorted(rng.integers(0, planes[i].size + 1, 2).tolist())
            np.testing.assert_array_equal(recording.digital([i], first, last)[0], planes[i][first:last])
            source = recording.source(i)
            assert source is not None
            np.testing.assert_array_equal(source.file.decode([source.channel], first, last)[0], planes[i][first:last])
        assert [(a.aux, a.sample) for a in recording.annotations] == [
            (a.text, round(a.onset * 1000)) for a in expected.annotations
        ]
        if plus is not None:
            assert len(recording.annotations) == records


@pytest.mark.parametrize("bdf", [False, True])
def test_values_equal_mne(tmp_path: Path, bdf: bool) -> None:
    mne = pytest.importorskip("mne")
    path = tmp_path / ("x.bdf" if bdf else "x.edf")
    planes = [np.random.default_rng(i).integers(-30_000, 30_000, 8 * 200) for i in range(3)]
    ranges = [("-500", "500"), ("-3.25", "77"), ("0", "1000")]
    signalfiles.write_edf(path, planes, (200,) * 3, bdf=bdf, annotations_at=1, ranges=ranges)
    read = (mne.io.read_raw_bdf if bdf else mne.io.read_raw_edf)(path, preload=True, verbose="error")
    recording = open_recording(path)
    for i, values in enumerate(read.get_data()):  # in V, as the unit is uV
        np.testing.assert_allclose(recording.physical(i), values * 1e6, rtol=0, atol=1e-9)
    assert [a.aux for a in recording.annotations] == list(read.annotations.description)


def test_more_data_records_than_stated(tmp_path: Path) -> None:
    planes = [np.arange(40), np.arange(10)]
    signalfiles.write_edf(tmp_path / "x.edf", planes, (4, 1), num_records=7)
    recording = open_recording(tmp_path / "x.edf")
    assert "the header states 7 data records; all 10 in the file are read" in recording.warnings
    np.testing.assert_array_equal(recording.digital([0])[0], planes[0])


def test_bdf_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.bdf"
    signalfiles.write_edf(path, [np.arange(50_000), np.arange(10)], (5000, 1), bdf=True, annotations_at=2)
    raw = path.read_bytes()
    with path.open("wb") as file:  # 200 MB, a hole in the disk for the most part
        file.write(raw[:236] + b"%-8d" % 13_000 + raw[244:])
        file.truncate(len(raw) + (13_000 - 10) * (5021 * 3))
    tracemalloc.start()
    recording = open_recording(path)
    np.testing.assert_array_equal(recording.digital([0], 4_990, 5_010)[0], np.arange(4_990, 5_010))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(recording.annotations) == 10
    assert peak < 50_000_000


def test_trailing_bytes_and_absent_stages_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "night.edf"
    write_edf(path)
    path.write_bytes(path.read_bytes() + bytes(10))
    recording = open_recording(path)
    assert recording.warnings[0] == "10 bytes after the last data record are ignored"
    assert "no annotations in night.edf" in recording.warnings[1]
    with pytest.raises(FileNotFoundError, match=r"are required, but no annotations in night\.edf"):
        open_recording(path, require_annotations=True)


def test_absent_hypnogram_names_the_nearest(tmp_path: Path) -> None:
    write_edf(tmp_path / "night.edf")
    (tmp_path / "SC4001EC-Hypnogram.edf").touch()
    with pytest.raises(FileNotFoundError, match=r"no such hypnogram; nearest in .*SC4001EC-Hypnogram\.edf"):
        open_recording(tmp_path / "night.edf", hypnogram=tmp_path / "SC4001ED-Hypnogram.edf")


@pytest.mark.parametrize(
    ("name", "patient", "subject"),
    [
        ("night.edf", "MCH-0234567 F 02-MAY-1951 Haagse_Harry", "MCH-0234567"),
        ("night.edf", "same X X X", "same"),
        ("night.edf", "X F 02-MAY-1951 Haagse_Harry", "night"),
        ("night.edf", "0000 M X X", "night"),
        ("night.edf", "Unknown M X X", "night"),
        ("night.edf", "Haagse Harry", "night"),
        ("night.edf", "", "night"),
        ("SC4001E0-PSG.edf", "MCH-0234567 F X X", "SC400"),
    ],
)
def test_the_patient_code_is_the_subject(tmp_path: Path, name: str, patient: str, subject: str) -> None:
    write_edf(tmp_path / name, annotations=[])
    patch(tmp_path / name, 8, patient, 80)
    assert open_recording(tmp_path / name).subject_id == subject
    stem = name.removesuffix(".edf")
    (tmp_path / "age-sex.csv").write_text(f"Record,Age,Sex,subject\n{stem},x,x,s1\n")
    assert open_recording(tmp_path / name).subject_id == "s1"


def test_two_files_of_one_patient_are_one_subject(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_edf(tmp_path / f"{name}.edf", annotations=[])
        patch(tmp_path / f"{name}.edf", 8, "p3 F X X" if name == "three" else "same F 03-FEB-1980 X", 80)
    refused = refusals(find_records(tmp_path), PrepareConfig(montage="sleep-edfx"))
    assert refused[:2] == [None, None]
    assert refused[2] is not None
    assert "two.edf: subject same is already in" in refused[2] and "one.edf; if these are several nights" in refused[2]
    assert "name them in a column `subject` of age-sex.csv" in refused[2]


def test_hypnogram_that_starts_later_is_shifted(tmp_path: Path) -> None:
    write_edf(tmp_path / "SC4001E0-PSG.edf")
    stages = [edfio.EdfAnnotation(0, 30, "Sleep stage 2")]
    edfio.Edf([], annotations=stages).write(tmp_path / "SC4001EC-Hypnogram.edf")
    patch(tmp_path / "SC4001EC-Hypnogram.edf", 176, "00.00.30", 8)
    recording = open_recording(tmp_path / "SC4001E0-PSG.edf")
    assert [(a.sample, a.aux) for a in recording.annotations] == [(30_000, "Sleep stage 2")]
    (found,) = find_records(tmp_path)
    assert found.record_id == "SC4001E0-PSG"


def test_a_hypnogram_is_that_of_the_same_name(tmp_path: Path) -> None:
    """Names that begin alike are of several people; the eighth letter is the scorer in Sleep-EDFx alone."""
    for number in (1, 2):
        write_edf(tmp_path / f"subject{number}-PSG.edf")
        stages = [edfio.EdfAnnotation(0, 30, f"Sleep stage {number}")]
        edfio.Edf([], annotations=stages).write(tmp_path / f"subject{number}-Hypnogram.edf")
    for number in (1, 2):
        recording = open_recording(tmp_path / f"subject{number}-PSG.edf")
        assert [annotation.aux for annotation in recording.annotations] == [f"Sleep stage {number}"]
    (tmp_path / "subject2-Hypnogram.edf").unlink()
    recording = open_recording(tmp_path / "subject2-PSG.edf")
    assert recording.annotations == ()
    assert (
        "no annotations in subject2-PSG.edf, and no hypnogram named subject2-Hypnogram.edf beside it"
        in recording.warnings
    )


def test_a_hypnogram_past_midnight_of_the_same_date(tmp_path: Path) -> None:
    """Dates of recordings that are freed of names are often the same in all files."""
    write_edf(tmp_path / "SC4001E0-PSG.edf")
    patch(tmp_path / "SC4001E0-PSG.edf", 176, "23.59.50", 8)
    edfio.Edf([], annotations=[edfio.EdfAnnotation(0, 30, "Sleep stage 2")]).write(tmp_path / "SC4001EC-Hypnogram.edf")
    patch(tmp_path / "SC4001EC-Hypnogram.edf", 176, "00.00.05", 8)
    recording = open_recording(tmp_path / "SC4001E0-PSG.edf")
    assert [(a.sample, a.aux) for a in recording.annotations] == [(15_000, "Sleep stage 2")]
    (said,) = (warning for warning in recording.warnings if "midnight" in warning)
    assert "begins 24.0 h before the signals by the dates in both headers; taken to begin 0.0 h after them" in said
    patch(tmp_path / "SC4001EC-Hypnogram.edf", 176, "23.59.00", 8)
    recording = open_recording(tmp_path / "SC4001E0-PSG.edf")
    assert [a.sample for a in recording.annotations] == [-50_000]
    assert not any("midnight" in warning for warning in recording.warnings)
