"""Random batches to check ops on: mixed rates, absent channels, invalid patches, empty windows, poisoned gaps."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from physiofast.masking import MaskingConfig, Planner, plan_weight
from physiofast.montage import Channel, Montage
from physiofast.ops import Plan, Rows

MODALITIES = ("EEG", "EOG", "EMG", "ECG", "RESP", "SPO2")


def make_montage(channels: tuple[int, ...], rates: tuple[int, ...], patches: int) -> Montage:
    """channels[i] channels of modality i at rates[i] Hz, `patches` patches of 1 s."""
    named = tuple(
        Channel(name=f"{MODALITIES[m]}{i}", modality=MODALITIES[m]) for m, n in enumerate(channels) for i in range(n)
    )
    return Montage(
        channels=named,
        rate_hz=dict(zip(MODALITIES, map(float, rates), strict=False)),
        patch_s=1.0,
        window_s=float(patches),
    )


@dataclasses.dataclass
class Batch:
    montage: Montage
    rows: Rows
    plan: Plan
    weights: torch.Tensor


def make_batch(
    seed: int = 0,
    *,
    channels: tuple[int, ...] = (2, 1, 3),
    rates: tuple[int, ...] = (7, 16, 1),
    patches: int = 5,
    batch: int = 4,
    dtype: torch.dtype = torch.float32,
    keep: float = 0.4,
    absent: float = 0.2,
    invalid: float = 0.1,
    empty_window: bool = True,
) -> Batch:
    montage = make_montage(channels, rates, patches)
    random = np.random.default_rng(seed)
    count, tokens = len(montage.channels), montage.tokens
    here = random.random((batch, count)) >= absent
    if empty_window and batch > 1:
        here[batch // 2] = False
    valid = here[..., None] & (random.random((batch, count, patches)) >= invalid)
    lengths = np.asarray(montage.row_lengths)
    gap = 3
    stride = lengths + gap
    start = np.cumsum(np.concatenate([[gap], np.tile(stride, batch)]))[:-1].reshape(batch, count)
    size = int(start[-1, -1] + lengths[-1] + gap)
    if dtype == torch.int16:
        samples = torch.from_numpy(random.integers(-3000, 3000, size).astype(np.int16))
    else:
        samples = torch.full((size,), float("nan"), dtype=dtype)  # what no valid patch covers is poison
        for b, c in zip(*np.nonzero(here), strict=True):
            length = montage.patch_lengths[montage.channel_modality[c]]
            for s in np.flatnonzero(valid[b, c]):
                first = start[b, c] + s * length
                samples[first : first + length] = torch.from_numpy(random.standard_normal(length)).to(dtype)
    valid_bits = torch.from_numpy(valid.reshape(batch, tokens))
    rows = Rows(
        samples=samples,
        row_start=torch.from_numpy(np.where(here, start, -1)),
        row_scale=torch.from_numpy(random.uniform(0.5, 2, (batch, count)).astype(np.float32)),
        row_shift=torch.from_numpy(random.uniform(-1, 1, (batch, count)).astype(np.float32)),
        valid=valid_bits,
        patch_lengths=montage.patch_lengths,
    )
    planner = Planner(montage, MaskingConfig(keep=keep), seed)
    window_id = torch.from_numpy(random.integers(0, 2**50, batch))
    plan = planner.draw_for(window_id, valid_bits, step=seed)
    return Batch(montage, rows, plan, plan_weight(plan))


def patch_of(batch: Batch, token_id: int) -> torch.Tensor:
    """The dequantised float64 samples of one token, by the definition of Rows."""
    window, n = divmod(int(token_id), batch.montage.tokens)
    channel, patch = divmod(n, batch.montage.patches_per_window)
    length = batch.montage.patch_lengths[batch.montage.channel_modality[channel]]
    first = int(batch.rows.row_start[window, channel]) + patch * length
    values = batch.rows.samples[first : first + length].double()
    return values * batch.rows.row_scale[window, channel].double() + batch.rows.row_shift[window, channel].double()
