"""What a recording holds and what `prepare` would drop of it, and why: one decision for both commands."""

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
from physiofast.prepare import scanning
from physiofast.prepare.faults import find_faults, rests
from physiofast.prepare.rereferencing import electrodes_of_channels, parts_of, with_differences
from physiofast.prepare.scanning import num_whole
from physiofast.prepare.treatment import FilterPlan, PrepareConfig, unit_factor
from physiofast.support.advice import told_apart

ABSENT = "absent"
"""How the reason begins why a channel is not kept that the recording does not have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelSurvey:
    """One channel of the montage in one recording."""

    name: str
    """The montage's name."""
    source: str | None
    """The recording's name, or None when it is absent."""
    modality: str
    rate_hz: float | None
    """Native rate."""
    target_hz: float
    """Rate after preparation."""
    unit: str | None
    """The recording's unit."""
    flat_share: float | None = None
    """Share of flat patches."""
    clipped_share: float | None = None
    """Share of clipped samples."""
    missing_share: float | None = None
    """Share of samples that the file marks as missing (NaN)."""
    popped_share: float | None = None
    """Share of patches with an electrode pop."""
    outside_share: float | None = None
    """Share of patches with a value that the modality cannot have, such as 0 % of an oximeter without a finger."""
    valid_share: float | None = None
    """Share of patches that are finite, not clipped, not flat, not outside, and away from all that and from pops."""
    drop: str | None = None
    """Why `prepare` leaves the channel out, or None when it is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What a recording holds and what `prepare` would do with it."""

    record: str
    subject: str
    age_years: float | None
    sex: str | None
    hours: float
    windows: int
    """Whole windows."""
    channels: tuple[ChannelSurvey, ...]
    """One per montage channel, in order."""
    ignored: tuple[tuple[str, float, str], ...]
    """Channels that are not used: (name, native rate in Hz, unit)."""
    doubles: Mapping[str, str]
    """Names of ignored ones of which there is another one, and the montage's channel that both are."""
    near: Mapping[str, str]
    """Channels of the montage whose names come nearest to ignored ones that it does not know."""
    stage_hours: Mapping[str, float]
    """Hours of each stage, and `unscored`."""
    warnings: tuple[str, ...]
    errors: tuple[str, ...]
    """Why `prepare` would refuse the record; empty when it would not."""

    @property
    def drops(self) -> dict[str, str]:
        """Dropped channels and why."""
        return {channel.name: channel.drop for channel in self.channels if channel.drop is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self) | {"drops": self.drops}


@dataclasses.dataclass(frozen=True)
class ExaminedChannel:
    """A channel with the raw samples and flags that its survey comes from."""

    survey: ChannelSurvey
    signal: Signal | None = None
    plan: FilterPlan | None = None
    digital: Digital | None = None
    """int [n], raw."""
    gaps: npt.NDArray[np.int64] | None = None
    """int64 [G, 2], stretches of samples to bridge."""
    valid: npt.NDArray[np.bool_] | None = None
    """bool [P]."""
    rests: bool = False
    """Whether half of its valid samples or more have one and the same value."""


def survey(recording: Recording, config: PrepareConfig) -> Survey:
    """Look at a recording as `prepare` does, without filtering.

    Args:
        recording: read as a whole, once.
        config: decides what is dropped.

    Raises:
        ValueError: damaged files.
        OSError: missing files.
    """
    recording = with_differences(recording, config.resolve_montage())
    channels = [examined.survey for examined in examine(recording, config)]
    return summarise(recording, config, channels)


def summarise(recording: Recording, config: PrepareConfig, channels: list[ChannelSurvey]) -> Survey:
    """Put channels that `examine` gave together with what concerns the whole record."""
    montage = config.resolve_montage()
    known = find_channels(recording, config)
    used = _read_for(recording, known)
    parts = {recording.names[i] for i in used.difference(known.source)}
    windows = num_whole(recording.duration_s, montage.window_s)
    stages = stage_epochs(recording, epoch_s=montage.window_s)
    warnings = (*recording.warnings, *notes(recording, montage.window_s))
    return Survey(
        record=recording.record_id,
        subject=recording.subject_id,
        age_years=recording.age_years,
        sex=recording.sex,
        hours=recording.duration_s / 3600,
        windows=windows,
        channels=tuple(channels),
        ignored=tuple((s.name, s.rate_hz, s.unit) for i, s in enumerate(recording.signals) if i not in used),
        doubles={name: channel for name, channel in known.doubles.items() if name not in parts},
        near={
            name: channel
            for name in known.ignored
            if name not in known.doubles and name not in parts and (channel := montage.near(name)) is not None
        },
        stage_hours=_stage_hours(stages, montage.window_s),
        warnings=warnings,
        errors=tuple(_errors(recording, config, channels, windows, bool((stages >= 0).any()), warnings)),
    )


def examine(recording: Recording, config: PrepareConfig) -> list[ExaminedChannel]:
    """Each channel of the montage, in order, with its raw samples, flags and whether it is dropped.

    Args:
        recording: from `with_differences`.
        config: decides what is dropped.
    """
    montage = config.resolve_montage()
    known = find_channels(recording, config)
    raw = _read(recording, sorted(_read_for(recording, known)))
    scans = _scan(recording, raw, montage)
    return [
        ExaminedChannel(_absent(montage, number))
        if index is None
        else _examine_channel(recording, config, number, index, raw, scans)
        for number, index in enumerate(known.source)
    ]


def _read_for(recording: Recording, known: Resolution) -> set[int]:
    """Numbers of the signals that a montage's channels are, and of those that these are made of."""
    source = {i for i in known.source if i is not None}
    return source.union(*(pair for i, pair in parts_of(recording).items() if i in source))


def find_channels(recording: Recording, config: PrepareConfig) -> Resolution:
    """Which channel of a recording is which of the montage: of several, the first whose rate and unit fit.

    Its header decides, before samples are read: one that turns out to be worthless is dropped, whatever else there is.
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
    """The numbers of channels that the engine can treat together: those of one rate, length and type."""
    groups: dict[Any, list[int]] = {}
    for number, (signal, digital) in channels.items():
        groups.setdefault((signal.rate_hz, digital.size, digital.dtype), []).append(number)
    return list(groups.values())


def _read(recording: Recording, indices: list[int]) -> dict[int, tuple[Digital, int | None]]:
    """Raw values and which one is invalid; channels whose calibration changes are put back on one scale."""
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
    """Channels of one rate, length and type are looked at together."""
    scans: dict[int, scanning.Scan] = {}
    for indices in alike({index: (recording.signals[index], digital) for index, (digital, _) in raw.items()}):
        rate_hz, size = recording.signals[indices[0]].rate_hz, raw[indices[0]][0].size
        edges = scanning.patch_edges(num_whole(size / rate_hz, montage.patch_s), montage.patch_s, rate_hz)
        planes = tuple(raw[index][0] for index in indices)
        found = scanning.scan(planes, [raw[index][1] for index in indices], edges)
        scans |= dict(zip(indices, found, strict=True))
    return scans


def _absent(montage: Montage, number: int) -> ChannelSurvey:
    channel = montage.channels[number]
    return ChannelSurvey(
        name=channel.name,
        source=None,
        modality=channel.modality,
        rate_hz=None,
        target_hz=montage.channel_rate_hz(number),
        unit=None,
        drop=f"{ABSENT}: no channel of the recording has this name or one of its aliases",
    )


def _examine_channel(
    recording: Recording,
    config: PrepareConfig,
    number: int,
    index: int,
    raw: Mapping[int, tuple[Digital, int | None]],
    scans: Mapping[int, scanning.Scan],
) -> ExaminedChannel:
    montage, signal = config.resolve_montage(), recording.signals[index]
    (digital, _), scan = raw[index], scans[index]
    channel, target_hz = montage.channels[number], montage.channel_rate_hz(number)
    plan, treatment = FilterPlan.of(config, channel.modality, target_hz), config.treatment(channel.modality)
    faults, *of_parts = (
        find_faults(scans[i], raw[i][0], recording.signals[i], channel.modality, treatment, montage.patch_s)
        for i in (index, *parts_of(recording).get(index, ()))
    )
    faults = faults.and_of(of_parts) if of_parts else faults
    patches = num_whole(recording.duration_s, montage.patch_s)
    inside = min(patches, num_whole(digital.size / signal.rate_hz, montage.patch_s))
    drop, valid = _unfit(channel.modality, signal, plan), np.zeros(patches, np.bool_)
    if drop is None:
        valid[:inside] = faults.valid_patches(plan, signal.rate_hz, inside, montage.patch_s)
    found = ChannelSurvey(
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
        outside_share=_length(faults.outside) / max(digital.size, 1),
        valid_share=_share(valid) if drop is None else None,
    )
    if drop is None:
        drop = _worthless(found, config, scan.range)
    still = drop is None and rests(scan, digital, valid, signal.rate_hz)
    return ExaminedChannel(dataclasses.replace(found, drop=drop), signal, plan, digital, faults.gaps, valid, still)


def _unfit(modality: str, signal: Signal, plan: FilterPlan) -> str | None:
    """Why a channel cannot be brought to the montage's rate and unit, whatever its samples are."""
    if signal.rate_hz < plan.target_hz:
        native, target = told_apart(signal.rate_hz, plan.target_hz)
        return (
            f"native rate {native} Hz is too low for {modality} at {target} Hz "
            f"(band up to {plan.high_hz:g} Hz); never upsampled: it takes a montage with {modality} at {native} Hz "
            "or less"
        )
    try:
        plan.resampler(signal.rate_hz)
    except ValueError as error:
        return str(error)
    return _unit_problem(modality, signal)


def _worthless(found: ChannelSurvey, config: PrepareConfig, present: tuple[int, int] | None) -> str | None:
    """Why a channel's samples, of which `present` is the range, are not worth keeping."""
    assert found.valid_share is not None
    if present is None:
        return "no sample: all of them are missing"
    if present[0] == present[1]:
        return f"constant: every sample has the raw value {present[0]}"
    if found.valid_share < config.min_valid_share or found.valid_share == 0:
        return (
            f"{found.valid_share:.1%} of its patches are valid, fewer than {config.min_valid_share:.1%} "
            f"(flat {found.flat_share:.1%}, popped {found.popped_share:.1%} and outside {found.outside_share:.1%} of "
            f"patches, clipped {found.clipped_share:.1%} and missing {found.missing_share:.1%} of samples)"
        )
    return None


def _unit_problem(modality: str, signal: Signal) -> str | None:
    try:
        unit_factor(modality, signal.unit)
    except ValueError as error:
        return f"{error}; write its unit into the header of the file"
    return None


def _errors(
    recording: Recording,
    config: PrepareConfig,
    channels: list[ChannelSurvey],
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
        reasons = "; ".join(f"{channel.name}: {channel.drop}" for channel in channels if channel.source is not None)
        yield (
            f"no channel is left ({reasons or 'none of the montage; found ' + ', '.join(recording.names)}); montages "
            f"to choose from with --montage: {', '.join(MONTAGES)}"
        )
    if config.labels == "required" and not scored:
        why = "".join(f" ({warning})" for warning in warnings if "annotation" in warning)
        yield f"no sleep stages{why}; `--labels optional` takes it unscored"


def _stage_hours(stages: npt.NDArray[np.int8], epoch_s: float) -> dict[str, float]:
    hours = {name: float((stages == code).sum()) * epoch_s / 3600 for code, name in enumerate(STAGES)}
    return hours | {"unscored": float((stages < 0).sum()) * epoch_s / 3600}


def _length(runs: npt.NDArray[np.int64]) -> int:
    """Samples in all of these stretches."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if mask.size else 0.0
