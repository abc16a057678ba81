"""The engine's side of every case: closures that do one whole job, from the path of a record on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import chain as definition
from benchmarks.harness import poisoned
from benchmarks.peers import RATE_HZ, WINDOW_S, scipy_taps, window_buffer
from benchmarks.recordings import EdfNight, WfdbNight
from physiofast import conditioning, engine
from physiofast.io import Recording, Signal, open_recording
from physiofast.preparation import scanning

Job = Callable[[], Any]


def on_engine_threads(job: Job, threads: int) -> Job:
    """The job on this many threads of the engine, which keeps that number afterwards."""

    def run() -> Any:
        engine.set_threads(threads)
        return job()

    return run


def open_signals(path: Path) -> tuple[engine.SignalFile, tuple[Signal, ...]]:
    """Open a record that is one signal file: the file, and what the header says of its channels, in file order."""
    recording = open_recording(path)
    source = recording.source(0)
    assert source is not None, f"{path} is not one signal file"
    return source.file, recording.signals


def calibration(signals: Sequence[Signal]) -> engine.Calibration:
    """As the header states it."""
    gain, baseline = [signal.gain for signal in signals], [signal.baseline for signal in signals]
    return engine.Calibration(gain, baseline, [signal.invalid for signal in signals])


def windows(night: WfdbNight, up: int, down: int, taps: np.ndarray, threads: int, keep_open: bool = False) -> Job:
    """Decode, resample, windows float32 [W, 13, samples] in units; `keep_open` leaves the header out of the job."""
    out = window_buffer(night, up, down)
    opened = open_signals(night.path) if keep_open else None

    def job() -> np.ndarray:
        file, signals = opened or open_signals(night.path)
        scale = np.array([1 / signal.gain for signal in signals])
        shift = np.array([-signal.baseline / signal.gain for signal in signals])
        resampler = engine.Resampler(up, down, taps)
        return engine.resample(file, resampler, scale=scale, shift=shift, edge="zero", window=out.shape[2], out=out)

    return on_engine_threads(job, threads)


def edf(night: EdfNight, threads: int) -> Job:
    """Every signal of an EDF file from its path, float32 [n] each, in units, in new arrays."""

    def job() -> list[np.ndarray]:
        recording = open_recording(night.path)
        return recording.physical(range(len(recording.signals)), dtype=np.float32)

    return on_engine_threads(job, threads)


def edf_reused(night: EdfNight, threads: int) -> Job:
    """The same of an open file into arrays that were written before."""
    file, signals = open_signals(night.path)
    stops, known = [signal.num_samples for signal in signals], calibration(signals)
    out = [poisoned((stop,), np.float32) for stop in stops]
    channels, starts = range(len(signals)), [0] * len(signals)
    return on_engine_threads(lambda: file.decode_runs(channels, starts, stops, calibration=known, out=out), threads)


def random_windows(night: WfdbNight, starts: Sequence[int], length: int) -> Job:
    """float32 [13, length] in units at each of many positions of an open record; returns the last."""
    file, signals = open_signals(night.path)
    channels, known = range(len(signals)), calibration(signals)
    out = poisoned((len(signals), length), np.float32)

    def job() -> np.ndarray:
        for start in starts:
            file.decode(channels, start, start + length, calibration=known, out=out)
        return out

    return on_engine_threads(job, 1)


def random_physical(night: WfdbNight, starts: Sequence[int], length: int, keep_open: bool) -> Job:
    """The same by `Recording.physical` in new arrays; without `keep_open` the record is opened for each window."""
    opened = open_recording(night.path) if keep_open else None

    def job() -> list[np.ndarray]:
        for start in starts:
            recording: Recording = opened or open_recording(night.path)
            found = recording.physical(range(len(recording.signals)), start, start + length, dtype=np.float32)
        return found

    return on_engine_threads(job, 1)


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

    return on_engine_threads(job, threads)


def chain(night: WfdbNight, threads: int) -> Job:
    """The full chain: windows float32 [W, channels, 3000] in robust z, and valid bool [channels, seconds]."""
    channels, seconds = len(night.gain), night.samples // RATE_HZ
    windows, length = night.samples // (WINDOW_S * RATE_HZ), WINDOW_S * definition.TARGET_HZ
    out = poisoned((windows, channels, length), np.float32)
    edges = scanning.patch_edges(seconds, 1.0, RATE_HZ)
    plane, start = np.tile(np.arange(channels), windows), np.repeat(np.arange(windows) * length, channels)
    out_start, lengths = np.arange(0, out.size, length), np.full(plane.size, length)
    scratch: list[np.ndarray] = []  # filled by the first call, so that it counts as memory of the job

    def job() -> tuple[np.ndarray, np.ndarray]:
        if not scratch:
            scratch.extend(np.empty((channels, seconds * definition.TARGET_HZ), np.int16))
        file, signals = open_signals(night.path)
        scans = scanning.scan(file, [signal.invalid for signal in signals], edges)
        gaps = [scanning.missing_runs(scan) for scan in scans]
        valid = np.stack([_valid(scan, missing, seconds) for scan, missing in zip(scans, gaps, strict=True)])
        work = [_work(c, signals[c], gaps[c], valid[c], scratch[c]) for c in range(channels)]
        meanings = conditioning.quantise(file, work)
        scale = np.tile(np.array([meaning.scale for meaning in meanings], np.float32), windows)
        offset = np.tile(np.array([meaning.shift for meaning in meanings], np.float32), windows)
        engine.gather_rows(scratch, plane, start, lengths, out.reshape(-1), out_start, scale, offset)
        return out, valid

    return on_engine_threads(job, threads)


def _valid(scan: scanning.Scan, missing: np.ndarray, seconds: int) -> np.ndarray:
    faults = np.concatenate([scanning.clipped_runs(scan), missing])
    touched = scanning.touched_patches(faults, RATE_HZ, seconds, 1.0, definition.SUPPORT_S)
    return ~(touched | scanning.flat_patches(scan, 1)[:seconds])


def _work(
    channel: int, signal: Signal, missing: np.ndarray, valid: np.ndarray, plane: np.ndarray
) -> conditioning.ToQuantise:
    resampler = engine.Resampler(definition.UP, definition.DOWN, scipy_taps(definition.UP, definition.DOWN))
    filters = engine.ChannelFilter(
        channel=channel,
        gaps=missing,
        scale=1 / signal.gain,
        shift=-signal.baseline / signal.gain,
        sos=np.vstack([definition.SOS, definition.NOTCH_SOS]),
        resampler=resampler,
        outputs=plane.size,
    )
    return conditioning.ToQuantise(
        filter=filters, raw_lsb=1 / signal.gain, centred=True, keep=valid, patch=definition.TARGET_HZ, out=plane
    )


def zero_phase(night: WfdbNight, sos: np.ndarray, threads: int) -> Job:
    """Decode and filter every channel forward and backward, float32 [13, n] in raw steps."""
    out = poisoned((len(night.gain), night.samples), np.float32)
    return on_engine_threads(lambda: engine.zero_phase(open_signals(night.path)[0], sos, out=out), threads)
