"""Reading recordings: what comes out for good files, and one clear error for each kind of bad one."""

import codecs
import dataclasses
import gc
import os
import pickle
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from physiofast.engine import FileError, SignalFile
from physiofast.io import RecordPath, find_records, handles, open_recording, unit_scale, wfdb
from physiofast.io.wfdb_samples import MemberFile, call_wfdb
from physiofast.montage import get_montage
from tests.memory import little_memory

GAINS = ("1/uV", "655.35(-32768)/%", "1000/mV", "-200(12)/mV")
NAMES = ("C3-M2", "SaO2", "ECG", "CHEST")


def write_wfdb(
    folder: Path,
    samples: npt.NDArray[np.int16],
    *,
    name: str = "rec",
    gains: Sequence[str] = GAINS,
    names: Sequence[str] = NAMES,
    rate: str = "200",
    offset: int = 24,
    comments: str = "",
) -> Path:
    """A record of int16 [n, K] in the Challenge layout: one `.mat`, samples interleaved after 24 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.mat").write_bytes(bytes(offset) + samples.astype("<i2").tobytes())
    count, width = samples.shape
    lines = [f"{name} {width} {rate} {count}"]
    for i in range(width):
        first, checksum = samples[0, i], int(samples[:, i].sum(dtype=np.int64)) & 0xFFFF
        checksum -= 0x10000 * (checksum > 0x7FFF)
        lines.append(f"{name}.mat 16+{offset} {gains[i]} 16 0 {first} {checksum} 0 {names[i]}")
    header = folder / f"{name}.hea"
    header.write_text("\n".join(lines) + "\n" + comments)
    return header


def edit(header: Path, old: str, new: str) -> Path:
    text = header.read_text()
    assert old in text
    header.write_text(text.replace(old, new, 1))
    return header


@pytest.fixture
def samples() -> npt.NDArray[np.int16]:
    return np.random.default_rng(3).integers(-2000, 2000, (6000, 4)).astype(np.int16)


def test_interleaved_record(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    recording = open_recording(write_wfdb(tmp_path, samples))
    assert recording.names == NAMES
    assert [(s.gain, s.baseline, s.unit) for s in recording.signals] == [
        (1.0, 0.0, "uV"),
        (655.35, -32768.0, "%"),
        (1000.0, 0.0, "mV"),
        (-200.0, 12.0, "mV"),
    ]
    assert recording.duration_s == 30.0
    planes = recording.digital(range(4))
    np.testing.assert_array_equal(planes, samples.T)
    np.testing.assert_array_equal(recording.digital([2, 0], 100, 900), samples[100:900, [2, 0]].T)
    expected = call_wfdb("rdrecord", str(tmp_path / "rec")).p_signal
    for i in range(4):
        np.testing.assert_array_equal(recording.physical(i), expected[:, i])
        np.testing.assert_array_equal(recording.physical(i, 7, 13), expected[7:13, i])
    assert recording.digital([1], 5, 5)[0].size == 0


def test_files_are_opened_once_and_few_stay_open(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    headers = [write_wfdb(tmp_path, samples + i, name=f"rec{i}") for i in range(handles.MAX_OPEN + 20)]
    recordings = [open_recording(header) for header in headers]
    assert _open_files_in(tmp_path) == 0
    first = recordings[0].source(0)
    assert first is not None
    for _ in range(2):
        for i, recording in enumerate(recordings):
            np.testing.assert_array_equal(recording.digital([3, 1], 10, 30), (samples + i)[10:30, [3, 1]].T)
    assert 0 < _open_files_in(tmp_path) <= handles.MAX_OPEN + 1
    again = recordings[-1].source(0), recordings[-1].source(2)
    assert again[0] is not None and again[1] is not None
    assert again[0].file is again[1].file
    np.testing.assert_array_equal(first.file.decode([first.channel], 0, 5)[0], samples[:5, 0])
    copy = pickle.loads(pickle.dumps(recordings[5]))
    np.testing.assert_array_equal(copy.digital([0])[0], samples[:, 0] + 5)
    del recordings, recording, first, again, copy
    gc.collect()
    assert _open_files_in(tmp_path) == 0


def _open_files_in(folder: Path) -> int:
    """Files of it that this process has open; others may be of tests before this one."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(folder in Path(os.readlink(link)).parents for link in links if link.is_symlink())


def test_sources(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    header.write_text(header.read_text().replace("16+24", "16:7+24", 1))
    recording = open_recording(header)
    source = recording.source(0)
    assert source is not None
    assert (source.channel, source.skew, source.file.samples_per_frame) == (0, 7, (1, 1, 1, 1))
    values = source.file.decode([0], source.skew)[0]
    np.testing.assert_array_equal(recording.digital([0])[0][: values.size], values)
    with pytest.raises(ValueError, match="no signal 4; it has 0 to 3"):
        recording.source(4)


def test_physical_values_of_several_channels_and_types(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    samples[50:60] = -32768
    recording = open_recording(write_wfdb(tmp_path, samples))
    for start, stop in ((0, None), (40, 3000)):
        exact = recording.physical([2, 0, 1, 3], start, stop)
        single = recording.physical(range(4), start, stop, dtype=np.float32)
        for place, i in enumerate((2, 0, 1, 3)):
            np.testing.assert_array_equal(exact[place], recording.physical(i, start, stop))
            assert (exact[place].dtype, single[i].dtype) == (np.float64, np.float32)
            np.testing.assert_allclose(single[i], exact[place], rtol=1.2e-7)
        buffers = [np.zeros(x.size, np.float32) for x in single]
        given = recording.physical(range(4), start, stop, dtype=np.float32, out=buffers)
        for i in range(4):
            assert given[i] is buffers[i]
            np.testing.assert_array_equal(given[i], single[i])
    with pytest.raises(ValueError, match=r"out: expected sizes and types \[\(6000, .*float32"):
        recording.physical([0], dtype=np.float32, out=[np.zeros(5, np.float32)])
    with pytest.raises(ValueError, match="dtype: expected float32 or float64, found int16"):
        recording.physical(0, dtype=np.int16)


def test_physical_values_are_verified(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    with (tmp_path / "rec.mat").open("r+b") as file:
        file.seek(24 + 2 * (4 * 5999 + 1))
        file.write((samples[5999, 1] + 1).astype("<i2").tobytes())
    recording = open_recording(header)
    for dtype in (np.float32, np.float64):
        with pytest.raises(
            ValueError, match=r"rec.mat: byte 24: expected samples with the checksum \d+ of signal 1 \(SaO2\)"
        ):
            recording.physical([0, 1], dtype=dtype)
        recording.physical([0, 2], dtype=dtype)


def test_lowest_value_is_a_valid_saturation_and_else_invalid(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    samples[10:20] = -32768
    recording = open_recording(write_wfdb(tmp_path, samples))
    assert [s.invalid for s in recording.signals] == [-32768, None, -32768, -32768]
    assert (recording.physical(1, 10, 20) == 0.0).all()
    for i in (0, 2, 3):
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(recording.physical(i))), np.arange(10, 20))


def test_the_rule_of_invalid_values_can_be_set(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    samples[10:20] = -32768
    header = write_wfdb(tmp_path, samples)
    for sentinels, invalid in ((True, [-32768] * 4), (False, [None] * 4)):
        recording = open_recording(header, sentinels=sentinels)
        assert [s.invalid for s in recording.signals] == invalid
        for dtype in (np.float32, np.float64):
            for values in recording.physical(range(4), dtype=dtype):
                np.testing.assert_array_equal(np.flatnonzero(np.isnan(values)), np.arange(10, 20) if sentinels else [])
    header.write_text(header.read_text().replace("16+24", "16:2+24", 1))
    skewed = open_recording(header, sentinels=False).physical(0, 5990)
    np.testing.assert_array_equal(np.isnan(skewed), np.arange(10) >= 8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "rec 4 200 ",
            "rec 4 99999999999 ",
            r"byte 6: expected sampling rate: 0\.001 to 100000 Hz, found b'99999999999'",
        ),
        ("rec 4 200 ", "rec 4 0.0003 ", r"byte 6: expected sampling rate: 0\.001 to 100000 Hz, found b'0\.0003'"),
        ("rec 4 200 ", "rec 4 0 ", r"byte 6: expected sampling rate: .* found b'0'"),
        ("16+24 1/uV", "16+24 1e400/uV", r"byte 29: expected gain of signal 0 \(C3-M2\): .* number .* found b'1e400'"),
        ("16+24 1/uV", "16+24 1e31/uV", r"gain of signal 0 \(C3-M2\): .* magnitude 1e-30 to 1e\+30 .* found b'1e31'"),
        ("16+24 1/uV", "16+24 1e-31/uV", r"byte 29: expected gain of signal 0 \(C3-M2\): .* found b'1e-31'"),
        ("1000/mV", f"1000(1{'0' * 31})/mV", r"baseline of signal 2 \(ECG\): .* up to 1e\+30, found b'10{31}'"),
        (
            "16+24",
            "16:99999999999+24",
            r"byte 26: expected skew of signal 0 \(C3-M2\): .* 0 to 1728000000, .* b'99999999999'",
        ),
        ("16+24", "16+99999999999999999999", r"byte 26: .* of 0 to 9223372036854775807, found b'99999999999999999999'"),
        ("16+24", "16x99999999999+24", r"byte 26: expected samples per frame of signal 0 .* found b'99999999999'"),
        ("16+24", "16x499+24", r"byte 48024: expected [0-9]+ bytes .* found 48024 bytes"),
        (
            "16+24",
            "16x0+24",
            r"byte 26: expected samples per frame of signal 0 .*: a whole number of 1 to 500, .* found b'0'",
        ),
        ("200 6000", "200 1728000000", r"byte 48024: expected 13824000024 bytes .* found 48024 bytes"),
        (
            "200 6000",
            "200 1728000001",
            r"byte 10: .* samples per signal: .* 0 to 1728000000, which is 8\.64e\+06 s at 200",
        ),
        ("200 6000", "200 99999999999999999999", "byte 10: .* samples per signal: .* found b'99999999999999999999'"),
    ],
)
def test_lying_headers(tmp_path: Path, samples: npt.NDArray[np.int16], old: str, new: str, message: str) -> None:
    header = edit(write_wfdb(tmp_path, samples), old, new)
    tracemalloc.start()
    with little_memory(64 << 20), pytest.raises((ValueError, OSError), match=message):
        open_recording(header)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_signals_that_differ_about_the_byte_offset(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = edit(write_wfdb(tmp_path, samples), "16+24 1000/mV", "16+26 1000/mV")
    message = r"rec\.hea: signal 2 \(ECG\): expected byte offset 24 in rec\.mat, as signal 0 has it, found 26"
    with pytest.raises(ValueError, match=message):
        open_recording(header)


def test_every_signal_file_is_as_long_as_promised(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    """Also those of channels that nobody reads; of compressed ones, as far as can be told."""
    header = write_wfdb(tmp_path, samples, names=("C3-M2", "SaO2", "ECG", "unknown thing"))
    lines = header.read_text().splitlines()
    lines[4] = lines[4].replace("rec.mat 16+24", "other.dat 16")
    header.write_text("\n".join(lines) + "\n")
    (tmp_path / "other.dat").write_bytes(bytes(11_998))
    with pytest.raises(FileError, match=r"other\.dat: byte 11998: expected 12000 bytes .* as rec\.hea promises, found"):
        open_recording(header)
    lines[4] = lines[4].replace("other.dat 16", "other.dat 516")
    header.write_text("\n".join(lines) + "\n")
    (tmp_path / "other.dat").write_bytes(b"")
    with pytest.raises(FileError, match=r"other\.dat: byte 0: expected 1 bytes or more \(6000 frames of 1 samples in"):
        open_recording(header)
    (tmp_path / "other.dat").unlink()
    assert "signal file other.dat is missing, so no sample can be read" in open_recording(header).warnings


def test_segments_that_cannot_be(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path, samples, name="s1")
    write_wfdb(tmp_path, samples, name="s2", rate="100")
    master = tmp_path / "m.hea"
    for text, message in (
        ("m/2 4 200 12000\nm 6000\ns1 6000\n", r"m\.hea: segment m has segments itself"),
        ("m/2 4 200 12000\ns1 6000\ns2 6000\n", r"m\.hea: segment s2: expected 200 Hz of signal C3-M2, found 100 Hz"),
        (
            "m/2 4 200\ns1 6000\n~ 1728000001\n",
            r"byte 20: .*length of segment 1: .* 0 to 1728000000, .* found b'1728000001'",
        ),
        (
            "m/3 4 200\ns1 6000\n~ 900000000\n~ 900000000\n",
            "length of all segments: 0 to 1728000000, .* found 1800006000",
        ),
        ("m/2 4 200\ns1 6000\n~ 268435457\n", r"gaps of signal 0 \(C3-M2\): expected at most 268435456 samples"),
        ("m/2 4 200\n~ 0\ns1 6000\n", "the first segment, of length 0: expected a layout header, found a gap"),
        ("m/0 4 200\n", r"m\.hea: byte 2: expected number of segments: a whole number of 1 to 2147483647, found b'0'"),
    ):
        master.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_recording(master)


def test_segments_in_other_units(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    """The values are those of each segment; only units that convert may differ."""
    write_wfdb(tmp_path, samples, name="s1")
    edit(write_wfdb(tmp_path, samples, name="s2"), "1000/mV", "1.0/uV")
    write_wfdb(tmp_path, samples, name="s3")
    (tmp_path / "m.hea").write_text("m/3 4 200 18000\ns1 6000\ns2 6000\ns3 6000\n")
    joined, alone = open_recording(tmp_path / "m"), [open_recording(tmp_path / f"s{k}") for k in (1, 2, 3)]
    assert [r.signals[2].unit for r in alone] == ["mV", "uV", "mV"]
    assert joined.signals[2].unit == "mV"
    assert joined.signals[2].uniform
    np.testing.assert_allclose(joined.physical(2, 6000, 12_000), alone[1].physical(2) / 1000, rtol=1e-14)
    np.testing.assert_array_equal(joined.physical(2, 12_000), alone[2].physical(2))
    edit(tmp_path / "s2.hea", "1.0/uV", "7/uV")
    joined = open_recording(tmp_path / "m")
    assert not joined.signals[2].uniform
    np.testing.assert_allclose(joined.physical(2, 6000, 12_000), open_recording(tmp_path / "s2").physical(2) / 1000)
    edit(tmp_path / "s2.hea", "7/uV", "7/mmHg")
    joined = open_recording(tmp_path / "m")
    (said,) = (warning for warning in joined.warnings if "convert" in warning)
    assert said.startswith("segment s2: signal ECG is in 'mmHg', before it in 'mV', which it does not convert to;")
    assert np.isnan(joined.physical(2, 6000, 12_000)).all()
    np.testing.assert_array_equal(joined.physical(2, 12_000), alone[2].physical(2))
    np.testing.assert_array_equal(joined.physical(0, 6000, 12_000), alone[1].physical(0))


def test_a_segment_is_read_once_for_all_its_signals(
    tmp_path: Path, samples: npt.NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in (1, 2):
        write_wfdb(tmp_path, samples, name=f"s{k}")
    (tmp_path / "m.hea").write_text("m/3 4 200 13000\ns1 6000\n~ 1000\ns2 6000\n")
    reads: list[list[int]] = []
    read = SignalFile.decode_runs
    monkeypatch.setattr(
        SignalFile,
        "decode_runs",
        lambda self, channels, *a, **k: reads.append(channels) or read(self, channels, *a, **k),
    )
    recording = open_recording(tmp_path / "m")
    given = [np.full(9000, 7.0) for _ in range(4)]
    values = recording.physical(range(4), 2000, 11_000, out=given)
    assert reads == [[0, 1, 2, 3]] * 2
    assert all(a is b for a, b in zip(values, given, strict=True))
    for i, value in enumerate(values):
        np.testing.assert_array_equal(value, recording.physical(i, 2000, 11_000))
        assert np.isnan(value[4000:5000]).all()
    for i, value in enumerate(recording.digital(range(4), 2000, 11_000)):
        np.testing.assert_array_equal(value, recording.digital([i], 2000, 11_000)[0])


def test_a_compressed_file_is_read_once_for_all_its_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(7).integers(-2000, 2000, (5000, 4))
    form = {"fmt": ["516"] * 4, "adc_gain": [200.0] * 4, "baseline": [0] * 4, "units": ["mV"] * 4}
    call_wfdb("wrsamp", "f", 200, sig_name=list("abcd"), d_signal=x, write_dir=str(tmp_path), **form)
    recording = open_recording(tmp_path / "f")
    reads: list[list[int]] = []
    read = MemberFile.decompress

    def counted(file: MemberFile, signals: list[int], start: int, stop: int) -> Any:
        reads.append(signals)
        return read(file, signals, start, stop)

    monkeypatch.setattr(MemberFile, "decompress", counted)
    for order in ([0, 1, 2, 3], [3, 1, 1], [2]):
        for first, last in ((0, None), (100, 357)):
            for i, values in zip(order, recording.digital(order, first, last), strict=True):
                np.testing.assert_array_equal(values, x[first:last, i])
    assert reads == [[0, 1, 2, 3]] * 2 + [[1, 3]] * 2 + [[2]] * 2


def test_lines_are_those_of_wfdb(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    """Latin-1 has a line end that wfdb, which reads ASCII, does not see."""
    header = write_wfdb(tmp_path, samples)
    whole = header.read_bytes()
    header.write_bytes(whole.replace(b"ECG\n", b"ECG\x85\n", 1))
    assert open_recording(header).names == ("C3-M2", "SaO2", "ECG\x85", "CHEST")
    header.write_bytes(whole.replace(b"ECG\n", b"ECG\x85", 1))
    with pytest.raises(FileError, match=r"rec\.hea: byte 4: expected 4 signal lines, .* found 3"):
        open_recording(header)
    header.write_bytes(whole.replace(b"6000\n", b"6000\x85\n", 1))
    with pytest.raises(FileError, match=r"rec\.hea: byte 10: expected number of samples .* found b'6000\\x85'"):
        open_recording(header)


def test_annotations_that_cannot_be(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path, samples)
    for sample, fs, message in (
        (np.array([5, 2_000_000_000]), None, r"rec\.st: annotation 1: expected a place within .* sample 2000000000"),
        (np.array([5]), 20_000_000, r"rec\.st: annotation clock: expected 0\.001 to 100000 Hz, found 20000000"),
    ):
        call_wfdb("wrann", "rec", "st", sample, symbol=["N"] * sample.size, fs=fs, write_dir=str(tmp_path))
        with pytest.raises(ValueError, match=message):
            open_recording(tmp_path / "rec")


def test_gain_is_applied(tmp_path: Path) -> None:
    """Published loaders returned digital values as if they were physical."""
    recording = open_recording(write_wfdb(tmp_path, np.full((100, 4), 500, np.int16)))
    assert [recording.physical(i)[0] for i in range(4)] == [
        500.0,
        (500 + 32768) / 655.35,
        0.5,
        (500 - 12) / -200,
    ]


def test_an_unusable_channel_does_not_shift_the_names_after_it(tmp_path: Path) -> None:
    """Published loaders skipped a bad channel's data but not its name."""
    samples = np.tile(np.array([11, 22, 33, 44], np.int16), (400, 1))
    names = ("C3-M2", "unknown thing", "ECG", "CHEST")
    recording = open_recording(write_wfdb(tmp_path, samples, gains=("1/uV",) * 4, names=names))
    resolution = get_montage("cinc2018").resolve(recording.names)
    assert resolution.ignored == ("unknown thing",)
    found = {
        channel.name: recording.physical(source)[0]
        for channel, source in zip(get_montage("cinc2018").channels, resolution.source, strict=True)
        if source is not None
    }
    assert found == {"C3-M2": 11.0, "ECG": 33.0, "CHEST": 44.0}


def test_micro_sign_survives_and_an_unstated_gain_is_noted(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples, gains=("1/\u00b5V", "1/uV", "100", "1/uV"))
    assert [s.unit for s in open_recording(header).signals] == ["\u00b5V", "uV", "mV", "uV"]
    bare = tmp_path / "bare.hea"
    bare.write_text("bare 4 200 6000\n" + "rec.mat 16+24\n" * 4)
    recording = open_recording(bare)
    assert "signal 1 (signal 1) states no gain; WFDB's default of 200 per mV is assumed" in recording.warnings
    assert recording.signals[0].gain == 200.0


def test_range_outside_the_recording(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    recording = open_recording(write_wfdb(tmp_path, samples))
    for start, stop in ((-1, 5), (5, 4), (0, 6001)):
        with pytest.raises(ValueError, match=r"signal 2 \(ECG\) are not within its 0 to 6000"):
            recording.digital([2], start, stop)
    with pytest.raises(ValueError, match="no signal 4; it has 0 to 3"):
        recording.physical(4)


def test_files_are_listed_for_provenance(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    write_arousal(tmp_path)
    assert [file.name for file in open_recording(header).files] == ["rec.hea", "rec.mat", "rec.arousal"]


def write_arousal(folder: Path, name: str = "rec") -> None:
    call_wfdb(
        "wrann",
        name,
        "arousal",
        np.array([1200, 3600]),
        symbol=['"', '"'],
        aux_note=["W", "N1"],
        fs=200,
        write_dir=str(folder),
    )


def test_truncated_file(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    path = tmp_path / "rec.mat"
    path.write_bytes(path.read_bytes()[:-1000])
    message = r"rec\.mat: byte 47024: expected 48024 bytes .* found 47024 bytes: truncated\. Fetch"
    with pytest.raises(FileError, match=message):
        open_recording(header)


def test_header_promises_more_than_the_file_has(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = edit(write_wfdb(tmp_path, samples), "200 6000", "200 7000")
    with pytest.raises(
        ValueError, match=r"expected 56024 bytes \(7000 frames of 4 .* as rec\.hea promises, found 48024"
    ):
        open_recording(header).physical(0)


def test_missing_signal_file(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    (tmp_path / "rec.mat").unlink()
    recording = open_recording(header)
    assert recording.warnings[0] == "signal file rec.mat is missing, so no sample can be read"
    with pytest.raises(FileNotFoundError, match=r"rec\.mat: no such signal file, which .*rec\.hea names"):
        recording.digital([0])


def test_checksum_mismatch_names_the_signal(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    expected = int(samples[:, 2].sum(dtype=np.int64)) & 0xFFFF
    with (tmp_path / "rec.mat").open("r+b") as file:
        file.seek(24 + 2 * (4 * 3000 + 2))
        file.write((samples[3000, 2] + 1).astype("<i2").tobytes())
    recording = open_recording(header)
    found = (expected + 1) & 0xFFFF
    with pytest.raises(ValueError, match=rf"checksum {expected} of signal 2 \(ECG\), .* found {found} "):
        recording.digital(range(4))
    # A part of the signal cannot be checked, and the other signals are sound.
    recording.digital([2], 0, 10)
    np.testing.assert_array_equal(recording.digital([0, 1, 3]), samples[:, [0, 1, 3]].T)


def test_initial_value_mismatch(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    lines = header.read_text().splitlines()
    fields = lines[1].split()
    first = int(samples[0, 0])
    lines[1] = " ".join([*fields[:5], str(first + 5)])
    header.write_text("\n".join(lines))
    expected = rf"byte 24: expected the initial value {samples[0, 0] + 5} of signal 0 .*, found {samples[0, 0]}\."
    with pytest.raises(ValueError, match=expected):
        open_recording(header).digital([0])
    lines[1] = " ".join([*fields[:5], str(first + 5), *fields[6:]])  # beside a checksum that fits: a stale header
    header.write_text("\n".join(lines))
    np.testing.assert_array_equal(open_recording(header).digital([0])[0], samples[:, 0])


@pytest.mark.parametrize(("gain", "unit", "baseline"), [("0", "mV", 0), ("0/uV", "uV", 0), ("0.0(5)/bpm", "bpm", 5)])
def test_zero_gain(tmp_path: Path, samples: npt.NDArray[np.int16], gain: str, unit: str, baseline: float) -> None:
    """As WFDB has it, it is no gain, and a fault of no other signal."""
    recording = open_recording(write_wfdb(tmp_path, samples, gains=("1/uV", "1/uV", gain, "1/uV")))
    assert f"signal 2 (ECG) states no gain; WFDB's default of 200 per {unit} is assumed" in recording.warnings
    assert (recording.signals[2].gain, recording.signals[2].unit) == (200.0, unit)
    np.testing.assert_array_equal(recording.physical(2), (samples[:, 2] - baseline) / 200)


def test_formats_of_8_bits_have_limits(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_bytes(bytes(range(200)))
    header = tmp_path / "r.hea"
    for fmt, limits in ((80, (-128, -127, 127)), (16, ())):
        header.write_text(f"r 1 100\nr.dat {fmt} 1/mV\n")
        assert open_recording(header).signals[0].limits == limits


def test_bad_headers(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    whole = header.read_text()
    header.write_text("# only a comment\n")
    with pytest.raises(ValueError, match="an empty WFDB header"):
        open_recording(header)
    header.write_text("what is this?")
    with pytest.raises(ValueError, match=r"byte 5: expected number of signals: a whole number .* found b'is'"):
        open_recording(header)
    header.write_text("\n".join(whole.splitlines()[:4]))
    with pytest.raises(ValueError, match=r"byte 4: expected 4 signal lines, as many as stated here, found 3"):
        open_recording(header)
    header.write_text(whole.replace("16+24", "17+24", 1))
    with pytest.raises(
        ValueError, match=r"byte 23: expected format of signal 0 \(C3-M2\): one of 0, 8, 16, .* found b'17'"
    ):
        open_recording(header)


def test_missing_annotations_are_noted_or_refused(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    recording = open_recording(header)
    assert (recording.annotations, recording.annotator) == ((), "")
    assert "no annotation file: looked for rec.arousal or rec.st or rec.atr" in recording.warnings[0]
    with pytest.raises(FileNotFoundError, match=r"annotations are required, but .* rec\.arousal"):
        open_recording(header, require_annotations=True)
    with pytest.raises(FileNotFoundError, match=r"looked for rec\.qrs in"):
        open_recording(header, annotator="qrs", require_annotations=True)
    write_arousal(tmp_path)
    scored = open_recording(header, require_annotations=True)
    assert [(a.sample, a.aux) for a in scored.annotations] == [(1200, "W"), (3600, "N1")]
    assert (scored.annotator, scored.annotation_rate_hz, scored.warnings) == ("arousal", 200.0, ())


def test_a_wfdb_record_takes_no_hypnogram(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    with pytest.raises(ValueError, match="a hypnogram file belongs to an EDF recording"):
        open_recording(header, hypnogram=tmp_path / "night.edf")


def test_damaged_annotations(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path, samples)
    (tmp_path / "rec.arousal").write_bytes(b"\x01")
    with pytest.raises(ValueError, match=r"rec\.arousal: not a WFDB annotation file"):
        open_recording(header)


def test_path_not_found_names_the_nearest(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path, samples, name="tr03-0005")
    with pytest.raises(FileNotFoundError, match=r"tr03-0006: no such record or folder; nearest in .*: tr03-0005"):
        find_records(tmp_path / "tr03-0006")
    with pytest.raises(FileNotFoundError, match="does not exist either"):
        open_recording(tmp_path / "no" / "where")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"not a record: expected \.hea, \.edf, \.bdf.* the suffix decides"):
        find_records(tmp_path / "notes.txt")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no record in this folder: .* found nothing"):
        find_records(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"found notes\.txt"):
        find_records(tmp_path)


def test_spellings_of_one_record(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    header = write_wfdb(tmp_path / "rec", samples)
    for path in (header, header.with_suffix(""), header.with_suffix(".mat"), str(header), header.parent):
        assert open_recording(path).path == header
    assert find_records(header.parent) == [RecordPath(record_id="rec", path=header)]


def test_challenge_layout(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    for name in ("b", "a", "unlisted"):
        write_wfdb(tmp_path / name, samples, name=name)
    (tmp_path / "RECORDS").write_text("b/b\na/\nnot-there\n\nb/b\n")
    found = find_records(tmp_path)
    assert [(r.record_id, r.problem is None) for r in found] == [
        ("b", True),
        ("a", True),
        ("not-there", False),
        ("b", False),
    ]
    assert "RECORDS, line 3: " in str(found[2].problem)
    assert "no such record" in str(found[2].problem)
    assert "RECORDS, line 5: b/b is listed a second time, after line 1" in str(found[3].problem)
    assert open_recording(found[1]).record_id == "a"
    with pytest.raises(ValueError, match="listed a second time"):
        open_recording(found[3])
    with pytest.raises(ValueError, match=r"holds 4 records \(b, a, "):
        open_recording(tmp_path)


def test_records_in_folders_of_a_folder(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path / "training" / "a", samples, name="a")
    (tmp_path / "training" / "RECORDS").write_text("a/a\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "RECORDS").write_text("training/\nempty/\n")
    found = find_records(tmp_path)
    assert [r.record_id for r in found] == ["a", "empty"]
    assert "holds no record" in str(found[1].problem)


def test_same_record_listed_in_two_spellings(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path, samples)
    (tmp_path / "RECORDS").write_text("rec\nrec.hea\n")
    first, second = find_records(tmp_path)
    assert first.problem is None
    assert "record rec was already found as" in str(second.problem)


def test_same_record_in_two_folders(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    for folder in ("one", "two"):
        write_wfdb(tmp_path / folder, samples)
    first, second = find_records(tmp_path)
    assert first.problem is None
    assert "record rec was already found as" in str(second.problem)


def test_a_bad_header_does_not_hide_the_others(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path, samples)
    (tmp_path / "bad.hea").write_text("")
    bad, good = find_records(tmp_path)
    assert "an empty WFDB header" in str(bad.problem)
    assert good.problem is None


def test_links_that_lead_nowhere_are_said(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    """Links that lead nowhere, or to themselves."""
    write_wfdb(tmp_path / "good", samples)
    (tmp_path / "gone.edf").symlink_to(tmp_path / "elsewhere.edf")
    (tmp_path / "self.hea").symlink_to(tmp_path / "self.hea")
    found = {record.record_id: record.problem for record in find_records(tmp_path)}
    assert found.keys() == {"gone", "rec", "self"}
    assert found["rec"] is None
    assert f"gone.edf: a link to {tmp_path / 'elsewhere.edf'}, which leads nowhere" in str(found["gone"])
    assert "self.hea: a link to " in str(found["self"])


def test_a_link_that_leads_nowhere_takes_no_name(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path / "b", samples)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rec.hea").symlink_to(tmp_path / "elsewhere.hea")
    bad, good = find_records(tmp_path)
    assert "leads nowhere" in str(bad.problem)
    assert good.problem is None


def test_a_file_that_may_not_be_looked_at_does_not_hide_the_others(
    tmp_path: Path, samples: npt.NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wfdb(tmp_path, samples)
    (tmp_path / "x.edf").touch()
    exists = Path.exists

    def refuse(path: Path) -> bool:
        if path.name == "x.edf":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    good, bad = find_records(tmp_path)
    assert good.problem is None
    assert "Permission denied" in str(bad.problem)


def test_a_header_that_cannot_be_opened(
    tmp_path: Path, samples: npt.NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wfdb(tmp_path, samples)
    write_wfdb(tmp_path / "two", samples, name="two")
    (tmp_path / "locked").mkdir()
    read, listed = wfdb.segment_names, os.scandir

    def refuse(header: Path) -> tuple[str, ...]:
        if header.stem == "two":
            raise PermissionError(13, "Permission denied", str(header))
        return read(header)

    def refuse_folder(folder: str) -> Any:
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(wfdb, "segment_names", refuse)
    monkeypatch.setattr(os, "scandir", refuse_folder)
    found = {record.record_id: record.problem for record in find_records(tmp_path)}
    assert found.keys() == {"locked", "rec", "two"}
    assert found["rec"] is None
    assert found["locked"] == f"{tmp_path / 'locked'}: Permission denied"
    assert "Permission denied" in str(found["two"])


def test_linked_folders_are_searched_once(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path / "disk" / "night", samples)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "up").symlink_to(tmp_path / "set")
    (found,) = find_records(tmp_path / "set")
    assert found.problem is None
    assert found.path == tmp_path / "set" / "again" / "night" / "rec.hea"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_lists_of_records_in_any_encoding(tmp_path: Path, samples: npt.NDArray[np.int16], encoding: str) -> None:
    write_wfdb(tmp_path / "schläfer", samples)
    (tmp_path / "RECORDS").write_bytes("schläfer/rec\r\n".encode(encoding))
    (found,) = find_records(tmp_path)
    assert (found.record_id, found.problem) == ("rec", None)


@pytest.mark.parametrize("entry", ["./", ".", "../set", "inner"])
def test_a_list_that_leads_to_itself(tmp_path: Path, samples: npt.NDArray[np.int16], entry: str) -> None:
    write_wfdb(tmp_path / "set", samples)
    (tmp_path / "set" / "inner").mkdir()
    (tmp_path / "set" / "inner" / "RECORDS").write_text("../../set\n")
    (tmp_path / "set" / "RECORDS").write_text(f"{entry}\nrec\n")
    bad, good = find_records(tmp_path / "set")
    assert (good.record_id, good.problem) == ("rec", None)
    assert "is the folder of this list, or of one that led here; name records in it" in str(bad.problem)


def annotation_bytes(*notes: tuple[int, int, str], end: bytes = b"\0\0") -> bytes:
    """Of (samples after the one before, code, text), as an annotation file has them."""
    found = b""
    for apart, code, text in notes:
        if apart >= 1024:
            found += struct.pack("<4H", 59 << 10, apart >> 16, apart & 0xFFFF, code << 10)
        else:
            found += struct.pack("<H", code << 10 | apart)
        raw = text.encode()
        found += struct.pack("<H", 63 << 10 | len(raw)) + raw + b"\0" * (len(raw) % 2)
    return found + end


def test_notes_at_the_first_sample_are_read(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    """wfdb leaves them out with those that define the clock and the symbols of the file."""
    header = write_wfdb(tmp_path, samples)
    defined = [
        (0, 22, "## time resolution: 200"),
        (0, 22, "## annotation type definitions"),
        (0, 22, "42 x1 a symbol of this file's own"),
        (0, 22, "## end of definitions"),
    ]
    at_once, later = [(0, 22, "2 HA"), (0, 1, "beat"), (0, 22, "MT")], [(1, 22, "R"), (3000, 22, "W")]
    for before, first in ((defined, at_once), ([], at_once), (defined, []), ([], [])):
        (tmp_path / "rec.st").write_bytes(annotation_bytes(*before, *first, *later))
        found = open_recording(header).annotations
        notes = [(note.sample, note.aux) for note in found if note.symbol == '"']
        assert notes == [(0, "2 HA"), (0, "MT")] * bool(first) + [(1, "R"), (3001, "W")]
        assert sum(note.aux == "beat" for note in found) == bool(first)


def notes_file(*texts: str) -> bytes:
    return annotation_bytes(*((1000 * (k > 0), 22, text) for k, text in enumerate(texts)))


@pytest.mark.parametrize(
    "arousal", [b"", b"0,W\n30,N1\n", notes_file("(arousal_rera", "arousal_rera)"), notes_file("MT")]
)
def test_st_is_read_where_arousal_has_no_stage(tmp_path: Path, samples: npt.NDArray[np.int16], arousal: bytes) -> None:
    header = write_wfdb(tmp_path, samples)
    (tmp_path / "rec.arousal").write_bytes(arousal)
    (tmp_path / "rec.st").write_bytes(notes_file("W", "2 HA"))
    recording = open_recording(header)
    assert (recording.annotator, [a.aux for a in recording.annotations]) == ("st", ["W", "2 HA"])
    assert [file.name for file in recording.files[-2:]] == ["rec.arousal", "rec.st"]
    (said,) = recording.warnings
    count = len(open_recording(header, annotator="arousal").annotations)
    assert said == (
        f"none of the {count} annotations in rec.arousal is a sleep stage, so those in rec.st are read in their place, "
        "and its events are not"
    )
    for stages in (notes_file("MT"), None):  # with none in either, `.arousal` is read
        (tmp_path / "rec.st").unlink() if stages is None else (tmp_path / "rec.st").write_bytes(stages)
        recording = open_recording(header)
        assert (recording.annotator, recording.warnings) == ("arousal", ())
        assert recording == dataclasses.replace(open_recording(header, annotator="arousal"), files=recording.files)
    (tmp_path / "rec.arousal").write_bytes(notes_file("REM"))
    (tmp_path / "rec.st").write_bytes(b"\x01")  # no need to read it
    assert open_recording(header).annotator == "arousal"


def test_listed_hypnograms_are_no_records(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    write_wfdb(tmp_path, samples)
    (tmp_path / "SC4001EC-Hypnogram.edf").touch()
    (tmp_path / "RECORDS").write_text("rec\nSC4001EC-Hypnogram.edf\n")
    assert [record.record_id for record in find_records(tmp_path)] == ["rec"]


def test_age_and_sex_table(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    for name in ("a", "b", "c", "d"):
        write_wfdb(tmp_path / name, samples, name=name, comments="# 69 F 1085\n")
    table = "Record,Age,Sex\na,55,M\nb,31,m\nc,NaN,\n"
    (tmp_path / "age-sex.csv").write_text(table)
    found = [open_recording(tmp_path / name) for name in "abcd"]
    # c has blanks in the table and d is not in it: the header's comment serves.
    assert [(r.age_years, r.sex) for r in found] == [(55.0, "M"), (31.0, "M"), (69.0, "F"), (69.0, "F")]
    (tmp_path / "age-sex.csv").write_text("Record,Age,Sex,Subject\na,55,M,s1\nb,31,m,s1\n")
    assert [open_recording(tmp_path / name).subject_id for name in "abc"] == ["s1", "s1", "c"]
    assert (
        open_recording(tmp_path / "c").warnings[-1].endswith("age-sex.csv has no row of record c; its rows are of a, b")
    )
    assert not any("no row" in said for said in open_recording(tmp_path / "a").warnings)


def test_a_relative_path_has_the_same_subject(tmp_path, samples, monkeypatch) -> None:
    write_wfdb(tmp_path / "a", samples, name="a")
    (tmp_path / "age-sex.csv").write_text("Record,Age,Sex,Subject\na,90+,F,s1\n")
    monkeypatch.chdir(tmp_path / "a")
    for path in (".", "a", "a.hea"):
        found = open_recording(path)
        assert (found.subject_id, found.age_years, found.sex) == ("s1", 90.0, "F")


@pytest.mark.parametrize("name", ["A", "a.hea", " a.edf"])
def test_a_table_whose_names_do_not_fit_is_told(tmp_path, samples, name) -> None:
    header = write_wfdb(tmp_path, samples, name="a")
    (tmp_path / "age-sex.csv").write_text(f"Record,Age,Sex,Subject\nb,5,F,s2\n{name},40,F,s1\n")
    found = open_recording(header)
    assert (found.subject_id, found.age_years) == ("a", None)
    assert found.warnings[-1].endswith(f"has no row of record a; did you mean {name.strip()!r}?")


@pytest.mark.parametrize(("age", "kept"), [(130, 130.0), (131, None), (300, None), (0, 0.0)])
def test_no_header_makes_anybody_three_hundred_years_old(tmp_path, samples, age, kept) -> None:
    header = write_wfdb(tmp_path, samples, name="a", comments=f"# Age: {age} Sex: F\n")
    found = open_recording(header)
    assert (found.age_years, found.sex) == (kept, "F")
    said = f"the header's age of {age} years is not within 0 to 130; taken as unknown"
    assert (said in found.warnings) == (kept is None)


def test_two_signals_of_one_name_in_a_variable_layout(tmp_path, samples) -> None:
    write_wfdb(tmp_path, samples[:, :2], name="s1", names=("ECG", "ECG"), gains=GAINS[:2])
    (tmp_path / "lay.hea").write_text("lay 2 200 0\n" + "".join(f"~ 0 {gain} 16 0 0 0 0 ECG\n" for gain in GAINS[:2]))
    (tmp_path / "m.hea").write_text(f"m/2 2 200 {len(samples)}\nlay 0\ns1 {len(samples)}\n")
    first, second = open_recording(tmp_path / "m.hea").digital([0, 1])
    assert np.array_equal(first, samples[:, 0]) and np.array_equal(second, samples[:, 1])


def test_a_channels_name_is_no_number(tmp_path, samples) -> None:
    with pytest.raises(TypeError, match=r"recording.names.index\('C3'\) gives that of a name"):
        open_recording(write_wfdb(tmp_path, samples)).physical("C3")


def test_a_signal_handler_may_read_while_a_file_is_opened(tmp_path, samples, monkeypatch) -> None:
    one, other = (open_recording(write_wfdb(tmp_path, samples, name=name)) for name in "ab")
    real, found = handles.SignalFile, []

    def interrupted(*arguments, **more):
        if not found:
            found.append(None)
            found.append(other.physical([0], 0, 2))
        return real(*arguments, **more)

    monkeypatch.setattr(handles, "SignalFile", interrupted)
    reading = threading.Thread(target=lambda: found.append(one.physical([0], 0, 2)), daemon=True)
    reading.start()
    reading.join(20)
    assert np.array_equal(found[1][0], found[2][0])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Record,Age,Sex\na,55,M\nb,1,F\na,55,M\n", r"record a is on lines 2 and 4; keep one"),
        ("Record,Years,Sex\na,55,M\n", r"no column age; found record, years, sex"),
        ("Record;Age;Sex\na;55;M\n", r"no column age, record, sex; found record;age;sex, where a comma ends a column"),
        ("Record,Age,Sex\na,old,M\n", r"line 2: age 'old' is not a number"),
        ("Record,Age,Sex\na,555,M\n", r"line 2: age 555 is not within 0 to 130"),
        ("Record,Age,Sex\na,55,K\n", r"line 2: sex 'K'.* Allowed: F, M"),
        ("Record,Age,Sex\na,55\n", r"line 2: 2 fields, expected 3"),
        ("", r"no column age, record, sex; found nothing"),
        ('Record,Age,Sex,subject\nb,1,F,"\na,55,M,x\n', r"line 2: cannot be read .*; is a quote not closed"),
        ('Record,Age,Sex,subject\nb,1,F,"bo\na,55,M,x"\n', r"line 2: a name goes over several lines; is a quote not"),
        ('Record,Age,Sex,subject\nb,1,F,"bo"b\n', r"line 2: cannot be read .*; is a quote not closed"),
        (
            'Record,Age,Sex,subject\nb,1,F,"' + 20_000 * "\na,55,M,x",
            r"line 2: cannot be read .*; is a quote not closed",
        ),
    ],
)
def test_bad_age_and_sex_tables(tmp_path: Path, samples: npt.NDArray[np.int16], table: str, message: str) -> None:
    header = write_wfdb(tmp_path, samples, name="a")
    (tmp_path / "age-sex.csv").write_text(table)
    with pytest.raises(ValueError, match=r"age-sex\.csv.*" + message):
        open_recording(header)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-be"])
def test_tables_of_any_encoding(tmp_path: Path, samples: npt.NDArray[np.int16], encoding: str) -> None:
    header = write_wfdb(tmp_path, samples, name="a")
    text = 'Record,Age,Sex,Subject,Note\r\na,55,M,M\xfcller,"two\r\nlines"\r\n'
    raw = codecs.BOM_UTF16_BE * (encoding == "utf-16-be") + text.encode(encoding)
    (tmp_path / "age-sex.csv").write_bytes(raw)
    found = open_recording(header)
    assert (found.subject_id, found.age_years, found.sex) == ("M\xfcller", 55.0, "M")


@pytest.mark.parametrize(
    ("unit", "modality", "expected"),
    [
        ("uV", "EEG", (1.0, "uV")),
        ("\u00b5V", "EOG", (1.0, "uV")),
        ("\u03bcV", "EMG", (1.0, "uV")),
        ("mV", "ECG", (1000.0, "uV")),
        ("V", "EEG", (1e6, "uV")),
        ("nV", "EEG", (1e-3, "uV")),
        ("\u00b5Volt", "EEG", (1.0, "uV")),
        ("Volts", "EOG", (1e6, "uV")),
        (" mVolt", "ECG", (1000.0, "uV")),
        ("%", "SPO2", (1.0, "%")),
        ("% SpO2", "SPO2", (1.0, "%")),
        ("pct", "SPO2", (1.0, "%")),
        ("", "SPO2", (1.0, "%")),
        ("uV", "RESP", (1.0, "uV")),
        ("l", "RESP", (1.0, "l")),
        ("NU", "RESP", (1.0, "NU")),
        ("", "RESP", (1.0, "NU")),
        ("Ohm", "RESP", (1.0, "Ohm")),
    ],
)
def test_unit_scale(unit: str, modality: str, expected: tuple[float, str]) -> None:
    assert unit_scale(unit, modality) == expected


@pytest.mark.parametrize(
    ("unit", "modality", "message"),
    [
        ("uVult", "EEG", "unit 'uVult' is not known for EEG; did you mean 'uV'"),
        ("", "EEG", "unit '' is not known for EEG. Allowed: nV, uV, mV, V"),
        ("mmHg", "ECG", "unit 'mmHg' is not known for ECG"),
        ("mV", "SPO2", "unit 'mV' is not known for SPO2. Allowed: %, percent"),
        ("degrees", "RESP", "unit 'degrees' is not known for RESP"),
        ("uV", "ECGs", "unknown modality 'ECGs'; did you mean 'ECG'"),
    ],
)
def test_unknown_units(unit: str, modality: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("?", r"\?")):
        unit_scale(unit, modality)


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("physiofast.io, physiofast.labels", "wfdb pandas edfio h5py scipy.signal torch"),
        ("physiofast.engine", "scipy.signal scipy.stats torch"),
        ("physiofast.config, physiofast.runs", "wfdb pandas edfio scipy.signal scipy.stats matplotlib triton sklearn"),
    ],
)
def test_import_is_light(modules: str, heavy: str) -> None:
    code = f"import sys, {modules}; print(sorted(set({heavy.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recording_is_frozen(tmp_path: Path, samples: npt.NDArray[np.int16]) -> None:
    recording = open_recording(write_wfdb(tmp_path, samples))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recording.sex = "F"  # type: ignore[misc]
