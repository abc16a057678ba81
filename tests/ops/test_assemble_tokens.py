import pytest
import torch

from benchmarks.mixedbatch import Batch, make_batch
from physiofast import ops

pytestmark = pytest.mark.usefixtures("each_backend")


def expected(batch: Batch, encoded, table_visible, table_hidden):
    """Token by token, through a dictionary of the visible ones."""
    visible = {token: row for row, token in enumerate(batch.plan.visible.ids.tolist()) if token >= 0}
    rows = []
    for token in batch.plan.present.ids.tolist():
        n = token % batch.montage.tokens
        if token < 0:
            rows.append(torch.zeros_like(encoded[0]))
        elif token in visible:
            rows.append(encoded[visible[token]] + table_visible[n])
        else:
            rows.append(table_hidden[n])
    return torch.stack(rows)


def inputs(batch: Batch, width: int = 5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(2)
    shapes = [(len(batch.plan.visible.ids), width), (batch.montage.tokens, width), (batch.montage.tokens, width)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("patches", [1, 9])
def test_value_and_gradients_equal_the_definition(seed, patches):
    batch = make_batch(seed, patches=patches)
    arguments = inputs(batch)
    out = ops.assemble_tokens(arguments[0], batch.plan, *arguments[1:])
    want = expected(batch, *arguments)
    assert torch.equal(out, want)
    probe = torch.randn_like(out)
    got = torch.autograd.grad((out * probe).sum(), arguments)
    torch.testing.assert_close(got, torch.autograd.grad((want * probe).sum(), arguments), atol=1e-12, rtol=0)


def test_gradcheck():
    batch = make_batch(5, patches=2, batch=2)
    arguments = inputs(batch, width=2)
    assert torch.autograd.gradcheck(lambda e, v, h: ops.assemble_tokens(e, batch.plan, v, h), arguments)


def test_bad_shapes_are_named():
    batch = make_batch(6)
    encoded, visible, hidden = inputs(batch)
    with pytest.raises(ValueError, match="encoded must have shape"):
        ops.assemble_tokens(encoded[1:], batch.plan, visible, hidden)
    with pytest.raises(ValueError, match="table_hidden must have shape"):
        ops.assemble_tokens(encoded, batch.plan, visible, hidden[:, 1:])


def test_opcheck():
    batch = make_batch(7)
    encoded, visible, hidden = inputs(batch, dtype=torch.float32)
    plan = batch.plan
    torch.library.opcheck(
        torch.ops.physiofast.assemble_tokens.default,
        (encoded, plan.visible.ids, plan.present.ids, plan.visible.slot, plan.present.slot, visible, hidden),
    )
