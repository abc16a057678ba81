"""What does not fit together is refused before anything reads it, with what was found and what is allowed."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast import ops
from physiofast.attention import ModalityAttention
from physiofast.ops import reference

LENGTHS = (8, 8, 8)


class Given:
    """Arguments that fit together: 4 windows of 6 channels and 5 patches of 8 samples."""

    def __init__(self):
        batch = make_batch(1, rates=LENGTHS, absent=0.0, empty_window=False)
        self.plan, self.rows = batch.plan, batch.rows
        self.samples = torch.randn(4, 6, 40)
        self.weight, self.table = torch.randn(24, 4), torch.randn(30, 4)
        self.pred, self.factors = torch.randn(len(self.plan.hidden.ids), 8), torch.ones(3)
        self.q = torch.randn(len(self.plan.present.ids), 2, 8)

    def embed(self, samples=None, lengths=LENGTHS, weight=None, table=None, **changed):
        weight, table = (self.weight if weight is None else weight), (self.table if table is None else table)
        packing = dataclasses.replace(self.plan.visible, **changed)
        return ops.embed_patches(
            self.samples if samples is None else samples, packing, weight, table, patch_lengths=lengths
        )

    def loss(self, samples=None, lengths=LENGTHS, pred=None, **changed):
        packing = dataclasses.replace(self.plan.hidden, **changed)
        samples, pred = self.samples if samples is None else samples, self.pred if pred is None else pred
        return ops.masked_mse(pred, samples, packing, self.factors[: len(lengths)], patch_lengths=lengths)

    def attend(self, q=None, packing=None, **options):
        q, packing = self.q if q is None else q, packing or self.plan.present
        return ops.modality_attention(q, q, q, packing, packing, **options)

    def assemble(self, dtype=torch.float32, **changed):
        plan = dataclasses.replace(self.plan, visible=dataclasses.replace(self.plan.visible, **changed))
        encoded = torch.randn(len(self.plan.visible.ids), 4)
        return ops.assemble_tokens(encoded, plan, self.table, self.table.to(dtype))


@pytest.fixture(scope="module")
def given():
    return Given()


CALLS = {
    "shorter patches than samples": (lambda g: g.embed(lengths=(4, 4, 4), weight=g.weight[:12]), "must be 8 samples"),
    "longer ones": (lambda g: g.loss(lengths=(16, 16, 16), pred=torch.zeros(len(g.pred), 16)), "must be 8 samples"),
    "no samples": (lambda g: g.embed(g.samples[..., :0]), r"T = 0 have 5 patches a row, so every .* 0 samples"),
    "one channel less": (
        lambda g: g.embed(torch.zeros(4, 5, 40)),
        r"C = 5 and T = 40 are C \* S = 5 \* 5 patches of 8 samples, .* N = 30 token ids; C = 6 or T = 48 would fit$",
    ),
    "no channels": (lambda g: g.embed(g.samples[:, :0]), r"C dividing the 30 token ids; found \(4, 0, 40\)"),
    "two lengths for three": (lambda g: g.embed(lengths=(8, 8), weight=g.weight[:16]), "3 modalities, but patch_"),
    "four lengths": (lambda g: g.loss(g.rows, lengths=(8, 8, 8, 8)), r"hidden has tokens of 3 modalities, .* of 4"),
    "complex samples": (lambda g: g.embed(g.samples.cfloat()), "dense samples must be int16 or .*; found complex64"),
    "integer weights": (lambda g: g.embed(weight=g.weight.int()), "weight must be float32 or .*; found int32"),
    "a table of another dtype": (lambda g: g.embed(weight=g.weight.half()), "table is torch.float32 but weight is"),
    "hidden of another dtype": (lambda g: g.assemble(torch.float64), "table_hidden is torch.float64 but table_vis"),
    "a short order": (
        lambda g: g.embed(by_modality=g.plan.visible.by_modality[1:]),
        r"visible.by_modality must have shape \[32\]; found \[31\]",
    ),
    "short modalities": (
        lambda g: g.loss(modality=g.plan.hidden.modality[1:]),
        r"hidden.modality must have shape \[96\]; found \[95\]",
    ),
    "64-bit ids": (lambda g: g.embed(ids=g.plan.visible.ids.long()), "visible.ids must be int32; found int64"),
    "slots of fewer windows": (
        lambda g: g.assemble(slot=g.plan.visible.slot[1:]),
        r"plan.visible.slot must have shape \[4, 30\]; found \[3, 30\]",
    ),
    "a mask of integers": (lambda g: g.attend(allowed=torch.ones(3, 3, dtype=torch.int64)), "allowed must be bool"),
    "biases of fewer modalities": (lambda g: g.attend(pair_bias=torch.zeros(2, 1, 1)), "but a packing has tokens of 3"),
    "a bias alone": (lambda g: g.attend(pair_bias=torch.tensor(0.0)), "pair_bias must have 3 axes, .* shape \\[\\]"),
    "no heads": (lambda g: g.attend(g.q[:, :0]), r"q must have shape \[112, heads, features\]; found \[112, 0, 8\]"),
    "integer queries": (lambda g: g.attend(g.q.int()), "q must be float32 or .*; found int32"),
    "times of 16 bits": (
        lambda g: g.attend(packing=dataclasses.replace(g.plan.present, time_s=g.plan.present.time_s.bfloat16())),
        "packing_q.time_s must be float32 or float64; found bfloat16; what casts a model's inputs",
    ),
    "short times": (
        lambda g: g.attend(packing=dataclasses.replace(g.plan.present, time_s=g.plan.present.time_s[1:])),
        r"packing_q.time_s must have shape \[112\]; found \[111\]",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_is_refused_each_time(name, given):
    call, message = CALLS[name]
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            call(given)
        for right in (given.embed, given.loss, given.attend, given.assemble):  # which calls may be known by
            right()


@pytest.mark.parametrize(
    ("option", "kind"), [({"time_decay": 0.1}, "float"), ({"pair_bias": [[0.0]]}, "list"), ({"allowed": True}, "bool")]
)
def test_options_of_attention_that_are_no_tensors_are_named(given, option, kind):
    (name,) = option
    message = f"^{name} must be a tensor; found {kind}: torch.as_tensor makes tensors$"
    with pytest.raises(TypeError, match=message):
        given.attend(**option)
    with pytest.raises(TypeError, match=message):
        ops.modality_attention_stats(given.q, given.q, given.plan.present, given.plan.present, **option)


@pytest.mark.parametrize(
    ("normalise", "kind"),
    [
        (["EEG", "EOG", "ECG"], TypeError),
        (["1", "0", "0"], TypeError),
        ("EEG", TypeError),
        (7, TypeError),
        ([0, 1, 2], ValueError),
        ([0.5, 0, 0], ValueError),
    ],
)
def test_normalise_of_anything_but_bools_is_refused(given, normalise, kind):
    with pytest.raises(kind, match=r"^normalise needs a bool for each modality, such as \[True, True, True\]; found"):
        ops.masked_mse(given.pred, given.samples, given.plan.hidden, given.factors, normalise, patch_lengths=LENGTHS)


@pytest.mark.parametrize(
    ("lengths", "kind"),
    [
        (["EEG", "EOG", "ECG"], TypeError),
        ("888.", TypeError),
        ((8, None, 8), TypeError),
        (8, TypeError),
        ((8, 8.5, 8), ValueError),
        ((8, float("inf"), 8), ValueError),
    ],
)
def test_patch_lengths_of_anything_but_whole_numbers_are_refused(given, lengths, kind):
    """A fraction was cut off, so that 25.5 samples were 25."""
    with pytest.raises(kind, match=r"^patch_lengths needs P_m for each modality, such as \(100,\); found"):
        given.embed(given.rows, lengths=lengths)


def test_patch_lengths_may_be_of_arrays_tensors_and_whole_floats(given):
    want = given.embed()
    for lengths in (np.array(LENGTHS), torch.tensor(LENGTHS), [8.0] * 3, LENGTHS):
        assert torch.equal(given.embed(lengths=lengths), want)


def test_arguments_that_are_no_tensors_are_named(given):
    with pytest.raises(TypeError, match=r"^weight must be a tensor; found NoneType"):
        ops.embed_patches(given.samples, given.plan.visible, None, given.table, patch_lengths=LENGTHS)
    with pytest.raises(TypeError, match=r"^x must be a tensor; found NoneType"):
        ops.with_hidden(None, given.plan)


def test_normalise_may_be_of_arrays_tensors_and_whole_numbers(given):
    for flags in (torch.zeros(3, dtype=torch.bool), np.zeros(3, np.bool_), (0, 0, 0), [False] * 3):
        ops.masked_mse(given.pred, given.samples, given.plan.hidden, given.factors, flags, patch_lengths=LENGTHS)


def draw(batch=2, **changed):
    drawn = {
        "quotas": torch.tensor([2, 1]).expand(batch, 2),
        "valid": torch.ones(batch, 3, dtype=torch.bool),
        "window_id": torch.arange(batch),
        "seed_step": torch.zeros(2, dtype=torch.int64),
        "token_modality": torch.tensor([0, 0, 1], dtype=torch.int32),
        "token_time_s": torch.arange(3.0),
        "sizes": ops.PlanSizes((6, 0, 6), (3, 0, 3)),
    } | changed
    return ops.sample_plan(**drawn)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"valid": torch.ones(2, 3, dtype=torch.uint8)}, "valid must be bool; found uint8"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, r"valid must have shape \[any, any\]; found \[3\]"),
        ({"window_id": torch.arange(2, dtype=torch.int32)}, "window_id must be int64; found int32"),
        ({"quotas": torch.ones(2, 2)}, "quotas must be int64 or .*; found float32"),
        ({"token_time_s": torch.arange(3)}, "token_time_s must be float32; found int64"),
    ],
)
def test_a_plan_from_what_does_not_fit_is_refused(changed, message):
    assert draw().visible.cu_seqlens.tolist() == [0, 3, 6]
    with pytest.raises(ValueError, match=message):
        draw(**changed)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": ops.PlanSizes((5, 0, 6), (3, 0, 3))}, "sizes.totals 0: expected at least 6, found 5"),
        ({"sizes": ops.PlanSizes((6, 0, 6), (2, 0, 3))}, "sizes.max_lens of visible must be at least 3; found 2"),
        ({"token_modality": torch.tensor([1, 0, 0]).int()}, "token_modality 1: expected 1 to 1, found 0"),
    ],
)
def test_a_plan_that_has_no_room_or_order_is_refused(changed, message, backend):
    """By the definition and the faster form alike."""
    with ops.backend(backend):
        draw()  # of whose shapes no check is asked again
        with pytest.raises(ValueError, match=rf"^{message}$"):
            draw(**changed)


@pytest.mark.parametrize(
    ("totals", "max_lens", "kind", "said"),
    [
        ((6, 0), (3, 0, 3), ValueError, r"sizes.totals must be three whole numbers, .*, 0 or more; found \(6, 0\)"),
        ((6, 0, 6), (3, -1, 3), ValueError, r"sizes.max_lens must be three .*; found \(3, -1, 3\)"),
        ((6.0, 0, 6), (3, 0, 3), ValueError, r"sizes.totals must be three .*; found \(6.0, 0, 6\)"),
        (6, (3, 0, 3), TypeError, "sizes.totals must be three .*; found 6"),
        ((6, 0, 6), (3, None, 3), TypeError, r"sizes.max_lens must be three .*; found \(3, None, 3\)"),
    ],
)
def test_sizes_are_three_whole_numbers_of_each_kind(totals, max_lens, kind, said):
    with pytest.raises(kind, match=f"^{said}$"):
        ops.PlanSizes(totals, max_lens)
    assert ops.PlanSizes((np.int64(6), 0, 6), [3, 0, 3]).totals[0] == 6


def test_sizes_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="^expected PlanSizes of totals and max_lens; found a tuple$"):
        draw(sizes=(6, 0, 6))


@pytest.mark.parametrize("missing", [1, 3])
def test_a_packing_without_room_is_left_empty_where_nobody_waits(missing):
    """By kernels, and by their definition, which a GPU takes for very many modalities."""
    places, valid, kinds = 6 - missing, torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 0, 1]).int()
    with ops.backend("triton"):
        found = draw(sizes=ops.PlanSizes((places, 0, 6), (3, 0, 3)))
    wanted = reference.pack(valid, kinds, torch.arange(3.0), 2, places)
    for part, want in zip(vars(found.visible).values(), wanted, strict=False):
        assert torch.equal(part, want)
    assert (found.visible.ids == -1).all() and (found.visible.slot == -1).all()
    assert found.present.cu_seqlens.tolist() == [0, 3, 6]


@pytest.mark.usefixtures("each_backend")
def test_gradients_of_what_has_none_are_nobodys(given):
    times = dataclasses.replace(given.plan.present, time_s=given.plan.present.time_s.clone().requires_grad_())
    assert not given.attend(packing=times).requires_grad
    samples = given.samples.clone().requires_grad_()
    assert not ops.take_patches(samples, given.plan.hidden, patch_lengths=LENGTHS).requires_grad


@pytest.mark.usefixtures("each_backend")
def test_numbers_of_any_kind_are_taken(given):
    x = torch.arange(120).view(4, 30, 1)
    ids = given.plan.visible.ids
    taken = ops.take_tokens(x, given.plan.visible)
    assert torch.equal(taken[:, 0], torch.where(ids >= 0, ids, 0).long())


def test_a_context_without_its_packing_is_refused(given):
    attend, x = ModalityAttention(8, 2, 3), torch.randn(len(given.plan.hidden.ids), 8)
    with pytest.raises(ValueError, match="context without packing_context"):
        attend(x, given.plan.hidden, x)
    with pytest.raises(ValueError, match="packing_context without context"):
        attend(x, given.plan.hidden, packing_context=given.plan.visible)


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("places", [0, 16])
def test_no_windows_at_all(places):
    """Tails of packings are there."""
    plan = draw(0, sizes=ops.PlanSizes((places,) * 3, (0, 0, 0)))
    assert plan.visible.cu_seqlens.tolist() == [0]
    assert (plan.present.ids == -1).all()
    encoded = torch.randn(places, 4, requires_grad=True)
    full, of_hidden = ops.with_hidden(ops.assemble_tokens(encoded, plan, *torch.randn(2, 3, 4)), plan)
    x = torch.randn(0, 3, 4, requires_grad=True)
    taken = ops.take_tokens(x, plan.visible)
    assert torch.autograd.grad(taken.sum(), x)[0].shape == x.shape
    assert full.shape == of_hidden.shape == taken.shape == (places, 4)
    assert not full.any() and not of_hidden.any() and not taken.any()
    (gradient,) = torch.autograd.grad(full.sum() + of_hidden.sum(), encoded)
    assert not gradient.any()


def test_dense_samples_in_a_compiled_graph(given):
    def both(samples):
        return given.embed(samples).sum() + given.loss(samples)[0]

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(given.samples), both(given.samples))
