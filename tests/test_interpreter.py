import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from benchmarks import interpreter as ours
from benchmarks.mixedbatch import make_batch
from physiofast.ops.triton import attention_backward, embed, plan
from tests.ops.kernels import Calls, outputs, plan_arguments

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not interpreted")


def results():
    """Of kernels that call device functions: our own, of other modules, and Triton's in both of its languages."""
    calls = Calls(make_batch(2, rates=(16, 16, 4), patches=4, batch=3), 20, torch.float32)
    found = outputs(embed.embed_patches, calls.arguments("embed_patches"))
    found += outputs(attention_backward.modality_attention_backward, calls.arguments("modality_attention_backward"))
    return found + outputs(plan.sample_plan, plan_arguments(1))


def test_kernels_compute_what_they_do_in_tritons_own_interpreter(monkeypatch):
    """And it is prepared once for each kernel, and as it was after it."""
    assert interpreter._patch_lang is ours._patch_unless_it_is
    counts = {"asked": 0, "done": 0}

    def count(name, function):
        def counted(fn):
            counts[name] += 1
            return function(fn)

        return counted

    monkeypatch.setattr(ours, "_patch", count("done", ours._patch))
    monkeypatch.setattr(interpreter, "_patch_lang", count("asked", interpreter._patch_lang))
    found = results()
    assert tl.core.is_builtin(tl.load) and tl.core.is_builtin(tl.tensor.to)
    assert counts["done"] < counts["asked"] / 3
    for owner, name, tritons, _ in ours.FASTER:
        monkeypatch.setattr(owner, name, tritons)
    assert interpreter.interpreter_builder.options.sanitize_overflow
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, results(), strict=True))


@pytest.mark.parametrize("turned", [False, True])
def test_rows_of_a_product_do_not_depend_on_where_they_lie(turned):
    """As on a GPU; a BLAS may treat the last rows of a matrix otherwise than the first."""
    random = np.random.default_rng(0)
    a, b = (random.normal(size=shape).astype(np.float32) for shape in ((64, 48), (32, 48) if turned else (48, 32)))
    b = b.T if turned else b

    def product(left):
        zero = np.zeros((len(left), 32), np.float32)
        handles = [interpreter.TensorHandle(data, tl.float32) for data in (left, b, zero)]
        return interpreter.interpreter_builder.create_dot(*handles, None, 0).data

    whole = product(a)
    np.testing.assert_allclose(whole, a.astype(np.float64) @ b, rtol=0, atol=1e-4)
    for first, size in ((0, 16), (5, 1), (40, 24), (63, 1)):
        assert np.array_equal(product(a[first : first + size]), whole[first : first + size])
