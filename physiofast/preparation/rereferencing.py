"""Derives a channel that a recording lacks from two electrodes recorded against a common reference.

A recording with `C3` and `M2` also holds `C3-M2`: in the difference the common reference cancels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from physiofast.io.recording import Digital, Physical, Recording, SampleReader, Signal, Source, Span
from physiofast.io.units import unit_ratio
from physiofast.io.wfdb_samples import NO_SAMPLE
from physiofast.montage import VOLTAGE_MODALITIES, Channel, Montage, normalise_name, split_modality
from physiofast.support.messages import format_distinct

NOT_MADE = "is not made of"
"""Part of each warning of `with_differences`."""
_DERIVATION = re.compile(r"\(?([^-()]+)-([^-()]+)\)?")
"""The name of a difference of two electrodes: `(C3-A2)`."""
_REFERENCES = ("REF", "LE", "AVG", "AVE", "AV", "AR", "CAR", "FPZ", "FZ", "CZ", "CPZ", "PZ", "M1", "M2", "A1", "A2")
"""Common references that electrodes are recorded against: one electrode, linked ears, or an average."""
_ELECTRODE = re.compile(rf"([^-()]+)(?:-\s*({'|'.join(_REFERENCES)})\s*)?\)?", re.IGNORECASE)
"""The name of an electrode, with or without its reference: `C3-REF`."""
_LEAD = re.compile(r"(eeg|eog|emg|ecg|ekg)\d*")
"""A name that may mean a lead with its own reference instead of an electrode: `ECG1` beside `ECG2`."""
_Electrode = tuple[str, str]
"""An electrode's normalised name, and its reference in capitals or ""."""


@dataclasses.dataclass(frozen=True)
class DifferenceReader:
    """Reads a recording's signals, and after them the differences of two of them, under the next indices."""

    inner: SampleReader
    """The recording's own reader."""
    signals: tuple[Signal, ...]
    """The recording's own signals."""
    pairs: Mapping[int, tuple[int, int]]
    """Index of a difference -> indices of the two signals it is computed from."""

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span; a difference is int32, `NO_SAMPLE` where either signal has no sample."""
        read = self._read(spans, self.inner.digital)
        return [self._digital(span, read) if span[0] in self.pairs else read[span] for span in spans]

    def physical(self, spans: Sequence[Span], dtype: npt.DTypeLike, out: Sequence[Physical] | None) -> list[Physical]:
        """The physical values of each span."""
        if not any(number in self.pairs for number, _, _ in spans):
            return self.inner.physical(spans, dtype, out)
        read = self._read(spans, lambda wanted: self.inner.physical(wanted, np.float64, None))
        values = (self._values(span, read) for span in spans)
        return [value.astype(dtype, copy=False) for value in values]

    def source(self, signal: int) -> Source | None:
        """Where a signal lies in its file; None for a difference, which no file holds."""
        return None if signal in self.pairs else self.inner.source(signal)

    def _read(self, spans: Sequence[Span], read: Callable[[list[Span]], list[Any]]) -> dict[Span, Any]:
        """Read each of the recording's spans that these spans need, once."""
        wanted = list(dict.fromkeys(part for span in spans for part in self._parts(span)))
        return dict(zip(wanted, read(wanted), strict=True))

    def _parts(self, span: Span) -> list[Span]:
        number, start, stop = span
        return [(part, start, stop) for part in self.pairs.get(number, (number,))]

    def _values(self, span: Span, read: Mapping[Span, Physical]) -> Physical:
        values, *less = (read[part] for part in self._parts(span))
        if not less:
            return values
        first, second = (self.signals[number] for number in self.pairs[span[0]])
        ratio = unit_ratio(second.unit, first.unit)
        return values - (less[0] if ratio == 1 else less[0] * ratio)

    def _digital(self, span: Span, read: Mapping[Span, Digital]) -> Digital:
        parts = self._parts(span)
        wide = np.subtract(*(read[part] for part in parts), dtype=np.int64)
        difference = wide.clip(NO_SAMPLE + 1, -NO_SAMPLE - 1).astype(np.int32)
        for part in parts:
            invalid = self.signals[part[0]].invalid
            if invalid is not None:
                difference[read[part] == invalid] = NO_SAMPLE
        return difference


def with_differences(recording: Recording, montage: Montage) -> Recording:
    """Add to a recording those channels of the montage that it lacks and that two of its electrodes give.

    For a channel that is absent, such as `C3-M2`, the electrodes of its name and of its aliases are looked for: `C3`
    and `M2`, `C3-AVG` and `M2-AVG`, or, by its alias `C3-A2`, `EEG C3-REF` and `EEG A2-REF`. Of the first two that
    have the same rate and length, and the same unit or voltages both, the difference becomes a signal after the
    recording's own, in the unit of its first electrode; if there are none such, warnings say why not. A channel that is
    present only as its first electrode, such as `LOC`, counts as absent if the second one is present. Names such as
    `ECG1` and `ECG2` often mean two leads, so they count as electrodes only with a reference (`ECG1-REF`).

    Returns:
        The recording itself, or one with further signals and warnings; see `parts_of`.
    """
    if parts_of(recording):
        return recording
    places = {key: i for i, name in reversed(list(enumerate(recording.names))) for key in _electrodes(name)}
    signals, pairs = list(recording.signals), {}
    notes: list[str] = []
    for channel, source in zip(montage.channels, montage.resolve(recording.names).source, strict=True):
        named_pairs = _pairs(channel, places) if channel.modality in VOLTAGE_MODALITIES else ()
        refused = []
        for name, pair in (named for named in named_pairs if source in (None, named[1][0])):
            first, second = (recording.signals[number] for number in pair)
            why = _why_not(first, second)
            if why is None:
                pairs[len(signals)] = pair
                signals.append(_difference(name, first, second))
                break
            refused.append(f"{channel.name} {NOT_MADE} {first.name} and {second.name}: {why}")
        else:
            notes.extend(dict.fromkeys(refused))
    if not pairs and not notes:
        return recording
    return dataclasses.replace(
        recording,
        signals=tuple(signals),
        warnings=(*recording.warnings, *notes),
        reader=DifferenceReader(recording.reader, recording.signals, pairs) if pairs else recording.reader,
    )


def parts_of(recording: Recording) -> Mapping[int, tuple[int, int]]:
    """Index of each difference that `with_differences` added -> indices of the two signals it is computed from."""
    return recording.reader.pairs if isinstance(recording.reader, DifferenceReader) else {}


def electrodes_of_channels(recording: Recording, montage: Montage) -> set[tuple[int, int]]:
    """Pairs (montage index, signal index) of a channel and its first electrode, where a difference is that channel.

    The electrode alone is then no candidate for the channel.
    """
    pairs: set[tuple[int, int]] = set()
    for number, (first, _) in parts_of(recording).items():
        source = montage.resolve([recording.names[number]]).source
        pairs.update((channel, first) for channel, index in enumerate(source) if index is not None)
    return pairs


def _pairs(channel: Channel, places: Mapping[_Electrode, int]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each of a channel's names whose two electrodes are present, with their indices."""
    names = (spelling for name in (channel.name, *channel.aliases) for spelling in _spellings(name))
    for parts in filter(None, map(_DERIVATION.fullmatch, names)):
        for against in ("", *_REFERENCES):
            first, second = ((normalise_name(part), against) for part in parts.groups())
            if not against and (_LEAD.fullmatch(first[0]) or _LEAD.fullmatch(second[0])):
                continue
            if first in places and second in places:
                yield " - ".join(parts.groups()), (places[first], places[second])


def _electrodes(name: str) -> list[_Electrode]:
    matches = map(_ELECTRODE.fullmatch, _spellings(name))
    return [(normalise_name(parts[1]), (parts[2] or "").upper()) for parts in matches if parts is not None]


def _spellings(name: str) -> tuple[str, ...]:
    """A name as it is and, if it begins with a modality as in `EEG C3`, without that."""
    name, prefixed = name.strip(), split_modality(name)
    return (name, prefixed[1]) if prefixed and prefixed[0] in VOLTAGE_MODALITIES else (name,)


def _why_not(first: Signal, second: Signal) -> str | None:
    """Why the difference of two signals cannot be taken; None if it can."""
    if first.rate_hz != second.rate_hz:
        return "their rates are {} and {} Hz".format(*format_distinct(first.rate_hz, second.rate_hz))
    if first.num_samples != second.num_samples:
        return f"they have {first.num_samples} and {second.num_samples} samples"
    if unit_ratio(second.unit, first.unit) is None:
        return f"their units are {first.unit!r} and {second.unit!r}"
    return None


def _difference(name: str, first: Signal, second: Signal) -> Signal:
    """The header of a difference; its stored integers exist only if both signals have one gain and one unit."""
    ratio = unit_ratio(second.unit, first.unit)
    assert ratio is not None
    uniform = first.uniform and second.uniform and first.gain == second.gain and ratio == 1
    return dataclasses.replace(
        first,
        name=name,
        gain=max(first.gain, second.gain / ratio, key=abs),
        baseline=first.baseline - second.baseline if uniform else 0.0,
        invalid=NO_SAMPLE if uniform else None,
        limits=(),
        uniform=uniform,
    )
