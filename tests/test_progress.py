import io
import json

from rich.console import Console

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
    assert "101 windows/s · EEG 0.500 · ECG 2.000" in shown


def test_the_kind_follows_the_stream():
    assert isinstance(make_progress(Console(file=io.StringIO())), JsonProgress)
    assert isinstance(make_progress(Console(file=io.StringIO(), force_terminal=True)), TerminalProgress)


def test_library_callers_hear_nothing(capsys):
    progress = Progress()
    with progress.task("train", 3) as bar:
        bar.advance(3)
        progress.note(LINE)
    assert capsys.readouterr() == ("", "")


def test_summary_has_speed_and_losses():
    assert summarise(LINE) == "101 windows/s · EEG 0.500 · ECG 2.000"
