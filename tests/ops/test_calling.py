"""Eager calls on plain tensors pass PyTorch's dispatcher by, and give what they give through it; others take it."""

import contextlib
import dataclasses
import gc
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from benchmarks import subjects
from benchmarks.mixedbatch import make_batch
from benchmarks.subjects import DENSE, SUBJECTS, Inputs
from physiofast import ops
from physiofast.ops import backends, calling, constants

RAGGED = {"rates": (33, 16, 4), "patches": 4, "batch": 3}
DENSE_ROWS = {"channels": (2, 1), "rates": (16, 16), "patches": 3, "absent": 0, "invalid": 0, "empty_window": False}
DIFFERENTIABLE = [subject for subject in SUBJECTS if subject.has_gradient]
each = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
each_differentiable = pytest.mark.parametrize("subject", DIFFERENTIABLE, ids=lambda subject: subject.name)
TAKE = next(subject for subject in SUBJECTS if subject.name == "take_tokens")


def case(subject, seed=1):
    """(inputs, what is drawn)"""
    batch = make_batch(seed, dtype=torch.float32, **(DENSE_ROWS if subject is DENSE else RAGGED))
    inputs = Inputs.of(batch, "cpu", 17)
    return inputs, subjects.draw(subject, inputs, torch.float32)


@pytest.fixture
def passed_by(monkeypatch):
    """Ops that ran without the dispatcher, in order."""
    seen, prepare, run = [], backends.prepare, backends.run

    def prepared(op, *args):
        found = prepare(op, *args)
        return found._replace(run=lambda *args, **hints: (seen.append(op), found.run(*args, **hints))[1])

    monkeypatch.setattr(calling, "_seen", {})
    monkeypatch.setattr(backends, "prepare", prepared)
    monkeypatch.setattr(backends, "run", lambda op, *args, **hints: (seen.append(op), run(op, *args, **hints))[1])
    return seen


@contextlib.contextmanager
def through_the_dispatcher():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calling, "is_watched", lambda: True)
        patch.setattr(constants, "is_watched", lambda: True)
        yield


@pytest.mark.parametrize("subject", [*SUBJECTS, DENSE], ids=lambda subject: subject.name)
def test_values_and_gradients_are_those_of_the_registered_op(subject, each_backend, passed_by):
    inputs, drawn = case(subject)
    found = subjects.run(subject, inputs, drawn)
    op = subject.covers[0]
    assert op in passed_by
    has_backward_op = subject.has_gradient and op != "masked_mse"
    assert f"{op}_backward" in passed_by or not has_backward_op
    passed_by.clear()
    with through_the_dispatcher():
        wanted = subjects.run(subject, inputs, drawn)
    assert set(passed_by) <= {"scale_gradient"}
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    "subject", [s for s in DIFFERENTIABLE if "masked_mse" not in s.covers], ids=lambda subject: subject.name
)
def test_gradients_of_any_layout(subject, each_backend):
    """Gradients arrive expanded, transposed and out of larger tensors."""
    inputs, drawn = case(subject)
    whole = torch.stack([drawn.upstream, torch.randn_like(drawn.upstream)], -1)
    turned = drawn.upstream.transpose(0, 1).contiguous().transpose(0, 1)
    for upstream in (whole[..., 0], turned, drawn.upstream[:1].expand_as(drawn.upstream)):
        assert not upstream.is_contiguous()
        got, want = (
            subjects.run(subject, inputs, subjects.Drawn(drawn.leaves, form))
            for form in (upstream, upstream.clone(memory_format=torch.contiguous_format))
        )
        assert all(map(torch.equal, got, want))


@each_differentiable
@pytest.mark.parametrize("direct", [True, False])
def test_none_is_differentiated_twice(subject, direct):
    inputs, drawn = case(subject)
    with contextlib.nullcontext() if direct else through_the_dispatcher():
        squared = subject.call(inputs, *drawn.leaves)[0].square().sum()
        with pytest.raises(RuntimeError, match=r"cannot be differentiated twice; call backward without create_graph"):
            differentiate_twice(squared, drawn.leaves)


def differentiate_twice(result, leaves):
    gradients = torch.autograd.grad(result, leaves, create_graph=True)
    (result + sum(g.square().sum() for g in gradients)).backward()


@each_differentiable
@pytest.mark.parametrize("direct", [True, False])
def test_no_penalty_on_a_gradient_lacks_a_term(subject, direct):
    """Of a result that is not squared first: a constant arrives upstream."""
    inputs, drawn = case(subject)
    if set(subject.covers) <= {"take_tokens", "take_hidden"}:
        return  # whose gradient is the same for all features, so that there is no term
    with contextlib.nullcontext() if direct else through_the_dispatcher():
        result = subject.call(inputs, *drawn.leaves)[0].sum()
        with pytest.raises(RuntimeError, match=r"cannot be differentiated twice"):
            differentiate_twice(result, drawn.leaves)


def derived(transform, call, leaf):
    """By a transform, or by a tensor with a tangent."""
    if transform == "make_dual":
        with forward_ad.dual_level():
            return call(forward_ad.make_dual(leaf, torch.ones_like(leaf)))
    if transform == "jvp":
        return torch.func.jvp(call, (leaf,), (torch.ones_like(leaf),))
    return getattr(torch.func, transform)(call)(leaf)


@each_differentiable
@pytest.mark.parametrize("transform", ["jvp", "jacfwd", "make_dual", "grad", "jacrev"])
def test_derivatives_that_there_are_none_of_are_refused(subject, transform):
    inputs, drawn = case(subject)
    first, *others = (leaf.detach() for leaf in drawn.leaves)

    def call(leaf):
        return subject.call(inputs, leaf, *others)[0].sum()

    with pytest.raises(RuntimeError, match=r"^physiofast::\w+ (has no forward-mode|is not differentiated by)"):
        derived(transform, call, first)


@each_differentiable
def test_what_has_no_tangent_is_not_refused_beside_what_has_one(subject):
    inputs, drawn = case(subject)
    with forward_ad.dual_level(), torch.no_grad():
        found = subject.call(inputs, *drawn.leaves)[0]
    assert torch.equal(found, subject.call(inputs, *drawn.leaves)[0])


def test_an_op_without_a_gradient_says_so():
    batch = make_batch(1)
    rows, hidden, lengths = batch.rows, batch.plan.hidden, batch.montage.patch_lengths
    samples, sides = rows.samples.nan_to_num(0).requires_grad_(), (rows.row_start, rows.row_scale, rows.row_shift)
    of_packing = (hidden.ids, hidden.modality, hidden.slot)
    patches = torch.ops.physiofast.take_patches(samples, *sides, *of_packing, lengths)
    with pytest.raises(RuntimeError, match=r"^physiofast::take_patches has no gradient$"):
        patches.sum().backward()


@each
def test_autocast_changes_nothing(subject, each_backend):
    inputs, drawn = case(subject)
    want = subjects.run(subject, inputs, drawn)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, subjects.run(subject, inputs, drawn), want))


@each_differentiable
def test_a_graph_is_recorded_only_where_it_is_wanted(subject):
    inputs, drawn = case(subject)
    assert subject.call(inputs, *drawn.leaves)[0].requires_grad
    with torch.no_grad():
        assert not subject.call(inputs, *drawn.leaves)[0].requires_grad
    assert not subject.call(inputs, *(leaf.detach() for leaf in drawn.leaves))[0].requires_grad


@each_differentiable
def test_gradients_of_some_leaves_alone(subject):
    inputs, drawn = case(subject)
    (*_, all_of_them) = subjects.run(subject, inputs, drawn)
    alone = [*(leaf.detach() for leaf in drawn.leaves[:-1]), drawn.leaves[-1]]
    out = subject.call(inputs, *alone)[0]
    assert torch.equal(torch.autograd.grad(out, alone[-1], drawn.upstream)[0], all_of_them)


@each_differentiable
def test_checkpointed_gradients(subject):
    inputs, drawn = case(subject)
    (*_, want) = subjects.run(subject, inputs, drawn)
    out = checkpoint(lambda *leaves: subject.call(inputs, *leaves)[0], *drawn.leaves, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(out, drawn.leaves, drawn.upstream)[-1], want)


class Stops(torch.autograd.Function):
    """Identity whose gradient is undefined."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return None


@each_differentiable
def test_an_undefined_gradient_adds_nothing(subject, each_backend):
    inputs, drawn = case(subject)
    out = Stops.apply(subject.call(inputs, *drawn.leaves)[0])
    gradients = torch.autograd.grad(out.sum() + sum(leaf.sum() for leaf in drawn.leaves), drawn.leaves)
    assert all(torch.equal(gradient, torch.ones_like(gradient)) for gradient in gradients)


# ---- who has a say ------------------------------------------------------------------------------------------------


class Functions(TorchFunctionMode):
    """Writes down the names of what is called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Marked(torch.Tensor):
    """A subclass that hands everything on."""


@each
def test_modes_see_the_op(subject, passed_by):
    inputs, drawn = case(subject)
    op = subject.covers[0]
    passed_by.clear()
    with subjects.Calls() as dispatched:
        subjects.run(subject, inputs, drawn)
    backward = subject.has_gradient and op != "masked_mse"
    assert set(dispatched.found) >= {op} | ({f"{op}_backward"} if backward else set())
    with Functions() as functions:
        subject.call(inputs, *drawn.leaves)
    assert any(op in name for name in functions.names)
    assert set(passed_by) <= {"scale_gradient"}  # no registered op


@each
def test_a_default_device_watches_nothing(subject, each_backend, passed_by):
    inputs, drawn = case(subject)
    want = subjects.run(subject, inputs, drawn)
    passed_by.clear()
    with torch.device("cpu"), Functions() as functions:
        subject.call(inputs, *drawn.leaves)
    assert any(subject.covers[0] in name for name in functions.names) and not passed_by  # another mode beside it does
    with torch.device("meta"):  # where nothing that an op makes for itself may be
        found = subjects.run(subject, inputs, drawn)
    assert subject.covers[0] in passed_by
    assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))


@each_differentiable
def test_a_view_of_negatives_counts_as_what_it_shows(subject, each_backend, anew):
    inputs, drawn = case(subject)
    plain = [leaf.detach().clone() for leaf in drawn.leaves]
    with torch.no_grad():
        want = subject.call(inputs, *[-leaf for leaf in plain])
        subject.call(inputs, *plain)
        negatives = [torch._neg_view(leaf) for leaf in plain]
        for leaves in (negatives, [negatives[0], *[-leaf for leaf in plain[1:]]]):
            found = subject.call(inputs, *leaves)
            pairs = zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(want), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


@each
@pytest.mark.usefixtures("anew")
def test_profilers_see_the_op(subject):
    inputs, drawn = case(subject)
    op = subject.covers[0]
    backward = subject.has_gradient and op != "masked_mse"
    wanted = {f"physiofast::{op}"} | ({f"physiofast::{op}_backward"} if backward else set())
    for _ in range(2):  # anew, and as an earlier call
        with torch.profiler.profile() as profiler:
            subjects.run(subject, inputs, drawn)
        assert wanted <= {event.key for event in profiler.key_averages()}


@each
def test_fake_tensors_stay_fake(subject, passed_by):
    inputs, drawn = case(subject)
    want = subject.call(inputs, *drawn.leaves)
    passed_by.clear()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    leaves = [mode.from_tensor(leaf) for leaf in drawn.leaves]
    for active in (mode, contextlib.nullcontext()):
        with active:
            out = subject.call(inputs, *leaves)
        assert all(isinstance(tensor, FakeTensor) for tensor in out)
        assert [tensor.shape for tensor in out] == [tensor.shape for tensor in want]
    assert passed_by == []


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_subclasses_and_transforms_see_the_op(passed_by):
    inputs, drawn = case(TAKE)
    x, call = drawn.leaves[0].detach(), lambda x: ops.take_tokens(x, inputs.plan.visible)
    want = call(x)
    passed_by.clear()
    assert isinstance(call(x.as_subclass(Marked)), Marked)
    mapped = torch.func.vmap(call)
    assert torch.equal(mapped(torch.stack([x, 2 * x])), torch.stack([want, 2 * want]))
    traced = torch.jit.trace(call, (x.detach(),), check_trace=False)
    assert "physiofast::take_tokens" in str(traced.graph)
    assert passed_by == []


@each
def test_shapes_of_tensors_without_data(subject, passed_by):
    inputs, drawn = case(subject)
    want = [tensor.shape for tensor in subject.call(inputs, *drawn.leaves)]
    passed_by.clear()
    rows, plan = ops.to_device(inputs.rows, "meta"), ops.to_device(inputs.plan, "meta")
    bare = dataclasses.replace(inputs, rows=rows, plan=plan, weight=inputs.weight.to("meta"))
    leaves = [leaf.detach().to("meta").requires_grad_() for leaf in drawn.leaves]
    out = subject.call(bare, *leaves)
    assert all(tensor.is_meta for tensor in out)
    assert [tensor.shape for tensor in out] == want
    with pytest.raises(ValueError, match="has no values"):  # as of a model that was not filled yet
        subject.call(inputs, *leaves)
    assert passed_by == []


def test_compiled_graphs_have_the_op(passed_by):
    inputs, drawn = case(TAKE)
    graphs = []
    passed_by.clear()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: ops.take_tokens(x, inputs.plan.visible) * 2,
        fullgraph=True,
        backend=lambda graph, example: (graphs.append(graph), graph.forward)[1],
    )
    got = compiled(drawn.leaves[0])
    assert [str(node.target) for node in graphs[0].graph.nodes if "physiofast" in str(node.target)]
    assert passed_by == []
    assert torch.equal(got, ops.take_tokens(drawn.leaves[0], inputs.plan.visible) * 2)


# ---- calls that are like earlier ones ----------------------------------------------------------------------------


@pytest.fixture
def anew(monkeypatch):
    """Calls that were like none before, in order."""
    seen, prepare = [], backends.prepare
    monkeypatch.setattr(calling, "_seen", {})
    monkeypatch.setattr(backends, "prepare", lambda op, *args: (seen.append(op), prepare(op, *args))[1])
    return seen


def test_this_pytorch_tells_tensors_apart():
    assert calling._can_tell()


@each
def test_an_op_is_prepared_once(subject, each_backend, anew):
    inputs, drawn = case(subject)
    want = subjects.run(subject, inputs, drawn)
    op, before = subject.covers[0], list(anew)
    assert op in before and len(before) == len(set(before))
    anew.clear()
    fresh, another = case(subject)
    assert all(map(torch.equal, subjects.run(subject, fresh, another), want))
    with torch.no_grad():
        subject.call(inputs, *drawn.leaves)
    assert anew == []


@pytest.mark.parametrize("has_guards", [True, False])
@each
def test_other_numbers_give_what_the_dispatcher_gives(subject, has_guards, each_backend, anew, monkeypatch):
    """Tensors like earlier ones, and a PyTorch that cannot say so."""
    monkeypatch.setattr(calling, "_can_tell", lambda: has_guards)
    inputs, drawn = case(subject)
    subjects.run(subject, inputs, drawn)
    other = subjects.draw(subject, inputs, torch.float32, seed=5)
    found = subjects.run(subject, inputs, other)
    assert (subject.covers[0] in anew[len(set(anew)) :]) != has_guards
    with through_the_dispatcher():
        wanted = subjects.run(subject, inputs, other)
    assert all(map(torch.equal, found, wanted))


def unlike(x):
    """Tensors that have something else than x, and the same numbers."""
    wide = torch.empty(*x.shape[:-1], 2 * x.shape[-1])
    strided = wide[..., ::2].copy_(x)
    wanted = x.clone().requires_grad_()
    return {"strides": strided, "gradient": wanted, "parameter": torch.nn.Parameter(x.clone()), "dtype": x.double()}


def test_what_may_matter_is_prepared_anew(anew):
    inputs, drawn = case(TAKE)
    x, packing = drawn.leaves[0].detach(), inputs.plan.visible
    calling._seen.clear()  # drawing has called the op, too
    want = ops.take_tokens(x, packing)
    for other in [*unlike(x).values(), torch.cat([x, x], 2)]:
        anew.clear()
        for _ in range(3):
            got = ops.take_tokens(other, packing)
        assert anew == ["take_tokens"]
        assert torch.equal(got[:, : x.shape[2]].float(), want)
        assert got.requires_grad == other.requires_grad
    anew.clear()
    for _ in range(2):
        for setting in ("triton", "reference"):
            with ops.backend(setting):
                assert torch.equal(ops.take_tokens(x, packing), want)
    assert len(anew) == 4
    anew.clear()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ops.take_tokens(x, packing), want)
        with torch.inference_mode():
            assert torch.equal(ops.take_tokens(x.clone(), packing), want)
    assert len(anew) == 2


def test_a_gradient_is_recorded_though_the_first_call_recorded_none(anew):
    inputs, drawn = case(TAKE)
    calling._seen.clear(), anew.clear()
    with torch.no_grad():
        assert not ops.take_tokens(drawn.leaves[0], inputs.plan.visible).requires_grad
    assert ops.take_tokens(drawn.leaves[0], inputs.plan.visible).requires_grad
    assert anew == ["take_tokens"]


def test_statistics_refuse_no_gradient_and_record_none(anew):
    (stats,) = (subject for subject in SUBJECTS if subject.name == "modality_attention_stats")
    inputs, drawn = case(stats)
    calling._seen.clear(), anew.clear()
    for _ in range(2):
        assert not any(tensor.requires_grad for tensor in stats.call(inputs, *drawn.leaves))
        assert torch.is_grad_enabled()
    assert anew == ["modality_attention_stats"]


def test_arguments_that_do_not_fit_are_refused_after_some_that_did():
    inputs, drawn = case(TAKE)
    x = drawn.leaves[0].detach()
    for _ in range(2):
        ops.take_tokens(x, inputs.plan.visible)
        with pytest.raises(ValueError, match="x must have shape"):
            ops.take_tokens(x[:, 1:], inputs.plan.visible)
        rows = dataclasses.replace(inputs.rows, valid=inputs.rows.valid[:, 1:])  # which no op is given
        with pytest.raises(ValueError, match=r"rows\.valid must have shape"):
            ops.take_patches(rows, inputs.plan.visible, patch_lengths=inputs.lengths)
        ops.take_patches(inputs.rows, inputs.plan.visible, patch_lengths=inputs.lengths)


def test_one_tensor_twice_is_no_reason_to_guess(anew):
    heads = torch.randn(3, 2, 4)
    cu, kinds, seconds = torch.tensor([0, 3], dtype=torch.int32), torch.zeros(3, dtype=torch.int32), torch.arange(3.0)
    packing = ops.Packing(kinds, cu, kinds, seconds, kinds[None], kinds, cu, 3)
    other = dataclasses.replace(packing, time_s=seconds + torch.tensor([0.0, 4.0, 8.0]))
    decay = torch.ones(2)
    for keys in (packing, other, packing, other):
        got = ops.modality_attention(heads, heads, heads, packing, keys, time_decay=decay)
        with through_the_dispatcher():
            want = ops.modality_attention(heads, heads, heads, packing, keys, time_decay=decay)
        assert torch.equal(got, want)


@each
def test_no_tensor_is_kept(subject, each_backend, anew):
    """What is kept of a call knows shapes, and holds no memory of a batch or a model."""
    inputs, drawn = case(subject)
    subjects.run(subject, inputs, drawn)
    assert calling._seen
    mine = [weakref.ref(tensor) for tensor in (*drawn.leaves, drawn.upstream, *tensors_of(inputs))]
    del inputs, drawn
    gc.collect()
    assert not any(ref() is not None for ref in mine)


def tensors_of(inputs):
    """Of rows and plan."""
    contracts = (inputs.rows, inputs.plan.visible, inputs.plan.hidden, inputs.plan.present)
    return [v for contract in contracts for v in vars(contract).values() if isinstance(v, torch.Tensor)]


def test_calls_that_are_kept_are_few(anew):
    inputs, _ = case(TAKE)
    packing = inputs.plan.visible
    for width in range(1, 60):
        ops.take_tokens(torch.zeros(*packing.slot.shape, width), packing)
    assert max(map(len, calling._seen.values())) == calling._MOST_ALIKE
    q, k, v = torch.zeros(3, len(packing.ids), 1, 4)
    for scale in range(300):
        ops.modality_attention(q, k, v, packing, packing, scale=float(scale))
    assert len(calling._seen) <= calling._MOST_SEEN


# ---- arguments that are left out ----------------------------------------------------------------------------------


def test_constants_are_shared_where_they_may_be():
    first, again = (constants.filled(1.0, (2, 3), torch.float32, torch.device("cpu")) for _ in range(2))
    assert first is again
    assert torch.equal(first, torch.ones(2, 3))
    assert constants.filled(0.0, (2, 3), torch.float32, torch.device("cpu")) is not first
    assert constants.filled(True, (2, 3), torch.bool, torch.device("cpu")).dtype == torch.bool
    with FakeTensorMode():
        assert isinstance(constants.filled(1.0, (2, 3), torch.float32, torch.device("cpu")), FakeTensor)


def test_constants_of_inference_serve_training():
    with torch.inference_mode():
        made = constants.filled(0.25, (5,), torch.float32, torch.device("cpu"))
    x = torch.ones(5, requires_grad=True)
    (x * made).sum().backward()
    assert torch.equal(x.grad, made)
