"""Windows as recorded and as a model reconstructs them, in physical units: the arrays of reconstruction.npz."""

from __future__ import annotations

import numpy as np

from physiofast.masking import Planner
from physiofast.model import MultimodalMAE
from physiofast.objective import ObjectiveConfig, rebuild
from physiofast.store import Store
from physiofast.windows import WindowIndex, WindowReader


def reconstruction_arrays(
    model: MultimodalMAE,
    reader: WindowReader,
    index: WindowIndex,
    windows: np.ndarray,
    planner: Planner,
    objective: ObjectiveConfig,
) -> dict[str, np.ndarray]:
    """Compute the arrays of reconstruction.npz.

    Args:
        model: the model that reconstructs hidden patches.
        reader: reads the windows.
        index: windows of the reader's store.
        windows: positions in the index of the windows to reconstruct.
        planner: draws which patches are hidden.
        objective: how the model's predictions are scaled.

    Returns:
        The arrays by name. A channel has the unit of the first recording that has it; where a recording has it in
        another unit, its values are NaN.
    """
    montage, store = reader.montage, reader.store
    rebuilt, hidden = rebuild(model, reader, index, windows, planner, objective)
    true = reader.signals(index, windows)
    record = index.record[windows]
    units = np.asarray([store.records[r].units for r in record]).reshape(len(record), len(montage.channels))
    unit = [next(filter(None, of_channel), "") for of_channel in units.T.tolist()]
    differs = units != np.asarray(unit)
    arrays: dict[str, np.ndarray] = {
        "names": np.asarray(montage.names),
        "unit": np.asarray(unit),
        "modality": np.asarray([channel.modality for channel in montage.channels]),
        "rate_hz": np.asarray([montage.channel_rate_hz(c) for c in range(len(montage.channels))]),
        "record": np.asarray([store.records[r].record for r in record]),
        "epoch": index.epoch[windows],
        "patch_s": np.asarray(montage.patch_s),
    }
    for c in range(len(montage.channels)):
        for name, values in (("true", true[c]), ("rebuilt", rebuilt[c])):
            arrays[f"{name}_{c}"] = _physical(store, record, c, np.where(differs[:, c, None], np.nan, values))
        arrays[f"hidden_{c}"] = hidden[:, c] & ~differs[:, c, None]
    return arrays


def _physical(store: Store, record: np.ndarray, channel: int, values: np.ndarray) -> np.ndarray:
    """Convert robust z-scores [W, T] of one channel to its unit; NaN where the record lacks the channel."""
    scale, shift, unit_scale, unit_shift = (
        np.asarray([getattr(store.records[r], name)[channel] for r in record], np.float64)[:, None]
        for name in ("scale", "shift", "unit_scale", "unit_shift")
    )
    samples = (values - shift) / np.where(scale == 0, np.nan, scale)
    return (samples * unit_scale + unit_shift).astype(np.float32)
