import io
import json
import math
import re

import pytest
from rich.console import Console

from physiofast.montage import MODALITIES
from physiofast.progress import JsonProgress, Progress, TerminalProgress, make_progress, summarise

LINE = {"step": 20, "loss": 1.23456789, "loss.EEG": 0.5, "loss.ECG": 2.0, "windows_per_s": 101.26, "lr": 1e-3}


def test_json_lines_elsewhere_than_on_a_terminal():
    stream = io.StringIO()
    progress = JsonProgress(stream)
    with progress.task("train", 40, done=10) as bar:
        bar.advance(10)
        progress.note(LINE)
        bar.advance(20)
    first, last = map(json.loads, stream.getvalue().splitlines())
    assert first["task"] == "train"
    assert first["loss"] == 1.235
    assert first["windows_per_s"] == 101.3
    assert 0 <= first["eta_s"] < 5  # 20 steps are left after 10
    assert last["task"] == "train"
    assert last["total"] == 40


def test_one_live_line_on_a_terminal():
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=140))
    with progress.task("train", 40) as bar:
        bar.advance(40)
        progress.note(LINE)
    shown = stream.getvalue()
    assert "train" in shown
    assert "40/40" in shown
    assert "101 windows/s EEG .50 ECG 2.0" in shown


SIX = {f"loss.{name}": value for name, value in zip(MODALITIES, (0.614, 0.52, 0.998, 0.0, 12.3, 1.24), strict=True)}


@pytest.mark.parametrize(
    ("width", "numbers"),
    [
        (80, "1234 windows/s EEG .61 EOG .52 EMG…"),
        (120, "1234 windows/s EEG .61 EOG .52 EMG 1.0 ECG .00 RESP 12 SPO2 1.2"),
    ],
)
def test_a_narrow_terminal_cuts_the_last_losses_only(width, numbers):
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=width, color_system=None))
    with progress.task("train", 20000, done=10000) as bar:
        bar.advance(2345)
        progress.note({"step": 12345, "loss": 1.0, **SIX, "windows_per_s": 1234.4})
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").strip().split("\n")[-1]
    assert re.match(rf"train +━+ +12345/20000 eta \S+ {re.escape(numbers)} *$", last), last
    assert len(last) <= width


def test_json_lines_are_strict_json():
    stream = io.StringIO()
    progress = JsonProgress(stream)
    with progress.task("train", 2):
        progress.note({"loss": math.nan, "eval": {"error.EEG": math.inf, "error.ECG": 0.123456}})
    first = json.loads(stream.getvalue().splitlines()[0], parse_constant=pytest.fail)
    assert first == {"task": "train", "loss": None, "eval": {"error.EEG": None, "error.ECG": 0.1235}, "eta_s": None}


def test_notes_and_names_are_no_markup():
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream, force_terminal=True, width=100, color_system=None))
    with progress.task("a[/x]", 1):
        progress.note({"loss.[/b]": 0.5})
    assert "a[/x]" in stream.getvalue() and "[/b] .50" in stream.getvalue()


def test_the_kind_follows_the_stream():
    assert isinstance(make_progress(Console(file=io.StringIO())), JsonProgress)
    assert isinstance(make_progress(Console(file=io.StringIO(), force_terminal=True)), TerminalProgress)


def test_library_callers_hear_nothing(capsys):
    progress = Progress()
    with progress.task("train", 3) as bar:
        bar.advance(3)
        progress.note(LINE)
    progress.say("something")
    assert capsys.readouterr() == ("", "")


def test_a_sentence_is_a_line_of_its_own():
    for make, shown in (
        (
            lambda stream: TerminalProgress(Console(file=stream, force_terminal=True, width=20)),
            "runs/[/a] goes on here\n",
        ),
        (JsonProgress, '{"note": "runs/[/a] goes on here"}\n'),
    ):
        stream = io.StringIO()
        make(stream).say("")
        make(stream).say("runs/[/a] goes on here")
        assert stream.getvalue() == shown


def test_summary_has_speed_and_losses():
    assert summarise(LINE) == "101 windows/s EEG .50 ECG 2.0"
