"""EDF and EDF+ files: values, annotations, hypnograms, and one clear error for each kind of bad file."""

from collections.abc import Sequence
from pathlib import Path

import edfio
import numpy as np
import pytest

from physiofast.io import find_records, open_recording


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
    with pytest.raises(ValueError, match=rf"truncated: .* so {len(whole)} bytes; found {len(whole) - 100}"):
        open_recording(path)
    path.write_bytes(whole[:300])
    with pytest.raises(ValueError, match="truncated: 3 signal headers end at byte 1024"):
        open_recording(path)
    path.write_bytes(b"not an EDF")
    with pytest.raises(ValueError, match="not an EDF or BDF file: it begins with b'not an E'"):
        open_recording(path)
    path.write_bytes(whole)
    patch(path, 236, "many", 8)
    with pytest.raises(ValueError, match="byte 236: expected a whole number, found b'many    '"):
        open_recording(path)
    path.write_bytes(whole)
    patch(path, 192, "EDF+D", 44)
    with pytest.raises(ValueError, match=r"a discontinuous file \(EDF\+D\)"):
        open_recording(path)
    path.write_bytes(whole)
    # Physical maximum of signal 0: after label, transducer, unit and physical minimum of all 3 signals.
    patch(path, 256 + 3 * (16 + 80 + 8), "5", 8)
    patch(path, 256 + 3 * (16 + 80 + 8 + 8), "5", 8)
    with pytest.raises(ValueError, match=r"signal 0 \(EEG Fpz-Cz\) has no gain: physical range \(5.0, 5.0\)"):
        open_recording(path)
    path.write_bytes(whole)
    patch(path, 244, "0", 8)
    with pytest.raises(ValueError, match=r"byte 244: data records last 0.0 s"):
        open_recording(path)


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


def test_hypnogram_that_starts_later_is_shifted(tmp_path: Path) -> None:
    write_edf(tmp_path / "SC4001E0-PSG.edf")
    stages = [edfio.EdfAnnotation(0, 30, "Sleep stage 2")]
    edfio.Edf([], annotations=stages).write(tmp_path / "SC4001EC-Hypnogram.edf")
    patch(tmp_path / "SC4001EC-Hypnogram.edf", 176, "00.00.30", 8)
    recording = open_recording(tmp_path / "SC4001E0-PSG.edf")
    assert [(a.sample, a.aux) for a in recording.annotations] == [(30_000, "Sleep stage 2")]
    (found,) = find_records(tmp_path)
    assert found.record_id == "SC4001E0-PSG"
