"""Power spectral densities of hidden spans, as recorded and as reconstructed."""

from __future__ import annotations

from typing import Any

import numpy as np

from physiofast.report.numbers import in_order
from physiofast.runfolder.files import Reconstruction

_SEGMENT_S = 4.0
_MIN_SEGMENTS = 8
_SPECTRUM_TOP_HZ = {"RESP": 4.0, "SPO2": 2.0}


def spectra(found: Reconstruction) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """Power spectral density of hidden spans, averaged over the channels of a modality and all windows.

    Spans are runs of hidden patches up to 4 s long (shorter where runs of that length are rare), with the
    mean removed and a Hann taper.

    Returns:
        Modality -> (frequency in Hz, true, rebuilt, unit); densities in the squared unit per Hz.
    """
    density = {}
    for modality in in_order({trace.modality: None for trace in found.traces}):
        traces = [trace for trace in found.traces if trace.modality == modality]
        unit, rate = traces[0].unit, traces[0].rate_hz
        traces = [trace for trace in traces if (trace.unit, trace.rate_hz) == (unit, rate)]
        pairs = _hidden_spans(traces, found.patch_s)
        length = pairs.shape[-1]
        if not len(pairs) or length < 4:
            continue
        taper = np.hanning(length)
        spectrum = np.fft.rfft((pairs - pairs.mean(-1, keepdims=True)) * taper)
        power = 2.0 * np.mean(np.abs(spectrum) ** 2, axis=0) / (rate * np.sum(taper**2))
        frequency = np.fft.rfftfreq(length, 1.0 / rate)
        shown = (frequency > 0) & (frequency <= _SPECTRUM_TOP_HZ.get(modality, 45.0))
        if np.count_nonzero(shown) > 1:
            density[modality] = (frequency[shown], power[0][shown], power[1][shown], unit)
    return density


def _hidden_spans(traces: list[Any], patch_s: float) -> np.ndarray:
    # float64 [spans, 2 (true, rebuilt), T]: the longest spans of which there are enough.
    best: list[np.ndarray] = []
    for patches in sorted({max(1, round(_SEGMENT_S / patch_s / part)) for part in (1, 2, 4, 8)}, reverse=True):
        spans = [span for trace in traces for span in _spans_of(trace, patches, patch_s)]
        if len(spans) >= _MIN_SEGMENTS:
            return np.stack(spans)
        best = best or spans
    return np.stack(best) if best else np.zeros((0, 2, 1))


def _spans_of(trace: Any, patches: int, patch_s: float) -> list[np.ndarray]:
    samples = round(trace.rate_hz * patch_s)
    spans = []
    for true, rebuilt, hidden in zip(trace.true, trace.rebuilt, trace.hidden, strict=True):
        start = 0
        while start + patches <= len(hidden):
            if not hidden[start : start + patches].all():
                start += 1
                continue
            span = slice(start * samples, (start + patches) * samples)
            both = np.stack([true[span], rebuilt[span]]).astype(np.float64)
            if np.isfinite(both).all():
                spans.append(both)
            start += patches
    return spans
