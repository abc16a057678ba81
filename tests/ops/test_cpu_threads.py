"""C++ forms of ops on PyTorch's threads: its team is found, and no bit depends on who works."""

import os
import signal
import sys

import pytest
import torch

from physiofast import engine
from physiofast.ops import cpu_attention, cpu_tokens
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
