import pytest
import torch

from benchmarks.mixedbatch import Batch, make_batch, patch_of
from physiofast import ops

pytestmark = pytest.mark.usefixtures("each_backend")


def expected(batch: Batch, weight: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The definition, token by token in float64."""
    offsets = ops.row_offsets(batch.montage.patch_lengths)
    rows = []
    for token, m in zip(batch.plan.visible.ids.tolist(), batch.plan.visible.modality.tolist(), strict=True):
        if token < 0:
            rows.append(torch.zeros(weight.shape[1], dtype=torch.float64))
            continue
        patch = patch_of(batch, token)
        part = weight[offsets[m] : offsets[m] + len(patch)].double()
        rows.append(patch @ part + table[token % batch.montage.tokens].double())
    return torch.stack(rows)


def parameters(batch: Batch, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(sum(batch.montage.patch_lengths), width, generator=generator, dtype=torch.float64)
    table = torch.randn(batch.montage.tokens, width, generator=generator, dtype=torch.float64)
    return weight.to(dtype).requires_grad_(), table.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 5, 64])
def test_equals_the_definition(dtype, width):
    batch = make_batch(3, dtype=dtype)
    weight, table = parameters(batch, width, torch.float64 if dtype == torch.float64 else torch.float32)
    out = ops.embed_patches(batch.rows, batch.plan.visible, weight, table)
    want = expected(batch, weight, table)
    scale = 1e-12 if dtype == torch.float64 else 2e-6 * want.abs().max().item()
    torch.testing.assert_close(out.double(), want, atol=scale, rtol=0)


def test_gradients_equal_autograd_of_the_definition():
    batch = make_batch(4, dtype=torch.float64)
    weight, table = parameters(batch, 6, torch.float64)
    probe = torch.randn(len(batch.plan.visible.ids), 6, dtype=torch.float64)
    want = torch.autograd.grad((expected(batch, weight, table) * probe).sum(), (weight, table))
    out = ops.embed_patches(batch.rows, batch.plan.visible, weight, table)
    got = torch.autograd.grad((out * probe).sum(), (weight, table))
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.float32])
def test_samples_are_as_exact_as_weights(dtype):
    batch = make_batch(4, dtype=dtype)
    weight, table = parameters(batch, 6, torch.float64)
    got = ops.embed_patches(batch.rows, batch.plan.visible, weight, table)
    want = expected(batch, weight, table)
    torch.testing.assert_close(got, want, atol=1e-14 * want.abs().max().item(), rtol=1e-12)
    probe = torch.randn(want.shape, dtype=torch.float64)
    gradients, wanted = (torch.autograd.grad((out * probe).sum(), (weight, table)) for out in (got, want))
    torch.testing.assert_close(gradients, wanted, atol=1e-14 * wanted[0].abs().max().item(), rtol=1e-12)


def dense_inputs() -> tuple[Batch, torch.Tensor]:
    batch = make_batch(5, channels=(2, 1), rates=(4, 4), absent=0, invalid=0, empty_window=False)
    return batch, torch.randn(4, 3, 20, dtype=torch.float64, requires_grad=True)


def test_gradcheck_with_dense_samples():
    batch = make_batch(5, channels=(1, 1), rates=(3, 3), patches=3, batch=2, absent=0, invalid=0, empty_window=False)
    x = torch.randn(2, 2, 9, dtype=torch.float64, requires_grad=True)
    weight, table = parameters(batch, 2, torch.float64)

    def embed(x, weight, table):
        return ops.embed_patches(x, batch.plan.visible, weight, table, patch_lengths=batch.montage.patch_lengths)

    assert torch.autograd.gradcheck(embed, (x, weight, table))


def test_dense_samples_equal_the_same_rows():
    batch, x = dense_inputs()
    weight, table = parameters(batch, 3, torch.float64)
    rows = ops.Rows.from_dense(x.detach(), 5)
    lengths = batch.montage.patch_lengths
    dense = ops.embed_patches(x, batch.plan.visible, weight, table, patch_lengths=lengths)
    assert torch.equal(dense, ops.embed_patches(rows, batch.plan.visible, weight, table, patch_lengths=lengths))


def test_flat_rows_refuse_a_gradient():
    batch = make_batch(6)
    weight, table = parameters(batch, 3, torch.float32)
    batch.rows.samples.requires_grad_()
    with pytest.raises(ValueError, match=r"pass the \[B, C, T\] tensor itself"):
        ops.embed_patches(batch.rows, batch.plan.visible, weight, table)


def test_reads_no_hidden_sample():
    batch = make_batch(7, dtype=torch.float32)
    weight, table = parameters(batch, 8, torch.float32)
    before = ops.embed_patches(batch.rows, batch.plan.visible, weight, table)
    for token in batch.plan.hidden.ids[batch.plan.hidden.ids >= 0].tolist():
        window, n = divmod(token, batch.montage.tokens)
        channel, patch = divmod(n, batch.montage.patches_per_window)
        length = batch.montage.patch_lengths[batch.montage.channel_modality[channel]]
        first = int(batch.rows.row_start[window, channel]) + patch * length
        batch.rows.samples[first : first + length] = torch.nan
    after = ops.embed_patches(batch.rows, batch.plan.visible, weight, table)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("weight_shape", "table_shape", "message"),
    [((23, 4), (30, 4), r"weight must have shape \[24, any\]; found \[23, 4\]"), ((24, 4), (30, 5), "table must")],
)
def test_bad_shapes_are_named(weight_shape, table_shape, message):
    batch = make_batch(8)
    with pytest.raises(ValueError, match=message):
        ops.embed_patches(batch.rows, batch.plan.visible, torch.zeros(weight_shape), torch.zeros(table_shape))


def registered(batch: Batch) -> tuple:
    """Arguments of the registered op before the weight."""
    rows, packed = batch.rows, batch.plan.visible
    where = (packed.ids, packed.modality, packed.slot, packed.by_modality, packed.cu_modality)
    return (rows.samples, rows.row_start, rows.row_scale, rows.row_shift, *where)


def test_opcheck():
    batch = make_batch(9)
    known = (list(batch.montage.patch_lengths), batch.rows.align, batch.rows.is_unscaled)
    arguments = (*registered(batch), *parameters(batch, 4, torch.float32), *known)
    torch.library.opcheck(torch.ops.physiofast.embed_patches.default, arguments)


def test_gradients_of_a_turned_weight_lie_as_tracing_says():
    """A Linear's weight, turned, has other strides than its gradient."""
    batch = make_batch(9)
    weight, _ = parameters(batch, 4, torch.float32)
    turned, grad = weight.detach().T.contiguous().T, torch.randn(len(batch.plan.visible.ids), 4)
    known = (list(batch.montage.patch_lengths), batch.rows.align, batch.rows.is_unscaled, False)
    arguments = (grad, *registered(batch), turned, *known)
    torch.library.opcheck(torch.ops.physiofast.embed_patches_backward.default, arguments)


def test_double_backward_is_refused():
    batch = make_batch(9)
    weight, table = parameters(batch, 4, torch.float32)
    out = ops.embed_patches(batch.rows, batch.plan.visible, weight, table)
    (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()


def test_autocast_of_the_caller_does_not_reach_the_sums():
    batch = make_batch(10)
    weight, table = parameters(batch, 8, torch.float32)
    arguments = (batch.rows, batch.plan.visible, weight, table)
    want = ops.embed_patches(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.embed_patches(*arguments)
        gradients = torch.autograd.grad(got.sum(), (weight, table))
    assert torch.equal(got, want)
    assert all(map(torch.equal, gradients, torch.autograd.grad(want.sum(), (weight, table))))
