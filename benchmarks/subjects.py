"""Every op as users call it, on one random batch: for checks of values and gradients that know no op by heart.

A subject draws its differentiable inputs and calls its op on them. The same call on float64 inputs with
`backend("reference")` is what it should have given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import precision
from benchmarks.mixedbatch import Batch
from physiofast import ops
from physiofast.ops import Packing, Plan, Rows

HEADS, HEAD_WIDTH = 2, 32


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch on its device, in one precision."""

    rows: Rows
    plan: Plan
    lengths: tuple[int, ...]
    weight: Tensor
    """Of the loss, [M]."""
    width: int

    @classmethod
    def of(cls, batch: Batch, device: str, width: int) -> Inputs:
        """A batch on a device."""
        rows, plan = ops.to_device(batch.rows, device), ops.to_device(batch.plan, device)
        return cls(rows, plan, batch.montage.patch_lengths, batch.weights.to(device), width)

    def exact(self) -> Inputs:
        """The same numbers in float64."""
        samples = self.rows.samples
        samples = samples.double() if samples.is_floating_point() else samples
        return dataclasses.replace(
            self, rows=dataclasses.replace(self.rows, samples=samples), weight=self.weight.double()
        )

    @property
    def tokens(self) -> int:
        """N."""
        return self.plan.visible.slot.shape[1]


@dataclasses.dataclass(frozen=True)
class Subject:
    """One op."""

    name: str
    covers: tuple[str, ...]
    """Registered ops, without their backward ones."""
    leaves: Callable[[Inputs], list[tuple[int, ...]]]
    """Shapes of what it is differentiated by."""
    call: Callable[..., Sequence[Tensor]]
    """Takes `Inputs` and the leaves."""
    has_gradient: bool = True
    not_negative: tuple[int, ...] = ()
    """Leaves that are drawn so."""
    slack: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Number of a result -> times the limit of errors with IEEE products, for sums whose terms cancel."""

    def limits(self, dtype: torch.dtype, plain: Sequence[float], tf32x3: bool = False) -> list[float]:
        """The largest error that each result may have, from those of plain arithmetic."""
        return [precision.limit(dtype, error, tf32x3, self.slack.get(i, 1.0)) for i, error in enumerate(plain)]


def _tables(inputs: Inputs) -> list[tuple[int, ...]]:
    return [(inputs.tokens, inputs.width)] * 2


def _attention_leaves(queries: str, keys: str) -> Callable[[Inputs], list[tuple[int, ...]]]:
    def leaves(inputs: Inputs) -> list[tuple[int, ...]]:
        q, k = (len(getattr(inputs.plan, name).ids) for name in (queries, keys))
        kinds = len(inputs.lengths)
        return [(q, HEADS, HEAD_WIDTH), *[(k, HEADS, HEAD_WIDTH)] * 2, (HEADS, kinds, kinds), (HEADS,)]

    return leaves


def _attention(queries: str, keys: str) -> Callable[..., Sequence[Tensor]]:
    def call(inputs: Inputs, q: Tensor, k: Tensor, v: Tensor, pair_bias: Tensor, time_decay: Tensor) -> list[Tensor]:
        sides: tuple[Packing, Packing] = (getattr(inputs.plan, queries), getattr(inputs.plan, keys))
        return [ops.modality_attention(q, k, v, *sides, pair_bias=pair_bias, time_decay=time_decay)]

    return call


def _projected(inputs: Inputs, qkv: Tensor, pair_bias: Tensor, time_decay: Tensor) -> list[Tensor]:
    """Queries, keys and values as parts of one projection, where they lie, as models have them."""
    return _attention("present", "present")(inputs, *qkv.unbind(1), pair_bias, time_decay)


def _projected_leaves(inputs: Inputs) -> list[tuple[int, ...]]:
    kinds = len(inputs.lengths)
    return [(len(inputs.plan.present.ids), 3, HEADS, 2 * HEAD_WIDTH), (HEADS, kinds, kinds), (HEADS,)]


def _loss(factor: float, normalise: bool) -> Callable[..., Sequence[Tensor]]:
    def call(inputs: Inputs, pred: Tensor) -> list[Tensor]:
        flags = [normalise and length >= 16 for length in inputs.lengths]
        loss, total, count = ops.masked_mse(
            pred, inputs.rows, inputs.plan.hidden, inputs.weight, flags, patch_lengths=inputs.lengths
        )
        return [loss if factor == 1 else loss * factor, total, count]

    return call


def _pred(inputs: Inputs) -> list[tuple[int, ...]]:
    return [(len(inputs.plan.hidden.ids), max(inputs.lengths))]


def _stats(inputs: Inputs, q: Tensor, k: Tensor, pair_bias: Tensor, time_decay: Tensor) -> list[Tensor]:
    plan = inputs.plan
    options = {"pair_bias": pair_bias, "time_decay": time_decay, "tau_s": (1.0, 4.0)}
    return list(ops.modality_attention_stats(q, k, plan.hidden, plan.visible, **options))


def _stats_leaves(inputs: Inputs) -> list[tuple[int, ...]]:
    q, k, _, pair_bias, time_decay = _attention_leaves("hidden", "visible")(inputs)
    return [q, k, pair_bias, time_decay]


_DECAY = (4,)
"""Weights that grow by e^68 over a window make gradients that are all cancellation."""
_SHARED = {4: 4.0, 5: 2.0}
"""Gradients of biases and decay sum over all pairs. An H200 showed 3.5e-6 of biases, a CPU 1.07e-6 of a decay; output,
dq, dk and dv stay below 0.8e-6."""
_STATS = Subject(
    "modality_attention_stats",
    ("modality_attention_stats",),
    _stats_leaves,
    _stats,
    has_gradient=False,
)
SUBJECTS = (
    Subject(
        "embed_patches",
        ("embed_patches",),
        lambda i: [(sum(i.lengths), i.width), (i.tokens, i.width)],
        lambda i, weight, table: [ops.embed_patches(i.rows, i.plan.visible, weight, table, patch_lengths=i.lengths)],
    ),
    Subject(
        "take_tokens",
        ("take_tokens",),
        lambda i: [(*i.plan.visible.slot.shape, i.width)],
        lambda i, x: [ops.take_tokens(x, i.plan.visible)],
    ),
    Subject(
        "take_hidden",
        ("take_hidden",),
        lambda i: [(len(i.plan.present.ids), i.width)],
        lambda i, x: [ops.take_hidden(x, i.plan)],
    ),
    Subject(
        "take_hidden, beside all",
        ("take_hidden",),
        lambda i: [(len(i.plan.present.ids), i.width)],
        lambda i, x: [torch.cat(ops.with_hidden(x, i.plan))],
    ),
    Subject(
        "assemble_tokens",
        ("assemble_tokens",),
        lambda i: [(len(i.plan.visible.ids), i.width), *_tables(i)],
        lambda i, encoded, seen, unseen: [ops.assemble_tokens(encoded, i.plan, seen, unseen)],
    ),
    Subject("masked_mse", ("masked_mse",), _pred, _loss(1.0, False)),
    Subject("masked_mse, normalised, halved", ("masked_mse", "scale_gradient"), _pred, _loss(0.5, True)),
    Subject(
        "modality_attention, self",
        ("modality_attention",),
        _attention_leaves("present", "present"),
        _attention("present", "present"),
        not_negative=_DECAY,
        slack=_SHARED,
    ),
    Subject(
        "modality_attention, cross",
        ("modality_attention",),
        _attention_leaves("hidden", "visible"),
        _attention("hidden", "visible"),
        not_negative=_DECAY,
        slack=_SHARED,
    ),
    Subject(
        "modality_attention, parts of one projection",
        ("modality_attention",),
        _projected_leaves,
        _projected,
        not_negative=(2,),
        slack={2: 4.0, 3: 2.0},
    ),
    _STATS,
)
DENSE = Subject(
    "embed_patches, gradient of samples",
    ("embed_patches",),
    lambda i: [(*i.rows.row_start.shape, i.lengths[0] * i.tokens // i.rows.row_start.shape[1])],
    lambda i, x: [ops.embed_patches(x, i.plan.visible, *_fixed(i, x), patch_lengths=i.lengths)],
)
"""For batches whose rows lie densely: all of one rate, nothing absent."""


def _fixed(inputs: Inputs, like: Tensor) -> list[Tensor]:
    """Weights and table that are no leaves, the same numbers in every precision."""
    shapes = [(sum(inputs.lengths), inputs.width), (inputs.tokens, inputs.width)]
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    return [tensor.to(like.device, like.dtype) for tensor in drawn]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Differentiable inputs of a subject, and upstream gradients of its first output."""

    leaves: list[Tensor]
    upstream: Tensor

    def exact(self) -> Drawn:
        """The same numbers in float64."""
        return Drawn([leaf.detach().double().requires_grad_() for leaf in self.leaves], self.upstream.double())


def draw(subject: Subject, inputs: Inputs, dtype: torch.dtype, seed: int = 0) -> Drawn:
    """Normal numbers."""
    device = inputs.rows.row_start.device
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device, dtype)

    drawn = [normal(shape) for shape in subject.leaves(inputs)]
    leaves = [(x.abs() if i in subject.not_negative else x).requires_grad_() for i, x in enumerate(drawn)]
    with torch.no_grad():
        first = subject.call(inputs, *leaves)[0]
    upstream = normal(first.shape).to(first.dtype) if first.ndim else torch.ones_like(first)
    return Drawn(leaves, upstream)


def run(subject: Subject, inputs: Inputs, drawn: Drawn) -> list[Tensor]:
    """Outputs, then the gradient of the first one for each leaf."""
    found = subject.call(inputs, *drawn.leaves)
    if not subject.has_gradient:
        return [tensor.detach() for tensor in found]
    gradients = torch.autograd.grad(found[0], drawn.leaves, drawn.upstream.to(found[0].dtype))
    return [*(tensor.detach() for tensor in found), *gradients]


def definition(subject: Subject, inputs: Inputs, drawn: Drawn) -> list[Tensor]:
    """What `run` should have given, in float64."""
    with ops.backend("reference"):
        return run(subject, inputs.exact(), drawn.exact())


class Calls(TorchDispatchMode):
    """Within it, calls of registered ops are written down with their arguments, so that no check has to know these."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Name -> (op, arguments) of the first call of each."""
        namespace, name = func.name().split("::")
        if namespace == "physiofast":
            self.found.setdefault(name.split(".")[0], (func, args))
        return func(*args, **(kwargs or {}))


def registered_calls(inputs: Inputs, dtype: torch.dtype) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """What running every subject calls; floating arguments of forward ops that are leaves require gradients.

    And `linear_masked_mse`, which its public function calls on a CPU alone.
    """
    found: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for subject in SUBJECTS:
        drawn = draw(subject, inputs, dtype)
        where = {leaf.data_ptr() for leaf in drawn.leaves}
        with Calls() as calls:
            run(subject, inputs, drawn)
        for name, (op, args) in calls.found.items():
            leaves = where if subject.has_gradient and not name.endswith("_backward") else set()
            mine = tuple(_fresh(arg, leaves) if isinstance(arg, Tensor) else arg for arg in args)
            found.setdefault(name, (op, mine))
    found["linear_masked_mse"] = _linear_call(inputs, dtype)
    return found


def _linear_call(inputs: Inputs, dtype: torch.dtype) -> tuple[Any, tuple[Any, ...]]:
    rows, hidden, samples = inputs.rows, inputs.plan.hidden, max(inputs.lengths)
    shapes = ((len(hidden.ids), inputs.width), (samples, inputs.width), (samples,))
    leaves = [torch.rand(shape, dtype=dtype, device=rows.samples.device, requires_grad=True) for shape in shapes]
    where = (rows.samples, rows.row_start, rows.row_scale, rows.row_shift, hidden.ids, hidden.modality, hidden.slot)
    known = (list(inputs.lengths), [0] * len(inputs.lengths), rows.align, True)
    return torch.ops.physiofast.linear_masked_mse.default, (*leaves, *where, inputs.weight, *known)


def _fresh(tensor: Tensor, leaves: set[int]) -> Tensor:
    is_leaf = tensor.is_floating_point() and tensor.data_ptr() in leaves
    return tensor.detach().clone().requires_grad_(is_leaf)
