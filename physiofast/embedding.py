"""Embeddings of windows by a frozen encoder, one vector each, and the labels of these windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physiofast.attention import needed_autocast
from physiofast.masking import MaskingConfig, Planner
from physiofast.model import MultimodalMAE, unwrapped
from physiofast.montage import Montage
from physiofast.ops import Packing, Plan
from physiofast.ops.checks import check_features
from physiofast.store import Store
from physiofast.support.bounds import require_instance
from physiofast.windows import Batch, WindowIndex, WindowReader

_EVERYTHING = MaskingConfig(keep=1.0, modality_dropout=0.0, sizes=1)


def pool_modalities(encoded: Tensor, packing: Packing) -> Tensor:
    """Average each window's tokens of each modality.

    Args:
        encoded: [T, D], features of the packing's tokens.
        packing: T tokens of B windows, of M modalities.

    Returns:
        [B, M, D] in float32; NaN where a window has no token of that modality. Not twice differentiable.

    Raises:
        ValueError: `encoded` has another shape.
        TypeError: `packing` is no Packing, or `encoded` no tensor.
    """
    require_instance(Packing, "packing", packing, "that of the tokens which were encoded, such as plan.visible")
    check_features("encoded", encoded, (len(packing.ids),), free=1)
    windows, num_modalities = len(packing.cu_seqlens) - 1, len(packing.cu_modality) - 1
    groups = windows * num_modalities  # those of the tail come last
    group = packing.ids.long() // packing.slot.shape[1] * num_modalities + packing.modality.long()
    group = torch.where(packing.ids >= 0, group, groups)
    # Not `index_add_`, which adds in any order on a GPU.
    ordered = group.sort(stable=True)
    count = torch.searchsorted(ordered.values, torch.arange(groups + 2, device=group.device)).diff()
    rows = encoded[ordered.indices].float()
    total = torch.segment_reduce(rows, "sum", lengths=count, unsafe=True)
    return (total / count[:, None])[:groups].reshape(windows, num_modalities, -1)


@torch.no_grad()
def embed(model: MultimodalMAE, batch: Batch) -> Tensor:
    """Embed the windows of one batch: every valid token is visible, and the means of the modalities are concatenated.

    Args:
        model: its encoder is used.
        batch: B windows.

    Returns:
        [B, M * D].
    """
    visible = all_visible(model, batch).visible
    with needed_autocast(model):
        encoded = model.encode(batch.rows, visible)
    return pool_modalities(encoded, visible).flatten(1)


def all_visible(model: MultimodalMAE, batch: Batch) -> Plan:
    """Make the plan of a batch in which every valid token is visible."""
    planner = Planner(model.montage, _EVERYTHING, seed=0)
    capacity = planner.capacity(batch.valid)
    return planner.plan(0, batch.window_id, batch.rows.valid, capacity, capacity)


def embed_windows(
    model: MultimodalMAE, reader: WindowReader, index: WindowIndex, *, batch_size: int = 16
) -> np.ndarray:
    """Embed every window of an index.

    Args:
        model: the model, or a `DistributedDataParallel` or `AveragedModel` wrapper around it; its encoder is used.
        reader: of the index's store, with the model's montage.
        index: n windows.
        batch_size: windows at a time.

    Returns:
        float32 [n, M * D], the mean of each modality's tokens, one after the other; NaN for an absent modality.

    Raises:
        ValueError: the reader's store has another montage, the index has no windows, or `batch_size` is below 1.
        TypeError: `model` is a path, or `reader` a store.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; found {batch_size}")
    model = unwrapped(model)
    check_reader(model, reader, index)

    def embed_batch(windows: np.ndarray) -> np.ndarray:
        return embed(model, reader.batch(index, windows)).cpu().numpy()

    with evaluating(model), _batches_side_by_side(reader.device) as run:
        parts = list(run(embed_batch, index.batches(batch_size)))
    return np.concatenate(parts)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within this context the model is in evaluation mode; then each of its modules returns to the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def check_reader(model: MultimodalMAE, reader: WindowReader, index: WindowIndex) -> None:
    """Refuse windows that the encoder was not made for, and an index without windows.

    Raises:
        ValueError: the reader's store has another montage, or the index has no windows.
        TypeError: the model is a path, or the reader a store.
    """
    require_instance(MultimodalMAE, "model", model, "physiofast.load_pretrained(path) reads one")
    require_instance(WindowReader, "reader", reader, "physiofast.WindowReader(store) makes one")
    if _tokens_of(reader.montage) != _tokens_of(model.montage):
        known, found = map(_in_words, (model.montage, reader.montage))
        raise ValueError(f"the model is for {known}; {reader.store.path} holds {found}")
    if not len(index):
        raise ValueError("the index has no windows")


def _tokens_of(montage: Montage) -> tuple[Any, ...]:
    """What a model depends on of a montage: the channels, and how they are cut into patches."""
    channels = tuple((channel.name, channel.modality) for channel in montage.channels)
    return channels, montage.patch_lengths, montage.patches_per_window, montage.patch_s


def _in_words(montage: Montage) -> str:
    names = ", ".join(f"{channel.name} ({channel.modality})" for channel in montage.channels)
    lengths = ", ".join(map(str, montage.patch_lengths))
    return f"{names} in {montage.patches_per_window} patches of {montage.patch_s:g} s and {lengths} samples"


@contextmanager
def _batches_side_by_side(device: torch.device) -> Iterator[Callable]:
    """Yield a `map` over batches: on a CPU each core has a batch, a quarter faster than threads within each op."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def window_labels(store: Store, index: WindowIndex) -> dict[str, np.ndarray]:
    """Look up the labels of every window of an index.

    Returns:
        Arrays [n]: `stage`, `arousal` and `apnea` (int8, -1 where unscored), `age` in years (NaN where unknown) and
        `sex` (int8, 0 F, 1 M, -1 where unknown).

    Raises:
        TypeError: `store` is a path.
    """
    require_instance(Store, "store", store, "physiofast.Store.open(path) makes one")
    records = store.records
    pick = {name: [getattr(r, name) for r in records] for name in ("stage", "arousal", "apnea")}
    places = list(zip(index.record, index.epoch, strict=True))
    labels = {name: np.asarray([rows[r][e] for r, e in places], np.int8) for name, rows in pick.items()}
    age = np.asarray([np.nan if r.age_years is None else r.age_years for r in records])
    sex = np.asarray([{"F": 0, "M": 1}.get(r.sex or "", -1) for r in records], np.int8)
    return labels | {"age": age[index.record], "sex": sex[index.record]}
