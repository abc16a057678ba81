"""What a trained encoder attends to: how much of each modality, how far in time, beside equal weights for all tokens.

Sums of `ops.modality_attention_stats` over windows, divided; no attention matrix is kept.
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
    """Attention of L encoder blocks of H heads among M modalities; NaN of a modality that no window has."""

    modalities: tuple[str, ...]
    """Names of the M modalities."""
    windows: int
    """Windows that were looked at."""
    share: np.ndarray
    """float64 [L, H, M, M], share of the attention of a modality's tokens (row) that each (column) gets; 1 in all."""
    even_share: np.ndarray
    """float64 [M, M], the same if all tokens that a query may attend to had the same weight."""
    seconds: np.ndarray
    """float64 [L, H, M], mean distance in time between a modality's tokens and what they attend to."""
    even_seconds: np.ndarray
    """float64 [M], the same of equal weights."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: arrays as lists, with None for NaN."""
        values = {name: getattr(self, name) for name in _ARRAYS}
        lists = {name: strict(array.tolist()) for name, array in values.items()}
        return {"modalities": list(self.modalities), "windows": self.windows, **lists}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AttentionShares:
        """What `to_dict` returned; None becomes NaN.

        Raises:
            ValueError: arrays whose shapes do not fit together.
            KeyError: an entry is missing.
        """
        arrays = {name: np.asarray(values[name], np.float64) for name in _ARRAYS}
        found = cls(tuple(values["modalities"]), int(values["windows"]), **arrays)
        blocks, heads, count = found.share.shape[:1], found.share.shape[1:2], (len(found.modalities),)
        wanted = (blocks + heads + count + count, count + count, blocks + heads + count, count)
        for (name, array), shape in zip(arrays.items(), wanted, strict=True):
            if array.shape != shape:
                raise ValueError(f"{name} has shape {list(array.shape)}; expected {list(shape)}")
        return found


_ARRAYS = ("share", "even_share", "seconds", "even_seconds")


def attention_shares(
    model: MultimodalMAE, reader: WindowReader, index: WindowIndex, batch: int = 16
) -> AttentionShares:
    """What the encoder attends to in all windows of an index, every valid token being visible.

    Args:
        model: its encoder is used; it may be held by another in its `module`.
        reader: of the index's store, with the model's montage.
        index: windows.
        batch: windows at a time.

    Raises:
        ValueError: the reader's store has another montage, or the index no windows.
    """
    model = unwrapped(model)
    check_reader(model, reader, index)
    blocks: list[dict[str, np.ndarray]] = []
    with evaluating(model):
        for windows in index.batches(batch):
            found = [_in_float64(sums) for sums in _of_batch(model, reader.batch(index, windows))]
            blocks = [_added(*pair) for pair in zip(blocks, found, strict=True)] if blocks else found
    return _divided(model.montage.modalities, len(index), blocks)


@torch.no_grad()
def _of_batch(model: MultimodalMAE, batch: Batch) -> list[AttentionStats]:
    """The sums of each block."""
    visible, found = all_visible(model, batch).visible, []
    with needed_autocast(model):
        x = model.tokenise(batch.rows, visible)
        for block in cast(Iterable[Block], model.encoder):
            found.append(block.attn.statistics(block.norm1(x), visible))
            x = block(x, visible)
    return found


def _in_float64(sums: AttentionStats) -> dict[str, np.ndarray]:
    return {name: tensor.double().cpu().numpy() for name, tensor in sums._asdict().items()}


def _added(sums: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array + more[name] for name, array in sums.items()}


def _divided(modalities: tuple[str, ...], windows: int, blocks: list[dict[str, np.ndarray]]) -> AttentionShares:
    """Sums [L] over the queries that they are of."""
    first = blocks[0]  # queries, and what equal weights give, are the same in all blocks
    queries = np.where(first["queries"] > 0, first["queries"], np.nan)
    return AttentionShares(
        modalities=modalities,
        windows=windows,
        share=np.stack([sums["mass"] for sums in blocks]) / queries[:, None],
        even_share=first["uniform_mass"] / queries[:, None],
        seconds=np.stack([sums["dt_sum"].sum(-1) for sums in blocks]) / queries,
        even_seconds=first["uniform_dt"].sum(-1) / queries,
    )
