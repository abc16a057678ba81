"""Bytes that an op has to move and products that it has to sum, from shapes alone: `python -m benchmarks.traffic`.

Bytes: every input that is needed once, every output once, caches ignored; so the least that a form of the op can move.
The table that is printed stands in benchmarks/README.md, at the sizes of the figures that are required of a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

_ROW = 8 + 4 + 4  # start, scale and shift of a row
_INDEX = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a batch as the ops see it."""

    windows: int
    """B."""
    channels: int
    """C."""
    tokens: int
    """N, token ids of a window."""
    kinds: int
    """M."""
    visible: int
    """T of the visible packing."""
    hidden: int
    """T of the hidden packing."""
    present: int
    """T of the present packing."""
    patch: int
    """P, samples of a patch; of all modalities."""
    width: int
    """D."""
    sample_bytes: int
    value_bytes: int
    """Of weights, features, predictions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """The least that an op moves and multiplies."""

    bytes_read: int
    bytes_written: int
    flops: int = 0

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    def __add__(self, other: Traffic) -> Traffic:
        """Of one after the other, with nothing kept in between."""
        return Traffic(
            bytes_read=self.bytes_read + other.bytes_read,
            bytes_written=self.bytes_written + other.bytes_written,
            flops=self.flops + other.flops,
        )


def _patches(shape: Shape, tokens: int) -> int:
    """Samples of these tokens, and where they lie."""
    return tokens * shape.patch * shape.sample_bytes + shape.windows * shape.channels * _ROW


def _parameters(shape: Shape) -> int:
    """Weights of all modalities and the table."""
    return (shape.kinds * shape.patch + shape.tokens) * shape.width * shape.value_bytes


def embed_patches(shape: Shape) -> Traffic:
    """Forward."""
    return Traffic(
        bytes_read=_patches(shape, shape.visible) + 3 * _INDEX * shape.visible + _parameters(shape),
        bytes_written=shape.visible * shape.width * shape.value_bytes,
        flops=2 * shape.visible * shape.patch * shape.width,
    )


def embed_patches_backward(shape: Shape) -> Traffic:
    """Gradients of weights and table."""
    grad = shape.visible * shape.width * shape.value_bytes
    slots = shape.windows * shape.tokens * _INDEX
    return Traffic(
        bytes_read=grad + _patches(shape, shape.visible) + 2 * _INDEX * shape.visible + slots,
        bytes_written=_parameters(shape),
        flops=2 * shape.visible * shape.patch * shape.width,
    )


def take_tokens(shape: Shape) -> Traffic:
    """Forward, of the visible tokens."""
    rows = shape.visible * shape.width * shape.value_bytes
    return Traffic(bytes_read=rows + shape.visible * _INDEX, bytes_written=rows)


def take_tokens_backward(shape: Shape) -> Traffic:
    """The gradient of all features, zero where nobody looked."""
    row = shape.width * shape.value_bytes
    return Traffic(
        bytes_read=shape.visible * row + shape.windows * shape.tokens * _INDEX,
        bytes_written=shape.windows * shape.tokens * row,
    )


def take_hidden(shape: Shape) -> Traffic:
    """Forward, and backward on top of the gradient of all present tokens."""
    row = shape.width * shape.value_bytes
    indices = (shape.hidden + shape.present + 2 * shape.windows * shape.tokens) * _INDEX
    return Traffic(
        bytes_read=(2 * shape.hidden + shape.present) * row + indices,
        bytes_written=(shape.hidden + shape.present) * row,
    )


def assemble_tokens(shape: Shape) -> Traffic:
    """Forward."""
    row = shape.width * shape.value_bytes
    indices = (shape.present + shape.windows * shape.tokens) * _INDEX
    return Traffic(
        bytes_read=(shape.visible + 2 * shape.tokens) * row + indices,
        bytes_written=shape.present * row,
    )


def assemble_tokens_backward(shape: Shape) -> Traffic:
    """Gradients of encodings and both tables."""
    row = shape.width * shape.value_bytes
    indices = (shape.visible + 2 * shape.windows * shape.tokens) * _INDEX
    return Traffic(
        bytes_read=shape.present * row + indices,
        bytes_written=(shape.visible + 2 * shape.tokens) * row,
    )


def masked_mse(shape: Shape) -> Traffic:
    """Loss and gradient; of each sample a difference, its square, their sum, and the product with a factor."""
    pred = shape.hidden * shape.patch * shape.value_bytes
    return Traffic(
        bytes_read=pred + _patches(shape, shape.hidden) + 2 * _INDEX * shape.hidden + 4 * shape.kinds,
        bytes_written=pred + 4 * (1 + 2 * shape.kinds),
        flops=4 * shape.hidden * shape.patch,
    )


def linear_masked_mse(shape: Shape) -> Traffic:
    """Loss of what a linear map of all hidden tokens' features predicts, and the gradients of these and of the map."""
    loss, pred = masked_mse(shape), shape.hidden * shape.patch * shape.value_bytes
    x, head = (rows * shape.width * shape.value_bytes for rows in (shape.hidden, shape.patch))
    return Traffic(
        bytes_read=loss.bytes_read - pred + x + head,
        bytes_written=loss.bytes_written - pred + x + head,
        flops=loss.flops + 3 * 2 * shape.hidden * shape.width * shape.patch,
    )


def scale_gradient(shape: Shape) -> Traffic:
    """The gradient that `masked_mse` has found times that of its loss."""
    pred = shape.hidden * shape.patch * shape.value_bytes
    return Traffic(bytes_read=pred + 4, bytes_written=pred, flops=shape.hidden * shape.patch)


def sample_plan(shape: Shape) -> Traffic:
    """Plan and packings."""
    places = shape.visible + shape.hidden + shape.present
    slots = 3 * shape.windows * shape.tokens
    ends = 3 * (shape.windows + 1 + shape.kinds + 1)
    return Traffic(
        bytes_read=shape.windows * (8 * shape.kinds + shape.tokens + 8) + 8 * shape.tokens + 16,
        bytes_written=_INDEX * (4 * places + slots + ends),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """Sizes of attention within windows."""

    lengths: tuple[int, ...]
    """Tokens of each window: queries, and keys where these are not others."""
    key_lengths: tuple[int, ...] = ()
    """Keys of each window, where they are others."""
    heads: int
    """H."""
    width: int
    """Dh."""
    kinds: int
    """M."""
    value_bytes: int
    """Of queries, keys, values and the output; sums, biases and decay have four."""

    @property
    def keys(self) -> tuple[int, ...]:
        """Of each window."""
        return self.key_lengths or self.lengths

    @property
    def queries(self) -> int:
        """Bytes of the queries, and of all that is like them."""
        return sum(self.lengths) * self.heads * self.width * self.value_bytes

    @property
    def keys_and_values(self) -> int:
        """Bytes of both, or of both gradients."""
        return 2 * sum(self.keys) * self.heads * self.width * self.value_bytes

    @property
    def pairs(self) -> int:
        """Logits."""
        return self.heads * sum(q * k for q, k in zip(self.lengths, self.keys, strict=True))

    @property
    def facts(self) -> int:
        """Bytes of modalities, times and ends of windows, of queries and of keys; and which pairs are allowed."""
        return sum(_INDEX * (2 * sum(side) + len(side) + 1) for side in (self.lengths, self.keys)) + self.kinds**2

    @property
    def shared(self) -> int:
        """Bytes of biases and decay."""
        return 4 * self.heads * (self.kinds**2 + 1)

    @property
    def log_sums(self) -> int:
        """Bytes of the log-sum-exp."""
        return 4 * self.heads * sum(self.lengths)


def modality_attention(shape: AttentionShape) -> Traffic:
    """Forward: two products of matrices for each pair of tokens."""
    return Traffic(
        bytes_read=shape.queries + shape.keys_and_values + shape.facts + shape.shared,
        bytes_written=shape.queries + shape.log_sums,
        flops=2 * 2 * shape.pairs * shape.width,
    )


def modality_attention_backward(shape: AttentionShape) -> Traffic:
    """Gradients of q, k, v, biases and decay: five products, and that of each pair with its modality.

    The output is not read: where a window fits one block its sums follow from the weights.
    """
    return Traffic(
        bytes_read=2 * shape.queries + shape.keys_and_values + shape.facts + shape.shared + shape.log_sums,
        bytes_written=shape.queries + shape.keys_and_values + shape.shared,
        flops=2 * shape.pairs * (5 * shape.width + shape.kinds),
    )


def modality_attention_stats(shape: AttentionShape, distances: int = 3) -> Traffic:
    """The logits, and for each sum the product of each pair with its modality: weights, seconds, those that are near.

    All of it also for weights that are equal, of one head, which needs no logits.

    Args:
        shape: sizes; values are not read.
        distances: that are called near.
    """
    sums, keys = 2 + distances, shape.keys_and_values // 2
    even = shape.pairs // shape.heads
    return Traffic(
        bytes_read=shape.queries + keys + shape.facts + shape.shared,
        bytes_written=4 * (sums * (shape.heads + 1) * shape.kinds**2 + shape.kinds),
        flops=2 * (shape.pairs * shape.width + (shape.pairs + even) * sums * shape.kinds),
    )


OPS: dict[str, Callable[..., Traffic]] = {
    "embed_patches": embed_patches,
    "embed_patches_backward": embed_patches_backward,
    "take_tokens": take_tokens,
    "take_tokens_backward": take_tokens_backward,
    "take_hidden": take_hidden,
    "assemble_tokens": assemble_tokens,
    "assemble_tokens_backward": assemble_tokens_backward,
    "masked_mse": masked_mse,
    "scale_gradient": scale_gradient,
    "sample_plan": sample_plan,
    "modality_attention": modality_attention,
    "modality_attention_backward": modality_attention_backward,
    "modality_attention_stats": modality_attention_stats,
}
"""Of a `Shape`, those of attention of an `AttentionShape`. `take_hidden` is of both passes, the others of one."""

# ---- the table, at the sizes of the figures that are required of a GPU ---------------------------------------------

TOKENS = Shape(
    windows=512,
    channels=10,
    tokens=300,
    kinds=6,
    visible=512 * 75,
    hidden=512 * 225,
    present=512 * 300,
    patch=128,
    width=512,
    sample_bytes=2,
    value_bytes=2,
)
PLAN = dataclasses.replace(
    TOKENS,
    windows=1024,
    channels=13,
    tokens=390,
    visible=1024 * 98,
    hidden=1024 * 292,
    present=1024 * 390,
)
ATTENTION = AttentionShape(lengths=(100,) * 512, heads=8, width=64, kinds=6, value_bytes=2)


def shape_of(op: str) -> Any:
    """What the op is given in the table."""
    if op.startswith("modality_attention"):
        return ATTENTION
    return PLAN if op == "sample_plan" else TOKENS


def markdown() -> str:
    """A line an op."""
    lines = ["| op | reads | writes | floating-point operations | for each byte |", "|---|---|---|---|---|"]
    for op, model in OPS.items():
        found = model(shape_of(op))
        moved = " | ".join(f"{size / 1e6:.3g} MB" for size in (found.bytes_read, found.bytes_written))
        flops = f"{found.flops / 1e9:.2f} G | {found.flops / found.moved:.1f}" if found.flops else "none |"
        lines.append(f"| `{op}` | {moved} | {flops} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
