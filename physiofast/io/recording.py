"""The `Recording` type: channels at their own rates, whose samples are read lazily, and annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from physiofast.engine import SignalFile
from physiofast.engine.limits import MAX_DURATION_S, MAX_RATE_HZ, MIN_RATE_HZ

Digital = npt.NDArray[np.int16] | npt.NDArray[np.int32]
Physical = npt.NDArray[Any]
MAX_GAP_SAMPLES = 2**28
"""Most samples of one signal in the gaps of a multi-segment record, which take memory though no file holds them."""
Span = tuple[int, int, int]
"""Part of a signal: its index, the first sample and the end sample (exclusive), both at the signal's own rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signal:
    """One channel as its file describes it: physical = (digital - baseline) / gain, in `unit`."""

    name: str
    """Name in the file, such as `C3-M2`."""
    rate_hz: float
    """Native sampling rate."""
    unit: str
    """Physical unit as the file spells it; empty if it states none."""
    gain: float
    """Digital steps per unit. May be negative, never 0."""
    baseline: float
    """Digital value of physical 0."""
    num_samples: int
    """Number of samples in the whole recording."""
    invalid: int | None = None
    """Digital value that marks a missing sample, or None if every value is a sample."""
    limits: tuple[int, ...] = ()
    """Digital values at which it may be clipped, by the header (EDF, BDF) or the format (WFDB's 8-bit formats)."""
    uniform: bool = True
    """Whether all segments have the same gain and baseline; if not, only physical values can be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotation:
    """One annotation, on the clock of `Recording.annotation_rate_hz`."""

    sample: int
    """Onset; 0 is the recording's first sample."""
    symbol: str
    """WFDB annotation symbol; `"` for free text, as for every EDF+ annotation."""
    aux: str
    """The text, such as `N2` or `(resp_hypopnea`."""
    duration: int | None = None
    """Duration in samples of the annotation clock; None if the file states none."""


class Source(NamedTuple):
    """The location of a signal's samples: sample t is sample `t + skew` of a channel of a signal file."""

    file: SignalFile
    """The open file, which the file's signals share."""
    channel: int
    """Index of the channel in the file."""
    skew: int
    """Offset in samples; samples past the file's end are invalid."""


class SampleReader(Protocol):
    """Access to samples that each file format implements. Only these calls open signal files."""

    def digital(self, spans: Sequence[Span]) -> list[Digital]:
        """The stored integers of each span."""
        ...

    def physical(self, spans: Sequence[Span], dtype: npt.DTypeLike, out: Sequence[Physical] | None) -> list[Physical]:
        """The physical values of each span as float32 or float64, NaN where invalid.

        They may be written to the arrays of `out`, and are if that is possible.
        """
        ...

    def source(self, signal: int) -> Source | None:
        """The location of a signal's samples, or None if they do not lie in one uncompressed signal file."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """One subject's night. Opening reads headers and annotations; samples are read on demand."""

    record_id: str
    """Name of the record, such as `tr03-0005`."""
    subject_id: str
    """The subject; all nights of one subject share it, so that splits keep them together.

    It is taken from the column `subject` of `age-sex.csv`, else from file names of Sleep-EDFx, MIT-BIH and NSRR, else
    from the patient code of an EDF+ header, else from the file's name.
    """
    path: Path
    """Header (WFDB) or file (EDF, BDF)."""
    signals: tuple[Signal, ...]
    """Every channel of the file, in file order."""
    annotations: tuple[Annotation, ...]
    """Annotations in time order."""
    annotation_rate_hz: float
    """Rate of the annotation clock, on which annotations are given."""
    annotator: str
    """Source of the annotations: a WFDB annotator (`arousal`, `st`, ...), `edf+`, `nsrr` or `eannot`; empty if there
    are none."""
    age_years: float | None
    """Age at the recording; None if unknown."""
    sex: str | None
    """`F` or `M`; None if unknown."""
    files: tuple[Path, ...]
    """Every existing file that the recording consists of."""
    warnings: tuple[str, ...]
    """What is missing or assumed, one sentence each."""
    reader: SampleReader = dataclasses.field(repr=False, compare=False)
    """Access to the samples, by file format."""

    @property
    def names(self) -> tuple[str, ...]:
        """Channel names, in file order."""
        return tuple(signal.name for signal in self.signals)

    @property
    def duration_s(self) -> float:
        """Duration of the longest channel in seconds; without channels, the time of the last annotation's end."""
        if self.signals:
            return max(signal.num_samples / signal.rate_hz for signal in self.signals)
        ends = (a.sample + (a.duration or 0) for a in self.annotations)
        return max(ends, default=0) / self.annotation_rate_hz

    def digital(self, indices: Sequence[int], start: int = 0, stop: int | None = None) -> list[Digital]:
        """Read the stored integers of channels.

        A whole WFDB signal is verified by the header's checksum, or, if that is not stated, by its initial value, which
        real headers may have wrong beside a correct checksum.

        Args:
            indices: indices of the channels.
            start: first sample, at each channel's own rate.
            stop: end sample (exclusive), at each channel's own rate; the channel's end if None.

        Returns:
            For each channel int16 [n] or int32 [n].

        Raises:
            OSError: a file is missing.
            ValueError: range outside the recording, truncated or damaged file, or a channel whose segments
                differ in calibration (read `physical` then).
        """
        spans = self._spans(indices, start, stop)
        for index, _, _ in spans:
            if not self.signals[index].uniform:
                raise ValueError(
                    f"{self.path}: segments differ in the calibration of signal {index} "
                    f"({self.signals[index].name}), so it has no digital values; read physical() instead"
                )
        return self.reader.digital(spans)

    @overload
    def physical(
        self, index: int, start: int = 0, stop: int | None = None, *, dtype: npt.DTypeLike = np.float64
    ) -> Physical: ...

    @overload
    def physical(
        self,
        index: Sequence[int],
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: npt.DTypeLike = np.float64,
        out: Sequence[Physical] | None = None,
    ) -> list[Physical]: ...

    def physical(
        self,
        index: int | Sequence[int],
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: npt.DTypeLike = np.float64,
        out: Sequence[Physical] | None = None,
    ) -> Physical | list[Physical]:
        """Read the values of one channel or several, in their own units.

        A whole WFDB signal is verified by the header's checksum, or, if that is not stated, by its initial value, which
        real headers may have wrong beside a correct checksum.

        Args:
            index: index of a channel, or several; a file that several channels share is read once.
            start: first sample, at each channel's own rate.
            stop: end sample (exclusive), at each channel's own rate; the channel's end if None.
            dtype: float64, which is exact, or float32, which is rounded once and takes half the time.
            out: for several channels, an array of `dtype` [n] each to write to. Reusing arrays is faster: new memory
                costs more time than reading.

        Returns:
            `dtype` [n], NaN at invalid samples and in gaps between segments; for several channels a list, which is
            `out` if given.

        Raises:
            OSError: a file is missing.
            ValueError: range outside the recording, truncated or damaged file, or an unsuitable dtype or `out`.
            TypeError: `index` is a name.
        """
        if isinstance(index, str):
            raise TypeError(f"index must be a channel's number; recording.names.index({index!r}) gives that of a name")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype: expected float32 or float64, found {np.dtype(dtype)}")
        if isinstance(index, int | np.integer):
            return self.reader.physical(self._spans([int(index)], start, stop), dtype, None)[0]
        spans = self._spans(index, start, stop)
        if out is None:
            return self.reader.physical(spans, dtype, None)
        sizes = [(last - first, np.dtype(dtype)) for _, first, last in spans]
        if sizes != [(array.size, array.dtype) for array in out]:
            raise ValueError(f"out: expected sizes and types {sizes}, found {[(x.size, x.dtype) for x in out]}")
        for array, values in zip(out, self.reader.physical(spans, dtype, out), strict=True):
            if values is not array:
                array[:] = values
        return list(out)

    def source(self, index: int) -> Source | None:
        """The location of a channel's samples, for reading them without verification.

        Args:
            index: index of the channel.

        Returns:
            The open signal file, the channel in it and its skew; None for multi-segment records and compressed
            formats. The file stays open as long as it is referenced.

        Raises:
            OSError: the file is missing.
            ValueError: no such channel, or a truncated file.
        """
        self._spans([index], 0, 0)
        return self.reader.source(index)

    def _spans(self, indices: Sequence[int], start: int, stop: int | None) -> list[Span]:
        spans = []
        for index in indices:
            if not 0 <= index < len(self.signals):
                raise ValueError(f"{self.path}: no signal {index}; it has 0 to {len(self.signals) - 1}")
            total = self.signals[index].num_samples
            end = total if stop is None else stop
            if not 0 <= start <= end <= total:
                raise ValueError(
                    f"{self.path}: samples {start} to {end} of signal {index} ({self.signals[index].name}) "
                    f"are not within its 0 to {total}"
                )
            spans.append((index, start, end))
        return spans


def check_annotation_clock(rate_hz: float, samples: Sequence[float], where: str) -> None:
    """Refuse an annotation clock out of range, or annotations farther than `MAX_DURATION_S` from the start.

    Args:
        rate_hz: rate of the clock.
        samples: times of the annotations on it.
        where: the file, which begins the error message.

    Raises:
        ValueError: the clock or an annotation is out of range.
    """
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise ValueError(f"{where}: annotation clock: expected {MIN_RATE_HZ:g} to {MAX_RATE_HZ:g} Hz, found {rate_hz}")
    most = MAX_DURATION_S * rate_hz
    for number, sample in enumerate(samples):
        if not -most <= sample <= most:
            raise ValueError(
                f"{where}: annotation {number}: expected a place within {MAX_DURATION_S:g} s ({most:.0f} samples at "
                f"{rate_hz:g} Hz) from the start, found sample {sample}"
            )


def to_physical(signal: Signal, digital: Digital) -> Physical:
    """Convert digital to physical values, (digital - baseline) / gain, float64 [n]; NaN at the invalid value."""
    values = digital.astype(np.float64)
    values -= signal.baseline
    values /= signal.gain
    if signal.invalid is not None:
        values[digital == signal.invalid] = np.nan
    return values
