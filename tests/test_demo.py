"""What the demo says at its end; that it runs is a step of CI."""

import io
from pathlib import Path

from rich.console import Console

from physiofast import demo
from physiofast.probing import ProbeReport


def test_a_modality_without_a_predictable_share_has_an_empty_cell():
    share = {"from_channels": None, "from_neighbours": None, "total": None}
    summary = {
        "errors": {
            "EEG": {"error": 0.512, "predictable_share": {"from_channels": 0.1, "from_neighbours": 0.2, "total": 0.25}},
            "ECG": {"error": 0.9, "predictable_share": share},
            "EMG": {"error": 1.0, "predictable_share": None},
        },
        "seconds": {"train": 3.0},
        "throughput": {"windows_per_s": 100.0},
    }
    printed = io.StringIO()
    probes = ProbeReport(tasks={}, train_subjects=("a",), test_subjects=("b",), config={})
    demo._explain(Path("out"), summary, probes, 5.0, Console(file=printed, width=200))
    rows = [line.split() for line in printed.getvalue().splitlines()]
    assert ["EEG", "0.512", "0.250"] in rows
    assert ["ECG", "0.900"] in rows
    assert ["EMG", "1.000"] in rows
