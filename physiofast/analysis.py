"""What a trained encoder attends to: how much of each modality and how far in time, compared with uniform attention.

Shares and distances are quotients of `ops.modality_attention_stats` summed over windows; no attention matrix is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import torch

from physiofast.attention import needed_autocast
from physiofast.embedding import all_visible, check_reader, evaluating
from physiofast.model import Block, MultimodalMAE, unwrapped
from physiofast.ops import AttentionStats
from physiofast.support.strictjson import strict
from physiofast.windows import Batch, WindowIndex, WindowReader


@dataclasses.dataclass(frozen=True)
class AttentionShares:
    """Attention of L encoder blocks of H heads among M modalities; NaN for a modality that no window has."""

    modalities: tuple[str, ...]
    """Names of the M modalities."""
    windows: int
    """Number of windows that were analysed."""
    share: np.ndarray
    """float64 [L, H, M, M], share of the attention of one modality's tokens (row) that goes to another (column); the
    sum of a row is 1."""
    uniform_share: np.ndarray
    """float64 [M, M], what `share` would be if all tokens that a query may attend to had the same weight."""
    seconds: np.ndarray
    """float64 [L, H, M], mean distance in time between a modality's tokens and what they attend to."""
    uniform_seconds: np.ndarray
    """float64 [M], what `seconds` would be with these uniform weights."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON: arrays become lists, with None for NaN."""
        values = {name: getattr(self, name) for name in _ARRAYS}
        lists = {name: strict(array.tolist()) for name, array in values.items()}
        return {"modalities": list(self.modalities), "windows": self.windows, **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttentionShares:
        """Convert back what `to_dict` returned; None becomes NaN.

        Raises:
            ValueError: the shapes of arrays do not fit together.
            KeyError: an entry is missing.
        """
        arrays = {name: np.asarray(values[name], np.float64) for name in _ARRAYS}
        shares = cls(tuple(values["modalities"]), int(values["windows"]), **arrays)
        blocks, heads, count = shares.share.shape[:1], shares.share.shape[1:2], (len(shares.modalities),)
        wanted = (blocks + heads + count + count, count + count, blocks + heads + count, count)
        for (name, array), shape in zip(arrays.items(), wanted, strict=True):
            if array.shape != shape:
                raise ValueError(f"{name} has shape {list(array.shape)}; expected {list(shape)}")
        return shares


_ARRAYS = ("share", "uniform_share", "seconds", "uniform_seconds")


def attention_shares(
    model: MultimodalMAE, reader: WindowReader, index: WindowIndex, *, batch_size: int = 16
) -> AttentionShares:
    """Analyse what the encoder attends to in all windows of an index, where every valid token is visible.

    Args:
        model: the model, or a `DistributedDataParallel` or `AveragedModel` wrapper around it; its encoder is used.
        reader: of the index's store, with the model's montage.
        index: windows.
        batch_size: windows at a time.

    Raises:
        ValueError: the reader's store has another montage, or the index has no windows.
        TypeError: `model` is a path, or `reader` a store.
    """
    model = unwrapped(model)
    check_reader(model, reader, index)
    blocks: list[dict[str, np.ndarray]] = []
    with evaluating(model):
        for windows in index.batches(batch_size):
            more = [_in_float64(sums) for sums in _of_batch(model, reader.batch(index, windows))]
            blocks = [_added(*pair) for pair in zip(blocks, more, strict=True)] if blocks else more
    return _divided(model.montage.modalities, len(index), blocks)


@torch.no_grad()
def _of_batch(model: MultimodalMAE, batch: Batch) -> list[AttentionStats]:
    """Sum up the attention of each block over a batch."""
    visible, of_blocks = all_visible(model, batch).visible, []
    with needed_autocast(model):
        x = model.tokenise(batch.rows, visible)
        for block in cast(Iterable[Block], model.encoder):
            of_blocks.append(block.attn.statistics(block.norm1(x), visible))
            x = block(x, visible)
    return of_blocks


def _in_float64(sums: AttentionStats) -> dict[str, np.ndarray]:
    return {name: tensor.double().cpu().numpy() for name, tensor in sums._asdict().items()}


def _added(sums: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array + more[name] for name, array in sums.items()}


def _divided(modalities: tuple[str, ...], windows: int, blocks: list[dict[str, np.ndarray]]) -> AttentionShares:
    """Divide the sums of each block by the number of their queries."""
    first = blocks[0]  # queries, and the sums of uniform weights, are the same in all blocks
    queries = np.where(first["queries"] > 0, first["queries"], np.nan)
    return AttentionShares(
        modalities=modalities,
        windows=windows,
        share=np.stack([sums["mass"] for sums in blocks]) / queries[:, None],
        uniform_share=first["uniform_mass"] / queries[:, None],
        seconds=np.stack([sums["dt_sum"].sum(-1) for sums in blocks]) / queries,
        uniform_seconds=first["uniform_dt"].sum(-1) / queries,
    )
