"""Decides which channels of a recording are kept and why others are dropped, for both `prepare` and `inspect`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.io.recording import Digital, Recording, Signal
from physiofast.io.wfdb_samples import NO_SAMPLE
from physiofast.labels import STAGES, notes, stage_epochs
from physiofast.montage import MONTAGES, Montage, Resolution, nearest
from physiofast.preparation import scanning
from physiofast.preparation.config import FilterPlan, PrepareConfig, unit_factor
from physiofast.preparation.faults import find_faults, mostly_constant
from physiofast.preparation.rereferencing import NOT_MADE, electrodes_of_channels, parts_of, with_differences
from physiofast.preparation.scanning import num_whole
from physiofast.support.messages import format_distinct

ABSENT = "absent"
"""Prefix of the drop reason for a channel the recording lacks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelInspection:
    """One channel of the montage as a recording has it. Rates are in Hz; shares are None where not determined."""

    name: str
    """The channel's name in the montage."""
    source: str | None
    """The channel's name in the recording, or None if the recording lacks it."""
    modality: str
    rate_hz: float | None
    """Sampling rate in the recording."""
    target_hz: float
    """Sampling rate after preparation."""
    unit: str | None
    """The unit that the recording states."""
    flat_share: float | None = None
    """Share of patches that are flat."""
    clipped_share: float | None = None
    """Share of samples that are clipped."""
    missing_share: float | None = None
    """Share of samples that the file marks as missing (NaN)."""
    popped_share: float | None = None
    """Share of patches with an electrode pop."""
    out_of_range_share: float | None = None
    """Share of patches with a value that the modality cannot have, such as SpO2 of 0 % when the probe is off."""
    valid_share: float | None = None
    """Share of patches free of all these faults and far enough from them that no filter carries one in."""
    drop: str | None = None
    """Why `prepare` drops the channel, or None if it is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a recording holds, and what `prepare` would drop or refuse."""

    record: str
    subject: str
    age_years: float | None
    sex: str | None
    hours: float
    """Duration of the recording."""
    windows: int
    """Number of whole windows."""
    channels: tuple[ChannelInspection, ...]
    """One entry per montage channel, in the montage's order."""
    ignored: tuple[tuple[str, float, str], ...]
    """Channels of the recording that are not used: (name, sampling rate in Hz, unit)."""
    duplicates: Mapping[str, str]
    """Ignored channel -> montage channel for which another channel of the recording is used."""
    near: Mapping[str, str]
    """Ignored channel that the montage does not know -> montage channel with the most similar name."""
    stage_hours: Mapping[str, float]
    """Hours of each sleep stage, and `unscored`."""
    warnings: tuple[str, ...]
    errors: tuple[str, ...]
    """Why `prepare` would refuse the record; empty if it would not."""

    @property
    def drops(self) -> dict[str, str]:
        """Dropped channel -> reason."""
        return {channel.name: channel.drop for channel in self.channels if channel.drop is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self) | {"drops": self.drops}


@dataclasses.dataclass(frozen=True)
class InspectedChannel:
    """A channel's inspection with the raw samples it was made from. Only `inspection` is set for an absent channel."""

    inspection: ChannelInspection
    signal: Signal | None = None
    plan: FilterPlan | None = None
    digital: Digital | None = None
    """int [n], raw samples."""
    gaps: npt.NDArray[np.int64] | None = None
    """int64 [G, 2], start and stop (exclusive) of each run of samples to bridge."""
    valid: npt.NDArray[np.bool_] | None = None
    """bool [P], which patches are valid."""
    mostly_constant: bool = False
    """Whether at least half of the valid samples have the same value."""


def inspect_recording(recording: Recording, config: PrepareConfig) -> Inspection:
    """Inspect one open recording: the decisions that `prepare` makes, without filtering.

    Args:
        recording: its samples are read once, as a whole.
        config: the settings that decide what is dropped.

    Raises:
        ValueError: damaged files.
        OSError: missing files.
    """
    recording = with_differences(recording, config.resolve_montage())
    channels = [channel.inspection for channel in inspect_channels(recording, config)]
    return assemble_inspection(recording, config, channels)


def assemble_inspection(recording: Recording, config: PrepareConfig, channels: list[ChannelInspection]) -> Inspection:
    """Combine the channels' inspections, from `inspect_channels`, with what concerns the whole record."""
    montage = config.resolve_montage()
    known = find_channels(recording, config)
    used = _signals_to_read(recording, known)
    parts = {recording.names[i] for i in used.difference(known.source)}
    windows = num_whole(recording.duration_s, montage.window_s)
    stages = stage_epochs(recording, epoch_s=montage.window_s)
    warnings = (*recording.warnings, *notes(recording, montage.window_s))
    return Inspection(
        record=recording.record_id,
        subject=recording.subject_id,
        age_years=recording.age_years,
        sex=recording.sex,
        hours=recording.duration_s / 3600,
        windows=windows,
        channels=tuple(channels),
        ignored=tuple((s.name, s.rate_hz, s.unit) for i, s in enumerate(recording.signals) if i not in used),
        duplicates={name: channel for name, channel in known.duplicates.items() if name not in parts},
        near={
            name: channel
            for name in known.ignored
            if name not in known.duplicates and name not in parts and (channel := montage.near(name)) is not None
        },
        stage_hours=_stage_hours(stages, montage.window_s),
        warnings=warnings,
        errors=tuple(_errors(recording, config, channels, windows, bool((stages >= 0).any()), warnings)),
    )


def inspect_channels(recording: Recording, config: PrepareConfig) -> list[InspectedChannel]:
    """Read the montage's channels, find their faults, and decide which ones are dropped.

    Args:
        recording: from `with_differences`.
        config: the settings that decide what is dropped.

    Returns:
        One entry per montage channel, in the montage's order, with its raw samples.
    """
    montage = config.resolve_montage()
    known = find_channels(recording, config)
    raw = _read(recording, sorted(_signals_to_read(recording, known)))
    scans = _scan(recording, raw, montage)
    return [
        InspectedChannel(_absent(montage, number))
        if index is None
        else _inspect_channel(recording, config, number, index, raw, scans)
        for number, index in enumerate(known.source)
    ]


def _signals_to_read(recording: Recording, known: Resolution) -> set[int]:
    """Indices of the signals that the montage's channels map to, and of the two signals of each difference."""
    source = {i for i in known.source if i is not None}
    return source.union(*(pair for i, pair in parts_of(recording).items() if i in source))


def find_channels(recording: Recording, config: PrepareConfig) -> Resolution:
    """Match the recording's channels to the montage's; of several candidates the first whose rate and unit fit wins.

    Only headers are consulted. If the samples of the chosen channel turn out to be unusable, the channel is dropped and
    no other candidate is tried.
    """
    montage = config.resolve_montage()
    instead = electrodes_of_channels(recording, montage)

    def fits(number: int, index: int) -> bool:
        if (number, index) in instead:
            return False
        modality = montage.channels[number].modality
        plan = FilterPlan.of(config, modality, montage.channel_rate_hz(number))
        return _unfit(modality, recording.signals[index], plan) is None

    return montage.resolve(recording.names, fits)


def alike(channels: Mapping[int, tuple[Signal, Digital]]) -> list[list[int]]:
    """Group the keys of channels that the engine can process together: those of one rate, length and sample type."""
    groups: dict[Any, list[int]] = {}
    for number, (signal, digital) in channels.items():
        groups.setdefault((signal.rate_hz, digital.size, digital.dtype), []).append(number)
    return list(groups.values())


def _read(recording: Recording, indices: list[int]) -> dict[int, tuple[Digital, int | None]]:
    """Read signals: index -> (raw samples, the raw value that marks a missing sample).

    A signal whose calibration changes within the recording is requantised with a single gain and baseline.
    """
    uniform = [i for i in indices if recording.signals[i].uniform]
    result: dict[int, tuple[Digital, int | None]] = {}
    for index, digital in zip(uniform, recording.digital(uniform), strict=True):
        result[index] = digital, recording.signals[index].invalid
    for index in sorted(set(indices) - set(uniform)):
        signal, values = recording.signals[index], recording.physical(index)
        missing = ~np.isfinite(values)
        scaled = np.rint(np.where(missing, 0.0, values) * signal.gain + signal.baseline)
        digital = scaled.clip(NO_SAMPLE + 1, -NO_SAMPLE - 1).astype(np.int32)
        digital[missing] = NO_SAMPLE
        result[index] = digital, NO_SAMPLE
    return result


def _scan(
    recording: Recording, raw: dict[int, tuple[Digital, int | None]], montage: Montage
) -> dict[int, scanning.Scan]:
    """Scan signals patch by patch, those of one rate, length and sample type in one call."""
    scans: dict[int, scanning.Scan] = {}
    for indices in alike({index: (recording.signals[index], digital) for index, (digital, _) in raw.items()}):
        rate_hz, size = recording.signals[indices[0]].rate_hz, raw[indices[0]][0].size
        edges = scanning.patch_edges(num_whole(size / rate_hz, montage.patch_s), montage.patch_s, rate_hz)
        planes = tuple(raw[index][0] for index in indices)
        group = scanning.scan(planes, [raw[index][1] for index in indices], edges)
        scans |= dict(zip(indices, group, strict=True))
    return scans


def _absent(montage: Montage, number: int) -> ChannelInspection:
    channel = montage.channels[number]
    return ChannelInspection(
        name=channel.name,
        source=None,
        modality=channel.modality,
        rate_hz=None,
        target_hz=montage.channel_rate_hz(number),
        unit=None,
        drop=f"{ABSENT}: no channel of the recording has this name or one of its aliases",
    )


def _inspect_channel(
    recording: Recording,
    config: PrepareConfig,
    number: int,
    index: int,
    raw: Mapping[int, tuple[Digital, int | None]],
    scans: Mapping[int, scanning.Scan],
) -> InspectedChannel:
    montage, signal = config.resolve_montage(), recording.signals[index]
    (digital, _), scan = raw[index], scans[index]
    channel, target_hz = montage.channels[number], montage.channel_rate_hz(number)
    plan, settings = FilterPlan.of(config, channel.modality, target_hz), config.settings(channel.modality)
    faults, *of_parts = (
        find_faults(scans[i], raw[i][0], recording.signals[i], channel.modality, settings, montage.patch_s)
        for i in (index, *parts_of(recording).get(index, ()))
    )
    faults = faults.with_parts(of_parts) if of_parts else faults
    patches = num_whole(recording.duration_s, montage.patch_s)
    inside = min(patches, num_whole(digital.size / signal.rate_hz, montage.patch_s))
    drop, valid = _unfit(channel.modality, signal, plan), np.zeros(patches, np.bool_)
    if drop is None:
        valid[:inside] = faults.valid_patches(plan, signal.rate_hz, inside, montage.patch_s)
    inspection = ChannelInspection(
        name=channel.name,
        source=signal.name,
        modality=channel.modality,
        rate_hz=signal.rate_hz,
        target_hz=target_hz,
        unit=signal.unit,
        flat_share=int(faults.flat.sum()) / max(patches, 1),
        clipped_share=_length(faults.clipped) / max(digital.size, 1),
        missing_share=_length(faults.missing) / max(digital.size, 1),
        popped_share=_length(scanning.merge_runs(faults.popped)) / max(digital.size, 1),
        out_of_range_share=_length(faults.out_of_range) / max(digital.size, 1),
        valid_share=_share(valid) if drop is None else None,
    )
    if drop is None:
        drop = _worthless(inspection, config, scan.range)
    return InspectedChannel(
        dataclasses.replace(inspection, drop=drop),
        signal,
        plan,
        digital,
        faults.gaps,
        valid,
        mostly_constant=drop is None and mostly_constant(scan, digital, valid, signal.rate_hz),
    )


def _unfit(modality: str, signal: Signal, plan: FilterPlan) -> str | None:
    """Why a channel's rate or unit rules it out, whatever its samples are; None if they fit the montage."""
    if signal.rate_hz < plan.target_hz:
        native, target = format_distinct(signal.rate_hz, plan.target_hz)
        return (
            f"native rate {native} Hz is too low for {modality} at {target} Hz "
            f"(band up to {plan.high_hz:g} Hz); it is never upsampled: use a montage with {modality} at {native} Hz "
            "or less: another --montage, or your own from Python, PrepareConfig(montage=...)"
        )
    try:
        plan.resampler(signal.rate_hz)
    except ValueError as error:
        return str(error)
    return _unit_problem(modality, signal)


def _worthless(inspection: ChannelInspection, config: PrepareConfig, range_: tuple[int, int] | None) -> str | None:
    """Why a channel's samples, whose smallest and largest raw values are `range_`, are unusable; None if they are not.

    `range_` is None if every sample is missing.
    """
    assert inspection.valid_share is not None
    if range_ is None:
        return "no sample: all of them are missing"
    if range_[0] == range_[1]:
        return f"constant: every sample has the raw value {range_[0]}"
    if inspection.valid_share < config.min_valid_share or inspection.valid_share == 0:
        return (
            f"{inspection.valid_share:.1%} of its patches are valid, fewer than {config.min_valid_share:.1%} "
            f"(flat {inspection.flat_share:.1%}, popped {inspection.popped_share:.1%} and out of range "
            f"{inspection.out_of_range_share:.1%} of patches, clipped {inspection.clipped_share:.1%} and missing "
            f"{inspection.missing_share:.1%} of samples)"
        )
    return None


def _unit_problem(modality: str, signal: Signal) -> str | None:
    try:
        unit_factor(modality, signal.unit)
    except ValueError as error:
        return f"{error}; set its unit in the file's header"
    return None


def _errors(
    recording: Recording,
    config: PrepareConfig,
    channels: list[ChannelInspection],
    windows: int,
    scored: bool,
    warnings: Sequence[str],
) -> Iterator[str]:
    montage = config.resolve_montage()
    wanted = {montage.index(name) for name in config.required}
    for number in sorted(wanted):
        channel = channels[number]
        if channel.source is None:
            yield f"required channel {channel.name!r} is absent{nearest(channel.name, recording.names)}"
        elif channel.drop is not None:
            yield f"required channel {channel.name!r} is dropped: {channel.drop}"
    if windows == 0:
        yield f"it lasts {recording.duration_s:g} s, less than one window of {montage.window_s:g} s"
    if all(channel.drop is not None for channel in channels):
        reasons = [f"{channel.name}: {channel.drop}" for channel in channels if channel.source is not None]
        reasons = reasons or [f"none of the montage; found {', '.join(recording.names)}"]
        reasons += [warning for warning in warnings if NOT_MADE in warning]
        offered = f"montages to choose from with --montage: {', '.join(MONTAGES)}"
        yield f"no channel is left ({'; '.join(reasons)}); {offered}"
    if config.labels == "required" and not scored:
        why = "".join(f" ({warning})" for warning in warnings if "annotation" in warning)
        yield f"no sleep stages{why}; `--labels optional` takes it unscored"


def _stage_hours(stages: npt.NDArray[np.int8], epoch_s: float) -> dict[str, float]:
    hours = {name: float((stages == code).sum()) * epoch_s / 3600 for code, name in enumerate(STAGES)}
    return hours | {"unscored": float((stages < 0).sum()) * epoch_s / 3600}


def _length(runs: npt.NDArray[np.int64]) -> int:
    """The total number of samples in runs."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if mask.size else 0.0
