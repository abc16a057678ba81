"""`physiofast doctor` says what serves and why, and exits with 1 when something is broken."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from physiofast import cli, doctor, engine
from physiofast.ops import backends, triton

native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))


def run_doctor(*arguments, prelude="", **environment):
    code = f"import sys\n{prelude}\nfrom physiofast.cli import main\nsys.exit(main(['doctor', *{list(arguments)!r}]))"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def test_a_sound_installation(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"numpy {np.__version__}" in printed
    assert "No problem found." in printed
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["numpy"] == np.__version__
    assert found["native"] == engine.native
    assert found["threads"] == engine.threads()
    assert found["instruction_set"] == engine.instruction_set()
    assert found["problems"] == []
    expected = dict.fromkeys(("decode", "filter", "gather", "gather float16"), "ok") if engine.native else {}
    assert found["self_test"] == expected


@pytest.mark.parametrize(
    ("name", "capability", "said"),
    [
        (None, None, "GPU: none\nTriton kernels: serve no CUDA tensors, because PyTorch sees no CUDA device; "),
        ("NVIDIA H200", (9, 0), "GPU: NVIDIA H200\nTriton kernels: serve CUDA tensors; physiofast.ops.explain() says"),
        (
            "Tesla V100",
            (7, 0),
            "because the kernels need GPUs of compute capability 8.0 or more; cuda:1 has 7.0: leave it out",
        ),
    ],
)
def test_which_gpu_and_whether_kernels_serve_it(name, capability, said, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", name and "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((9, 0), capability)[device])
    monkeypatch.setattr(backends, "refusal", triton.refusal.__wrapped__)
    assert cli.main(["doctor"]) == 0
    assert said in capsys.readouterr().out


def test_a_pytorch_that_cannot_be_asked_is_a_problem(monkeypatch, capsys):
    def broken():
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert cli.main(["doctor"]) == 1
    assert "problem PyTorch cannot be asked for a GPU: RuntimeError: the driver is too old" in capsys.readouterr().out


@native_only
def test_threads_and_why(monkeypatch):
    monkeypatch.setenv("PHYSIOFAST_THREADS", "3")
    assert (doctor.diagnose().threads, doctor.diagnose().threads_reason) == (3, "PHYSIOFAST_THREADS")
    monkeypatch.delenv("PHYSIOFAST_THREADS")
    assert "CPUs that this process may run on" in doctor.diagnose().threads_reason


def test_the_chosen_twins_are_no_problem():
    run = run_doctor(PHYSIOFAST_NATIVE="0")
    assert run.returncode == 0, run.stderr
    assert "twins in NumPy and SciPy, because PHYSIOFAST_NATIVE=0" in run.stdout
    assert "self-test" not in run.stdout


def test_a_missing_extension_is_a_problem_with_its_remedy():
    run = run_doctor(prelude="sys.modules['physiofast._native'] = None", PHYSIOFAST_NATIVE="1")
    assert run.returncode == 1, run.stderr
    assert "problem physiofast._native does not import" in run.stdout
    assert "pip install ." in run.stdout


def test_a_refused_number_of_threads_is_a_problem():
    run = run_doctor("--json", PHYSIOFAST_THREADS="many")
    assert run.returncode == 1, run.stderr
    found = json.loads(run.stdout)
    assert found["threads"] is None
    assert found["problems"] == ["PHYSIOFAST_THREADS needs a whole number from 1 to 1024; found 'many'"]


def test_a_missing_package_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name in ("wfdb", "triton") else "1.0")
    assert doctor.diagnose().problems == ("wfdb is not installed; run: pip install wfdb",)


@native_only
@pytest.mark.parametrize(("name", "part"), [("condition", "filter"), ("gather_rows", "gather")])
def test_a_wrong_result_is_found(monkeypatch, capsys, name, part):
    right = getattr(engine, name)

    def wrong(*arguments, **options):
        result = right(*arguments, **options)
        changed = arguments[4] if result is None else result
        changed.reshape(-1)[-1] += 1
        return result

    monkeypatch.setattr(engine, name, wrong)
    assert cli.main(["doctor"]) == 1
    assert f"self-test of {part}: the C++ result differs from its twin" in capsys.readouterr().out


@native_only
def test_a_self_test_that_fails_is_a_problem(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(engine, "SignalFile", broken)
    assert doctor.diagnose().self_test["decode"] == "RuntimeError: no such kernel"
    assert doctor.diagnose().problems == ("self-test of decode: RuntimeError: no such kernel",)
