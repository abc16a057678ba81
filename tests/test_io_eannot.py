"""Stages as text, a line for each 30 s: which file it is, what it says, and what becomes of it."""

from pathlib import Path

import edfio
import numpy as np
import pytest

from physiofast import labels
from physiofast.io import open_recording
from physiofast.preparation import PrepareConfig, prepare
from physiofast.store import Store

LINES = ("W", "Wake", "N1", "NREM 2", "S3", "N4", "rem", "?", "L", "N2")
CODES = [0, 0, 1, 2, 3, 3, 4, -1, -1, 2]


def write_night(path: Path, seconds: int = 310, annotations: tuple[edfio.EdfAnnotation, ...] = ()) -> Path:
    data = np.random.default_rng(0).normal(0, 20, (2, seconds * 200))
    signals = [
        edfio.EdfSignal(row, 200, label=label, physical_dimension="uV", physical_range=(-200, 200))
        for row, label in zip(data, ("C3-M2", "ECG"), strict=True)
    ]
    edfio.Edf(signals, annotations=annotations or None).write(path)
    return path


def write_lines(path: Path, text: str = "\n".join(LINES) + "\n") -> Path:
    path.write_text(text)
    return path


def test_each_line_is_the_stage_of_thirty_seconds(tmp_path: Path) -> None:
    scored = write_lines(tmp_path / "night.eannot")
    recording = open_recording(write_night(tmp_path / "night.edf"))
    assert (recording.annotator, recording.files[-1]) == ("eannot", scored)
    assert labels.stage_epochs(recording).tolist() == CODES
    assert labels.stage_epochs(recording, 15).tolist() == np.repeat(CODES, 2).tolist()
    assert not labels.notes(recording) and not recording.warnings
    assert (labels.arousal_windows(recording) == -1).all() and (labels.apnea_windows(recording) == -1).all()


def test_windows_breaks_marks_and_empty_ends_are_passed_over(tmp_path: Path) -> None:
    write_lines(tmp_path / "night.eannot", "\ufeff" + "\r\n".join(LINES) + "\r\n\r\n")
    assert labels.stage_epochs(open_recording(write_night(tmp_path / "night.edf"))).tolist() == CODES


def test_lines_are_counted_from_the_first_sample(tmp_path: Path) -> None:
    """Of an EDF+ file, which may begin a part of a second after the time in its header."""
    path = write_night(tmp_path / "night.edf", annotations=(edfio.EdfAnnotation(1, 2, "noise"),))
    at_zero, later = b"+0\x14\x14\x00", b"+.5\x14\x14"
    assert at_zero in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(at_zero, later, 1))
    write_lines(tmp_path / "night.eannot")
    recording = open_recording(path)
    assert labels.stage_spans(recording)[0].start == 0
    assert "annotations within it, 1 in all, are left out for those in night.eannot" in recording.warnings


@pytest.mark.parametrize(("count", "is_told"), [(9, True), (10, False), (11, False), (12, True)])
def test_more_or_fewer_lines_than_epochs_are_told(tmp_path: Path, count: int, is_told: bool) -> None:
    write_lines(tmp_path / "night.eannot", "N2\n" * count)
    recording = open_recording(write_night(tmp_path / "night.edf"))
    said = f"night.eannot has {count} lines, each for 30 s, and the recording lasts 310 s, which is 10 of them; "
    assert [text.startswith(said) for text in recording.warnings] == [True] * is_told


def test_what_is_no_stage_is_told_and_unscored(tmp_path: Path) -> None:
    write_lines(tmp_path / "night.eannot", "N2\n2\n4\nX\nN3\nN2\n\u00b5\nN2\nN2\nN2\n")
    recording = open_recording(write_night(tmp_path / "night.edf"))
    assert labels.stage_epochs(recording).tolist() == [2, -1, -1, -1, 3, 2, -1, 2, 2, 2]
    (said,) = labels.notes(recording)
    assert said.startswith("4 lines are no sleep stages that are known, and are unscored: ")
    write_lines(tmp_path / "night.eannot", "0\n1\n2\n5\n" * 2 + "0\n0\n")
    (said,) = labels.notes(open_recording(tmp_path / "night.edf"))
    assert said.startswith("none of its 10 annotations is a sleep stage; found '0'")
    assert said.endswith("expected texts such as 'N2', 'R' or 'W'")


def test_an_empty_line_between_others_is_refused_with_its_number(tmp_path: Path) -> None:
    scored = write_lines(tmp_path / "night.eannot", "N2\nN2\n\nN2\n")
    with pytest.raises(ValueError, match="eannot, line 3: expected the stage of an epoch of 30 s, found an empty line"):
        open_recording(write_night(tmp_path / "night.edf"))
    write_lines(scored, "")
    recording = open_recording(tmp_path / "night.edf")
    assert recording.annotator == ""
    assert any("none in its hypnogram night.eannot" in text for text in recording.warnings)


def test_one_may_be_given_and_others_come_first(tmp_path: Path) -> None:
    other = write_lines(tmp_path / "other.eannot", "R\n" * 10)
    path = write_night(tmp_path / "night-PSG.edf")
    assert set(labels.stage_epochs(open_recording(path, hypnogram=str(other)))) == {4}
    write_lines(tmp_path / "night-PSG.eannot")
    assert labels.stage_epochs(open_recording(path)).tolist() == CODES
    stages = tuple(edfio.EdfAnnotation(30 * i, 30, "Sleep stage W") for i in range(10))
    write_night(tmp_path / "night-Hypnogram.edf", annotations=stages)
    assert set(labels.stage_epochs(open_recording(path))) == {0}


def test_a_store_has_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_lines(source / "night.eannot")
    write_night(source / "night.edf")
    prepare(source, tmp_path / "store", PrepareConfig(labels="required"))
    assert Store.open(tmp_path / "store").records[0].stage.tolist() == CODES
