"""What is printed about recordings, stores and probes: whole names, plain text, one bad record at most one error."""

import dataclasses
import io
import math
import shlex

import numpy as np
import pytest
import wfdb
from rich.console import Console

from physiofast.io import open_recording
from physiofast.montage import get_montage
from physiofast.preparation import PrepareConfig, PrepareReport, inspect, precheck
from physiofast.printing import make_console, print_inspection, print_prepared, print_probes, say
from physiofast.probing.metrics import Estimate
from physiofast.probing.results import ModelResult, ProbeReport, TaskResult

BRACKETS = "EEG [/x] [red]"


def write_record(folder, record, names, units=None, seconds=40):
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(-300, 300, (seconds * 200, len(names)))
    wfdb.wrsamp(
        record,
        200,
        units or ["uV"] * len(names),
        list(names),
        d_signal=values,
        fmt=["16"] * len(names),
        adc_gain=[1] * len(names),
        baseline=[0] * len(names),
        write_dir=str(folder),
    )


def printed(show, *arguments, width=80):
    stream = io.StringIO()
    show(*arguments, Console(file=stream, width=width, force_terminal=False))
    return stream.getvalue()


def test_text_from_files_is_never_markup(tmp_path):
    folder = tmp_path / "b[x]"
    write_record(folder, "r1", ("C3-M2", BRACKETS))
    (found,) = inspect(folder)
    assert found.ignored == ((BRACKETS, 200.0, "uV"),)
    channel = dataclasses.replace(found.channels[2], unit="u[b]", drop="of [i]")
    found = dataclasses.replace(found, channels=(channel,), ignored=((BRACKETS, 200.0, "[b]"),), errors=("[/b]",))
    text = printed(print_inspection, found, width=200)
    assert f"ignored: {BRACKETS} (200 Hz, [b]): not in the montage" in text
    assert "u[b]" in text and "dropped C3-M2: of [i]" in text and "refused [/b]" in text
    assert f"no annotation file: looked for r1.arousal or r1.st or r1.atr in {folder}" in text
    report = PrepareReport(
        out=folder,
        processed=("a[/b]",),
        skipped=(),
        failed=(("c[/d]", f"{folder}: [bold]"),),
        notes=tuple((f"a[{i}]", f"{word}, as [i]") for i in range(6) for word in ("one", "two")),
        dropped=tuple((f"a[{i}]", "C3[b]", "of [i]" if i else "of [/b]") for i in range(2)),
        unlisted=tuple(f"r[{i}]" for i in range(7)),
        hours=1.0,
        seconds=2.0,
    )
    text = printed(print_prepared, report)
    assert f"failed c[/d]: {folder}: [bold]" in text
    assert f"1.0 h in {folder}, 2.0 s" in text
    assert "note a[0]: one, as [i]\nnote a[0]: two, as [i]\nnote a[1]: one" in text and "note a[4]: two" in text
    assert "a[5]: one" not in text and f"notes on 6 records in all; see {folder / 'manifest.json'}" in text
    assert f"dropped C3[b] in 2 of 1 records: of [/b]; other reasons (1) are in {folder / 'manifest.json'}" in text
    assert f"--store {shlex.quote(str(folder))}" in text
    assert "left alone: r[0], r[1], r[2], r[3], r[4] and 2 more" in text


def test_channels_that_are_not_in_the_file_take_one_line(tmp_path):
    write_record(tmp_path, "r1", ("Chin1-Chin2", "SaO2"), ["uV", "%"])
    (found,) = inspect(tmp_path, PrepareConfig(min_valid_share=1.0))
    lines = printed(print_inspection, found, width=100).splitlines()
    assert "absent: F3-M2, F4-M1, C3-M2, C4-M1, O1-M2, O2-M1, E1-M2, ECG, ABD, CHEST, AIRFLOW" in lines
    assert [line.split()[0] for line in lines[2:4]] == ["Chin1-Chin2", "SaO2"]
    assert not any(line.startswith("dropped") and "absent" in line for line in lines)


def test_names_are_whole_in_eighty_columns(tmp_path):
    names = ("EEG (C4-A1)", "Resp (abdominal)", "Chin1-Chin2")
    write_record(tmp_path, "r1", names)
    (found,) = inspect(tmp_path)
    text = printed(print_inspection, found, width=80)
    assert all(name in text for name in names) and "…" not in text


@pytest.mark.parametrize(
    "error", [LookupError("key"), ValueError("bad"), OSError("gone"), MemoryError(), ZeroDivisionError()]
)
def test_any_bad_record_is_one_inspection_with_an_error(tmp_path, monkeypatch, error):
    for record in ("a", "b"):
        write_record(tmp_path, record, ("C3-M2",))
    real = precheck.inspect_recording

    def inspect_recording(recording, config):
        if recording.record_id == "a":
            raise error
        return real(recording, config)

    monkeypatch.setattr(precheck, "inspect_recording", inspect_recording)
    first, second = inspect(tmp_path)
    assert first.record == "a" and len(first.errors) == 1 and not first.channels
    assert second.record == "b" and second.errors == ()


def test_inspections_come_one_by_one(tmp_path, monkeypatch):
    for record in ("a", "b"):
        write_record(tmp_path, record, ("C3-M2",))
    seen, real = [], precheck.inspect_recording

    def inspect_recording(recording, config):
        seen.append(recording.record_id)
        return real(recording, config)

    monkeypatch.setattr(precheck, "inspect_recording", inspect_recording)
    coming = inspect(tmp_path)
    assert next(coming).record == "a" and seen == ["a"]
    assert next(coming).record == "b" and seen == ["a", "b"]


def test_a_pipe_is_wide_and_sentences_stay_whole(capsys):
    console = make_console()
    say(console, "word " * 100, "note", "yellow")
    assert console.width >= 200
    assert capsys.readouterr().out == "note " + "word " * 100 + "\n"


def report_of(subjects, labelled=None):
    def model(value):
        score = Estimate(value=value, low=value - 0.1, high=value + 0.1)
        return ModelResult(scores={"balanced_accuracy": score}, confusion=[], regularisation=1.0)

    stage = TaskResult(
        task="stage",
        headline="balanced_accuracy",
        test_subjects=subjects if labelled is None else labelled,
        models={"pretrained": model(0.8), "untrained": model(0.5)},
        differences={"pretrained - untrained": {"balanced_accuracy": Estimate(value=0.3, low=0.2, high=0.4)}},
    )
    age = TaskResult(task="age", status="not enough subjects: 6 of 50")
    names = tuple(f"s{i}" for i in range(subjects))
    return ProbeReport(tasks={"stage": stage, "age": age}, train_subjects=(), test_subjects=names, config={})


def test_probes_in_eighty_columns():
    text = printed(print_probes, report_of(8), width=80)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "task subjects score features value",
        "stage 8 balanced_accuracy pretrained 0.800 [0.700, 0.900]",
        "untrained 0.500 [0.400, 0.600]",
        "age: not enough subjects: 6 of 50",
        "Paired differences:",
        "stage balanced_accuracy, pretrained - untrained: 0.300 [0.200, 0.400]",
        "8 held-out subjects; each score is over those with a label. In brackets the interval over resampled subjects.",
        "A paired difference whose interval excludes 0 is unlikely to be chance.",
    ]


def test_few_subjects_are_said_to_mean_little():
    for report in (report_of(4), report_of(8, 4)):
        text = printed(print_probes, report)
        assert "stage: 4 held-out subjects with a label; intervals over fewer than 5 subjects mean little." in text
        assert "unlikely to be chance" not in text


def test_one_subject_has_no_interval():
    score = {"balanced_accuracy": Estimate(value=1.0, low=math.nan, high=math.nan)}
    model = ModelResult(scores=score, confusion=[], regularisation=1.0)
    stage = TaskResult(task="stage", headline="balanced_accuracy", test_subjects=1, models={"pretrained": model})
    report = ProbeReport(tasks={"stage": stage}, train_subjects=(), test_subjects=("a",), config={})
    text = printed(print_probes, report)
    assert "1.000" in text and "nan" not in text
    assert "1 held-out subject; each score" in text
    assert "stage: 1 held-out subject with a label, so no interval can be given." in text


def found_in(names, montage="cinc2018"):
    known = get_montage(montage)
    return {names[i]: known.names[c] for c, i in enumerate(known.resolve(names).source) if i is not None}


def test_a_leading_modality_is_no_part_of_a_name():
    names = (
        "EMG Chin1-Chin2",
        "EOG LOC-A2",
        "ECG1-ECG2",
        "EEG: F3-M2",
        "EEG_C4-M1",
        "Resp. Airflow",
        "EEG II",
        "EKG EKG",
    )
    assert found_in(names) == {
        "EMG Chin1-Chin2": "Chin1-Chin2",
        "EOG LOC-A2": "E1-M2",
        "ECG1-ECG2": "ECG",
        "EEG: F3-M2": "F3-M2",
        "EEG_C4-M1": "C4-M1",
        "Resp. Airflow": "AIRFLOW",
    }
    assert found_in(("EKG EKG", "EOG ECG")) == {"EKG EKG": "ECG"}
    assert found_in(("EMG Chin1-Chin2", "Chin1-Chin2")) == {"Chin1-Chin2": "Chin1-Chin2"}
    assert get_montage("cinc2018").index("EMG Chin1-Chin2") == get_montage("cinc2018").index("Chin1-Chin2")


def test_the_nearest_channel_of_an_ignored_one(tmp_path):
    write_record(tmp_path, "r1", ("C3-A2", "EEG C3-M2", "EMG Chin1-Chin3", "Snore"))
    (found,) = inspect(tmp_path)
    text = printed(print_inspection, found, width=200)
    which = "the first whose rate and unit fit is used, C3-A2 (200 Hz, uV)"
    assert f"ignored: EEG C3-M2 (200 Hz, uV): a second C3-M2; {which}\n" in text
    assert "ignored: EMG Chin1-Chin3 (200 Hz, uV): not in the montage; nearest is Chin1-Chin2\n" in text
    assert "ignored: Snore (200 Hz, uV): not in the montage\n" in text


def test_the_second_of_a_channel_that_is_dropped(tmp_path):
    write_record(tmp_path, "r1", ("C3-A2", "EEG C3-M2"), units=["furlong", "furlong"])
    (found,) = inspect(tmp_path)
    said = (
        "a second C3-M2, beside C3-A2 (200 Hz, furlong), which is dropped; to use this one, leave that out of the file"
    )
    assert f"ignored: EEG C3-M2 (200 Hz, furlong): {said}\n" in printed(print_inspection, found, width=200)


NIGHT = {"Resp (nasal)": "AIRFLOW", "Resp (chest)": "CHEST"}


@pytest.mark.parametrize(
    ("record", "used"),
    [
        ("wfdb/1003", {"ECG lead II": "ECG", "Resp. Imp.": "CHEST"}),
        ("wfdb/drive02", {"ECG": "ECG", "RESP": "CHEST"}),
        ("slpdb/slp01a", {"ECG": "ECG", "EEG (C4-A1)": "C4-M1"}),
        ("slpdb/slp32", {"EEG (C4-A1)": "C4-M1", "EOG": "E1-M2", "EMG": "Chin1-Chin2", "ECG": "ECG"} | NIGHT),
    ],
)
def test_names_of_real_recordings(real_data, record, used):
    names = open_recording(real_data / record).names
    montage = get_montage("cinc2018")
    source = montage.resolve(names).source
    found = {names[i]: montage.names[c] for c, i in enumerate(source) if i is not None}
    assert found == used
