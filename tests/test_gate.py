"""The GPU gate where there is none: its sections rehearse on CPU tensors, and what fails is a red line."""

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import attentioncases
from benchmarks.attention import MASKED
from benchmarks.attentioncases import name_of
from benchmarks.attentionpeers import DENSE
from benchmarks.gate import __main__ as gate
from benchmarks.gate import correctness, host, runner, verdicts
from benchmarks.gate.context import Context
from benchmarks.gate.runner import Section
from benchmarks.gate.sections import SECTIONS
from benchmarks.gate.verdicts import Notebook, Verdict
from benchmarks.opcases import OPCASES
from benchmarks.opjobs import FIGURES
from physiofast import ops
from physiofast.ops import backends, reference
from physiofast.ops.triton import assemble, launching

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the gate itself runs here")
ROOT = Path(__file__).parents[1]
NOT_THERE = {
    *("wfdb", "edfio", "h5py", "safetensors", "sklearn", "matplotlib", "jinja2", "rich", "tyro", "pandas"),
    *("mne", "pyedflib", "zarr", "hypothesis", "xdist", "pytest_timeout", "pytest_benchmark", "tensorboard", "wandb"),
    *("physiofast._native", "tests"),
}
"""What a machine for the gate may lack."""


@pytest.mark.slow
def test_every_section_rehearses(tmp_path):
    file = tmp_path / "gate.json"
    command = [sys.executable, "-m", "benchmarks.gate", "--rehearse", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 3, done.stdout + done.stderr
    document = json.loads(file.read_text())
    assert [v for v in document["verdicts"] if v["outcome"] == "FAILS"] == []
    assert {timed["section"] for timed in document["seconds"]} == set(SECTIONS)
    assert {v["section"] for v in document["verdicts"] if v["outcome"] == "holds"} >= set(SECTIONS) - {
        "host",
        "sanitizer",
    }
    rows = document["rows"]
    attended = {name_of(mix, backward) for mix in ("mix", "200") for backward in (False, True)}
    assert {row["case"] for row in rows} == {*OPCASES, *attended}
    assert all(row["checked"] and row["seconds_median"] > 0 for row in rows)
    skipped = [v["text"] for v in document["verdicts"] if v["outcome"] == "not measured"]
    for op, figures in FIGURES.items():
        asked = len(figures.ratios) + (figures.share is not None) + (figures.seconds is not None)
        assert sum(text.startswith(f"{op}, P 128") for text in skipped) == asked
    for mix in ("mix", "200"):  # FlexAttention has no backward pass here, varlen_attn nothing at all
        figures = {backward: attentioncases.figures(mix, backward) for backward in (False, True)}
        asked = sum(len(set(each.ratios) & {DENSE, MASKED}) + 1 for each in figures.values()) + 1
        assert sum(text.startswith((f"attention_{mix},", f"attention_{mix}_forward,")) for text in skipped) == asked
        assert sum(text.startswith(f"attention_{mix}:") for text in skipped) == 2
    assert {"gpu", "copies", "launch", "sorts", "errors", "clocks", "steps", "explain"} <= set(document)
    timed = [s for s in SECTIONS.values() if s.name.startswith(("timing", "attention"))]
    assert set(document[verdicts.TOLD]) <= {row for s in timed for row in s.rows}
    assert set(SECTIONS["timing_128"].rows) <= set(document[verdicts.TOLD])
    assert set(SECTIONS["attention_long"].rows[:3]) <= set(document[verdicts.TOLD])


def test_sections_in_processes_are_collected(tmp_path, capfd):
    """As on a GPU; the JSON is there after the first section already."""
    file = tmp_path / "gate.json"
    assert gate.main(["--rehearse", "--processes", "--only", "machine", "step", "--json", str(file)]) == 3
    document = json.loads(file.read_text())
    assert {v["section"] for v in document["verdicts"]} == {"machine", "step"}
    assert {"gpu", "copies", "steps", "elapsed_s", "commit"} <= set(document)
    printed = capfd.readouterr().out
    assert printed.index("-- machine") < printed.index("the device answers") < printed.index("-- step")
    assert "0 FAILS" in printed


def test_without_a_gpu_it_says_which_rows_are_not_measured(tmp_path, capsys):
    file = tmp_path / "gate.json"
    assert gate.main(["--json", str(file)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("not measured") and "no CUDA device" in line for line in lines)
    said = "\n".join(lines)
    assert "embed_patches, P 128, bfloat16: at least 85% of a copy, 12x facebook/mae style" in said
    assert "sample_plan, P 128, bfloat16: at most 60 us, 20x MultiMAE's sampler" in said
    assert "attention_50, bfloat16: 8x flex_attention, mask kept, 5x eager dense, compiled, 1.7x varlen_attn" in said
    assert len(json.loads(file.read_text())["verdicts"]) == len(lines)


def test_unknown_sections_are_refused(capsys):
    with pytest.raises(SystemExit):
        gate.main(["--only", "timing"])
    assert "no section 'timing'; there are machine" in capsys.readouterr().err


def test_it_needs_nothing_beyond_torch_triton_numpy_scipy_and_pytest():
    code = f"""
import sys
refused = {sorted(NOT_THERE)}
sys.modules.update(dict.fromkeys(refused))  # None: an import of it says that there is no such module
from benchmarks.gate import __main__ as gate
assert gate.main(["--rehearse", "--only", "machine", "lengths", "step"]) in (0, 3)
from physiofast import engine, ops
assert not engine.native
print([name for name in refused if sys.modules[name]], ops.explain().splitlines()[0].split(",")[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] backend: auto"


def verdict_of(run, tmp_path):
    """Outcomes of what a function tells a notebook."""
    notebook = Notebook("some", tmp_path / "some.jsonl", measures=False)
    run(notebook)
    return verdicts.read(notebook.path)[0]


def test_a_wrong_kernel_is_a_red_line_and_the_others_go_on(tmp_path, monkeypatch):
    right = assemble.assemble_tokens
    monkeypatch.setattr(assemble, "assemble_tokens", lambda *args: right(*args) * (1 + 2e-6))
    backends.form.cache_clear()
    found = verdict_of(lambda notebook: correctness.float32(Context.rehearsal(tmp_path), notebook), tmp_path)
    backends.form.cache_clear()
    red = {v.text.split(" (")[0] for v in found if v.outcome == "FAILS"}
    assert red == {"assemble_tokens"}
    assert {v.text.split(" (")[0] for v in found if v.outcome == "holds"} >= {"embed_patches", "masked_mse"}


def test_a_kernel_that_fails_is_a_red_line_and_the_others_go_on(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("out of resources: shared memory")

    monkeypatch.setattr(assemble, "take_tokens", refuse)
    backends.form.cache_clear()
    found = verdict_of(lambda notebook: correctness.float32(Context.rehearsal(tmp_path), notebook), tmp_path)
    backends.form.cache_clear()
    red = [v for v in found if v.outcome == "FAILS"]
    assert all(v.text.startswith("take_tokens") and "out of resources" in v.found for v in red)
    assert sum(v.outcome == "holds" for v in found) > 8


@pytest.mark.parametrize("name", ["float32", "warm_128", "timing_128", "step"])
def test_a_kernel_that_loses_the_device_ends_its_section_with_one_red_line(name, tmp_path, monkeypatch):
    """CUDA would say the same of all that comes after it."""

    def lose(*arguments):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(assemble, "assemble_tokens", lose)
    monkeypatch.setattr(reference, "assemble_tokens", lose)  # where a rehearsal of the step takes definitions
    backends.form.cache_clear()
    notebook = Notebook(name, tmp_path / f"{name}.jsonl", measures=False)
    assert not runner.attempt(SECTIONS[name], Context.rehearsal(tmp_path), notebook)
    backends.form.cache_clear()
    found = verdicts.read(notebook.path)[0]
    (red,) = (v for v in found if v.outcome == "FAILS")
    assert "illegal memory access" in red.found
    assert red.text.startswith("joint decoder" if name == "step" else "assemble_tokens")
    assert (found[-1].outcome, found[-1].found) == ("not measured", "the device context is lost")
    assert red is found[-2]


def test_an_op_with_kernels_that_nobody_checks_is_a_red_line(monkeypatch):
    assert correctness.uncovered() == []
    monkeypatch.setitem(backends._KERNELS, "unheard_of", "loss")
    assert correctness.uncovered() == ["unheard_of"]


@pytest.mark.parametrize(("op_us", "outcome"), [(23.0, "holds"), (23.1, "FAILS")])
def test_host_time_is_judged_above_tritons_own_call_and_told_above_our_starts(tmp_path, monkeypatch, op_us, outcome):
    context, seen = Context.rehearsal(tmp_path), []

    def microseconds(jobs, context):
        for job in jobs[1:]:  # each writes anew what the op has written
            started[0].args[2].fill_(torch.nan)
            job()
            seen.append(started[0].args[2].clone())
        return [op_us, 15.0, 4.0]

    x, index = torch.randn(5, 16), torch.tensor([3, 0, -1, 4], dtype=torch.int32)
    with ops.backend("triton"):
        job = functools.partial(backends.run, "take_tokens", x[None], index, torch.zeros(1, 5, dtype=torch.int32))
        right = job()
        with launching.written_down() as started:
            job()
        monkeypatch.setattr(launching, "written_down", lambda: contextlib.nullcontext(started))
        monkeypatch.setattr(host, "_microseconds", microseconds)
        notebook = Notebook("host", tmp_path / "host.jsonl", measures=True)
        host.measure("take_tokens", job, context, notebook)
    (line,), data = verdicts.read(notebook.path)
    assert (line.outcome, line.text) == (
        outcome,
        "take_tokens: host time at most 8 us above its 1 bare Triton launches",
    )
    above = f"bare Triton launches 15.0, +{op_us - 15:.1f}; the package's own starts 4.0, +{op_us - 4:.1f}"
    assert line.found == f"{op_us} us; {above}"
    assert data["host"] == [
        {"op": "take_tokens", "launches": 1, "op_us": op_us, "bare_triton_us": 15.0, "package_starts_us": 4.0}
    ]
    assert len(seen) == 2 and all(torch.equal(found, right) for found in seen)


def test_host_time_of_the_linear_loss_is_judged_above_its_kernels_and_its_product(tmp_path, monkeypatch):
    products, linear = [], torch.nn.functional.linear
    seen = lambda *known: products.append(len(known)) or linear(*known)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "linear", seen)
    per_job = []

    def microseconds(jobs, context):
        for job in jobs:
            products.clear()
            job()
            per_job.append(len(products))
        return [20.0, 15.0, 4.0]

    monkeypatch.setattr(host, "_microseconds", microseconds)
    notebook = Notebook("host", tmp_path / "host.jsonl", measures=True)
    context = Context.rehearsal(tmp_path)
    with context.kernels(torch.float32):
        host.measure_linear(context, notebook)
    (line,), data = verdicts.read(notebook.path)
    assert line.outcome == "holds"
    assert line.text.startswith("linear_masked_mse: host time at most 8 us above its ")
    assert data["host"][0]["launches"] >= 1
    assert per_job == [1, 1, 1]


def section(name, code, seconds=60.0, phase=0):
    """A section whose process runs some Python, and does not import torch for it."""
    run = lambda context, notebook: exec(code)  # noqa: E731
    return Section(name=name, run=run, seconds=seconds, phase=phase, rows=("what it tells",))


def run_processes(sections, codes, tmp_path, deadline_s=60.0):
    """Verdicts by section, and the order in which sections ended."""
    ended = []
    runner.in_processes(
        sections,
        lambda name: [sys.executable, "-c", codes[name]],
        tmp_path,
        time.monotonic() + deadline_s,
        lambda section: ended.append(section.name),
    )
    return {s.name: verdicts.read(tmp_path / f"{s.name}.jsonl")[0] for s in sections}, ended


def test_sections_that_hang_or_crash_leave_what_they_had_found(tmp_path):
    line = json.dumps({"verdict": {"section": "x", "text": "early", "outcome": "holds", "found": ""}})
    write = f"open({str(tmp_path)!r} + '/NAME.jsonl', 'a').write({line!r} + chr(10))"
    codes = {
        "well": write.replace("NAME", "well"),
        "hangs": write.replace("NAME", "hangs") + "; import time; time.sleep(600)",
        "crashes": write.replace("NAME", "crashes")
        + "; import os, sys; print('last words'); sys.stdout.flush(); os.abort()",
        "later": write.replace("NAME", "later"),
    }
    sections = [
        section("later", "", phase=1),
        section("well", ""),
        section("hangs", "", seconds=1.5),
        section("crashes", ""),
    ]
    found, ended = run_processes(sections, codes, tmp_path)
    assert ended[-1] == "later"
    assert {name: [v.outcome for v in lines] for name, lines in found.items()} == {
        "well": ["holds"],
        "hangs": ["holds", "FAILS", "not measured"],
        "crashes": ["holds", "FAILS", "not measured"],
        "later": ["holds"],
    }
    assert "cut off; 1.5 s are allowed" in found["hangs"][1].found
    assert "status -6" in found["crashes"][1].found and "last words" in found["crashes"][1].found


def test_rows_that_a_section_did_not_come_to_are_not_measured(tmp_path):
    rows = ("first", "second", "third")
    code = f"""
from pathlib import Path
from benchmarks.gate.verdicts import Notebook
notebook = Notebook("NAME", Path({str(tmp_path)!r}) / "NAME.jsonl", True)
notebook.judge("first, some of it", True)
notebook.told("first")
notebook.judge("second, some of it", True)
"""
    ends = {"hangs": "import time; time.sleep(600)", "crashes": "import os; os.abort()", "well": ""}
    ends["lost"] = f"raise SystemExit({runner.UNFINISHED})"
    codes = {name: code.replace("NAME", name) + end for name, end in ends.items()}
    sections = [dataclasses.replace(section(name, "", seconds=5), rows=rows) for name in ends]  # 0.2 are needed
    found, _ = run_processes(sections, codes, tmp_path, deadline_s=20.0)
    for name in ("hangs", "crashes", "lost"):
        lines = [(line.outcome, line.text, line.found) for line in found[name] if line.text in rows]
        why = "the section ended before all of it was told"
        assert lines == [("not measured", "second", why), ("not measured", "third", why)]
    assert [line.outcome for line in found["well"]] == ["holds", "holds"]


def test_no_section_runs_beyond_the_deadline(tmp_path):
    codes = {"hangs": "import time; time.sleep(600)", "next": "import time; time.sleep(600)"}
    began = time.monotonic()
    found, _ = run_processes([section("hangs", ""), section("next", "", phase=1)], codes, tmp_path, deadline_s=1.0)
    assert time.monotonic() - began < 20
    assert [line.outcome for line in found["hangs"]] == ["FAILS", "not measured"]
    assert found["hangs"][0].found == "cut off; no more time was left"
    assert [(line.outcome, line.text, line.found) for line in found["next"]] == [
        ("not measured", "what it tells", "no time was left")
    ]


def test_nothing_that_a_section_started_runs_on(tmp_path):
    """Neither behind a section that has ended, nor behind a gate that is stopped while sections run."""
    pids = tmp_path / "pids"
    child = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, file=open({str(pids)!r}, "a"), flush=True)
"""
    codes = {"leaves a child": child, "runs": child + "time.sleep(600)"}

    def stopped(ended):
        while len(pids.read_text().split()) < 2:
            time.sleep(0.05)
        raise KeyboardInterrupt

    sections = [section(name, "") for name in codes]
    command = lambda name: [sys.executable, "-c", codes[name]]  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        runner.in_processes(sections, command, tmp_path, time.monotonic() + 60, stopped)
    ends = time.monotonic() + 20
    while any(_runs(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < ends
        time.sleep(0.05)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_section_in_its_own_process_says_that_there_is_no_gpu(tmp_path):
    found, _ = run_processes(
        [SECTIONS["capture"]], {"capture": f"""
import sys
from benchmarks.gate.__main__ import main
sys.exit(main(["--section", "capture", "--folder", {str(tmp_path)!r}]))
"""}, tmp_path)  # fmt: skip
    line, missing = found["capture"]
    assert line.outcome == "FAILS"
    assert "PyTorch sees no CUDA device" in line.found
    assert (missing.outcome, missing.text) == ("not measured", *SECTIONS["capture"].rows)


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [((), 3), (("holds", "noted"), 0), (("holds", "not measured"), 3), (("FAILS", "not measured"), 1)],
)
def test_exit_status(outcomes, status):
    assert verdicts.status([Verdict(section="s", text="t", outcome=outcome) for outcome in outcomes]) == status


def test_a_notebook_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path, capsys):
    notebook = Notebook("some", tmp_path / "some.jsonl", measures=True)
    notebook.judge("first", True)
    notebook.keep("rows", [1])
    notebook.keep("rows", [2])
    notebook.keep("speed", 3.0)
    with notebook.path.open("a") as file:
        file.write('{"verdict": {"sec')
    lines, data = verdicts.read(notebook.path)
    assert [line.text for line in lines] == ["first"]
    assert data == {"rows": [1, 2], "speed": 3.0}
