"""The engine's side of every case: closures that do one whole job from the files into a reused buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import chain as definition
from benchmarks.harness import poisoned
from benchmarks.peers import RATE_HZ, WINDOW_S, scipy_taps, window_buffer
from benchmarks.recordings import EDF_SIGNALS, PROLOG_BYTES, EdfNight, WfdbNight
from physiofast import conditioning, engine

Job = Callable[[], Any]


def on_threads(threads: int, job: Job) -> Job:
    """The job on this many threads of the engine."""

    def run() -> Any:
        engine.set_threads(threads)
        return job()

    return run


def open_file(path: Path, samples: int, channels: int) -> engine.SignalFile:
    return engine.SignalFile(path, 16, [1] * channels, samples, byte_offset=PROLOG_BYTES)


def windows(night: WfdbNight, up: int, down: int, taps: np.ndarray, threads: int) -> Job:
    """Decode, resample, windows float32 [W, 13, samples] in units."""
    out = window_buffer(night, up, down)
    resampler = engine.Resampler(up, down, taps)

    def job() -> np.ndarray:
        file = open_file(night.signal_file, night.samples, len(night.gain))
        scale, shift = 1 / night.gain, -night.baseline / night.gain
        return engine.resample(file, resampler, scale=scale, shift=shift, edge="zero", window=out.shape[2], out=out)

    return on_threads(threads, job)


def edf(night: EdfNight, threads: int) -> Job:
    """Every signal of an EDF file, float32 [n] each, in units."""
    per_record = [spec.rate_hz for spec in EDF_SIGNALS]
    gain = [1 / spec.scale for spec in EDF_SIGNALS]
    baseline = [-spec.shift / spec.scale for spec in EDF_SIGNALS]
    calibration = engine.Calibration(gain, baseline, [None] * len(gain))
    stops = [count * night.seconds for count in per_record]
    out = [poisoned((stop,), np.float32) for stop in stops]

    def job() -> list[np.ndarray]:
        file = engine.SignalFile(night.path, 16, per_record, night.seconds, byte_offset=256 * (len(per_record) + 1))
        channels = range(len(per_record))
        return file.decode_runs(channels, [0] * len(per_record), stops, calibration=calibration, out=out)

    return on_threads(threads, job)


def random_windows(night: WfdbNight, starts: Sequence[int], length: int, keep_open: bool = True) -> Job:
    """float32 [13, length] in units at each of many positions of a raw record; returns the last."""
    channels = range(len(night.gain))
    calibration = engine.Calibration(night.gain.tolist(), night.baseline.tolist(), [None] * len(night.gain))
    out = poisoned((len(night.gain), length), np.float32)
    opened = open_file(night.signal_file, night.samples, len(night.gain)) if keep_open else None

    def job() -> np.ndarray:
        for start in starts:
            file = opened or open_file(night.signal_file, night.samples, len(night.gain))
            file.decode(channels, start, start + length, calibration=calibration, out=out)
        return out

    return on_threads(1, job)


def batches(records: Sequence[np.ndarray], numbers: Sequence[np.ndarray], shape: tuple[int, ...], threads: int) -> Job:
    """Batches of windows int16 [B, 13, length] out of records' planes, which lie one after the other.

    Where each row begins is part of the job.
    """
    channels, length = shape
    out = poisoned((len(numbers[0]), *shape), np.int16)
    plane = np.arange(channels) * (records[0].size // channels)
    per_record = records[0].size // channels // length
    out_start, lengths = np.arange(0, out.size, length), np.full(out.size // length, length)

    def job() -> np.ndarray:
        for batch in numbers:
            record, window = np.divmod(batch, per_record)
            start = (plane + window[:, None] * length).reshape(-1)
            engine.gather_rows(records, np.repeat(record, channels), start, lengths, out.reshape(-1), out_start)
        return out

    return on_threads(threads, job)


def chain(night: WfdbNight, threads: int) -> Job:
    """The full chain: windows float32 [W, 13, 3000] in robust z, and valid bool [13, seconds]."""
    return chain_of(night.signal_file, night.samples, night.gain, night.baseline, threads)


def chain_of(path: Path, samples: int, gain: np.ndarray, baseline: np.ndarray, threads: int) -> Job:
    """The same for any number of interleaved channels."""
    windows, length = samples // (WINDOW_S * RATE_HZ), WINDOW_S * definition.TARGET_HZ
    out = poisoned((windows, len(gain), length), np.float32)
    seconds = samples // RATE_HZ
    edges = conditioning.patch_edges(seconds, 1.0, RATE_HZ)
    plane, start = np.tile(np.arange(len(gain)), windows), np.repeat(np.arange(windows) * length, len(gain))
    out_start, lengths = np.arange(0, out.size, length), np.full(plane.size, length)
    scratch: list[np.ndarray] = []  # filled by the first call, so that it counts as memory of the job

    def job() -> tuple[np.ndarray, np.ndarray]:
        if not scratch:
            scratch.extend(np.empty((len(gain), seconds * definition.TARGET_HZ), np.int16))
        file = open_file(path, samples, len(gain))
        scans = conditioning.scan(file, [None] * len(gain), edges)
        valid = np.stack([_valid(scan, seconds) for scan in scans])
        work = [_work(c, gain[c], baseline[c], valid[c], scratch[c]) for c in range(len(gain))]
        meanings = conditioning.quantise(file, work)
        scale = np.tile(np.array([meaning.scale for meaning in meanings], np.float32), windows)
        offset = np.tile(np.array([meaning.offset for meaning in meanings], np.float32), windows)
        engine.gather_rows(scratch, plane, start, lengths, out.reshape(-1), out_start, scale, offset)
        return out, valid

    return on_threads(threads, job)


def _valid(scan: conditioning.Scan, seconds: int) -> np.ndarray:
    clipped = conditioning.clipped_runs(scan)
    touched = conditioning.touched_patches(clipped, RATE_HZ, seconds, 1.0, definition.SUPPORT_S)
    return ~(touched | conditioning.flat_patches(scan, 1)[:seconds])


def _work(channel: int, gain: float, baseline: float, valid: np.ndarray, plane: np.ndarray) -> conditioning.ToQuantise:
    resampler = engine.Resampler(definition.UP, definition.DOWN, scipy_taps(definition.UP, definition.DOWN))
    filters = engine.ChannelFilter(
        channel=channel,
        scale=1 / gain,
        shift=-baseline / gain,
        sos=np.vstack([definition.SOS, definition.NOTCH_SOS]),
        resampler=resampler,
        outputs=plane.size,
    )
    return conditioning.ToQuantise(
        filter=filters, raw_lsb=1 / gain, centred=True, keep=valid, patch=definition.TARGET_HZ, out=plane
    )


def zero_phase(night: WfdbNight, threads: int) -> Job:
    """Decode and band-pass every channel forward and backward, float32 [13, n] in raw steps."""
    out = poisoned((len(night.gain), night.samples), np.float32)

    def job() -> np.ndarray:
        file = open_file(night.signal_file, night.samples, len(night.gain))
        return engine.zero_phase(file, definition.SOS, out=out)

    return on_threads(threads, job)
