"""Every kernel in the shapes that it is tuned for, written down instead of started, for `benchmarks.codegen`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from physiofast.masking import MaskingConfig, Planner
from physiofast.montage import MONTAGES, Montage
from physiofast.ops.triton import (
    assemble,
    attention,
    attention_backward,
    attention_stats,
    embed,
    embed_backward,
    loss,
    plan,
)
from physiofast.ops.triton.launching import RecordedLaunch, written_down

BATCH, WIDTH = 16, 512
PACKINGS = ("visible", "hidden", "present")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specimen:
    """One start of a kernel, and what its machine code has to have."""

    name: str
    """Kernel and shape, such as `_embed bfloat16 cinc2018`."""
    started: RecordedLaunch
    narrowest_load_bits: int
    """Loads of fewer bits from arrays of samples or features are a defect; indices are 32 bits wide."""
    needs_tensor_cores: bool
    is_everywhere: bool = True
    """Compiled for every capability, and not for 9.0 alone: what differs but in sizes, or in which 16 bits a number
    has, is not compiled thrice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shape:
    montage: str
    dtype: torch.dtype
    samples: torch.dtype = torch.int16
    precision: str = "highest"
    patch_s: float = 1
    kernels: tuple[str, ...] = ()
    """Those that are another form than in the shapes before; all when empty."""

    @property
    def name(self) -> str:
        kind = str(self.dtype).removeprefix("torch.") + ("" if self.precision == "highest" else " tf32x3")
        patches = "" if self.patch_s == 1 else f", patches of {self.patch_s:g} s"
        return f"{kind}, {str(self.samples).removeprefix('torch.')} samples, {self.montage}{patches}"

    @property
    def grid(self) -> Montage:
        """Its channels and patches."""
        return dataclasses.replace(MONTAGES[self.montage], patch_s=self.patch_s)


_SHAPES = (
    _Shape(montage="cinc2018", dtype=torch.bfloat16),
    _Shape(montage="cinc2018", dtype=torch.bfloat16, samples=torch.bfloat16),
    _Shape(montage="cinc2018", dtype=torch.bfloat16, samples=torch.float32, kernels=("_embed", "_sums")),
    _Shape(montage="cinc2018", dtype=torch.float16),
    _Shape(montage="cinc2018", dtype=torch.float32),
    _Shape(montage="cinc2018", dtype=torch.float32, precision="high"),
    _Shape(montage="cinc2018-100hz", dtype=torch.bfloat16),
    _Shape(montage="cinc2018-mixed", dtype=torch.bfloat16),
    _Shape(montage="cinc2018", dtype=torch.bfloat16, patch_s=2, kernels=("_embed", "_sums")),  # longer than a block
    *(  # an odd number of samples
        _Shape(montage="cinc2018-100hz", dtype=dtype, patch_s=0.25, kernels=("_embed", "_sums", "_masked_mse"))
        for dtype in (torch.bfloat16, torch.float32)
    ),
)
_MATRIX_KERNELS = ("_embed", "_sums", "_dsamples")
_ELEMENTWISE = ("_masked_mse", "_scale_gradient", *_MATRIX_KERNELS)


_ATTENTION_MATRICES = (
    "_attend_short",
    "_attend_sorted",
    "_backward_short",
    "_backward_sorted",
    "backward_queries",
    "backward_keys",
    "_stats",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Heads:
    """Attention of a dtype, head width and number of modalities, and the kernels that are looked at."""

    dtype: torch.dtype
    width: int
    kinds: int = 6
    precision: str = "highest"
    has_decay: bool = True
    need_shared: bool = True
    """Whether biases and decay have gradients."""
    kernels: tuple[str, ...] = _ATTENTION_MATRICES

    @property
    def is_usual(self) -> bool:
        """Of the shape and type that most models have."""
        usual = (torch.bfloat16, 64, 6, True, True)
        return (self.dtype, self.width, self.kinds, self.has_decay, self.need_shared) == usual

    @property
    def name(self) -> str:
        kind = str(self.dtype).removeprefix("torch.") + ("" if self.precision == "highest" else " tf32x3")
        left_out = "" if self.has_decay else ", no decay"
        left_out += "" if self.need_shared else ", fixed biases"
        return f"{kind}, {self.width} features, {self.kinds} modalities{left_out}"


_NARROW_OR_WIDE = ((64, 6), (64, 32), (128, 6), (128, 32), (32, 6), (32, 32))
"""Features and modalities: one of each that the launch table tells apart."""
_IN_TF32 = ("_attend_short", "_attend_sorted", "backward_keys")
"""Kernels that PyTorch's setting for products of float32 concerns; the last of heads of at most 64 features."""
_HEADS = (
    *(
        _Heads(dtype=torch.bfloat16, width=width, kinds=kinds, has_decay=has_decay)
        for has_decay in (True, False)
        for width, kinds in _NARROW_OR_WIDE
    ),
    _Heads(dtype=torch.bfloat16, width=64, kernels=("_sum_places",)),
    _Heads(
        dtype=torch.bfloat16,
        width=64,
        has_decay=False,
        need_shared=False,
        kernels=("_backward_short", "_backward_sorted", "backward_queries"),
    ),
    _Heads(dtype=torch.bfloat16, width=96),  # of 128 columns a quarter is masked
    *(_Heads(dtype=torch.float16, width=width, kinds=kinds) for width, kinds in _NARROW_OR_WIDE[:4]),
    *(_Heads(dtype=torch.float32, width=width, kinds=kinds) for width, kinds in _NARROW_OR_WIDE),
    *(
        _Heads(
            dtype=torch.float32, width=width, kinds=kinds, precision="high", kernels=_IN_TF32[: 3 if width <= 64 else 2]
        )
        for width, kinds in _NARROW_OR_WIDE[:4]
    ),
)


def specimens() -> Iterator[Specimen]:
    """Every kernel in every shape."""
    yield from _of_tokens()
    yield from _of_longest_plans()
    yield from _of_attention()


def _of_attention() -> Iterator[Specimen]:
    seen: set[str] = set()
    for heads in _HEADS:
        for started in _with_precision(heads.precision, lambda heads=heads: _run_attention(heads)):
            kernel = started.kernel.__name__
            if kernel not in heads.kernels:
                continue
            name = f"{kernel} {heads.name}{_told(started)}"
            if name in seen:  # statistics are summed as gradients are
                continue
            seen.add(name)
            yield Specimen(
                name=name,
                started=started,
                narrowest_load_bits=0,
                needs_tensor_cores=kernel in _ATTENTION_MATRICES
                and (heads.dtype != torch.float32 or started.constants["PRECISION"] == "tf32x3"),
                is_everywhere=heads.is_usual,
            )


def _told(started: RecordedLaunch) -> str:
    """What a kernel does of what others of its name do too."""
    blocks = started.launch.blocks
    block = blocks.get("BLOCK", blocks.get("BLOCK_K", blocks.get("BLOCK_Q")))
    return f", blocks of {block}" if block else ""


def _run_attention(heads: _Heads) -> None:
    """Forward, backward and statistics."""
    longest, count = 400, 8  # of so many tokens every kernel is started
    places = BATCH * longest
    q, k, v, out, grad = (torch.empty(places, count, heads.width, dtype=heads.dtype) for _ in range(5))
    ends, kind, time_s = (
        torch.empty(n, dtype=t) for n, t in ((BATCH + 1, torch.int32), (places, torch.int32), (places, torch.float32))
    )
    bias, decay = torch.empty(count, heads.kinds, heads.kinds), torch.empty(count * heads.has_decay)
    allowed = torch.ones(heads.kinds, heads.kinds, dtype=torch.bool)
    sides = (ends, ends, kind, kind, time_s, time_s, bias, allowed, decay, 0.125, longest, longest)
    attention.modality_attention(q, k, v, *sides)
    lse = torch.empty(count, places)
    attention_backward.modality_attention_backward(grad, q, k, v, out, lse, *sides, heads.need_shared)
    attention_stats.modality_attention_stats(q, k, *sides, [1.0, 4.0, 10.0])


def _of_tokens() -> Iterator[Specimen]:
    """Kernels of tokens; what leads to the same machine code comes once, under its first name."""
    seen: set[Any] = set()
    for shape in _SHAPES:
        for started in _with_precision(shape.precision, lambda shape=shape: _run_all(shape)):
            if shape.kernels and started.kernel.__name__ not in shape.kernels:
                continue
            types = tuple(arg.dtype if isinstance(arg, Tensor) else arg % 16 == 0 for arg in started.args)
            code = (started.kernel.__name__, types, str(started.constants))
            if code in seen:
                continue
            seen.add(code)
            name = f"{started.kernel.__name__} {shape.name}"
            if started.kernel.__name__ in _MATRIX_KERNELS and len(set(_lengths(shape))) > 1:
                name += f", patches of {started.constants['LENGTH']}"
            if started.constants.get("ANY_NORMALISED"):
                name += ", normalised"
            if started.constants.get("HAS_ONTO"):
                name += ", added to others"
            if "WHICH" in started.constants:
                name += f", {PACKINGS[started.constants['WHICH']]} tokens"
            yield _specimen(name, shape, started)


def _of_longest_plans() -> Iterator[Specimen]:
    """Kernels that keep a whole window, of the longest windows that they take."""
    tokens, kinds = plan.MAX_TOKENS, 6
    valid = torch.empty(BATCH, tokens, dtype=torch.bool)
    quotas, ids, stream = (torch.empty(*size, dtype=torch.int64) for size in ((BATCH, kinds), (BATCH,), (2,)))
    grid = (torch.empty(tokens, dtype=torch.int32), torch.empty(tokens))
    with written_down() as found:
        plan.sample_plan(quotas, valid, ids, stream, *grid, [BATCH * tokens] * 3)
    for started in found:
        if started.kernel.__name__ != "_count_before":
            name = f"{started.kernel.__name__}, {tokens:,} tokens"
            yield Specimen(name=name, started=started, narrowest_load_bits=0, needs_tensor_cores=False)


def _specimen(name: str, shape: _Shape, started: RecordedLaunch) -> Specimen:
    kernel = started.kernel.__name__
    half = shape.dtype != torch.float32
    align = started.constants.get("ALIGN", 8 if kernel == "_scale_gradient" else 0)
    return Specimen(
        name=name,
        started=started,
        narrowest_load_bits=min(128, 16 * align) if kernel in _ELEMENTWISE and half else 0,
        needs_tensor_cores=kernel in _MATRIX_KERNELS and half,
        is_everywhere=shape.dtype != torch.float16,
    )


def _lengths(shape: _Shape) -> tuple[int, ...]:
    return shape.grid.patch_lengths


def _with_precision(precision: str, run: Callable[[], None]) -> list[RecordedLaunch]:
    """What is started while PyTorch multiplies float32 with this precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with written_down() as found:
            run()
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def _run_all(shape: _Shape) -> None:
    montage = shape.grid
    planner = Planner(montage, MaskingConfig(), seed=0)
    valid = torch.ones(BATCH, montage.tokens, dtype=torch.bool)
    ids, capacity = torch.arange(BATCH), planner.capacity(valid)
    quotas = planner.quotas(0, ids, capacity)
    drawn = planner.plan(0, ids, valid, quotas, capacity)
    rows, lengths = _rows(shape, valid), list(montage.patch_lengths)
    empty: Callable[..., Tensor] = lambda *size: torch.empty(*size, dtype=shape.dtype)  # noqa: E731
    weight, table = empty(sum(lengths), WIDTH), empty(montage.tokens, WIDTH)
    seen, hidden = drawn.visible, drawn.hidden
    packed = (seen.ids, seen.modality, seen.slot, seen.by_modality, seen.cu_modality)
    floating = shape.samples.is_floating_point
    embed.embed_patches(*rows, *packed, weight, table, lengths, 64, floating)
    grad = empty(len(seen.ids), WIDTH)
    embed_backward.embed_patches_backward(grad, *rows, *packed, weight, lengths, 64, floating, floating)
    assemble.take_tokens(empty(BATCH, montage.tokens, WIDTH), seen.ids, seen.slot)
    slots = (drawn.visible.slot, drawn.present.slot)
    full, of_hidden = empty(len(drawn.present.ids), WIDTH), empty(len(hidden.ids), WIDTH)
    assemble.take_hidden(full, hidden.ids, drawn.present.ids, hidden.slot, drawn.present.slot)
    assemble.take_hidden_backward(of_hidden, full, drawn.present.ids, hidden.slot)
    encoded = empty(len(seen.ids), WIDTH)
    assemble.assemble_tokens(encoded, seen.ids, drawn.present.ids, *slots, table, table)
    assemble.assemble_tokens_backward(full, seen.ids, *slots, table)
    pred, factors = empty(len(hidden.ids), max(lengths)), torch.empty(len(lengths))
    packed_hidden: tuple[Any, ...] = (hidden.ids, hidden.modality, hidden.slot)
    for flags in ([0] * len(lengths), [int(length >= 16) for length in lengths]):
        loss.masked_mse(pred, *rows, *packed_hidden, factors, lengths, flags, 64)
    loss.scale_gradient(pred, torch.empty(()))
    grid = (torch.from_numpy(montage.token_modality), torch.from_numpy(montage.token_time_s))
    sizes = planner.sizes(quotas, capacity).totals
    plan.sample_plan(torch.from_numpy(quotas), valid, ids, torch.zeros(2, dtype=torch.int64), *grid, sizes)


def _rows(shape: _Shape, valid: Tensor) -> tuple[Tensor, ...]:
    channels = len(shape.grid.channels)
    scale = torch.empty(BATCH, channels)
    return torch.empty(1 << 16, dtype=shape.samples), torch.empty(BATCH, channels, dtype=torch.int64), scale, scale
