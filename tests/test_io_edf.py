"""EDF and EDF+ files: values, annotations, hypnograms, and one clear error for each kind of bad file."""

import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast.engine import FileError
from physiofast.io import Recording, find_records, open_recording
from physiofast.io.edf_annotations import read_lists
from physiofast.preparation import PrepareConfig, refusals
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


@pytest.mark.parametrize(("samples", "seconds"), [(110, "1.1"), (128, "0.999"), (7, "0.07"), (50, "1e-1"), (3, "3")])
def test_rates_are_the_floats_nearest_to_the_headers_numbers(tmp_path: Path, samples: int, seconds: str) -> None:
    """110 / 1.1 are 99.99999999999999 in floats, which a montage of 100 Hz would refuse."""
    signalfiles.write_edf(tmp_path / "r.edf", [np.arange(10 * samples)], (samples,), duration=seconds)
    (signal,) = open_recording(tmp_path / "r.edf").signals
    assert signal.rate_hz == float(Fraction(samples) / Fraction(seconds))
    assert samples != 110 or signal.rate_hz == 100


def test_limits_are_the_headers(tmp_path: Path) -> None:
    x = edfio.EdfSignal(np.arange(100.0), 10, label="a", physical_range=(0, 99), digital_range=(0, 255))
    edfio.Edf([x, edfio.EdfSignal(np.arange(100.0), 10, label="b")]).write(tmp_path / "r.edf")
    assert [s.limits for s in open_recording(tmp_path / "r.edf").signals] == [(0, 255), (-32768, 32767)]


def patch(path: Path, offset: int, field: str, width: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + width] = field.ljust(width).encode()
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_headers_beyond_ascii_are_latin_1_or_utf_8(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.edf"
    write_edf(path)
    for offset, field, width in ((8, "J\u00fcrgen F 02-MAY-1951 X", 80), (256, "EEG M\u00fcller", 16)):
        raw = bytearray(path.read_bytes())
        raw[offset : offset + width] = field.encode(encoding).ljust(width)
        path.write_bytes(raw)
    count = int(raw[252:256])
    unit = 256 + count * (16 + 80)
    raw[unit : unit + 8] = "\u00b5V".encode(encoding).ljust(8)
    path.write_bytes(raw)
    found = open_recording(path)
    assert (found.subject_id, found.signals[0].name, found.signals[0].unit) == (
        "J\u00fcrgen",
        "EEG M\u00fcller",
        "\u00b5V",
    )


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


@pytest.mark.parametrize(
    ("offset", "field", "message"),
    [
        (252, "-1", "byte 252: expected a whole number of 0 or more, found b'-1  '"),
        (252, "9999", r"expected 9999 signal headers, which end at byte 2560000, found the end of the file"),
        (236, "-2", "byte 236: expected a whole number of -1 or more, found b'-2      '"),
        (236, "99999999", r"expected 21400000810 bytes \(99999999 data records of 214 bytes from byte 1024\)"),
        (
            184,
            "1023",
            r"byte 184: expected 1024, the bytes of the header: .* found b'1023    '\. The size .*",
        ),
        (
            184,
            "99999999",
            r"byte 184: expected 1024, the bytes of the header: .* found b'99999999'\. The size of the file",
        ),
        (244, "0", "byte 244: expected the seconds that a data record lasts, more than 0, found b'0       '"),
        (244, "-1", "byte 244: expected the seconds that a data record lasts, more than 0, found b'-1      '"),
        (244, "nan", "byte 244: expected a number, found b'nan     '"),
        (244, "1e999", "byte 244: expected a number, found b'1e999   '"),
        (244, "99999999", r"byte 244: expected 0 to 144000 seconds for each of 60 data records, 8\.64e\+06 in all"),
        (244, "144001", r"byte 244: expected 0 to 144000 seconds .* found b'144001  '"),
        (244, "100001", r"byte 904: expected 0\.001 to 100000 samples per second of signal 0 .* found 100 in 100001 s"),
        (244, "1e-300", r"byte 904: expected 0\.001 to 100000 samples per second of signal 0 .* found 100 in 1e-300 s"),
        (904, "0", "byte 904: expected a whole number of 1 or more, found b'0       '"),
        (904, "-5", "byte 904: expected a whole number of 1 or more, found b'-5      '"),
        (912, "99999999", r"expected 12000013264 bytes \(60 data records of 200000204 bytes"),
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


@settings(max_examples=500, deadline=None)
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
    patch(path, 236, "-1", 8)
    assert open_recording(path).warnings[:2] == (
        "the header states no number of data records; those in the file are counted",
        "10 bytes after the last data record are ignored",
    )


def test_a_signal_without_a_range_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "night.edf"
    planes = [np.arange(40), np.arange(10), np.arange(20) * 3]
    signalfiles.write_edf(path, planes, (4, 1, 2), annotations_at=0, ranges=[("0", "0"), ("-100", "100"), ("-1", "1")])
    recording = open_recording(path)
    assert [signal.name for signal in recording.signals] == ["ch 1", "ch 2"]
    for i in (0, 1):
        np.testing.assert_array_equal(recording.digital([i])[0], planes[1 + i])
        source = recording.source(i)
        assert source is not None
        np.testing.assert_array_equal(source.file.decode([source.channel])[0], planes[1 + i])
    np.testing.assert_allclose(recording.physical(1), (planes[2] + 32768) * 2 / 65535 - 1, atol=1e-12)
    ranges = "physical range 0 to 0, digital range -32768 to 32767"
    assert f"signal 1 (ch 0) is left out: no physical values follow from its {ranges}" in recording.warnings


def lists(path: Path, texts: Sequence[bytes], **options: Any) -> Recording:
    """Opened: a file of a second for each of `texts`, the EDF+ annotations of a data record."""
    signalfiles.write_edf(path, [np.arange(4 * len(texts))], (4,), annotations_at=0, texts=texts, **options)
    return open_recording(path)


def told(recording: Recording) -> list[tuple[int, int | None, str]]:
    return [(a.sample, a.duration, a.aux) for a in recording.annotations]


@pytest.mark.parametrize("bdf", [False, True])
def test_annotations_of_many_writers(tmp_path: Path, bdf: bool) -> None:
    recording = lists(
        tmp_path / ("x.bdf" if bdf else "x.edf"),
        [
            b"+0\x14\x14At the start\x14\x00+5\x1530.\x14Sleep\nstage W\x14\x00",
            b"+1.5\x14no time stamp\x14also here\x14\x00\x00\x00+1.25\x15\x14R\xe9veil\x14\x00",
            b"",
            b"+3\x14\x14\x00+3.\x14no end\x14",
            b"+4\x14\x14\x00-0.5\x150.25\x14R\xc3\xa9veil\x14\x00+2\x151\x14\x14\x00",
        ],
        bdf=bdf,
    )
    assert told(recording) == [
        (-500, 250, "Réveil"),
        (0, None, "At the start"),
        (1250, None, "Réveil"),
        (1500, None, "no time stamp"),
        (1500, None, "also here"),
        (3000, None, "no end"),
        (5000, 30_000, "Sleep\nstage W"),
    ]
    assert recording.warnings == ()


def test_unreadable_annotations_are_said(tmp_path: Path) -> None:
    texts = [b"+0\x14\x14\x00", b"+1\x14\x14\x00+two\x14Sleep stage 2\x14\x00+1,5\x14x\x14\x00+1\x14REM\x14\x00"]
    recording = lists(tmp_path / "x.edf", texts)
    assert told(recording) == [(1000, None, "REM")]
    (said,) = recording.warnings
    assert said == (
        "x.edf: annotations that cannot be read are left out, 2 in all; the first in data record 1, "
        "b'+two\\x14Sleep stage 2'"
    )


_PIECES = (
    b"+0\x14\x14\x00",
    b"+1\x14\x14\x00",
    b"+2\x1530\x14N2\x14\x00",
    b"\x14",
    b"\x15",
    b"\x00",
    b"+",
    b"9" * 400,
    b".",
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(_PIECES) | st.binary(max_size=6), max_size=12).map(b"".join), min_size=1))
def test_any_bytes_as_annotations(texts: list[bytes]) -> None:
    """A recording, or a refusal; with signals of its own and as a hypnogram."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            recording = lists(Path(folder) / "x.edf", texts)
        except ValueError:
            return
        (Path(folder) / "x.edf").rename(Path(folder) / "X-Hypnogram.edf")
        write_edf(Path(folder) / "X-PSG.edf")
        patch(Path(folder) / "X-PSG.edf", 168, "01.02.0304.05.06", 16)
        scored = open_recording(Path(folder) / "X-PSG.edf")
        assert sorted(a.aux for a in scored.annotations) == sorted(a.aux for a in recording.annotations)
        assert all(annotation.aux for annotation in recording.annotations)


@pytest.mark.parametrize("tal", [b"+99999999\x14b\x14\x00", b"-99999999\x14b\x14\x00", b"+0\x1599999999\x14b\x14\x00"])
def test_annotations_at_times_that_cannot_be_are_said_and_the_rest_is_read(tmp_path: Path, tal: bytes) -> None:
    recording = lists(tmp_path / "x.edf", [b"+0\x14\x14\x00+0.5\x14a\x14\x00" + tal + b"+0.75\x14c\x14\x00"])
    assert [(note.sample, note.aux) for note in recording.annotations] == [(500, "a"), (750, "c")]
    (warning,) = recording.warnings
    assert "x.edf" in warning and "99999999" in warning and "a time that cannot be" in warning


@pytest.mark.parametrize("name", ["{site}", "{}", "{0!r:>9}", "%s"])
def test_braces_in_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    recording = lists(tmp_path / name / f"{name}.edf", [b"+0\x14\x14\x00+0.5\x14a\x14\x00"])
    assert [note.aux for note in recording.annotations] == ["a"]


def stamps(*seconds: float) -> list[bytes]:
    return [b"+%.10g\x14\x14\x00" % second + b"+2.5\x14x\x14\x00" * (i == 0) for i, second in enumerate(seconds)]


@pytest.mark.parametrize("plus", ["+C", "+D"])
def test_gaps_between_data_records_are_refused(tmp_path: Path, plus: str) -> None:
    message = (
        r"x\.edf: byte 864: expected data records that follow each other without gaps, found data record 2, which "
        r"begins 30 s after the end of the one before it, by its time stamp: a discontinuous file\. Fill its gaps"
    )
    with pytest.raises(FileError, match=message):
        lists(tmp_path / "x.edf", stamps(0, 1, 32, 33), plus=plus)


@pytest.mark.parametrize("plus", ["+C", "+D"])
@pytest.mark.parametrize("first", [0, 0.25, 3600])
def test_time_stamps_without_gaps(tmp_path: Path, plus: str, first: float) -> None:
    """Their clock may drift, and the first may be a part of a second, by which annotations are shifted."""
    recording = lists(tmp_path / "x.edf", stamps(first, first + 1.01, first + 1.99), plus=plus)
    assert told(recording) == [(round(2500 - 1000 * first), None, "x")]
    note = "the first data record begins 3600 s after the time in the header, by its time stamp"
    assert list(recording.warnings) == ([note] if first == 3600 else [])


@pytest.mark.parametrize("plus", ["+C", "+D"])
def test_small_gaps_add_up(tmp_path: Path, plus: str) -> None:
    texts = stamps(*(1.4 * i for i in range(4)))
    if plus == "+D":
        with pytest.raises(
            FileError, match="data record 3, which begins 1.2 s off where records without gaps before it"
        ):
            lists(tmp_path / "x.edf", texts, plus=plus)
    else:
        (said,) = lists(tmp_path / "x.edf", texts, plus=plus).warnings
        assert said.startswith("time stamps of data records run 1.2 s away from what these last in all; signals have")


def test_long_runs_of_digits_take_no_time(tmp_path: Path) -> None:
    piece = b"1" * 3000 + b"\x15" + b"1" * 3000 + b"x"
    began = time.perf_counter()
    assert len(read_lists([[piece, piece]]).unreadable) == 2
    assert time.perf_counter() - began < 1


def test_a_hypnogram_of_a_late_part_of_a_recording(tmp_path: Path) -> None:
    """The signals begin ten hours after the time in their header, by the first time stamp."""
    lists(tmp_path / "X-PSG.edf", stamps(*(36_000 + 30 * i for i in range(960))), duration="30")
    edfio.Edf([], annotations=[edfio.EdfAnnotation(0, 30, "W")]).write(tmp_path / "X-Hypnogram.edf")
    patch(tmp_path / "X-PSG.edf", 168, "01.01.0022.00.00", 16)
    patch(tmp_path / "X-Hypnogram.edf", 168, "02.01.0014.00.00", 16)
    found = [annotation for annotation in open_recording(tmp_path / "X-PSG.edf").annotations if annotation.aux == "W"]
    assert [annotation.sample for annotation in found] == [6 * 3600 * 1000]


def test_time_stamps_that_are_none(tmp_path: Path) -> None:
    recording = lists(tmp_path / "x.edf", stamps(0, 0, 0))
    note = "data record 1 begins 1 s before the end of the one before it, by its time stamp; taken to follow it"
    assert recording.warnings == (note,)
    with pytest.raises(FileError, match="data record 1, which begins 1 s before the end of the one before it"):
        lists(tmp_path / "x.edf", stamps(0, 0, 0), plus="+D")
    with pytest.raises(FileError, match="found data record 1, which has no time stamp: a discontinuous file"):
        lists(tmp_path / "x.edf", [b"+0\x14\x14\x00", b"", b"+2\x14\x14\x00"], plus="+D")
    signalfiles.write_edf(tmp_path / "x.edf", [np.arange(12)], (4,))
    patch(tmp_path / "x.edf", 192, "EDF+D", 44)
    with pytest.raises(FileError, match="found data record 0, which has no time stamp"):
        open_recording(tmp_path / "x.edf")


def test_a_hypnogram_alone_may_call_itself_discontinuous(tmp_path: Path) -> None:
    path = tmp_path / "hypnogram.edf"
    edfio.Edf([], annotations=[edfio.EdfAnnotation(90, 30, "Sleep stage 2")]).write(path)
    patch(path, 192, "EDF+D", 44)
    assert told(open_recording(path)) == [(90_000, 30_000, "Sleep stage 2")]


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


@pytest.mark.parametrize(
    ("dates", "times", "onset_s", "said"),
    [
        (("01.01.85", "01.01.85"), ("22.00.00", "22.10.00"), 600, None),
        (("01.01.85", "02.01.85"), ("23.50.00", "00.00.00"), 600, None),
        (("01.01.85", "01.01.85"), ("22.00.00", "21.50.00"), -600, None),
        (("01.01.85", "01-01-85"), ("22:00:00", "22.00.30"), 30, None),
        (
            ("01.01.85", "01.01.20"),
            ("22.00.00", "22.00.30"),
            30,
            "X-Hypnogram.edf begins 306792.0 h after the signals by the dates in both headers; taken to begin 0.0 h",
        ),
        (("00.00.00", "01.01.85"), ("22.00.00", "22.00.30"), 30, "the header of X-PSG.edf states no date; taken to be"),
        (
            ("01.01.85", "XX.XX.XX"),
            ("22.00.00", "21.00.00"),
            -3600,
            "of X-Hypnogram.edf states no date; taken to begin 1",
        ),
        (
            ("31.02.85", "31.02.85"),
            ("23.50.00", "00.00.00"),
            600,
            "the header of X-Hypnogram.edf states no date; taken",
        ),
        (("01.01.85", "01.01.85"), ("XX.XX.XX", "21.00.00"), 0, "the header of X-PSG.edf states no time of day; X-Hyp"),
        (("01.01.85", "01.01.85"), ("22.00.00", "24.00.00"), 0, "the header of X-Hypnogram.edf states no time of day;"),
    ],
)
def test_when_a_hypnogram_begins(
    tmp_path: Path, dates: tuple[str, str], times: tuple[str, str], onset_s: int, said: str | None
) -> None:
    write_edf(tmp_path / "X-PSG.edf")
    stages = [edfio.EdfAnnotation(0, 30, "Sleep stage 2")]
    edfio.Edf([], annotations=stages).write(tmp_path / "X-Hypnogram.edf")
    for name, date, clock in zip(("X-PSG.edf", "X-Hypnogram.edf"), dates, times, strict=True):
        patch(tmp_path / name, 168, date + clock, 16)
    recording = open_recording(tmp_path / "X-PSG.edf")
    assert told(recording) == [(1000 * onset_s, 30_000, "Sleep stage 2")]
    assert len(recording.warnings) == (said is not None)
    assert said is None or said in recording.warnings[0]


def test_a_hypnogram_of_signals_that_begin_within_a_second(tmp_path: Path) -> None:
    lists(tmp_path / "X-PSG.edf", stamps(0.25, 1.25, 2.25))
    edfio.Edf([], annotations=[edfio.EdfAnnotation(1, 30, "W")]).write(tmp_path / "X-Hypnogram.edf")
    for name in ("X-PSG.edf", "X-Hypnogram.edf"):
        patch(tmp_path / name, 168, "01.01.8522.00.00", 16)
    assert told(open_recording(tmp_path / "X-PSG.edf")) == [(750, 30_000, "W"), (2250, None, "x")]


def test_a_hypnogram_without_stages_is_named(tmp_path: Path) -> None:
    write_edf(tmp_path / "X-PSG.edf")
    lists(tmp_path / "X-Hypnogram.edf", [b"+0\x14\x14\x00"])
    said = "no annotations in X-PSG.edf, and none in its hypnogram X-Hypnogram.edf"
    assert open_recording(tmp_path / "X-PSG.edf").warnings[-1] == said


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


@pytest.mark.parametrize("name", ["X-PSG", "SC4001E0-PSG"])
@pytest.mark.parametrize("suffixes", [("edf", "EDF"), ("EDF", "edf"), ("EDF", "EDF"), ("Edf", "eDF")])
def test_a_hypnogram_is_found_whatever_the_case_of_its_suffix(
    tmp_path: Path, name: str, suffixes: tuple[str, str]
) -> None:
    signals = tmp_path / f"{name}.{suffixes[0]}"
    write_edf(tmp_path / "x.edf")
    (tmp_path / "x.edf").rename(signals)
    stages = tmp_path / f"{'SC4001EC' if name[0] == 'S' else 'X'}-Hypnogram.edf"
    edfio.Edf([], annotations=[edfio.EdfAnnotation(0, 30, "Sleep stage 2")]).write(stages)
    stages.rename(stages.with_suffix(f".{suffixes[1]}"))
    assert [annotation.aux for annotation in open_recording(signals).annotations] == ["Sleep stage 2"]
    assert [record.record_id for record in find_records(tmp_path)] == [name]


def test_a_hypnogram_past_midnight_of_the_same_date(tmp_path: Path) -> None:
    """Dates of recordings that are freed of names are often the same in all files."""
    write_edf(tmp_path / "SC4001E0-PSG.edf")
    patch(tmp_path / "SC4001E0-PSG.edf", 176, "23.59.50", 8)
    edfio.Edf([], annotations=[edfio.EdfAnnotation(0, 30, "Sleep stage 2")]).write(tmp_path / "SC4001EC-Hypnogram.edf")
    patch(tmp_path / "SC4001EC-Hypnogram.edf", 176, "00.00.05", 8)
    recording = open_recording(tmp_path / "SC4001E0-PSG.edf")
    assert [(a.sample, a.aux) for a in recording.annotations] == [(15_000, "Sleep stage 2")]
    (said,) = (warning for warning in recording.warnings if "dates" in warning)
    assert "begins 24.0 h before the signals by the dates in both headers; taken to begin 0.0 h after them" in said
    patch(tmp_path / "SC4001EC-Hypnogram.edf", 176, "23.59.00", 8)
    recording = open_recording(tmp_path / "SC4001E0-PSG.edf")
    assert [a.sample for a in recording.annotations] == [-50_000]
    assert not any("dates" in warning for warning in recording.warnings)
