"""What public functions ask of their arguments: of shapes and dtypes alone, so that it need not be asked twice."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from physiofast.ops.contracts import Packing, Rows


def shape(name: str, tensor: Tensor, wanted: tuple[int, ...], free: int = 0) -> None:
    """Sizes of the leading axes, which `free` axes of any size follow."""
    found = tensor.shape
    if found[: len(wanted)] != wanted or len(found) != len(wanted) + free:
        text = ", ".join([*map(str, wanted), *["any"] * free])
        raise ValueError(f"{name} must have shape [{text}]; found {list(found)}")


def patches(dense: Tensor, packing: Packing) -> int:
    """How many a row of dense samples has."""
    tokens = packing.slot.shape[1]
    if dense.ndim != 3 or tokens % dense.shape[1]:
        raise ValueError(
            f"dense samples must be [B, C, T] with C dividing the {tokens} token ids; found {tuple(dense.shape)}"
        )
    return tokens // dense.shape[1]


def rows(found: Rows, packing: Packing, patch_lengths: Sequence[int]) -> None:
    """Rows, beside the packing of their tokens."""
    tokens, starts = packing.slot.shape, found.row_start.shape
    shape("rows.samples", found.samples, (), free=1)
    shape("rows.row_start", found.row_start, (tokens[0],), free=1)
    shape("rows.row_scale", found.row_scale, starts)
    shape("rows.row_shift", found.row_shift, starts)
    shape("rows.valid", found.valid, tokens)
    if tokens[1] % starts[1]:
        raise ValueError(f"{tokens[1]} token ids do not divide into {starts[1]} channels")
    if not patch_lengths or min(patch_lengths) < 1:
        raise ValueError(f"patch_lengths must be positive, one per modality; found {list(patch_lengths)}")


def normalised(flags: Sequence[int], patch_lengths: Sequence[int]) -> None:
    """Which modalities' patches are scaled."""
    if len(flags) != len(patch_lengths):
        raise ValueError(f"normalise has {len(flags)} entries for {len(patch_lengths)} modalities")
    for m, (flag, length) in enumerate(zip(flags, patch_lengths, strict=True)):
        if flag and length < 16:
            raise ValueError(f"normalise of modality {m}: patches of {length} samples are too short; at least 16")


def attention(q: Tensor, keys: Sequence[tuple[str, Tensor]], sides: tuple[Tensor, ...]) -> None:
    """Queries; keys and values by name; what the registered op takes after them."""
    cu_q, cu_k, modality_q, modality_k, _, _, pair_bias, allowed, time_decay = sides
    shape("q", q, (modality_q.shape[0],), free=2)
    _, heads, width = q.shape
    for name, tensor in keys:
        shape(name, tensor, (modality_k.shape[0], heads, width))
        if tensor.dtype != q.dtype:
            raise ValueError(f"{name} is {tensor.dtype} but q is {q.dtype}; cast them to one dtype")
    if cu_q.shape != cu_k.shape:
        raise ValueError(f"queries are of {cu_q.shape[0] - 1} windows, keys of {cu_k.shape[0] - 1}")
    kinds = pair_bias.shape[-1]
    shape("pair_bias", pair_bias, (heads, kinds, kinds))
    shape("allowed", allowed, (kinds, kinds))
    if time_decay.shape != (0,):  # none was given
        shape("time_decay", time_decay, (heads,))
