"""C++ forms of ops on PyTorch's threads: its team is found, and no bit depends on who works."""

import ctypes
import os
import signal
import sys

import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast import engine, ops
from physiofast.ops import cpu_attention, cpu_loss, cpu_plan, cpu_tokens
from tests.ops.attention_kernels import draw
from tests.settings import on_torch_threads

pytestmark = [pytest.mark.native, pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where PyTorch has GNU's OpenMP")
def test_the_team_of_pytorch_is_found():
    from physiofast.ops import cpu_threads

    assert torch.backends.openmp.is_available()
    assert cpu_threads.team_start() != 0


@pytest.fixture(params=["team", "pool", "alone"])
def workers(request, monkeypatch):
    """Who works."""
    from physiofast import _native
    from physiofast.ops import cpu_threads

    start = cpu_threads.team_start() if request.param == "team" else 0
    chosen = _native.Workers(1 if request.param == "alone" else 3, start)
    for module in (cpu_attention, cpu_tokens):
        monkeypatch.setattr(module, "workers", lambda: chosen)


def test_attention_and_rows_on_all_of_them(workers):
    generator = torch.Generator().manual_seed(5)
    base, index = torch.randn(4000, 64, generator=generator), torch.randint(-1, 4000, (9000,), generator=generator)
    picked = cpu_tokens.take_tokens(base[None], index.int(), index[None])
    assert torch.equal(picked, torch.where(index[:, None] >= 0, base[index], 0))
    attended = draw([40] * 9, [50] * 9, torch.float32, width=16)
    found = cpu_attention.modality_attention(*attended.qkv, *attended.sides)
    torch.testing.assert_close(found, _attended_alone(attended), rtol=0, atol=0)


def _attended_alone(attended):
    """Of the same kernels, on one thread of the pool."""
    from physiofast import _native

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "workers", lambda: _native.Workers(1))
        return cpu_attention.modality_attention(*attended.qkv, *attended.sides)


@pytest.fixture
def starts(monkeypatch):
    """Sizes of the teams that were started; the caller alone does their work."""
    from physiofast import _native

    seen = []
    work_of = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, work_of, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def start(work, data, threads, flags):
        seen.append(threads)
        work(data)

    chosen = _native.Workers(3, ctypes.cast(start, ctypes.c_void_p).value)
    for module in (cpu_loss, cpu_plan, cpu_tokens):
        monkeypatch.setattr(module, "workers", lambda: chosen)
    yield seen
    del start  # which had to live until here


def token_ops(batch, width):
    """Values and gradients of the ops that pass over rows; each is a call of the engine or more."""
    plan, rows, lengths = batch.plan, batch.rows, batch.montage.patch_lengths
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    grid = (batch.montage.tokens, width)
    x, weight, table = draw(len(rows.valid), *grid), draw(sum(lengths), width), draw(*grid)
    encoded, pred = draw(len(plan.visible.ids), width), draw(len(plan.hidden.ids), max(lengths))
    results = (
        ops.take_tokens(x, plan.visible),
        ops.embed_patches(rows, plan.visible, weight, table, patch_lengths=lengths),
        ops.assemble_tokens(encoded, plan, table, table),
        ops.masked_mse(pred, rows, plan.hidden, batch.weights, patch_lengths=lengths)[0],
    )
    leaves = (x, weight, table, encoded, pred)
    return *results, *torch.autograd.grad(sum(result.square().sum() for result in results), leaves)


@pytest.mark.parametrize(("batch", "has_team"), [(4, False), (60, True)])
def test_a_team_is_started_for_what_is_worth_it(batch, has_team, starts, monkeypatch):
    """Each thread of it waits for a core: milliseconds where all are busy, for work of microseconds."""
    batch = make_batch(1, rates=(40, 17, 1), batch=batch, patches=12)
    found = token_ops(batch, 64)
    assert bool(starts) == has_team
    monkeypatch.undo()
    with on_torch_threads(1):
        assert all(map(torch.equal, found, token_ops(batch, 64)))


def test_a_fork_of_a_process_whose_team_has_worked():
    drawn = draw([40] * 9, [50] * 9, torch.float32, width=16)
    with on_torch_threads(3):
        wanted = cpu_attention.modality_attention(*drawn.qkv, *drawn.sides)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # in place of waiting for threads that are not there
            found = cpu_attention.modality_attention(*drawn.qkv, *drawn.sides)
            os._exit(0 if all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
