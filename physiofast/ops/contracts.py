"""The dataclasses of tensors that ops take and return: Rows, Packing, Plan, AttentionSides and AttentionStats."""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from physiofast.ops.constants import filled, shared
from physiofast.ops.moving import OfTensors, unchecked
from physiofast.ops.watching import is_watched

SAMPLE_DTYPES = (torch.int16, torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Rows(OfTensors):
    """The samples of a batch of B windows over C channels; patches are never copied out of them.

    Mixed rates, absent channels, int16 storage and a store that lives on the GPU are all one case: each
    (window, channel) row starts somewhere in one flat buffer, and `value = sample * scale + shift`.

    `align` and `is_unscaled` promise what kernels then do not look at. To change tensors of rows use `replace`, which
    drops the promises that a change may break; `dataclasses.replace` keeps them.

    Raises:
        ValueError: a promise does not hold, as far as a CPU can tell. On a GPU, which the host does not wait for,
            values are wrong then, or the GPU reports a misaligned address.
    """

    samples: Tensor
    """Flat 1-D int16, float16, bfloat16, float32 or float64."""
    row_start: Tensor
    """int64 [B, C], first sample of each row; -1 where the channel is absent."""
    row_scale: Tensor
    """float32 [B, C], what each row's samples are multiplied by."""
    row_shift: Tensor
    """float32 [B, C], what is then added to them."""
    valid: Tensor
    """bool [B, N], N = C * S, whether each patch is valid: in recordings as `physiofast.prepare` finds it
    (`ChannelInspection.valid_share`), in dense samples where all samples of the patch are finite."""
    align: int = 1
    """A promise that allows wide loads: every row of patches of P samples starts at a multiple of gcd(align, P)."""
    is_unscaled: bool = False
    """A promise that saves conversions: every row's scale is 1 and its shift 0, as in dense samples."""
    patch_lengths: tuple[int, ...] = ()
    """P_m of each modality, or one length for all; ops then need none and refuse others. Empty where unknown."""
    channel_lengths: tuple[int, ...] = ()
    """Patch length of each channel where channels differ; ops then refuse tokens of other lengths. Empty where all
    channels have one length, or lengths are unknown."""

    def __post_init__(self) -> None:
        if _can_be_read(self.row_scale, self.row_shift) and self.is_unscaled is True:
            holds = (self.row_scale == 1).all() and (self.row_shift == 0).all()
            if not holds:
                raise ValueError(
                    "is_unscaled promises that every scale is 1 and every shift 0; found others: give "
                    "is_unscaled=False, or change rows by their method `replace`"
                )
        if _can_be_read(self.row_start) and isinstance(self.align, int) and self.align > 1:
            steps = torch.tensor(_steps(self), device=self.row_start.device)
            if ((self.row_start % steps != 0) & (self.row_start >= 0)).any():
                raise ValueError(
                    f"align={self.align} promises that rows begin at multiples of gcd(align, P), here "
                    f"{', '.join(map(str, steps.unique().tolist()))}; found others: give align=1, or change rows by "
                    "their method `replace`"
                )

    def replace(self, **changes: Any) -> Rows:
        """A copy with other tensors or lengths, for example of louder or later samples, that promises only what holds.

        Unless it is among the changes, `is_unscaled` is False where `row_scale` or `row_shift` are, and `align` is 1
        where `row_start`, `patch_lengths` or `channel_lengths` are.
        """
        if changes.keys() & {"row_scale", "row_shift"}:
            changes = {"is_unscaled": False} | changes
        if changes.keys() & {"row_start", "patch_lengths", "channel_lengths"}:
            changes = {"align": 1} | changes
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dense(cls, x: Tensor | Sequence[Tensor], patches: int) -> Rows:
        """Make rows of a plain `[B, C, T]` tensor whose channels share one rate, or of several such tensors.

        Args:
            x: [B, C, T]; a patch that holds a NaN or an infinity is not valid. Or one tensor [B, C_m, S * P_m] for each
                modality, in order, all with one B and dtype.
            patches: S, patches per channel; T is a multiple of it.

        Raises:
            ValueError: a tensor is not three-dimensional, its T is not a multiple of `patches`, or batches or dtypes
                differ.
            TypeError: `x` is neither a tensor nor a sequence of tensors.
        """
        parts = _dense_parts(x, patches)
        finite = [_are_finite(part.detach(), patches) for part in parts]
        starts = _row_starts([part.shape for part in parts], patches, parts[0].device)
        ones = torch.ones(starts.shape, dtype=torch.float32, device=starts.device)
        return _dense_rows(parts, patches, starts, (ones, torch.zeros_like(ones)), _joined(finite, 1))


def unjudged_rows(x: Tensor | Sequence[Tensor], patches: int) -> Rows:
    """Make rows of dense samples for an op, which does not ask which patches are valid: no sample is read.

    All tensors but the samples may be shared with other calls, so nothing may write to them.
    """
    parts = _dense_parts(x, patches)
    sizes, device = [part.shape for part in parts], parts[0].device
    starts = shared(("row starts", *map(tuple, sizes), patches), lambda: _row_starts(sizes, patches, device), device)
    ones, zeros = (filled(value, tuple(starts.shape), torch.float32, device) for value in (1.0, 0.0))
    batch, channels = starts.shape
    valid = filled(True, (1, 1), torch.bool, device).expand(batch, channels * patches)
    return _dense_rows(parts, patches, starts, (ones, zeros), valid)


def _dense_parts(x: Tensor | Sequence[Tensor], patches: int) -> tuple[Tensor, ...]:
    """Dense samples as a tuple of tensors, after a check of each."""
    if isinstance(x, Mapping):
        raise TypeError(
            "expected a tensor [B, C, T], or a list of several; found a dict: give a list of its values, in "
            "the order of the modalities' numbers"
        )
    parts = (x,) if isinstance(x, Tensor) else tuple(x)
    if not parts:
        raise ValueError("expected samples [B, C, T], or several of one batch; found none")
    if not all(isinstance(part, Tensor) for part in parts):
        other = next(type(part).__name__ for part in parts if not isinstance(part, Tensor))
        raise TypeError(f"expected a tensor [B, C, T], or several; found {other}: torch.as_tensor makes tensors")
    if isinstance(patches, bool | float) or patches < 1:
        raise ValueError(f"patches, those of a channel, must be a whole number, 1 or more; found {patches}")
    if any(part.dtype != parts[0].dtype for part in parts):
        raise ValueError(f"expected samples of one dtype; found {', '.join(str(part.dtype) for part in parts)}")
    if parts[0].dtype not in SAMPLE_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in SAMPLE_DTYPES)
        raise ValueError(f"expected samples of {allowed}; found {str(parts[0].dtype).removeprefix('torch.')}")
    for part in parts:
        if part.ndim != 3 or part.shape[0] != parts[0].shape[0]:
            shapes = ", ".join(str(tuple(each.shape)) for each in parts)
            raise ValueError(f"expected samples [B, C, T], or several of one batch; found shape {shapes}")
        if part.shape[2] % patches:
            raise ValueError(f"T = {part.shape[2]} samples is not a multiple of {patches} patches")
    return parts


def _row_starts(sizes: Sequence[torch.Size], patches: int, device: torch.device) -> Tensor:
    """int64 [B, C], where the rows of tensors of these sizes [B, C_m, T_m] begin that lie one after the other."""
    starts, before = [], 0
    for batch, channels, samples in sizes:
        start = torch.arange(batch * channels, device=device, dtype=torch.int64) * samples + before
        starts.append(start.reshape(batch, channels))
        before += batch * channels * samples
    return _joined(starts, 1)


def _dense_rows(
    parts: Sequence[Tensor], patches: int, starts: Tensor, affine: tuple[Tensor, Tensor], valid: Tensor
) -> Rows:
    before = [0, *itertools.accumulate(part.numel() for part in parts)]
    lengths = tuple(part.shape[2] // patches for part in parts)
    modality = [m for m, part in enumerate(parts) for _ in range(part.shape[1])]
    return unchecked(
        Rows,
        samples=_joined([part.reshape(-1) for part in parts], 0),
        row_start=starts,
        row_scale=affine[0],
        row_shift=affine[1],
        valid=valid,
        align=_alignment(before, lengths),
        is_unscaled=True,
        patch_lengths=lengths,
        channel_lengths=channel_lengths(lengths, modality),
    )


def _steps(rows: Rows) -> list[int]:
    """At multiples of how many samples rows promise to begin: of all, or of each channel; 1 where that is unknown."""
    of_all = rows.patch_lengths[:1] if len(set(rows.patch_lengths)) == 1 else (1,)
    has_channels = rows.row_start.shape[-1:] == (len(rows.channel_lengths),)
    return [math.gcd(rows.align, length) for length in (rows.channel_lengths if has_channels else of_all)]


def channel_lengths(patch_lengths: Sequence[int], channel_modality: Sequence[int]) -> tuple[int, ...]:
    """The `Rows.channel_lengths` of channels whose modalities are given."""
    if len(set(patch_lengths)) < 2:
        return ()
    return tuple(patch_lengths[m] for m in channel_modality)


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Concatenate tensors along an axis; a single tensor is not copied."""
    return torch.cat(list(parts), axis) if len(parts) > 1 else parts[0]


def _alignment(before: Sequence[int], lengths: Sequence[int]) -> int:
    """The largest `Rows.align` that holds where rows of patches of `lengths[m]` samples begin at `before[m]`."""
    powers = (64, 32, 16, 8, 4, 2, 1)  # the first patches begin at 0, which all of them divide

    def common(align: int, length: int) -> int:  # their greatest common divisor; `math.gcd` takes no symbolic length
        return next(power for power in powers if align % power == 0 and length % power == 0)

    return next(
        align
        for align in powers
        if all(first % common(align, length) == 0 for first, length in zip(before[1:], lengths[1:], strict=False))
    )


def _are_finite(part: Tensor, count: int) -> Tensor:
    """bool [B, C * count], whether all samples of a patch are finite; its extremes are, as one NaN makes both NaN."""
    batch, channels, samples = part.shape
    if not part.is_floating_point():
        return torch.ones(batch, channels * count, dtype=torch.bool, device=part.device)
    patches = part.reshape(batch, channels * count, samples // count)
    if patches.device.type != "cpu" or torch.compiler.is_compiling() or is_watched():  # no branch on values here
        low, high = torch.aminmax(patches, dim=-1)
        return low.isfinite() & high.isfinite()
    total = patches.sum(-1)  # one pass over memory; but large numbers may add up to infinity
    finite = np.isfinite((total if total.dtype == torch.float64 else total.float()).numpy())
    if finite.all():
        return torch.from_numpy(finite)
    return patches.amin(-1).isfinite() & patches.amax(-1).isfinite()


Samples = Rows | Tensor | Sequence[Tensor]
"""The kinds of samples that ops take: Rows, a dense tensor [B, C, S * P], or M such tensors, one for each modality."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Packing(OfTensors):
    """Some tokens of each window of a batch, side by side without padding between windows.

    Windows keep their order in the batch and tokens are ordered by id within a window, so that the tokens of a modality
    are contiguous there. T is one of a few fixed sizes; places in the tail, which no token fills, have id and
    modality -1.

    Raises:
        ValueError: `max_len` is less than the number of tokens of the longest window. On a GPU, which the host does not
            wait for, this is not checked, and attention may leave the rows of such a window unwritten.
    """

    ids: Tensor
    """int32 [T], window * N + token; -1 in the tail."""
    cu_seqlens: Tensor
    """int32 [B + 1], where each window's tokens begin and end in the packing."""
    modality: Tensor
    """int32 [T]; -1 in the tail."""
    time_s: Tensor
    """float32 [T], centre of the patch in seconds from the window's start; 0 in the tail."""
    slot: Tensor
    """int32 [B, N], the inverse of `ids`: each token's place in the packing, -1 for tokens that are not in it."""
    by_modality: Tensor
    """int32 [T], all places in order of modality, the tail last. The tokens themselves are not stored in this order."""
    cu_modality: Tensor
    """int32 [M + 1], where each modality begins and ends in `by_modality`."""
    max_len: int
    """An upper bound of the tokens of a window; one of a few fixed sizes."""

    def __post_init__(self) -> None:
        if _can_be_read(self.cu_seqlens) and self.cu_seqlens.dtype == torch.int32 and isinstance(self.max_len, int):
            longest = longest_window(self.cu_seqlens)
            if longest > self.max_len and _are_ends(self.cu_seqlens, self.ids):
                raise ValueError(
                    f"max_len must be at least {longest}, the tokens of the longest window; found {self.max_len}"
                )


_PARTS = tuple(field.name for field in dataclasses.fields(Packing))


def packing_of_op(parts: Sequence[Tensor], max_len: int) -> Packing:
    """Make a packing of an op's results, in the order of its fields; the op has refused sizes that are too small."""
    return unchecked(Packing, **dict(zip(_PARTS, (*parts, max_len), strict=True)))


def _can_be_read(*tensors: Any) -> bool:
    """Whether these are plain tensors in CPU memory; pytrees also make contracts of placeholders."""
    if torch.compiler.is_compiling() or is_watched():
        return False
    return all(type(tensor) is Tensor and tensor.is_cpu for tensor in tensors)


def _are_ends(cu_seqlens: Tensor, ids: Tensor) -> bool:
    """Whether the numbers in `cu_seqlens` can be ends of windows, and not uninitialised memory that is filled later."""
    ends = cu_seqlens.numpy()
    return bool(ends[0] == 0 and (ends[1:] >= ends[:-1]).all() and ends[-1] <= len(ids))


def longest_window(cu_seqlens: Tensor) -> int:
    """The number of tokens of the longest window; `cu_seqlens` is in CPU memory."""
    edges = cu_seqlens.numpy()
    return int((edges[1:] - edges[:-1]).max(initial=0))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Plan(OfTensors):
    """Which tokens of a batch the encoder is given, and which are to be reconstructed."""

    visible: Packing
    """The tokens that the encoder is given."""
    hidden: Packing
    """The tokens that are to be reconstructed."""
    present: Packing
    """Visible and hidden tokens together. Absent and invalid tokens are in none of the three packings."""

    @classmethod
    def from_mask(
        cls,
        visible: Tensor,
        valid: Tensor,
        token_modality: Tensor,
        token_time_s: Tensor,
        num_modalities: int | None = None,
        sizes: PlanSizes | None = None,
    ) -> Plan:
        """Make the plan of a mask of your own, in place of the random choice of `sample_plan`.

        Packings are exactly as large as needed, so the host waits for a GPU's numbers, and batches differ in size.
        With `num_modalities` and `sizes` it does not wait: the call may be part of a graph, which is compiled or
        captured once.

        Token ids go channel by channel: of C channels of S patches, n = c * S + s is patch s of channel c.

        Args:
            visible: bool [B, N], True for tokens that the encoder is given.
            valid: bool [B, N], such as `Rows.valid`: valid tokens that are not visible are hidden, and tokens that are
                not valid are in no packing.
            token_modality: int [N], from 0 to M - 1; the same for all patches of a channel, so that it is
                `channel_modality.repeat_interleave(S)`.
            token_time_s: float [N], centre of each token's patch in seconds from the window's start.
            num_modalities: M; one more than the highest of `token_modality` when left out.
            sizes: of the packings, as for `sample_plan`; the sizes that the masks need when left out.

        Raises:
            ValueError: shapes do not fit together, or a mask is not bool. Also a modality outside [0, M) and sizes that
                are too small; but not on a GPU or in a graph if `num_modalities` and `sizes` are given, where no
                numbers are looked at.
            TypeError: an argument is no tensor, or `sizes` no PlanSizes.
        """
        from physiofast.ops.reference import pack  # here, as it imports this module

        _check_masks(visible, valid, token_modality, token_time_s)
        if sizes is not None and not isinstance(sizes, PlanSizes):
            raise TypeError(f"sizes must be PlanSizes of totals and max_lens; found a {type(sizes).__name__}")
        can_look = valid.device.type == "cpu" and not torch.compiler.is_compiling()
        if can_look or num_modalities is None:
            num_modalities = _count_modalities(token_modality, num_modalities)
        masks = (visible & valid, valid & ~visible, valid)
        if can_look or sizes is None:
            sizes = _room_for(masks, sizes)
        tokens = (token_modality.to(torch.int32), token_time_s.to(torch.float32), num_modalities)
        packings = []
        for mask, total, max_len in zip(masks, sizes.totals, sizes.max_lens, strict=True):
            parts: tuple[Any, ...] = (*pack(mask, *tokens, total), max_len)
            packings.append(Packing(*parts))
        return cls(*packings)


def need_tensor(name: str, found: Any) -> None:
    """Refuse an argument that is no tensor.

    Raises:
        TypeError: with what to do.
    """
    if not isinstance(found, Tensor):
        raise TypeError(f"{name} must be a tensor; found {type(found).__name__}: torch.as_tensor makes tensors")


def check_id_range(batch: int, tokens: int) -> None:
    """Refuse batches of so many windows and tokens that ids have no room."""
    if batch * tokens >= 2**31:
        raise ValueError(f"{batch} windows of {tokens} tokens do not fit 32-bit token ids; use a smaller batch")


def _check_masks(visible: Tensor, valid: Tensor, token_modality: Tensor, token_time_s: Tensor) -> None:
    given = {"visible": visible, "valid": valid, "token_modality": token_modality, "token_time_s": token_time_s}
    for name, found in given.items():
        need_tensor(name, found)
    if valid.ndim != 2 or not valid.shape[1]:
        raise ValueError(f"valid must have shape [B, N] of some tokens; found {list(valid.shape)}")
    if not torch.compiler.is_compiling():  # or graphs could not be exported for any number of windows
        check_id_range(*valid.shape)
    if visible.shape != valid.shape:
        shapes = f"{list(visible.shape)} and {list(valid.shape)}"
        raise ValueError(f"visible and valid must have one shape [B, N]; found {shapes}")
    for name, tensor in (("token_modality", token_modality), ("token_time_s", token_time_s)):
        if tensor.shape != valid.shape[1:]:
            raise ValueError(f"{name} must have shape {list(valid.shape[1:])}; found {list(tensor.shape)}")
    chosen = "True for tokens that the encoder is given (a mask of facebook/mae has 0 there: pass mask == 0)"
    for name, mask, says in (("visible", visible, chosen), ("valid", valid, "True for valid tokens")):
        if mask.dtype != torch.bool:
            raise ValueError(f"{name} must be bool, {says}; found {mask.dtype}")
    if token_modality.is_floating_point():
        raise ValueError(f"token_modality must be whole numbers from 0 on; found {token_modality.dtype}")


def _count_modalities(token_modality: Tensor, wanted: int | None) -> int:
    """The number of modalities: `wanted` if given, after a check that no token's modality is beyond it."""
    least, most = torch.stack(torch.aminmax(token_modality)).tolist()  # together: the host waits for a GPU once
    if least < 0:
        raise ValueError(f"token_modality must be whole numbers from 0 on; found {least}")
    if wanted is not None and most >= wanted:
        raise ValueError(f"token_modality has a {most}, but num_modalities is {wanted}")
    return most + 1 if wanted is None else wanted


def _room_for(masks: Sequence[Tensor], wanted: PlanSizes | None) -> PlanSizes:
    """The sizes that the tokens of three masks [B, N] need; `wanted` if given, after a check that it has that room."""
    counts = torch.stack([torch.nn.functional.pad(mask.sum(1), (0, 1)) for mask in masks])  # of no window at all, too
    totals, max_lens = torch.stack((counts.sum(1), counts.amax(1))).tolist()
    if wanted is None:
        return PlanSizes(tuple(totals), tuple(max_lens))
    for name, needed in (("totals", totals), ("max_lens", max_lens)):
        found = getattr(wanted, name)
        if any(size < need for size, need in zip(found, needed, strict=True)):
            raise ValueError(f"sizes.{name} must be at least {tuple(needed)} for these masks; found {found}")
    return wanted


@dataclasses.dataclass(frozen=True)
class PlanSizes:
    """Static sizes of a plan's three packings: T and `max_len` of each, in the order visible, hidden, present.

    Raises:
        ValueError: there are not three sizes of each kind, or one is negative or not whole.
        TypeError: sizes are no sequences of numbers.
    """

    totals: tuple[int, int, int]
    max_lens: tuple[int, int, int]

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():  # sizes may be symbols
            return
        for name, found in (("totals", self.totals), ("max_lens", self.max_lens)):
            wanted = f"sizes.{name} must be three whole numbers, of visible, hidden and present tokens, 0 or more"
            if not (isinstance(found, Sequence) and all(isinstance(size, numbers.Real) for size in found)):
                raise TypeError(f"{wanted}; found {found!r}")
            if len(found) != 3 or not all(isinstance(size, numbers.Integral) and size >= 0 for size in found):
                raise ValueError(f"{wanted}; found {found}")


for _contract in (Rows, Packing, Plan):
    torch.export.register_dataclass(_contract, serialized_type_name=f"physiofast.{_contract.__name__}")
torch.serialization.add_safe_globals([Rows, Packing, Plan, PlanSizes])  # so that `torch.load` accepts them


def row_offsets(patch_lengths: Sequence[int]) -> list[int]:
    """The first row of each modality in `weight [sum P_m, D]`: a list of M offsets."""
    offsets = [0]
    for length in patch_lengths[:-1]:
        offsets.append(offsets[-1] + length)
    return offsets


class AttentionSides(NamedTuple):
    """The arguments of attention besides q, k and v: where windows lie, what tokens are, and what shapes the logits.

    The fields are the arguments of `physiofast::modality_attention` after v, in their order; its backward op and
    `modality_attention_stats` take them too. B windows, H heads, M modalities; the packings have T_q and T_k places.
    """

    cu_q: Tensor
    """int32 [B + 1], where each window's queries begin and end."""
    cu_k: Tensor
    """int32 [B + 1], where each window's keys begin and end."""
    modality_q: Tensor
    """int32 [T_q], modality of each query; -1 in the tail."""
    modality_k: Tensor
    """int32 [T_k], modality of each key; -1 in the tail."""
    time_q: Tensor
    """float32 or float64 [T_q], seconds of each query from the window's start."""
    time_k: Tensor
    """float32 or float64 [T_k], seconds of each key."""
    pair_bias: Tensor
    """Floating [H, M, M], query modality by key modality."""
    allowed: Tensor
    """bool [M, M], whether queries of a modality may attend to keys of another."""
    time_decay: Tensor
    """Floating [H] per second; [0] where none was given."""
    scale: float
    """Factor of q . k in the logits."""
    max_q: int
    """An upper bound of the queries of a window."""
    max_k: int
    """An upper bound of the keys of a window."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The nine tensors, in the order of the schema."""
        return self[:9]

    @property
    def constants(self) -> tuple[float, int, int]:
        """The three arguments after the tensors: scale, max_q and max_k."""
        return self[9:]

    @property
    def num_modalities(self) -> int:
        """The number of modalities, M."""
        return self.pair_bias.shape[-1]

    @property
    def has_decay(self) -> bool:
        """Whether a time decay was given."""
        return self.time_decay.shape[0] > 0

    def distinct(self) -> tuple[Tensor, ...]:
        """The tensors, each once: in self-attention the keys' tensors are those of the queries."""
        if self.cu_q is self.cu_k and self.modality_q is self.modality_k and self.time_q is self.time_k:
            return self.cu_q, self.modality_q, self.time_q, self.pair_bias, self.allowed, self.time_decay
        return self.tensors

    def contiguous(self) -> tuple[Tensor, ...]:
        """The nine tensors, contiguous, as kernels read them."""
        return tuple([tensor.contiguous() for tensor in self.tensors])


class AttentionStats(NamedTuple):
    """Sums over the queries and keys of `modality_attention`; the sums of batches and ranks add up.

    `mass` divided by the `queries` of its row is the share of attention that each key modality gets. Its ratio to the
    `uniform_mass` of the same pair says whether that is more than the number of tokens alone would bring. H heads,
    M modalities; rows are modalities of queries, columns modalities of keys.
    """

    mass: Tensor
    """[H, M, M], sum of the attention weights."""
    near: Tensor
    """[taus, H, M, M], sum of the weights of keys at most tau seconds from their query."""
    dt_sum: Tensor
    """[H, M, M], sum of weight times seconds between query and key."""
    queries: Tensor
    """[M], number of queries that have an allowed key; for every head the sum of a row of `mass`."""
    uniform_mass: Tensor
    """[M, M], what `mass` would be if all allowed keys of a query had the same weight."""
    uniform_near: Tensor
    """[taus, M, M], what `near` would be with these uniform weights."""
    uniform_dt: Tensor
    """[M, M], what `dt_sum` would be with these uniform weights."""


torch.serialization.add_safe_globals([AttentionStats])  # so that `torch.load` accepts it
