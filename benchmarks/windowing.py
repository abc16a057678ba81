"""The jobs of the signal engine, from raw files to windows and from a store to batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import signal

from benchmarks import chain, ours, peers
from benchmarks.harness import Case, Check, Provider, close_per_channel
from benchmarks.peers import RATE_HZ, WINDOW_S
from benchmarks.recordings import EDF_SIGNALS, PROLOG_BYTES
from benchmarks.workspace import Workspace

BATCH, STORE_RECORDS, RANDOM_POSITIONS = 256, 4, 200
PEER_STEPS = 0.05
"""Raw steps by which peers may be off in the chain: their other treatment of the ends moves the median a little."""
OUR_STEPS = 1 / 8
"""Ours rounds to an eighth of a raw step: a sample is off by a sixteenth, and so is the median at most."""


def windows_100(space: Workspace) -> Case:
    return _windows(space, "windows_100", 1, 2, {1: 13, 2: 25}, {1: 16, 2: 30})


def windows_128(space: Workspace) -> Case:
    return _windows(space, "windows_128", 16, 25, {1: 9, 2: 17}, {1: 12, 2: 22})


def _windows(
    space: Workspace, name: str, up: int, down: int, required: dict[int, float], goal: dict[int, float]
) -> Case:
    night, taps = space.night, peers.scipy_taps(up, down)
    providers = [
        Provider(name="wfdb float64, resample_poly along time", run=peers.resample_frames(night, up, down, 64)),
        Provider(name="wfdb float32, resample_poly along time", run=peers.resample_frames(night, up, down, 32)),
        Provider(name="wfdb float64, resample_poly by channel", run=peers.resample_planes(night, up, down, 64)),
        Provider(name="wfdb float32, resample_poly by channel", run=peers.resample_planes(night, up, down, 32)),
        Provider(
            name="wfdb float32, resample_poly by channel, 2 Python threads",
            role="also",
            threads=2,
            run=peers.resample_planes(night, up, down, 32, threads=2),
        ),
        # No peer: users have rdrecord's physical values; calibrating its int16 by hand is a rewrite of theirs.
        Provider(
            name="wfdb int16, calibrated by hand, resample_poly by channel",
            role="also",
            run=peers.resample_calibrated(night, up, down),
        ),
        *_ours(space, lambda threads: ours.windows(night, up, down, taps, threads)),
    ]
    expected = expected_windows(space, up, down, taps)
    return Case(
        name=name,
        title=f"decode, resample {RATE_HZ} to {RATE_HZ * up // down} Hz, windows {list(expected.shape)} float32",
        providers=providers,
        check=lambda found: close_per_channel(found, expected, 1e-5),
        required=required,
        goal=goal,
        moved_bytes=night.samples * len(night.gain) * 2 + expected.size * 4,
        windows=len(expected),
    )


def expected_windows(space: Workspace, up: int, down: int, taps: np.ndarray) -> np.ndarray:
    """float64 [W, 13, samples] by the definition, decoded by numpy."""
    night, length = space.night, peers.window_samples(up, down)
    frames = np.fromfile(night.signal_file, np.int16, offset=PROLOG_BYTES).reshape(night.samples, -1)
    windows = night.samples // (WINDOW_S * RATE_HZ)
    out = np.empty((windows, frames.shape[1], length))
    for c, digital in enumerate(frames.T):
        physical = (digital - night.baseline[c]) / night.gain[c]
        peers.put_windows(out, c, signal.resample_poly(physical, up, down, window=taps))
    return out


def chain_scipy(space: Workspace) -> Case:
    night = space.night
    providers = [
        Provider(name="wfdb, scipy along time", run=chain.scipy_frames(night)),
        Provider(name="wfdb, scipy by channel", run=chain.scipy_planes(night)),
        Provider(name="wfdb, scipy by channel, one cascade", run=chain.scipy_planes(night, True)),
        Provider(
            name="wfdb, scipy by channel, one cascade, 2 Python threads",
            role="also",
            threads=2,
            run=chain.scipy_planes(night, True, threads=2),
        ),
        *_our_chain(space),
    ]
    return _chain(space, "chain_scipy", "scipy", providers, {1: 11, 2: 20}, {1: 14, 2: 25})


def chain_mne(space: Workspace) -> Case:
    night, truth = space.night, space.truth
    providers = [
        Provider(
            name="mne, the same IIR filters",
            run=chain.mne_epochs(night, "iir"),
            check=chain.check_unscaled(truth, 1e6, 1e-3),
        ),
        Provider(
            name="mne, the same IIR filters, one cascade",
            run=chain.mne_epochs(night, "cascade"),
            check=chain.check_unscaled(truth, 1e6, 1e-3),
        ),
        Provider(
            name="mne, its default FIR filters", run=chain.mne_epochs(night, "fir"), check=chain.check_alike(truth)
        ),
        *_our_chain(space),
    ]
    return _chain(space, "chain_mne", "mne", providers, {1: 11}, {1: 14})


def _our_chain(space: Workspace) -> list[Provider]:
    check = chain.check_scaled(space.truth, OUR_STEPS)
    return _ours(space, lambda threads: ours.chain(space.night, threads), check=check)


def _chain(
    space: Workspace,
    name: str,
    whom: str,
    providers: Sequence[Provider],
    required: dict[int, float],
    goal: dict[int, float],
) -> Case:
    windows, night = space.night.samples // (WINDOW_S * RATE_HZ), space.night
    return Case(
        name=name,
        title=f"decode, band-pass, notch, resample, robust scale, flags, windows: against {whom}",
        providers=providers,
        check=chain.check_scaled(space.truth, PEER_STEPS, chain.ENDS_S),
        required=required,
        goal=goal,
        moved_bytes=len(night.gain) * (night.samples * 2 + windows * peers.window_samples(chain.UP, chain.DOWN) * 4),
        windows=windows,
    )


def edf(space: Workspace) -> Case:
    night = space.edf
    providers = [
        Provider(name="edfio, lazy", run=peers.edfio_physical(night, lazy=True)),
        Provider(name="edfio, eager", run=peers.edfio_physical(night, lazy=False)),
        Provider(name="mne, one read per rate", run=peers.mne_edf_by_rate(night, preload=False)),
        Provider(name="mne, one read per rate, preload", run=peers.mne_edf_by_rate(night, preload=True)),
        Provider(
            name="mne, one read, all at 200 Hz", run=peers.mne_edf(night), role="also", check=_check_upsampled(space)
        ),
        Provider(name="pyedflib", run=peers.pyedflib_edf(night)),
        # No peer: users have edfio's physical values; calibrating its int16 by hand is a rewrite of theirs.
        Provider(name="edfio int16, calibrated by hand", role="also", run=peers.edfio_calibrated(night, lazy=True)),
        *_ours(space, lambda threads: ours.edf(night, threads)),
        *(
            Provider(
                name="physiofast, open file, reused buffers",
                role="also",
                threads=threads,
                run=ours.edf_reused(night, threads),
            )
            for threads in space.threads
        ),
    ]
    samples = sum(spec.rate_hz for spec in EDF_SIGNALS) * night.seconds
    return Case(
        name="edf",
        title=f"EDF, {space.hours:g} h, {len(EDF_SIGNALS)} signals at 200, 25 and 1 Hz, to float32",
        providers=providers,
        check=_check_edf(space),
        required={1: 6},
        goal={1: 8},
        moved_bytes=samples * (2 + 4),
    )


def expected_edf(space: Workspace) -> list[np.ndarray]:
    """float64 [n] per signal by the definition, decoded by numpy."""
    lengths = [spec.rate_hz for spec in EDF_SIGNALS]
    offset = 256 * (len(EDF_SIGNALS) + 1)
    records = np.fromfile(space.edf.path, np.int16, offset=offset).reshape(space.edf.seconds, -1)
    stops = np.cumsum(lengths)
    blocks = [records[:, stop - length : stop].reshape(-1) for stop, length in zip(stops, lengths, strict=True)]
    return [block * spec.scale + spec.shift for block, spec in zip(blocks, EDF_SIGNALS, strict=True)]


def _check_edf(space: Workspace) -> Callable[[Sequence[np.ndarray]], str | None]:
    def check(found: Sequence[np.ndarray]) -> str | None:
        expected = expected_edf(space)
        if len(found) != len(expected):
            return f"{len(found)} signals, expected {len(expected)}"
        for signal_number, (have, want) in enumerate(zip(found, expected, strict=True)):
            if have.dtype != np.float32:
                return f"signal {signal_number}: {have.dtype}, expected float32"
            problem = close_per_channel(have[None], want[None], 1e-6, axis=0)
            if problem:
                return f"signal {signal_number}: {problem}"
        return None

    return check


def _check_upsampled(space: Workspace) -> Callable[[np.ndarray], str | None]:
    """mne gives volts at 200 Hz; its interpolation of the slow signals is not compared."""

    def check(found: np.ndarray) -> str | None:
        fast = [i for i, spec in enumerate(EDF_SIGNALS) if spec.rate_hz == RATE_HZ]
        expected = expected_edf(space)
        return close_per_channel(found[fast] * np.float32(1e6), np.stack([expected[i] for i in fast]), 1e-6, axis=0)

    return check


def random_window(space: Workspace) -> Case:
    night, length, starts = space.night, WINDOW_S * RATE_HZ, _random_starts(space)
    providers = [
        *_wfdb_windows(space),
        *_ours(space, lambda threads: ours.random_windows(night, starts, length), (1,)),
        Provider(
            name="physiofast, open record, new arrays",
            role="also",
            run=ours.random_physical(night, starts, length, keep_open=True),
        ),
    ]
    title = (
        f"one random {WINDOW_S} s window of {len(night.gain)} channels, physical, from a raw record that is open, "
        "into a buffer that is used again (wfdb has neither)"
    )
    return _random_window(space, "random_window", title, providers, {1: 60}, {1: 100})


def random_open(space: Workspace) -> Case:
    night, length, starts = space.night, WINDOW_S * RATE_HZ, _random_starts(space)
    opened_anew = ours.random_physical(night, starts, length, keep_open=False)
    providers = [*_wfdb_windows(space), *_ours(space, lambda threads: opened_anew, (1,))]
    title = f"one random {WINDOW_S} s window of {len(night.gain)} channels, the record opened from its path each time"
    return _random_window(space, "random_open", title, providers, {}, {})


def _random_starts(space: Workspace) -> list[int]:
    last = space.night.samples - WINDOW_S * RATE_HZ
    return np.random.default_rng(1).integers(0, last, RANDOM_POSITIONS).tolist()


def _wfdb_windows(space: Workspace) -> list[Provider]:
    """wfdb has no open records: each of its reads begins with the path."""
    forms: dict[str, dict[str, Any]] = {
        "wfdb float64": {},
        "wfdb float32": {"return_res": 32},
        "wfdb float64, by channel": {"smooth_frames": False},
        "wfdb float32, by channel": {"smooth_frames": False, "return_res": 32},
    }
    starts = _random_starts(space)
    return [Provider(name=name, run=peers.random_windows(space.night, starts, **form)) for name, form in forms.items()]


def _random_window(
    space: Workspace,
    name: str,
    title: str,
    providers: Sequence[Provider],
    required: dict[int, float],
    goal: dict[int, float],
) -> Case:
    night, length, start = space.night, WINDOW_S * RATE_HZ, _random_starts(space)[-1]
    frames = np.fromfile(night.signal_file, np.int16, offset=PROLOG_BYTES).reshape(night.samples, -1)
    expected = ((frames[start:][:length] - night.baseline) / night.gain).T
    return Case(
        name=name,
        title=title,
        providers=providers,
        check=lambda found: close_per_channel(np.asarray(found), expected, 1e-6, axis=0),
        required=required,
        goal=goal,
        calls=RANDOM_POSITIONS,
        moved_bytes=length * len(night.gain) * (2 + 4),
        windows=1,
    )


def batch_numpy(space: Workspace) -> Case:
    records, batches, whole = _store(space)
    path = space.folder / "windows.npy"
    np.save(path, whole)
    mapped = np.asarray(np.load(path, mmap_mode="r"))  # a plain array over the map: memmap's own type is slower
    providers = [
        Provider(name="numpy.take, in memory", run=peers.take_windows(whole, batches)),
        Provider(name="numpy.take, memory map", run=peers.take_windows(mapped, batches)),
        Provider(name="fancy indexing, assigned", run=peers.index_windows(mapped, batches)),
        Provider(name="fancy indexing, new array", run=peers.index_new(mapped, batches)),
        *_ours(space, lambda threads: ours.batches(_mapped(space, records), batches, whole.shape[1:], threads)),
    ]
    title = f"batch of {len(batches[0])} random windows into a reused buffer: against numpy on window-major data"
    return _batch("batch_numpy", title, providers, whole, batches, {1: 0.95, 2: 1.2}, {1: 1.0, 2: 1.8})


def batch_loops(space: Workspace) -> Case:
    records, batches, whole = _store(space)
    length = whole.shape[2]
    per_record = len(whole) // len(records)
    providers = [
        Provider(name=f"Python loop, {name}", run=peers.loop_windows(read, per_record, batches, whole.shape[1:]))
        for name, read in peers.plane_readers(space.folder, records, length)
    ]
    providers += _ours(space, lambda threads: ours.batches(_mapped(space, records), batches, whole.shape[1:], threads))
    title = f"batch of {len(batches[0])} random windows into a reused buffer: against Python loops over planes"
    return _batch("batch_loops", title, providers, whole, batches, {1: 3}, {1: 5})


def _store(space: Workspace) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Planes int16 [13, n] of some records at 100 Hz, batches of window numbers, and all windows in one array.

    The batches are one permutation of all windows: no window is in a cache because the batch before had it.
    """
    random = np.random.default_rng(2)
    windows, length = round(space.hours * 3600) // WINDOW_S, WINDOW_S * 100
    shape = (13, windows * length)
    records = [random.integers(-32768, 32768, shape, np.int16) for _ in range(STORE_RECORDS)]
    whole = np.concatenate([record.reshape(13, windows, length).transpose(1, 0, 2) for record in records])
    size = min(BATCH, len(whole))
    order = random.permutation(len(whole))
    return records, np.split(order[: len(order) // size * size], len(order) // size), np.ascontiguousarray(whole)


def _mapped(space: Workspace, records: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The records' planes as memory maps of one-dimensional files, as a store has them."""
    maps = []
    for number, record in enumerate(records):
        path = space.folder / f"planes{number}.npy"
        if not path.exists():
            np.save(path, record.reshape(-1))
        maps.append(np.asarray(np.load(path, mmap_mode="r")))
    return maps


def _batch(
    name: str,
    title: str,
    providers: Sequence[Provider],
    whole: np.ndarray,
    batches: Sequence[np.ndarray],
    required: dict[int, float],
    goal: dict[int, float],
) -> Case:
    expected = whole[batches[-1]]
    return Case(
        name=name,
        title=title,
        providers=providers,
        check=lambda found: None if np.array_equal(found, expected) else "samples differ from the windows asked for",
        required=required,
        goal=goal,
        calls=len(batches),
        moved_bytes=2 * expected.nbytes,
        windows=len(expected),
    )


def _ours(
    space: Workspace,
    make: Callable[[int], Callable[[], Any]],
    threads: Sequence[int] | None = None,
    check: Check | None = None,
) -> list[Provider]:
    return [
        Provider(name="physiofast", role="ours", threads=count, run=make(count), check=check)
        for count in threads or space.threads
    ]
