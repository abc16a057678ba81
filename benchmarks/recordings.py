"""Recordings for the benchmarks: noise with a spectrum and a drift like those of a night, made in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import signal

from physiofast.synthetic.challenge2018 import CHANNELS, Digitiser, header, mat4_prolog
from physiofast.synthetic.waveforms import RATE_HZ

PROLOG_BYTES = 24
_VOLTAGE_LSB, _MAINS_LSB, _DRIFT_LSB = 40.0, 4.0, 60.0
_FAULT_S = 20


@dataclasses.dataclass(frozen=True)
class WfdbNight:
    """A record at 200 Hz, as the Challenge 2018 has them with 13 channels: `path` + `.hea` and `.mat`."""

    path: Path
    """Without suffix, as wfdb takes it."""
    samples: int
    gain: np.ndarray
    """float64 [channels], digital steps per unit."""
    baseline: np.ndarray
    """float64 [channels], digital value of 0."""

    @property
    def signal_file(self) -> Path:
        return self.path.with_suffix(".mat")


def write_wfdb(folder: Path, hours: float, seed: int = 0) -> WfdbNight:
    """Write `night.hea` and `night.mat`; its samples hold no sentinel, a flat and a clipped stretch."""
    digital = simulate(round(hours * 3600 * RATE_HZ), len(CHANNELS), seed)
    saturation = digital[:, [channel.name for channel in CHANNELS].index("SaO2")]
    saturation[:] = 29000 + saturation.clip(-500, 500)  # about 94 %
    return _write_record(folder, "night", digital, CHANNELS)


def write_sized(folder: Path, hours: float, channels: int) -> WfdbNight:
    """Write a record of any length with any number of channels, all of them like the first EEG channel."""
    samples = round(hours * 3600 * RATE_HZ)
    return _write_record(folder, f"{samples}x{channels}", simulate(samples, channels), CHANNELS[:1] * channels)


def _write_record(folder: Path, name: str, digital: np.ndarray, channels: Sequence[Digitiser]) -> WfdbNight:
    """int16 [n, C] as a MATLAB 4 file, which is format 16 from byte 24 on, and its header."""
    (folder / f"{name}.hea").write_text(header(name, digital, [channel.name for channel in channels]))
    with (folder / f"{name}.mat").open("wb") as file:
        file.write(mat4_prolog(*digital.shape))
        digital.tofile(file)
    gain = np.array([channel.gain for channel in channels])
    baseline = np.array([channel.baseline for channel in channels], np.float64)
    return WfdbNight(folder / name, len(digital), gain, baseline)


def simulate(samples: int, channels: int, seed: int = 0, rate_hz: float = RATE_HZ) -> np.ndarray:
    """int16 [samples, channels]: low-pass noise, 50 Hz mains and a slow drift, of amplitudes as in an EEG."""
    digital = np.empty((samples, channels), np.int16)
    mains = np.float32(_MAINS_LSB) * np.sin(2 * np.pi * 50 / rate_hz * np.arange(samples), dtype=np.float32)
    for channel in range(channels):
        random = np.random.default_rng([seed, channel])
        noise = _low_pass(random.standard_normal(samples, np.float32), 0.85)
        drift = np.cumsum(random.standard_normal(samples // 200 + 2, np.float32))
        drift = np.interp(np.arange(samples), 200 * np.arange(drift.size), drift - drift.mean())
        values = _VOLTAGE_LSB * noise + mains + _DRIFT_LSB / max(drift.std(), 1e-6) * drift
        digital[:, channel] = np.rint(values.clip(-32000, 32000))
    _add_faults(digital, round(_FAULT_S * rate_hz))
    return digital


def _low_pass(noise: np.ndarray, pole: float) -> np.ndarray:
    """White noise to the standard deviation 1 with most of its power below a tenth of the rate."""
    return signal.lfilter([np.float32(np.sqrt(1 - pole**2))], [np.float32(1), np.float32(-pole)], noise)


def _add_faults(digital: np.ndarray, length: int) -> None:
    """A stretch without movement and one against a 12-bit rail in every third channel, if it is long enough."""
    samples = len(digital)
    if samples < 20 * length:
        return
    for channel in range(0, digital.shape[1], 3):
        start = (channel + 1) * samples // (digital.shape[1] + 2)
        digital[start : start + length, channel] = digital[start, channel]
        digital[start + 3 * length : start + 4 * length, channel] = 2047


@dataclasses.dataclass(frozen=True)
class EdfSignalSpec:
    """One signal of an EDF file: its name, unit, rate and physical range for digital -32768 to 32767."""

    name: str
    unit: str
    rate_hz: int
    low: float
    high: float

    @property
    def scale(self) -> float:
        """Units per digital step."""
        return (self.high - self.low) / 65535

    @property
    def shift(self) -> float:
        """Physical value of digital 0."""
        return self.low + 32768 * self.scale


_FAST = ("F3-M2", "F4-M1", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2", "Chin", "ECG")
EDF_SIGNALS = (
    *(EdfSignalSpec(name, "uV", 200, -3276.8, 3276.7) for name in _FAST),
    *(EdfSignalSpec(name, "", 25, -100.0, 100.0) for name in ("Abdomen", "Thorax", "Flow")),
    EdfSignalSpec("SpO2", "%", 1, 0.0, 100.0),
)


@dataclasses.dataclass(frozen=True)
class EdfNight:
    """An EDF file with data records of 1 s and `EDF_SIGNALS`."""

    path: Path
    seconds: int


def write_edf(folder: Path, hours: float, seed: int = 0) -> EdfNight:
    """Write `night.edf`: 6 EEG, EOG, chin and ECG at 200 Hz, breathing at 25 Hz, saturation at 1 Hz."""
    seconds = round(hours * 3600)
    columns = []
    for rate_hz in dict.fromkeys(spec.rate_hz for spec in EDF_SIGNALS):
        channels = sum(spec.rate_hz == rate_hz for spec in EDF_SIGNALS)
        block = simulate(seconds * rate_hz, channels, seed + rate_hz, rate_hz).reshape(seconds, rate_hz, channels)
        columns.append(block.transpose(0, 2, 1).reshape(seconds, -1))
    with (folder / "night.edf").open("wb") as file:
        file.write(_edf_header(seconds))
        np.concatenate(columns, axis=1).tofile(file)
    return EdfNight(folder / "night.edf", seconds)


def _edf_header(seconds: int) -> bytes:
    """The header of a plain EDF file (https://www.edfplus.info/specs/edf.html)."""
    count = len(EDF_SIGNALS)
    fixed = [("0", 8), ("X", 80), ("X", 80), ("01.01.20", 8), ("22.00.00", 8), (256 * (count + 1), 8)]
    fixed += [("", 44), (seconds, 8), (1, 8), (count, 4)]
    fields = [(spec.name, 16) for spec in EDF_SIGNALS] + [("", 80)] * count
    fields += [(spec.unit, 8) for spec in EDF_SIGNALS]
    fields += [(spec.low, 8) for spec in EDF_SIGNALS] + [(spec.high, 8) for spec in EDF_SIGNALS]
    fields += [(-32768, 8)] * count + [(32767, 8)] * count + [("", 80)] * count
    fields += [(spec.rate_hz, 8) for spec in EDF_SIGNALS] + [("", 32)] * count
    return "".join(f"{value!s:<{width}}" for value, width in fixed + fields).encode("ascii")
