"""What is computed on a GPU has the same bits in every run, though here is none: no op that adds there in any order."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.mixedbatch import make_batch
from physiofast import ops
from physiofast.embedding import embed, pool_modalities
from physiofast.masking import MaskingConfig, Planner
from physiofast.model import ModelConfig, MultimodalMAE
from physiofast.objective import ObjectiveConfig, hidden_errors, masked_loss
from physiofast.ops import reference
from physiofast.windows import WindowReader, index_windows
from tests.cohort import MONTAGE
from tests.ops.kernels import OPS, Calls, plan_arguments

IN_ANY_ORDER = ("index_add", "scatter_add", "scatter_reduce", "index_reduce", "bincount", "histc", "put_", "kthvalue")
"""As `torch.use_deterministic_algorithms` has it, of CUDA tensors."""


class Seen(TorchDispatchMode):
    """Names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))

    def unordered(self):
        return {name for name in self.names if name.startswith(IN_ANY_ORDER)}


@pytest.mark.parametrize("decoder", ["joint", "cross"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_step(decoder, qk_norm):
    batch = make_batch(5, rates=(32, 16, 4), patches=6)
    config = ModelConfig(width=16, depth=2, heads=2, decoder_width=16, decoder=decoder, qk_norm=qk_norm)
    model = MultimodalMAE(batch.montage, config)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    with Seen() as seen:
        loss, _, _ = masked_loss(model, batch.rows, batch.plan, None, ObjectiveConfig(normalise=("EEG",)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert {"physiofast::masked_mse", "physiofast::modality_attention_backward", "embedding_dense_backward"} <= (
        seen.names | ({"embedding_dense_backward"} if decoder == "joint" else set())
    )
    assert not seen.unordered()


@pytest.mark.parametrize("op", [*OPS, "sample_plan", "take_patches"])
def test_definitions(op):
    """Their sums; where some rows are written by index, each is written once."""
    calls = Calls(make_batch(5, rates=(32, 16, 4), patches=6), 8, torch.float32)
    if op == "sample_plan":
        arguments = plan_arguments(3)
    elif op == "take_patches":
        arguments = (*calls.masked_mse()[1:8], calls.lengths)
    else:
        arguments = calls.arguments(op)
    with Seen() as seen:
        getattr(reference, op)(*arguments)
    assert not seen.unordered()


def test_evaluations_and_embeddings(store):
    model = MultimodalMAE(MONTAGE, ModelConfig(width=16, depth=1, heads=2, decoder_width=16))
    reader, index = WindowReader(store), index_windows(store)
    planner = Planner(MONTAGE, MaskingConfig(), 0)
    with Seen() as seen:
        hidden_errors(model, reader, index, planner, ObjectiveConfig())
        embed(model, reader.batch(index, [0, 1]))
        batch = make_batch(1)
        x = torch.randn(len(batch.plan.present.ids), 4, requires_grad=True)
        pool_modalities(x, batch.plan.present).nan_to_num(0).sum().backward()
        heads = torch.randn(len(batch.plan.present.ids), 2, 8)
        ops.modality_attention_stats(heads, heads, batch.plan.present, batch.plan.present, tau_s=(1.0,))
    assert "segment_reduce" in seen.names and not seen.unordered()
