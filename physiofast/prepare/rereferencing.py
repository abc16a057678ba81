"""Differences of electrodes against one common reference, for what a montage has and a recording lacks.

A recording of `C3` and `M2` holds `C3-M2`: what both were recorded against falls out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.io.recording import Digital, Physical, Recording, SampleReader, Signal, Source, Span
from physiofast.io.units import unit_ratio
from physiofast.io.wfdb_samples import NO_SAMPLE
from physiofast.montage import Channel, Montage, normalise_name
from physiofast.support.advice import told_apart

_MODALITIES = ("EEG", "EOG", "EMG", "ECG")
_LEADING = re.compile(r"(?:EEG|EOG|EMG|ECG|EKG)[\s:_.(-]+", re.IGNORECASE)
_DERIVATION = re.compile(r"\(?([^-()]+)-([^-()]+)\)?")
"""A name that says of which electrodes a channel is the difference: `(C3-A2)`."""
_REFERENCES = ("REF", "LE", "AVG", "AVE", "AV", "AR", "CAR", "FPZ", "FZ", "CZ", "CPZ", "PZ", "M1", "M2", "A1", "A2")
"""What electrodes are recorded against: one common electrode, linked ears, or their average."""
_ELECTRODE = re.compile(rf"([^-()]+)(?:-\s*({'|'.join(_REFERENCES)})\s*)?\)?", re.IGNORECASE)
"""A name of an electrode, with what it was recorded against or without: `C3-REF`."""
_LEAD = re.compile(r"(eeg|eog|emg|ecg|ekg)\d*")
"""A name that is as often one of a lead, which has a reference of its own: `ECG1` beside `ECG2`."""
_Electrode = tuple[str, str]
"""Both, without case and spaces."""


@dataclasses.dataclass(frozen=True)
class DifferenceReader:
    """Samples of a recording's signals, and behind them those of differences of two."""

    inner: SampleReader
    """Of the recording."""
    signals: tuple[Signal, ...]
    """Of the recording."""
    pairs: Mapping[int, tuple[int, int]]
    """For the number of each difference, those of both signals."""

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span; of differences int32, `NO_SAMPLE` where either signal has none."""
        found = self._read(spans, self.inner.digital)
        return [self._digital(span, found) if span[0] in self.pairs else found[span] for span in spans]

    def physical(self, spans: Sequence[Span], dtype: npt.DTypeLike, out: Sequence[Physical] | None) -> list[Physical]:
        """The physical values of each span."""
        if not any(number in self.pairs for number, _, _ in spans):
            return self.inner.physical(spans, dtype, out)
        found = self._read(spans, lambda wanted: self.inner.physical(wanted, np.float64, None))
        values = (self._values(span, found) for span in spans)
        return [value.astype(dtype, copy=False) for value in values]

    def source(self, signal: int) -> Source | None:
        """A difference lies in no file."""
        return None if signal in self.pairs else self.inner.source(signal)

    def _read(self, spans: Sequence[Span], read: Callable[[list[Span]], list[Any]]) -> dict[Span, Any]:
        """What the recording has of these spans, each of which is read once."""
        wanted = list(dict.fromkeys(part for span in spans for part in self._parts(span)))
        return dict(zip(wanted, read(wanted), strict=True))

    def _parts(self, span: Span) -> list[Span]:
        number, start, stop = span
        return [(part, start, stop) for part in self.pairs.get(number, (number,))]

    def _values(self, span: Span, found: Mapping[Span, Physical]) -> Physical:
        values, *less = (found[part] for part in self._parts(span))
        return values - less[0] if less else values

    def _digital(self, span: Span, found: Mapping[Span, Digital]) -> Digital:
        parts = self._parts(span)
        wide = np.subtract(*(found[part] for part in parts), dtype=np.int64)
        difference = wide.clip(NO_SAMPLE + 1, -NO_SAMPLE - 1).astype(np.int32)
        for part in parts:
            invalid = self.signals[part[0]].invalid
            if invalid is not None:
                difference[found[part] == invalid] = NO_SAMPLE
        return difference


def with_differences(recording: Recording, montage: Montage) -> Recording:
    """A recording with what the montage has, it lacks, and two of its electrodes make.

    For a channel that is not there, such as `C3-M2`, each of its names is looked through for two electrodes that are:
    `C3` and `M2`, `C3-AVG` and `M2-AVG`, or for its alias `C3-A2` `EEG C3-REF` and `EEG A2-REF`. Their difference is
    one more signal, behind the recording's own, where both have one rate and unit; where they do not, that is noted. A
    channel that is there by the name of its first electrode alone, such as `LOC`, is not there where the other one is.
    `ECG1` and `ECG2` are as often two leads: such are electrodes only where their names say what they were recorded
    against.

    Returns:
        The recording, or one with more signals and notes. `parts_of` tells what they are made of.
    """
    if parts_of(recording):
        return recording
    places = {key: i for i, name in reversed(list(enumerate(recording.names))) for key in _electrodes(name)}
    signals, pairs, notes = list(recording.signals), {}, []
    for channel, source in zip(montage.channels, montage.resolve(recording.names).source, strict=True):
        found = _pair(channel, places) if channel.modality in _MODALITIES else None
        if found is None or source not in (None, found[1][0]):
            continue
        name, pair = found
        first, second = (recording.signals[number] for number in pair)
        why = _why_not(first, second)
        if why is None:
            pairs[len(signals)] = pair
            signals.append(_difference(name, first, second))
        else:
            notes.append(f"{channel.name} is not made of {first.name} and {second.name}: {why}")
    if not pairs and not notes:
        return recording
    return dataclasses.replace(
        recording,
        signals=tuple(signals),
        warnings=(*recording.warnings, *notes),
        reader=DifferenceReader(recording.reader, recording.signals, pairs) if pairs else recording.reader,
    )


def parts_of(recording: Recording) -> Mapping[int, tuple[int, int]]:
    """For the number of each difference that `with_differences` added, those of both signals."""
    return recording.reader.pairs if isinstance(recording.reader, DifferenceReader) else {}


def electrodes_of_channels(recording: Recording, montage: Montage) -> set[tuple[int, int]]:
    """(channel of the montage, electrode) where a difference is that channel, and not its first electrode alone."""
    found: set[tuple[int, int]] = set()
    for number, (first, _) in parts_of(recording).items():
        source = montage.resolve([recording.names[number]]).source
        found.update((channel, first) for channel, index in enumerate(source) if index is not None)
    return found


def _pair(channel: Channel, places: Mapping[_Electrode, int]) -> tuple[str, tuple[int, int]] | None:
    """The first of a channel's names of which both electrodes are there, and their numbers."""
    names = (spelling for name in (channel.name, *channel.aliases) for spelling in _spellings(name))
    for parts in filter(None, map(_DERIVATION.fullmatch, names)):
        for against in ("", *_REFERENCES):
            first, second = ((normalise_name(part), against) for part in parts.groups())
            if not against and (_LEAD.fullmatch(first[0]) or _LEAD.fullmatch(second[0])):
                continue
            if first in places and second in places:
                return " - ".join(parts.groups()), (places[first], places[second])
    return None


def _electrodes(name: str) -> list[_Electrode]:
    found = map(_ELECTRODE.fullmatch, _spellings(name))
    return [(normalise_name(parts[1]), (parts[2] or "").upper()) for parts in found if parts is not None]


def _spellings(name: str) -> tuple[str, ...]:
    """A name as it is, and without the kind of signal before it, as in `EEG C3`."""
    name = name.strip()
    return tuple(dict.fromkeys((name, _LEADING.sub("", name, count=1) if _LEADING.match(name) else name)))


def _why_not(first: Signal, second: Signal) -> str | None:
    if first.rate_hz != second.rate_hz:
        return "their rates are {} and {} Hz".format(*told_apart(first.rate_hz, second.rate_hz))
    if first.num_samples != second.num_samples:
        return f"they have {first.num_samples} and {second.num_samples} samples"
    if unit_ratio(first.unit, second.unit) != 1:
        return f"their units are {first.unit!r} and {second.unit!r}"
    return None


def _difference(name: str, first: Signal, second: Signal) -> Signal:
    """Of equal gains in stored integers; else of physical values alone."""
    uniform = first.uniform and second.uniform and first.gain == second.gain
    return dataclasses.replace(
        first,
        name=name,
        gain=max(first.gain, second.gain, key=abs),
        baseline=first.baseline - second.baseline if uniform else 0.0,
        invalid=NO_SAMPLE if uniform else None,
        limits=(),
        uniform=uniform,
    )
