"""Write a recording as the PhysioNet/CinC Challenge 2018 publishes it.

Four files: `.hea`, `.mat`, `.arousal`, `-arousal.mat`.
Source: https://physionet.org/content/challenge-2018/1.0.0/. Byte layout checked against the public tr03-0005.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import wfdb

from physiofast.labels import STAGES, Event, challenge_target
from physiofast.montage import nearest
from physiofast.official_targets import CHALLENGE_STAGES
from physiofast.stage_spans import spans_of_changes
from physiofast.stages import EPOCH_S
from physiofast.synthetic.waveforms import RATE_HZ

EPOCH_SAMPLES = EPOCH_S * RATE_HZ
_STAGE_SUBTYPE = {"W": 5, "N1": 3, "N2": 2, "N3": 1, "R": 4}
_EVENT_SUBTYPE = {
    "arousal_rera": 0,
    "resp_centralapnea": 12,
    "resp_hypopnea": 16,
    "resp_obstructiveapnea": 22,
}
"""Subtypes of the onsets that tr03-0005 shows; an end has one more. Names it lacks get `_OTHER_SUBTYPE`."""
_OTHER_SUBTYPE = 30
_STAGE_DATASETS = {code: name for name, code in CHALLENGE_STAGES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digitiser:
    """The conversion of a channel's physical values to int16: digital = round(physical * gain) + baseline."""

    name: str
    """Channel name."""
    gain: float
    """Digital units per physical unit."""
    unit: str
    """Physical unit."""
    baseline: int = 0
    """Digital value of physical zero."""

    @property
    def header_gain(self) -> str:
        """The gain field of a WFDB signal line; a baseline of 0 is left out, as WFDB leaves it."""
        return f"{self.gain:g}" + (f"({self.baseline})" if self.baseline else "") + f"/{self.unit}"

    def digitise(self, physical: np.ndarray, out: np.ndarray) -> None:
        """Round and clip float [n] into `out` int16 [n]; -32768 stays free for WFDB's invalid sample."""
        scaled = np.rint(physical * np.float32(self.gain) + np.float32(self.baseline))
        np.clip(scaled, -32767, 32767, out=scaled)
        out[:] = scaled


_ELECTRODES = ("F3-M2", "F4-M1", "C3-M2", "C4-M1", "O1-M2", "O2-M1", "E1-M2", "Chin1-Chin2")
CHANNELS = (
    *(Digitiser(name=name, gain=1.0, unit="uV") for name in (*_ELECTRODES, "ABD", "CHEST", "AIRFLOW")),
    Digitiser(name="SaO2", gain=655.35, unit="%", baseline=-32768),
    Digitiser(name="ECG", gain=1000.0, unit="mV"),
)
"""The thirteen channels in file order."""


def write_record(
    folder: Path,
    record: str,
    digital: np.ndarray,
    names: Sequence[str],
    stages: np.ndarray,
    events: Sequence[Event],
) -> None:
    """Write the four files of one record into `folder`, which is made if it is not there.

    Args:
        folder: the record's own folder; by custom named like the record.
        record: record name, such as `tr90-0001`.
        digital: int16 [n, C], sample-interleaved.
        names: C channel names, each one of `CHANNELS`.
        stages: int8 [E] codes 0 to 4 per 30 s epoch; -1 unscored, at the start only.
        events: arousals and respiratory events.

    Raises:
        ValueError: an unknown channel name, arrays that disagree, or an unscored epoch after a scored one.
    """
    if digital.ndim != 2 or digital.dtype != np.int16 or digital.shape[1] != len(names):
        raise ValueError(f"{record}: digital is {digital.dtype} {digital.shape}, expected int16 [n, {len(names)}]")
    changes = stage_changes(stages)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{record}.hea").write_text(header(record, digital, names), encoding="ascii")
    with (folder / f"{record}.mat").open("wb") as file:
        file.write(mat4_prolog(*digital.shape))
        digital.tofile(file)
    _write_annotations(folder, record, changes, events)
    _write_targets(folder / f"{record}-arousal.mat", len(digital), changes, events)


def write_index(out: Path, records: Sequence[str], ages: Sequence[int], sexes: Sequence[str]) -> None:
    """Write `RECORDS` (one `record/` a line, as in the Challenge's training folder) and `age-sex.csv`."""
    rows = [f"{record},{age},{sex}\n" for record, age, sex in zip(records, ages, sexes, strict=True)]
    (out / "age-sex.csv").write_text("Record,Age,Sex\n" + "".join(rows), encoding="ascii")
    (out / "RECORDS").write_text("".join(f"{record}/\n" for record in records), encoding="ascii")


def mat4_prolog(samples: int, channels: int) -> bytes:
    """The 24 bytes before the samples: MATLAB level 4, matrix `val`, int16 [channels, samples] by column."""
    return struct.pack("<5i4s", 30, channels, samples, 0, 4, b"val\0")


def header(record: str, digital: np.ndarray, names: Sequence[str]) -> str:
    """The WFDB header of `digital` int16 [n, C], with first values and checksums."""
    formats = {channel.name: channel for channel in CHANNELS}
    lines = [f"{record} {len(names)} {RATE_HZ} {len(digital)}"]
    for column, name in enumerate(names):
        if name not in formats:
            raise ValueError(f"{record}: the Challenge has no channel {name!r}{nearest(name, formats)}")
        gain, values = formats[name].header_gain, digital[:, column]
        lines.append(f"{record}.mat 16+24 {gain} 16 0 {values[0]} {checksum(values)} 0 {name}")
    return "\n".join(lines) + "\n"


def checksum(values: np.ndarray) -> int:
    """WFDB's checksum: the sum of all samples modulo 2^16, printed as a signed 16-bit number."""
    return (int(values.sum(dtype=np.int64)) + 0x8000) % 0x10000 - 0x8000


def stage_changes(stages: np.ndarray) -> list[tuple[int, str]]:
    """Change points (sample, note) of int8 [E] epoch codes; the unscored lead-in has none.

    Raises:
        ValueError: an unscored epoch after a scored one, which change points cannot express.
    """
    scored = np.flatnonzero(stages >= 0)
    if len(scored) and (stages[scored[0] :] < 0).any():
        raise ValueError("stages: unscored (-1) is allowed in the lead-in only")
    before = np.concatenate([[-1], stages[:-1]])
    return [(int(e) * EPOCH_SAMPLES, STAGES[stages[e]]) for e in np.flatnonzero(stages != before)]


def stage_arrays(samples: int, changes: Sequence[tuple[int, str]]) -> dict[str, np.ndarray]:
    """The one-hot stage arrays of `-arousal.mat`, uint8 [n] by dataset name.

    As in the public files each change comes one sample before the annotation's, and the last sample is
    undefined.
    """
    arrays = {name: np.zeros(samples, np.uint8) for name in CHALLENGE_STAGES}
    edges = [(0, "undefined"), *((at - 1, _STAGE_DATASETS[STAGES.index(note)]) for at, note in changes)]
    edges.append((samples - 1, "undefined"))
    for (start, name), (stop, _) in zip(edges, [*edges[1:], (samples, "")], strict=True):
        arrays[name][start:stop] = 1
    return arrays


def _write_annotations(folder: Path, record: str, changes: Sequence[tuple[int, str]], events: Sequence[Event]) -> None:
    notes = [(at, _STAGE_SUBTYPE[note], 0, note) for at, note in changes]
    for event in events:
        subtype = _EVENT_SUBTYPE.get(event.name, _OTHER_SUBTYPE)
        notes.append((event.start, subtype, 1, f"({event.name}"))
        notes.append((event.stop, subtype + 1, 1, f"{event.name})"))
    notes.sort(key=lambda note: note[0])
    wfdb.wrann(
        record,
        "arousal",
        np.array([note[0] for note in notes]),
        symbol=['"'] * len(notes),
        subtype=np.array([note[1] for note in notes]),
        chan=np.array([note[2] for note in notes]),
        num=np.zeros(len(notes), np.int64),
        aux_note=[note[3] for note in notes],
        fs=RATE_HZ,
        write_dir=str(folder),
    )


def _write_targets(path: Path, samples: int, changes: Sequence[tuple[int, str]], events: Sequence[Event]) -> None:
    """MATLAB 7.3 (HDF5) with the public files' groups, shapes, types, chunks and MATLAB attributes."""
    stages = stage_arrays(samples, changes)
    spans = spans_of_changes([(at, STAGES.index(note)) for at, note in changes], samples)
    arousals = challenge_target(samples, RATE_HZ, spans, events)
    with h5py.File(path, "w", userblock_size=512, libver=("earliest", "v110")) as file:
        data = file.create_group("data")
        data.attrs["MATLAB_class"] = np.bytes_("struct")
        target = data.create_dataset(
            "arousals",
            data=arousals[:, None].astype(np.float64),
            chunks=(min(8182, samples), 1),
            compression="gzip",
            compression_opts=3,
        )
        target.attrs["MATLAB_class"] = np.bytes_("double")
        group = data.create_group("sleep_stages")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, values in stages.items():
            chunks = (1, min(65151, samples))
            options = {"chunks": chunks, "compression": "gzip", "compression_opts": 3}
            dataset = group.create_dataset(name, data=values[None], **options)
            dataset.attrs["MATLAB_class"] = np.bytes_("logical")
            dataset.attrs["MATLAB_int_decode"] = np.int32(1)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, written by physiofast, HDF5 schema 1.00 .".ljust(116).ljust(124, b"\0"))
        raw.write(struct.pack("<HH", 0x0200, 0x4D49))
