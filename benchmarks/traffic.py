"""Bytes that an op has to move and products that it has to sum, from shapes alone.

Bytes: every input that is needed once, every output once, caches ignored; so the least that a form of the op can move.
"""

from __future__ import annotations

import dataclasses

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
    """Loss and gradient."""
    pred = shape.hidden * shape.patch * shape.value_bytes
    return Traffic(
        bytes_read=pred + _patches(shape, shape.hidden) + 2 * _INDEX * shape.hidden + 4 * shape.kinds,
        bytes_written=pred + 4 * (1 + 2 * shape.kinds),
        flops=3 * shape.hidden * shape.patch,
    )


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
    """Sizes of self-attention within windows."""

    lengths: tuple[int, ...]
    """Tokens of each window."""
    heads: int
    """H."""
    width: int
    """Dh."""
    kinds: int
    """M."""
    value_bytes: int
    """Of queries, keys, values and the output; sums, biases and decay have four."""

    @property
    def rows(self) -> int:
        """Bytes of one [T, H, Dh] tensor."""
        return sum(self.lengths) * self.heads * self.width * self.value_bytes

    @property
    def pairs(self) -> int:
        """Logits."""
        return self.heads * sum(length**2 for length in self.lengths)

    @property
    def facts(self) -> int:
        """Bytes of modalities, times and ends of windows, of queries and of keys."""
        return 2 * _INDEX * (2 * sum(self.lengths) + len(self.lengths) + 1)

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
        bytes_read=3 * shape.rows + shape.facts + shape.shared + shape.kinds**2,
        bytes_written=shape.rows + shape.log_sums,
        flops=2 * 2 * shape.pairs * shape.width,
    )


def modality_attention_backward(shape: AttentionShape) -> Traffic:
    """Gradients of q, k, v, biases and decay: five products, and that of each pair with its modality.

    The output is not read: where a window fits one block its sums follow from the weights.
    """
    return Traffic(
        bytes_read=4 * shape.rows + shape.facts + shape.shared + shape.kinds**2 + shape.log_sums,
        bytes_written=3 * shape.rows + shape.shared,
        flops=2 * shape.pairs * (5 * shape.width + shape.kinds),
    )


OPS = {
    "embed_patches": embed_patches,
    "embed_patches_backward": embed_patches_backward,
    "take_tokens": take_tokens,
    "take_hidden": take_hidden,
    "assemble_tokens": assemble_tokens,
    "assemble_tokens_backward": assemble_tokens_backward,
    "masked_mse": masked_mse,
    "sample_plan": sample_plan,
}
