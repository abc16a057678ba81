"""Parts of a projection: as `unbind`, but gradients that lie side by side are not copied."""

import itertools

import pytest
import torch

from physiofast.ops import cpu_attention, reference
from physiofast.ops.projection import cut, room_for_gradients
from physiofast.ops.triton import attention_backward
from tests.ops.attention_kernels import draw

TOKENS, HEADS, WIDTH = 7, 3, 5


def drawn(parts, **options):
    return torch.randn(TOKENS, parts, HEADS, WIDTH, **options)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_lie_where_the_projection_does(parts):
    x = drawn(parts)
    for found, want in zip(cut(x), x.unbind(1), strict=True):
        assert torch.equal(found, want)
        assert found.data_ptr() == want.data_ptr()


def gradients_of(x, parts):
    """The gradient of x when those of its parts are given."""
    return torch.autograd.grad(cut(x), x, parts)[0]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gradients_that_lie_side_by_side_are_that_of_the_projection(parts):
    grad = drawn(parts)
    found = gradients_of(drawn(parts, requires_grad=True), grad.unbind(1))
    assert torch.equal(found, grad)
    assert found.data_ptr() == grad.data_ptr()


def swapped(grad):
    first, second = grad.unbind(1)
    return second, first


def overlapping(grad):
    first, _ = grad.unbind(1)
    return first, first


@pytest.mark.parametrize(
    "take",
    [
        swapped,
        overlapping,
        lambda grad: [part.clone() for part in grad.unbind(1)],
        lambda grad: torch.cat([grad, grad[:, :1]], 1).unbind(1)[:2],
        lambda grad: [grad[:, 0], grad.clone()[:, 1]],
        lambda grad: [part.mT.contiguous().mT for part in grad.unbind(1)],
    ],
    ids=["swapped", "twice the same", "apart", "two of three", "two buffers", "other strides"],
)
def test_other_gradients_are_put_together(take):
    grads = take(drawn(2))
    assert torch.equal(gradients_of(drawn(2, requires_grad=True), grads), torch.stack(list(grads), 1))


def test_a_part_without_gradient_gets_zeros():
    x = drawn(3, requires_grad=True)
    (found,) = torch.autograd.grad(cut(x)[1].sum(), x)
    assert torch.equal(found, torch.zeros_like(x).index_fill(1, torch.tensor([1]), 1))


def test_gradients_of_gradients():
    x = drawn(2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(lambda x: [a * b for a, b in itertools.pairwise(cut(x))], x)


def test_room_lies_as_what_it_is_for():
    q, k, v = cut(drawn(3))
    assert gradients_of(drawn(3, requires_grad=True), room := room_for_gradients([q, k, v], True)).data_ptr() == (
        room[0].data_ptr()
    )
    key, value = cut(drawn(2))
    query, *others = room_for_gradients([q, key, value], True)
    assert query.is_contiguous()
    assert gradients_of(drawn(2, requires_grad=True), others).data_ptr() == others[0].data_ptr()
    for place in (
        *room_for_gradients([q.contiguous(), k.contiguous(), v.contiguous()], True),
        *room_for_gradients([q, k, v], False),
    ):
        assert place.is_contiguous()


@pytest.mark.parametrize("form", [reference, cpu_attention, attention_backward], ids=["reference", "cpu", "triton"])
@pytest.mark.parametrize("lengths", [[5, 0, 9], [5, 70, 0, 20]], ids=["short", "long"])
@pytest.mark.parametrize("is_cross", [False, True], ids=["self", "cross"])
def test_attention_writes_gradients_where_they_belong(form, lengths, is_cross):
    other = [3 + length // 2 for length in lengths] if is_cross else lengths
    drawn = draw(lengths, other, torch.float32, heads=2, width=8)
    q, k, v = drawn.qkv
    fused = [torch.stack(parts, 1) for parts in ([[q], [k, v]] if is_cross else [[q, k, v]])]
    parts = [part for whole in fused for part in whole.unbind(1)]
    found = reference.modality_attention(*parts, *drawn.sides)
    given = (drawn.grad, *parts, *found, *drawn.sides, True)
    apart = form.modality_attention_backward(*given)
    together = form.modality_attention_backward(*given, may_share=True)
    for one, another in zip(apart, together, strict=True):
        assert torch.equal(one, another)
    storages = [grad.untyped_storage().data_ptr() for grad in together[:3]]
    assert storages[1] == storages[2]
    assert (storages[0] == storages[1]) is not is_cross
    assert len({grad.untyped_storage().data_ptr() for grad in apart[:3]}) == 3
