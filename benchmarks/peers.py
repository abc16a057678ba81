"""What a Python user has today: wfdb, scipy, mne, edfio, pyedflib, each in its fastest form that gives the same result.

Functions return closures that do one whole job from the files into a reused buffer. Packages that physiofast
does not need (mne, pyedflib) are imported where they are used: `pip install 'physiofast[bench]'`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from benchmarks.harness import poisoned
from benchmarks.recordings import EDF_SIGNALS, EdfNight, WfdbNight

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # wfdb's, about pandas
    import wfdb

WINDOW_S = 30
RATE_HZ = 200
Job = Callable[[], Any]
Planes = Callable[[], Sequence[np.ndarray]]


def read_frames(night: WfdbNight, resolution: int = 64) -> np.ndarray:
    """Physical values as wfdb gives them by default: float [n, 13]."""
    return wfdb.rdrecord(str(night.path), return_res=resolution).p_signal


def read_planes(night: WfdbNight, resolution: int = 64) -> list[np.ndarray]:
    """Physical values per channel, float [n] each: wfdb's faster way out."""
    return wfdb.rdrecord(str(night.path), smooth_frames=False, return_res=resolution).e_p_signal


def digital_planes(night: WfdbNight) -> list[np.ndarray]:
    """Stored values per channel, int16 [n] each."""
    options = {"physical": False, "smooth_frames": False, "return_res": 16}
    return wfdb.rdrecord(str(night.path), **options).e_d_signal


def calibrate(night: WfdbNight, digital: np.ndarray, channel: int) -> np.ndarray:
    """Physical values float32 [n] of one channel, by hand."""
    values = digital.astype(np.float32)
    values -= np.float32(night.baseline[channel])
    values /= np.float32(night.gain[channel])
    return values


def window_samples(up: int, down: int) -> int:
    return WINDOW_S * RATE_HZ * up // down


def window_buffer(night: WfdbNight, up: int, down: int) -> np.ndarray:
    """float32 [W, 13, samples], whole windows only."""
    return poisoned((night.samples // (WINDOW_S * RATE_HZ), len(night.gain), window_samples(up, down)), np.float32)


def put_windows(out: np.ndarray, channel: int, plane: np.ndarray) -> None:
    """Copy one channel's samples into its place in every window."""
    windows, _, length = out.shape
    out[:, channel] = plane[: windows * length].reshape(windows, length)


def scipy_taps(up: int, down: int) -> np.ndarray:
    """The filter that `scipy.signal.resample_poly` designs by default."""
    half = 10 * max(up, down)
    return signal.firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", 5.0))


def resample_frames(night: WfdbNight, up: int, down: int, resolution: int) -> Job:
    """The textbook form: whole arrays, time first."""
    out = window_buffer(night, up, down)

    def run() -> np.ndarray:
        frames = signal.resample_poly(read_frames(night, resolution), up, down, axis=0)
        windows, channels, length = out.shape
        out[:] = frames[: windows * length].reshape(windows, length, channels).transpose(0, 2, 1)
        return out

    return run


def resample_planes(night: WfdbNight, up: int, down: int, resolution: int, threads: int = 1) -> Job:
    """Channel by channel, which keeps the caches warm."""
    out = window_buffer(night, up, down)

    def run() -> np.ndarray:
        planes = read_planes(night, resolution)
        each(lambda c: put_windows(out, c, signal.resample_poly(planes[c], up, down)), len(planes), threads)
        return out

    return run


def resample_calibrated(night: WfdbNight, up: int, down: int) -> Job:
    """Channel by channel from wfdb's int16, with gain and baseline applied by hand."""
    out = window_buffer(night, up, down)

    def run() -> np.ndarray:
        for c, digital in enumerate(digital_planes(night)):
            put_windows(out, c, signal.resample_poly(calibrate(night, digital, c), up, down))
        return out

    return run


def each(work: Callable[[int], None], count: int, threads: int) -> None:
    """Run work(0) to work(count - 1), in Python threads when there are more than one."""
    if threads == 1:
        for i in range(count):
            work(i)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(count)))


def random_windows(night: WfdbNight, starts: Sequence[int], **options: Any) -> Job:
    """float [13, 6000] at each of many positions; returns the last."""
    name, length = str(night.path), WINDOW_S * RATE_HZ

    def run() -> np.ndarray:
        for start in starts:
            record = wfdb.rdrecord(name, sampfrom=start, sampto=start + length, **options)
        return record.p_signal.T if record.p_signal is not None else np.stack(record.e_p_signal)

    return run


def edfio_physical(night: EdfNight, lazy: bool) -> Job:
    """edfio's physical values, as float32."""
    import edfio

    def run() -> list[np.ndarray]:
        edf = edfio.read_edf(night.path, lazy_load_data=lazy)
        return [np.asarray(found.data, np.float32) for found in edf.signals]

    return run


def edfio_calibrated(night: EdfNight, lazy: bool) -> Job:
    """edfio's int16, with the calibration applied by hand in float32."""
    import edfio

    def run() -> list[np.ndarray]:
        planes = []
        for found, spec in zip(edfio.read_edf(night.path, lazy_load_data=lazy).signals, EDF_SIGNALS, strict=True):
            values = found.digital.astype(np.float32)
            values *= np.float32(spec.scale)
            values += np.float32(spec.shift)
            planes.append(values)
        return planes

    return run


def mne_edf(night: EdfNight) -> Job:
    """One call, as documented: mne raises every channel to the highest rate."""
    mne = _mne()
    return lambda: mne.io.read_raw_edf(night.path, preload=True).get_data().astype(np.float32)


def mne_edf_by_rate(night: EdfNight, preload: bool) -> Job:
    """One call per rate, so that nothing is resampled; volts become float32 in the file's units."""
    mne = _mne()
    rates = dict.fromkeys(spec.rate_hz for spec in EDF_SIGNALS)
    groups = [[spec for spec in EDF_SIGNALS if spec.rate_hz == rate_hz] for rate_hz in rates]

    def run() -> list[np.ndarray]:
        planes: list[np.ndarray] = []
        for group in groups:
            raw = mne.io.read_raw_edf(night.path, include=[spec.name for spec in group], preload=preload)
            data = raw.get_data(units="uV" if group[0].unit == "uV" else None)
            planes.extend(data.astype(np.float32))
        return planes

    return run


def pyedflib_edf(night: EdfNight) -> Job:
    """pyedflib's physical values, as float32."""
    import pyedflib

    def run() -> list[np.ndarray]:
        with pyedflib.EdfReader(str(night.path)) as file:
            return [file.readSignal(i).astype(np.float32) for i in range(file.signals_in_file)]

    return run


def _mne() -> Any:
    import mne

    mne.set_log_level("ERROR")
    return mne


def take_windows(data: np.ndarray, batches: Sequence[np.ndarray]) -> Job:
    """numpy.take into a reused buffer; mode "clip" is the one that does not buffer."""
    out = poisoned((len(batches[0]), *data.shape[1:]), np.int16)

    def run() -> np.ndarray:
        for batch in batches:
            np.take(data, batch, axis=0, out=out, mode="clip")
        return out

    return run


def index_windows(data: np.ndarray, batches: Sequence[np.ndarray]) -> Job:
    """Fancy indexing assigned to a reused buffer."""
    out = poisoned((len(batches[0]), *data.shape[1:]), np.int16)

    def run() -> np.ndarray:
        for batch in batches:
            out[:] = data[batch]
        return out

    return run


def index_new(data: np.ndarray, batches: Sequence[np.ndarray]) -> Job:
    """Fancy indexing into a new array each time."""

    def run() -> np.ndarray:
        for batch in batches:
            found = data[batch]
        return found

    return run


def loop_windows(
    read: Callable[[int, int, np.ndarray], None], per_record: int, batches: Sequence[np.ndarray], shape: tuple[int, ...]
) -> Job:
    """A Python loop: `read(record, window, out)` fills one window of a reused buffer at a time."""
    out = poisoned((len(batches[0]), *shape), np.int16)

    def run() -> np.ndarray:
        for batch in batches:
            for i, number in enumerate(batch.tolist()):
                record, window = divmod(number, per_record)
                read(record, window, out[i])
        return out

    return run


def plane_readers(folder: Path, planes: Sequence[np.ndarray], length: int) -> Iterator[tuple[str, Any]]:
    """Write planes int16 [13, n] of records once per format, and yield (name, reader of one window)."""
    import h5py
    import safetensors
    import safetensors.numpy
    import zarr

    for r, plane in enumerate(planes):
        np.save(folder / f"{r}.npy", plane)
        safetensors.numpy.save_file({"samples": np.ascontiguousarray(plane)}, folder / f"{r}.safetensors")
        with h5py.File(folder / f"{r}.h5", "w") as file:
            file["samples"] = plane
        chunks = (len(plane), length)
        array = zarr.create_array(folder / f"{r}.zarr", shape=plane.shape, chunks=chunks, dtype="i2", compressors=None)
        array[:] = plane
    mapped = [np.load(folder / f"{r}.npy", mmap_mode="r") for r in range(len(planes))]
    hdf = [h5py.File(folder / f"{r}.h5", "r")["samples"] for r in range(len(planes))]
    tensors = [
        safetensors.safe_open(folder / f"{r}.safetensors", "np").get_slice("samples") for r in range(len(planes))
    ]
    stored = [zarr.open_array(folder / f"{r}.zarr", mode="r") for r in range(len(planes))]

    def sliced(sources: Sequence[Any]) -> Callable[[int, int, np.ndarray], None]:
        def read(record: int, window: int, out: np.ndarray) -> None:
            out[:] = sources[record][:, window * length : (window + 1) * length]

        return read

    def direct(record: int, window: int, out: np.ndarray) -> None:
        hdf[record].read_direct(out, np.s_[:, window * length : (window + 1) * length])

    yield "npy memory maps", sliced(mapped)
    yield "npy memory maps as plain arrays", sliced([np.asarray(plane) for plane in mapped])
    yield "h5py, slices", sliced(hdf)
    yield "h5py, read_direct", direct
    yield "safetensors, slices", sliced(tensors)
    yield "zarr, slices (a chunk per window)", sliced(stored)
