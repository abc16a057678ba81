"""What PyTorch's counter of operations is told of the ops: the products that plain PyTorch would need for the same."""

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.mixedbatch import make_batch
from physiofast import ops
from physiofast.attention import ModalityAttention
from physiofast.attention_forms import pair_biases
from physiofast.model import ModelConfig, MultimodalMAE
from physiofast.objective import masked_loss
from tests.ops.attention import make_case


def counted(run):
    """Op -> operations."""
    with FlopCounterMode(display=False) as counter:
        run()
    return {str(op).rpartition(".")[2]: count for op, count in counter.get_flop_counts().get("Global", {}).items()}


@pytest.fixture(scope="module")
def batch():
    return make_batch(1, rates=(16, 7, 3), dtype=torch.float32)


def test_embedding_counts_as_gathering_and_multiplying(batch):
    lengths, visible = batch.montage.patch_lengths, batch.plan.visible
    weight = torch.randn(sum(lengths), 8, requires_grad=True)
    table = torch.randn(batch.montage.tokens, 8, requires_grad=True)
    patches = ops.take_patches(batch.rows, visible, patch_lengths=lengths)

    def plain():
        starts = ops.row_offsets(lengths)
        for m, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            (patches[visible.modality == m, :length] @ weight[start : start + length]).sum().backward()

    found = counted(
        lambda: ops.embed_patches(batch.rows, visible, weight, table, patch_lengths=lengths).sum().backward()
    )
    assert found["embed_patches"] == found["embed_patches_backward"] > 0
    assert sum(found.values()) == sum(counted(plain).values())


def test_the_gradient_of_samples_is_one_product_more(batch):
    samples, weight, table = (torch.randn(shape, requires_grad=True) for shape in ((2, 2, 24), (8, 4), (6, 4)))
    visible = torch.tensor([[True, False] * 3] * 2)
    plan = ops.Plan.from_mask(visible, torch.ones_like(visible), torch.zeros(6, dtype=torch.int64), torch.arange(6.0))
    found = counted(
        lambda: ops.embed_patches(samples, plan.visible, weight, table, patch_lengths=(8,)).sum().backward()
    )
    assert found == {"embed_patches": 2 * 6 * 8 * 4, "embed_patches_backward": 4 * 6 * 8 * 4}


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([5, 1, 0, 7], None), ([3, 4, 2, 6], [6, 0, 5, 1])])
def test_attention_counts_each_window_as_it_is(lengths_q, lengths_k):
    case = make_case(lengths_q, lengths_k, heads=2, width=16, dtype=torch.float32, tail=3)
    leaves, options = case.leaves(), dict(case.options)
    pairs = [((1, 2, q, 16), (1, 2, k, 16)) for q, k in zip(lengths_q, lengths_k or lengths_q, strict=True)]
    found = counted(lambda: ops.modality_attention(*leaves[:3], *case.packings, **options).sum().backward())
    assert found["modality_attention"] == sum(sdpa_flop_count(q, k, k) for q, k in pairs)
    assert found["modality_attention_backward"] == sum(sdpa_backward_flop_count(q, q, k, k) for q, k in pairs)


def test_windows_of_one_length_count_as_in_scaled_dot_product_attention():
    case = make_case([6, 6, 6], None, heads=2, width=16, dtype=torch.float32, tail=0)
    tiles = [tensor.detach().unflatten(0, (3, 6)).transpose(1, 2) for tensor in (case.q, case.k, case.v)]
    with sdpa_kernel(SDPBackend.MATH):
        want = counted(lambda: torch.nn.functional.scaled_dot_product_attention(*tiles))
    found = counted(lambda: ops.modality_attention(case.q.detach(), case.k, case.v, *case.packings))
    assert sum(found.values()) == sum(want.values()) > 0


def test_the_loss_of_a_linear_map_counts_as_the_map(batch):
    lengths, hidden = batch.montage.patch_lengths, batch.plan.hidden
    x, head = torch.randn(len(hidden.ids), 8, requires_grad=True), torch.randn(max(lengths), 8, requires_grad=True)
    rest = (batch.rows, hidden, batch.weights)
    found = counted(lambda: ops.linear_masked_mse(x, head, None, *rest)[0].backward())
    want = counted(lambda: ops.masked_mse(torch.nn.functional.linear(x, head), *rest)[0].backward())
    assert sum(found.values()) == sum(want.values()) > 0


@torch.no_grad()
def test_a_module_counts_the_same_by_padded_windows_of_one_length():
    """But for what `sdpa` makes its mask of biases with; PyTorch does not count its own faster attention on a CPU."""
    packing = make_case([6, 6, 6], None, dtype=torch.float32, tail=0).packings[0]
    x, module, found = torch.randn(18, 16), ModalityAttention(16, 2, 3, decay=False), {}
    for module.attention in ("packed", "sdpa"):
        with sdpa_kernel(SDPBackend.MATH):
            found[module.attention] = counted(lambda: module(x, packing))
    biases = counted(lambda: pair_biases(packing, packing, module._options(), torch.float32))
    assert sum(found["packed"].values()) == sum(found["sdpa"].values()) - sum(biases.values())


def test_a_model_counts_the_same_but_for_attention(batch):
    found = {}
    for form in ("packed", "sdpa"):
        torch.manual_seed(0)
        sizes = {"width": 16, "depth": 1, "heads": 2, "decoder": "joint", "decoder_width": 16, "decoder_depth": 1}
        model = MultimodalMAE(batch.montage, ModelConfig(attention=form, **sizes))
        found[form] = counted(lambda model=model: masked_loss(model, batch.rows, batch.plan)[0].backward())
    packed, sdpa = found["packed"], found["sdpa"]
    for op in ("addmm", "embed_patches", "embed_patches_backward"):
        assert packed[op] == sdpa[op] > 0
    assert packed["modality_attention_backward"] == 2.5 * packed["modality_attention"] > 0
    assert "modality_attention" not in sdpa


def test_sizes_stand_in_where_there_are_no_values(batch):
    lengths, visible = batch.montage.patch_lengths, batch.plan.visible
    rows, packing = ops.to_device(batch.rows, "meta"), ops.to_device(visible, "meta")
    weight, table = (torch.empty(size, 8, device="meta") for size in (sum(lengths), batch.montage.tokens))
    found = counted(lambda: ops.embed_patches(rows, packing, weight, table, patch_lengths=lengths))
    assert found == {"embed_patches": 2 * len(visible.ids) * max(lengths) * 8}
    q = torch.empty(len(visible.ids), 2, 8, device="meta")
    found = counted(lambda: ops.modality_attention(q, q, q, packing, packing))
    assert found == {"modality_attention": 4 * (len(visible.cu_seqlens) - 1) * visible.max_len**2 * 2 * 8}


def test_a_counter_that_was_imported_later_knows_them_too():
    code = """
import sys, torch
from physiofast import ops
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
visible = torch.tensor([[True, False] * 3])
plan = ops.Plan.from_mask(visible, torch.ones_like(visible), torch.zeros(6, dtype=torch.int64), torch.arange(6.0))
with FlopCounterMode(display=False) as counter:
    ops.embed_patches(torch.zeros(1, 2, 24), plan.visible, torch.zeros(8, 4), torch.zeros(6, 4), patch_lengths=(8,))
print(counter.get_total_flops())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(2 * 3 * 8 * 4)
