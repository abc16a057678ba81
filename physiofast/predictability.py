"""The predictable share: how well a linear map predicts a patch from others, as a baseline for reconstruction error."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft, linalg

from physiofast.montage import Montage
from physiofast.store import Store, StoreRecord
from physiofast.windows import evenly_spaced

COEFFICIENTS = 32
"""Number of cosine coefficients kept of each patch: those with most variance."""
PATCHES_PER_RECORD = 500
SHARE_RECORDS, SHARE_HOURS = 24, 0.5
"""Largest number of a store's records that are used, and how much of the middle of each."""
RIDGE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties tried, in units of the mean feature variance; the validation records choose."""
_PURPOSES = {"fit": "to fit", "validation": "to choose the penalty", "test": "to test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictableShare:
    """Held-out R^2 of a ridge regression that predicts a patch, relative to the variance around the channel's mean.

    It is a lower bound on what a model can reach from the same patches, because the map is linear and the same for
    all records. It is about 0 for noise, and may be slightly negative.
    """

    from_channels: float
    """R^2 of the prediction from the other channels' patches at the same time."""
    from_neighbours: float
    """R^2 of the prediction from the same channel's previous and next patch."""
    total: float
    """R^2 of the prediction from both."""


def store_predictability(store: Store, held_out: Collection[str]) -> dict[str, PredictableShare]:
    """The predictable share of each modality of a store, on held-out subjects.

    Raises:
        ValueError: modalities of different rates (the measure compares samples), or too few records or valid patches.
    """
    montage = store.montage
    if len(set(montage.patch_lengths)) > 1:
        raise ValueError(f"the predictable share compares samples of one rate; patches are {montage.patch_lengths}")
    records = [store.records[i] for i in evenly_spaced(len(store.records), SHARE_RECORDS)]
    signals = [_signals(record, montage) for record in records]
    modality = [channel.modality for channel in montage.channels]
    test = [i for i, record in enumerate(records) if record.subject in held_out]
    return predictable_share(signals, modality, montage.patch_lengths[0], held_out=test)


def _signals(record: StoreRecord, montage: Montage) -> np.ndarray:
    """Robust z-scores of a record's middle half hour, float32 [C, T]; NaN in invalid patches."""
    patch = montage.patch_lengths[0]
    count = min(record.num_patches, round(SHARE_HOURS * 3600 / montage.patch_s))
    first = (record.num_patches - count) // 2
    signals = np.full((len(montage.channels), count * patch), np.nan, np.float32)
    for c in np.flatnonzero(record.plane_start >= 0):
        values = record.plane(int(c))[first * patch : (first + count) * patch].astype(np.float32)
        valid = np.repeat(record.valid[c, first : first + count], patch)
        signals[c] = np.where(valid, values * record.scale[c] + record.shift[c], np.nan)
    return signals


def predictable_share(
    records: Sequence[np.ndarray],
    channel_modality: Sequence[str],
    patch: int,
    held_out: Sequence[int] | None = None,
) -> dict[str, PredictableShare]:
    """Measure the predictable share of each modality on records that the regression has not seen.

    Patches are reduced to their strongest cosine coefficients; what the reduction loses counts as error.
    An absent channel is replaced by its mean as a predictor and left out as a target. Errors and variances
    are summed over the channels of a modality, the test records and the samples.

    Args:
        records: float [C, n] each, n may differ; conditioned and scaled per record. A channel whose row is
            all NaN is absent; times at which another channel has NaN are left out.
        channel_modality: modality of each of the C channels.
        patch: samples per patch.
        held_out: records to test on; every third one by default.

    Returns:
        The share by modality, in order of first appearance; NaN for one absent from a whole split.

    Raises:
        ValueError: fewer than 3 records, records that disagree with `channel_modality`, or no usable patches.
    """
    if len(records) < 3:
        raise ValueError(f"{len(records)} records; 3 or more are needed: to fit, to choose the penalty and to test")
    for index, record in enumerate(records):
        if record.ndim != 2 or len(record) != len(channel_modality):
            raise ValueError(f"record {index} has shape {record.shape}, expected [{len(channel_modality)}, n]")
    moments = _collect(records, patch, _split(len(records), held_out))
    parts = [_errors(moments, channel) for channel in range(len(channel_modality))]
    out = {}
    for modality in dict.fromkeys(channel_modality):
        rows = [part for part, m in zip(parts, channel_modality, strict=True) if m == modality]
        error, deviation = np.sum([r[0] for r in rows], axis=0), sum(r[1] for r in rows)
        share = 1 - error / deviation if deviation > 0 else np.full(3, np.nan)
        out[modality] = PredictableShare(
            from_channels=float(share[0]), from_neighbours=float(share[1]), total=float(share[2])
        )
    return out


@dataclasses.dataclass
class _Moments:
    """Second moments of features, summed over the records of one split that have the same channels.

    Features: channel, then (current, previous, next) patch, then coefficient; the constant comes last.
    """

    gram: np.ndarray
    square: np.ndarray
    total: np.ndarray
    samples: int


_Key = tuple[str, tuple[bool, ...]]


def _split(count: int, held_out: Sequence[int] | None) -> list[str]:
    test = set(range(2, count, 3) if held_out is None else held_out)
    rest = [index for index in range(count) if index not in test]
    if not test or len(rest) < 2:
        raise ValueError(
            f"{len(test)} of {count} records are held out ({sorted(test)}); 1 or more are needed to test, and 2 or "
            "more of the others, to fit and to choose the penalty"
        )
    validation = set(rest[1::4])
    return ["test" if i in test else "validation" if i in validation else "fit" for i in range(count)]


def _collect(records: Sequence[np.ndarray], patch: int, split: Sequence[str]) -> dict[_Key, _Moments]:
    fitted = [record for record, part in zip(records, split, strict=True) if part != "test"]
    mean, scale, basis = _coordinates(fitted, patch)
    moments: dict[_Key, _Moments] = {}
    for record, part in zip(records, split, strict=True):
        present = tuple(bool(p) for p in np.isfinite(record).any(axis=1))
        features, values = _rows(record, present, patch, mean, scale, basis)
        if not len(features):
            continue
        new = _Moments(
            gram=(features.T @ features).astype(np.float64),
            square=np.square(values, dtype=np.float64).sum(axis=(1, 2)),
            total=values.sum(axis=(1, 2), dtype=np.float64),
            samples=values.shape[1] * patch,
        )
        old = moments.get((part, present))
        moments[part, present] = new if old is None else _add(old, new)
    for part, purpose in _PURPOSES.items():
        if not any(part == found for found, _ in moments):
            numbers = [index for index, name in enumerate(split) if name == part]
            raise ValueError(
                f"records {numbers} of {len(split)} are there {purpose}, and none of them has a patch of {patch} "
                "samples that is finite in all channels that the record has, as the patches before and after it are"
            )
    return moments


def _add(a: _Moments, b: _Moments) -> _Moments:
    return _Moments(
        gram=a.gram + b.gram,
        square=a.square + b.square,
        total=a.total + b.total,
        samples=a.samples + b.samples,
    )


def _coordinates(records: Sequence[np.ndarray], patch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [C] and scale [C] of each channel, and its strongest cosine coefficients int [C, K]."""
    channels = len(records[0])
    energy, total, count = np.zeros((channels, patch)), np.zeros(channels), np.zeros(channels)
    for record in records:
        patches = _patches(record, patch)
        good = np.isfinite(patches).all(axis=2)
        clean = np.where(good[..., None], patches, 0.0)
        energy += np.square(fft.dct(clean, norm="ortho", axis=2)).sum(axis=1)
        total += clean.sum(axis=(1, 2), dtype=np.float64)
        count += good.sum(axis=1)
    samples = np.maximum(count * patch, 1)
    scale = np.sqrt(np.maximum(energy.sum(axis=1) / samples, 1e-12))
    basis = np.argsort(-energy, axis=1, kind="stable")[:, : min(COEFFICIENTS, patch)]
    return total / samples, scale, basis


def _patches(record: np.ndarray, patch: int) -> np.ndarray:
    whole = record.shape[1] // patch
    stride = max(1, whole // PATCHES_PER_RECORD)
    return record[:, : whole * patch].reshape(len(record), whole, patch)[:, ::stride]


def _rows(
    record: np.ndarray,
    present: tuple[bool, ...],
    patch: int,
    mean: np.ndarray,
    scale: np.ndarray,
    basis: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [R, C*3*K+1] and scaled samples [C, R, patch] of the usable patches."""
    whole = record.shape[1] // patch
    scaled = (record[:, : whole * patch] - mean[:, None]) / scale[:, None]
    patches = scaled.astype(np.float32).reshape(len(record), whole, patch)
    patches[~np.array(present)] = 0.0
    good = np.isfinite(patches).all(axis=(0, 2))
    centre = np.arange(1, whole - 1, max(1, whole // PATCHES_PER_RECORD))
    centre = centre[good[centre] & good[centre - 1] & good[centre + 1]]
    near = np.stack([patches[:, centre], patches[:, centre - 1], patches[:, centre + 1]], axis=1)
    kept = np.take_along_axis(fft.dct(near, norm="ortho", axis=3), basis[:, None, None, :], axis=3)
    features = np.ascontiguousarray(kept.transpose(2, 0, 1, 3)).reshape(len(centre), 3 * basis.size)
    return np.hstack([features, np.ones((len(centre), 1), np.float32)]), near[:, 0]


def _errors(moments: dict[_Key, _Moments], channel: int) -> tuple[np.ndarray, float]:
    """Squared test errors [3] of predictions from channels, neighbours and both; and the squared deviation."""
    parts: dict[str, _Moments] = {}
    for (split, present), moment in moments.items():
        if present[channel]:
            parts[split] = _add(parts[split], moment) if split in parts else moment
    if set(parts) != set(_PURPOSES):
        return np.zeros(3), 0.0
    test = parts["test"]
    channels = len(test.square)
    index = np.arange(len(test.gram) - 1).reshape(channels, 3, -1)
    target, constant = index[channel, 0], [len(test.gram) - 1]
    others, neighbours = np.delete(index[:, 0], channel, axis=0).ravel(), index[channel, 1:].ravel()
    lost = test.square[channel] - np.trace(test.gram[np.ix_(target, target)])
    sets = (others, neighbours, np.concatenate([others, neighbours]))
    error = [lost + _ridge_error(parts, np.concatenate([s, constant]), target) for s in sets]
    return np.array(error), float(test.square[channel] - test.total[channel] ** 2 / test.samples)


def _ridge_error(parts: dict[str, _Moments], features: np.ndarray, target: np.ndarray) -> float:
    """Squared test error of the target's coefficients, with the penalty that is best on validation records."""
    fit, validation, test = (_Products.of(parts[name].gram, features, target) for name in _PURPOSES)
    scores = [_error(validation, _ridge(fit, penalty)) for penalty in RIDGE]
    both = _Products(*(a + b for a, b in zip(fit, validation, strict=True)))
    return _error(test, _ridge(both, RIDGE[int(np.argmin(scores))]))


class _Products(NamedTuple):
    """Second moments of features, of features with targets, and of targets, extracted once for all penalties."""

    inner: np.ndarray
    cross: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, gram: np.ndarray, features: np.ndarray, target: np.ndarray) -> _Products:
        return cls(gram[np.ix_(features, features)], gram[np.ix_(features, target)], gram[np.ix_(target, target)])


def _ridge(products: _Products, penalty: float) -> np.ndarray:
    inner = products.inner.copy()
    inner[np.diag_indices_from(inner)] += penalty * np.trace(inner) / len(inner) + 1e-9
    return linalg.solve(inner, products.cross, assume_a="pos", overwrite_a=True)


def _error(products: _Products, weights: np.ndarray) -> float:
    explained = products.inner @ weights - 2 * products.cross
    return float(np.trace(products.square) + np.sum(weights * explained))
