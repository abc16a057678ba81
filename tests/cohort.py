"""A small store of random signals, written without recordings or filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physiofast.montage import Channel, Montage
from physiofast.store import PreparedRecord, Store, lay_out_planes, write_record
from physiofast.store.manifest import write_manifest

MONTAGE = Montage(
    channels=(
        Channel(name="C3-M2", modality="EEG"),
        Channel(name="C4-M1", modality="EEG"),
        Channel(name="E1-M2", modality="EOG"),
        Channel(name="AIRFLOW", modality="RESP"),
        Channel(name="SaO2", modality="SPO2"),
    ),
    rate_hz={"EEG": 16.0, "EOG": 16.0, "RESP": 8.0, "SPO2": 2.0},
    patch_s=1.0,
    window_s=6.0,
)


def write_store(
    path: Path, *, subjects: int = 4, windows: int = 5, montage: Montage = MONTAGE, seed: int = 0, absent: bool = True
) -> Store:
    """`subjects` records of `windows` windows and two patches more; record 1 lacks the last EEG channel."""
    path.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(subjects):
        record = make_record(montage, windows, np.random.default_rng([seed, number]), absent and number == 1)
        name = f"r{number:02d}"
        write_record(path / f"{name}.safetensors", record)
        entries.append(
            {
                "record": name,
                "subject": f"s{number:02d}",
                "age_years": 40.0 + number,
                "sex": "FM"[number % 2],
                "hours": windows * montage.window_s / 3600,
                "windows": windows,
                "patches": record.valid.shape[1],
                "units": ["uV" if start >= 0 else "" for start in record.plane_start],
                "drops": {},
                "warnings": [],
                "file": f"{name}.safetensors",
            }
        )
    manifest = {"montage": montage.to_dict(), "config": {}, "records": entries, "failed": []}
    write_manifest(path, manifest)
    return Store.open(path)


def make_record(montage: Montage, windows: int, random: np.random.Generator, lacks_one: bool) -> PreparedRecord:
    channels, patches = len(montage.channels), windows * montage.patches_per_window + 2
    lengths = np.asarray([montage.patch_lengths[m] * patches for m in montage.channel_modality], np.int64)
    missing = np.zeros(channels, bool)
    missing[1] = lacks_one
    lengths[missing] = 0
    start, total = lay_out_planes(lengths)
    samples = np.zeros(total, np.int16)
    common = np.convolve(random.standard_normal(16 * patches + 32), np.ones(32) / 32**0.5, "valid")  # smooth, shared
    for c in np.flatnonzero(start >= 0):
        step = max(16 // montage.patch_lengths[montage.channel_modality[c]], 1)
        signal = common[::step][: lengths[c]] + 0.3 * random.standard_normal(lengths[c])
        samples[start[c] : start[c] + lengths[c]] = np.clip(signal * 200, -32000, 32000)
    valid = random.random((channels, patches)) >= 0.05
    valid[missing] = False
    stage = random.integers(0, 5, windows).astype(np.int8)
    scale = np.where(missing, 0, random.uniform(0.004, 0.006, channels)).astype(np.float32)
    return PreparedRecord(
        samples=samples,
        plane_start=start,
        plane_length=lengths,
        scale=scale,
        shift=np.where(missing, 0, 0.1).astype(np.float32),
        unit_scale=np.where(missing, 0, 0.125).astype(np.float32),
        unit_shift=np.zeros(channels, np.float32),
        valid=valid,
        stage=stage,
        arousal=random.integers(-1, 2, windows).astype(np.int8),
        apnea=random.integers(0, 2, windows).astype(np.int8),
        provenance={},
    )
