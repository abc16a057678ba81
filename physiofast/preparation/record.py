"""Prepares one recording: the samples of every channel that is kept, the labels, and their provenance."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast import __version__, conditioning, labels
from physiofast.engine import ChannelFilter
from physiofast.io.recording import Recording
from physiofast.montage import Montage
from physiofast.preparation.config import PrepareConfig, unit_factor
from physiofast.preparation.inspection import (
    InspectedChannel,
    Inspection,
    alike,
    assemble_inspection,
    find_channels,
    inspect_channels,
)
from physiofast.preparation.rereferencing import with_differences
from physiofast.preparation.scanning import num_whole
from physiofast.store import SOURCE_KEYS, PreparedRecord, StoreRecord, lay_out_planes, manifest_entry, read_header


def prepare_record(recording: Recording, config: PrepareConfig) -> PreparedRecord:
    """Prepare one open recording: filter, resample and quantise the channels that are kept, and read its labels.

    Raises:
        ValueError: damaged files, or a record that the config refuses.
        OSError: missing files.
    """
    montage = config.resolve_montage()
    recording = with_differences(recording, montage)
    patches = num_whole(recording.duration_s, montage.patch_s)
    inspected = inspect_channels(recording, config)
    found = assemble_inspection(recording, config, [channel.inspection for channel in inspected])
    if found.errors:
        raise ValueError(f"{recording.path}: {'; '.join(found.errors)}")
    lengths = np.array(
        [
            0 if channel.inspection.drop else patches * montage.patch_lengths[modality]
            for channel, modality in zip(inspected, montage.channel_modality, strict=True)
        ],
        np.int64,
    )
    starts, total = lay_out_planes(lengths)
    samples = np.zeros(total, np.int16)
    planes = [samples[start : start + length] for start, length in zip(starts.clip(0), lengths, strict=True)]
    quantised = _condition(inspected, montage, planes)
    valid = np.zeros((len(inspected), patches), np.bool_)
    for c in quantised:
        valid[c] = inspected[c].valid

    def of_channels(name: str) -> npt.NDArray[np.float32]:
        """One field of every channel's `Quantised`, float32 [C]; 0 for dropped channels."""
        return np.asarray(
            [getattr(quantised[c], name) if c in quantised else 0 for c in range(len(inspected))], np.float32
        )

    return PreparedRecord(
        samples=samples,
        plane_start=starts,
        plane_length=lengths,
        scale=of_channels("scale"),
        shift=of_channels("shift"),
        unit_scale=of_channels("unit_scale"),
        unit_shift=of_channels("unit_shift"),
        valid=valid,
        **_codes(recording, montage),
        provenance=_provenance(recording, config, found, inspected, patches),
    )


def entry_if_current(file: Path, recording: Recording, config: PrepareConfig) -> dict[str, Any] | None:
    """The manifest entry of a record's file; None if there is no file, or it is damaged or out of date."""
    if not file.is_file():
        return None
    sources = _sources(recording)
    try:  # a damaged file is written anew, whatever the damage
        _, provenance = read_header(file)
        same = provenance["config"] == config.to_dict() and provenance["physiofast"] == __version__
        same = same and provenance["subject"] == recording.subject_id
        same = same and (provenance["age_years"], provenance["sex"]) == (recording.age_years, recording.sex)
        same = same and provenance["sources"] == sources
        stored = StoreRecord(file, provenance)
        if not same or not _names_and_labels_agree(stored, recording, config):
            return None
        stored.check()
        return manifest_entry(file, provenance, stored)
    except (ValueError, LookupError, TypeError, AttributeError, OSError, MemoryError):
        return None


def _condition(
    inspected: Sequence[InspectedChannel], montage: Montage, planes: Sequence[npt.NDArray[np.int16]]
) -> dict[int, conditioning.Quantised]:
    """Filter and quantise kept channels into their planes, those of one rate, length and sample type in one call."""
    kept = {}
    for number, channel in enumerate(inspected):
        if channel.inspection.drop is None:
            assert channel.signal is not None and channel.digital is not None
            kept[number] = channel.signal, channel.digital
    quantised: dict[int, conditioning.Quantised] = {}
    for numbers in alike(kept):
        source = tuple(kept[n][1] for n in numbers)
        work = [_to_quantise(inspected[n], c, montage, planes[n]) for c, n in enumerate(numbers)]
        quantised |= dict(zip(numbers, conditioning.quantise(source, work), strict=True))
    return quantised


def _to_quantise(
    channel: InspectedChannel, source: int, montage: Montage, out: npt.NDArray[np.int16]
) -> conditioning.ToQuantise:
    signal, plan, valid = channel.signal, channel.plan, channel.valid
    assert signal is not None and plan is not None and valid is not None and channel.digital is not None
    factor, _ = unit_factor(channel.inspection.modality, signal.unit)
    scale = factor / signal.gain
    resampler = plan.resampler(signal.rate_hz)
    return conditioning.ToQuantise(
        filter=ChannelFilter(
            channel=source,
            gaps=channel.gaps,
            scale=scale,
            shift=-signal.baseline * scale,
            sos=plan.sos(signal.rate_hz),
            resampler=resampler,
            outputs=min(resampler.num_outputs(channel.digital.size), out.size),
        ),
        raw_lsb=abs(scale),
        centred=plan.low_hz is not None,
        keep=valid,
        mostly_constant=channel.mostly_constant,
        patch=round(plan.target_hz * montage.patch_s),
        out=out,
    )


def _codes(recording: Recording, montage: Montage) -> dict[str, npt.NDArray[np.int8]]:
    """Stage, arousal and apnea codes of a recording's windows, int8 [windows] each."""
    windows, window_s = num_whole(recording.duration_s, montage.window_s), montage.window_s
    return {
        "stage": _fit(labels.stage_epochs(recording, window_s), windows),
        "arousal": _fit(labels.arousal_windows(recording, window_s), windows),
        "apnea": _fit(labels.apnea_windows(recording, window_s), windows),
    }


def _fit(codes: npt.NDArray[np.int8], windows: int) -> npt.NDArray[np.int8]:
    """Cut or pad codes to one per window: the annotation clock may round the last window away."""
    return np.pad(codes[:windows], (0, max(0, windows - codes.size)), constant_values=labels.UNSCORED)


def _provenance(
    recording: Recording,
    config: PrepareConfig,
    found: Inspection,
    inspected: Sequence[InspectedChannel],
    patches: int,
) -> dict[str, Any]:
    kept = [channel for channel in inspected if channel.inspection.drop is None]
    return {
        "record": recording.record_id,
        "subject": recording.subject_id,
        "age_years": recording.age_years,
        "sex": recording.sex,
        "hours": found.hours,
        "windows": found.windows,
        "patches": patches,
        "units": ["" if channel.inspection.drop else _unit(channel) for channel in inspected],
        "drops": found.drops,
        "warnings": list(found.warnings),
        "filters": {channel.inspection.name: _filters(channel) for channel in kept},
        "channels": [dataclasses.asdict(channel) for channel in found.channels],
        "config": config.to_dict(),
        "physiofast": __version__,
        "sources": _sources(recording),
    }


def _unit(channel: InspectedChannel) -> str:
    assert channel.signal is not None
    return unit_factor(channel.inspection.modality, channel.signal.unit)[1]


def _filters(channel: InspectedChannel) -> dict[str, Any]:
    assert channel.plan is not None and channel.signal is not None
    rate_hz = channel.signal.rate_hz
    return dataclasses.asdict(channel.plan) | {"rate_hz": rate_hz, "support_s": channel.plan.support_s(rate_hz)}


def _names_and_labels_agree(stored: StoreRecord, recording: Recording, config: PrepareConfig) -> bool:
    """Whether a stored record has the channels and labels that this release reads from the recording's files."""
    montage = config.resolve_montage()
    recording = with_differences(recording, montage)
    channels = [
        (channel.name, None if index is None else recording.names[index], montage.channel_rate_hz(c))
        for c, (channel, index) in enumerate(
            zip(montage.channels, find_channels(recording, config).source, strict=True)
        )
    ]
    if [(c["name"], c["source"], c["target_hz"]) for c in stored.provenance["channels"]] != channels:
        return False
    return all(np.array_equal(getattr(stored, name), now) for name, now in _codes(recording, montage).items())


def _sources(recording: Recording) -> list[dict[str, Any]]:
    return [_source(path) for path in recording.files]


def _source(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return dict(zip(SOURCE_KEYS, (path.name, path.stat().st_size, digest), strict=True))
