import os
import subprocess
import sys

import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast import engine, ops
from physiofast.ops import backends, reference
from tests.ops.kernels import Calls

needs_extension = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))


@pytest.fixture
def calls(monkeypatch):
    """Which twins ran, by name."""
    seen = []
    for name in ("masked_mse", "take_patches"):
        twin = getattr(reference, name)
        monkeypatch.setattr(reference, name, lambda *args, f=twin, n=name: (seen.append(n), f(*args))[1])
    backends.form.cache_clear()
    yield seen
    backends.form.cache_clear()


class Reached(Exception):  # noqa: N818
    """Raised by what stands in for a twin."""

    @classmethod
    def by(cls, *arguments):
        raise cls


def run_masked_mse():
    batch = make_batch(0)
    size = (len(batch.plan.hidden.ids), max(batch.montage.patch_lengths))
    pred = torch.zeros(size, dtype=torch.float64)  # which the form for CPUs leaves to the twin
    return ops.masked_mse(pred, batch.rows, batch.plan.hidden, batch.weights)


def test_the_setting_decides_what_runs(calls):
    run_masked_mse()
    assert calls[:1] == ["masked_mse"]
    calls.clear()
    with ops.backend("triton"):
        run_masked_mse()
    assert calls == []
    with ops.backend("reference"):
        run_masked_mse()
    assert calls[:1] == ["masked_mse"]


@needs_extension
def test_a_block_ends_and_a_call_stays():
    assert "backend: auto" in ops.explain()
    with ops.backend("reference"), ops.backend("triton"):
        assert "masked_mse, cpu: triton, because" in ops.explain()
    assert "sample_plan, cpu: cpu, because a faster form for CPUs; Triton kernels are for CUDA tensors" in ops.explain()
    ops.backend("reference")
    assert "backend: reference" in ops.explain()
    ops.backend("auto")


def test_explain_without_the_extension():
    code = "from physiofast import ops; print(ops.explain())"
    environment = os.environ | {"PHYSIOFAST_NATIVE": "0"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert " cpu: cpu," not in found.stdout
    assert (
        "masked_mse, cpu: reference, because its faster form for CPUs is in C++, and PHYSIOFAST_NATIVE=0"
        in found.stdout
    )


def test_explain_has_a_line_for_each_op_and_device():
    lines = ops.explain().splitlines()[1:]
    assert len(lines) == 2 * len(ops.registration.OPS)


def test_explain_says_for_which_dtypes():
    served = "for floats of 32 and 16 bits; those of 64 are left to the definition, but by kernels in the interpreter"
    assert ops.explain().splitlines()[0] == f"backend: auto, {served}"
    for op in ("embed_patches", "assemble_tokens", "take_tokens", "take_hidden", "masked_mse", "modality_attention"):
        arguments = Calls(make_batch(0), 8, torch.float64).arguments(op)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, op, Reached.by)
            backends.form.cache_clear()
            with pytest.raises(Reached):
                backends.run(op, *arguments)
        backends.form.cache_clear()


@needs_extension
def test_explain_says_why_a_form_serves():
    lines = ops.explain().splitlines()
    assert "modality_attention, cpu: cpu, because a faster form for CPUs; Triton kernels are for CUDA tensors" in lines


def test_explain_says_what_a_composed_function_comes_to(monkeypatch):
    def line(device):
        return next(line for line in ops.explain().splitlines() if line.startswith(f"linear_masked_mse, {device}: "))

    serves = "triton, because it is PyTorch's linear and masked_mse there; its kernels serve these tensors"
    assert "linear and masked_mse" not in line("cpu")
    with ops.backend("triton"):
        assert line("cpu") == f"linear_masked_mse, cpu: {serves}"
    with ops.backend("auto"):  # which forgets, when it ends, what there is on a machine with a GPU
        monkeypatch.setattr(backends, "refusal", lambda device: None)
        assert line("cuda") == f"linear_masked_mse, cuda: {serves}"
        monkeypatch.undo()


def test_explain_says_where_kernels_leave_off():
    with ops.backend("triton"):
        (line,) = (line for line in ops.explain().splitlines() if line.startswith("sample_plan, cpu: "))
    limit = "windows of more than 4,096 tokens or 64 modalities are planned by definition"
    assert line == f"sample_plan, cpu: triton, because its kernels serve these tensors; {limit}"


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="expected one of auto, reference, triton; found 'cuda'"):
        ops.backend("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU for the kernels to run on")
def test_triton_without_a_gpu_and_without_its_interpreter_says_what_to_do():
    code = "from physiofast import ops; ops.backend('triton')"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "RuntimeError: backend('triton'): kernels run on CPU tensors in Triton's interpreter only" in done.stderr
    assert "set TRITON_INTERPRET=1" in done.stderr


def test_importing_ops_imports_no_triton():
    code = "import sys; from physiofast import ops; ops.explain(); assert 'triton' not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("setting", "said"), [("tf32", "high"), ("ieee", "highest")])
def test_a_precision_of_one_backend_is_known(setting, said):
    """PyTorch raises where it is asked for one that all backends have."""
    own = torch.backends.cuda.matmul
    before, visible = own.fp32_precision, make_batch(1).plan.visible
    own.fp32_precision = setting
    try:
        assert backends.float32_precision() == said
        ops.take_tokens(torch.zeros(*visible.slot.shape, 2), visible)
    finally:
        own.fp32_precision = before
    assert backends.float32_precision() == torch.get_float32_matmul_precision() == "highest"
