"""Writers of signal files, one plain loop per format, from the format's published description; and random files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from physiofast.engine import SignalFile, SignalFileReference

FORMATS = (8, 16, 24, 32, 61, 80, 160, 212, 310, 311)
BITS = {8: 8, 16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12, 310: 10, 311: 10}
INVALID = {16: -(2**15), 61: -(2**15), 160: -(2**15), 80: -128, 24: -(2**23), 212: -2048, 310: -512, 311: -512}


def _pack_212(pair: Sequence[int]) -> bytes:
    a, b = (value & 0xFFF for value in pair)
    return bytes([a & 0xFF, (a >> 8) | ((b >> 8) << 4), b & 0xFF])


def _pack_310(triple: Sequence[int]) -> bytes:
    a, b, c = (value & 0x3FF for value in triple)
    return struct.pack("<HH", (a << 1) | ((c & 31) << 11), (b << 1) | ((c >> 5) << 11))


def _pack_311(triple: Sequence[int]) -> bytes:
    a, b, c = (value & 0x3FF for value in triple)
    return struct.pack("<I", a | (b << 10) | (c << 20))


_PACKED = {212: (2, _pack_212), 310: (3, _pack_310), 311: (3, _pack_311)}
# Bytes of a last group of 1 or 2 samples.
_PARTS = {212: (2,), 310: (2, 4), 311: (2, 3)}
_STRUCT = {8: "<b", 16: "<h", 32: "<i", 61: ">h"}


def encode(fmt: int, flat: Sequence[int]) -> bytes:
    """Samples in file order (for format 8, differences) as the fewest bytes that hold them."""
    if fmt in _STRUCT:
        return b"".join(struct.pack(_STRUCT[fmt], value) for value in flat)
    if fmt == 80:
        return bytes(value + 128 for value in flat)
    if fmt == 160:
        return b"".join(struct.pack("<H", value + 32768) for value in flat)
    if fmt == 24:
        return b"".join((value & 0xFFFFFF).to_bytes(3, "little") for value in flat)
    size, pack = _PACKED[fmt]
    whole = b"".join(
        pack([*flat[i : i + size], 0, 0][:size] if len(flat) - i < size else flat[i : i + size])
        for i in range(0, len(flat), size)
    )
    rest = len(flat) % size
    missing = len(pack([0] * size)) - _PARTS[fmt][rest - 1] if rest else 0
    return whole[: len(whole) - missing]


def random_samples(fmt: int, count: int, seed: int) -> list[int]:
    """What a file of this format may hold, the extremes and the invalid value often among it."""
    rng = np.random.default_rng(seed)
    top = 2 ** (BITS[fmt] - 1)
    values = rng.integers(-top, top, count)
    edges = rng.random(count) < 0.2
    values[edges] = rng.choice([-top, top - 1, 0, -1], int(edges.sum()))
    return [int(value) for value in values]


def planes(
    fmt: int, flat: Sequence[int], samples_per_frame: Sequence[int], initial_values: Sequence[int]
) -> list[npt.NDArray[np.int32]]:
    """What each channel's samples are, given the file's."""
    frames = np.array(flat, np.int64).reshape(-1, sum(samples_per_frame))
    ends = np.cumsum((0, *samples_per_frame))
    out = []
    for i, initial in enumerate(initial_values):
        channel = frames[:, ends[i] : ends[i + 1]].reshape(-1)
        if fmt == 8:
            channel = initial + np.cumsum(channel)
        out.append(channel.astype(np.int32))
    return out


def write_header(
    folder: Path,
    fmt: int,
    samples_per_frame: Sequence[int],
    num_frames: int,
    *,
    byte_offset: int = 0,
    initial_values: Sequence[int],
    skew: Sequence[int] | None = None,
) -> Path:
    """A WFDB header for `x.dat`, without checksums."""
    lines = [f"x {len(samples_per_frame)} 100 {num_frames}"]
    for i, count in enumerate(samples_per_frame):
        shift = f":{skew[i]}" if skew else ""
        lines.append(f"x.dat {fmt}x{count}{shift}+{byte_offset} 200/mV 16 0 {initial_values[i]}")
    path = folder / "x.hea"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_edf(
    path: Path,
    planes: Sequence[npt.NDArray[np.int32]],
    samples_per_record: Sequence[int],
    *,
    bdf: bool = False,
    duration: str = "1",
    annotations_at: int | None = None,
    ranges: Sequence[tuple[str, str]] | None = None,
    num_records: int | None = None,
    texts: Sequence[bytes] | None = None,
    plus: str = "+C",
) -> None:
    """An EDF or BDF file, field by field; `annotations_at` puts a signal of EDF+ annotations there, of `texts`."""
    magic, kind = (b"\xffBIOSEMI", "BDF") if bdf else (b"0       ", "EDF")
    records = planes[0].size // samples_per_record[0]
    limit = 2**23 if bdf else 2**15
    columns = []
    for i, count in enumerate(samples_per_record):
        low, high = ranges[i] if ranges else ("-100", "100")
        columns.append([f"ch {i}", "", "uV", low, high, str(-limit), str(limit - 1), "", str(count), ""])
    width = 3 if bdf else 2
    blocks = [
        [np.asarray(p).reshape(records, -1)[r] for p, k in zip(planes, samples_per_record, strict=True)]
        for r in range(records)
    ]
    starts = [f"{r * float(duration):+g}".encode() for r in range(records)]
    texts = texts or [b"%b\x14\x14\x00+%d\x150.5\x14note %d\x14\x00" % (s, r, r) for r, s in enumerate(starts)]
    room = max(20, max(map(len, texts), default=0))
    if annotations_at is not None:
        columns.insert(annotations_at, [f"{kind} Annotations", "", "", "-1", "1", str(-limit), str(limit - 1)])
        columns[annotations_at] += ["", str(room), ""]
    number = records if num_records is None else num_records
    fixed = f"{'X X X X':80}{'Startdate X X X X':80}{'01.02.03':8}{'04.05.06':8}{256 * (1 + len(columns)):<8}"
    fixed += f"{kind + plus if annotations_at is not None else '':44}{number:<8}{duration:8}{len(columns):<4}"
    widths = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    fields = "".join(f"{column[f]:{widths[f]}}" for f in range(10) for column in columns)
    with path.open("wb") as file:
        file.write(magic + fixed.encode() + fields.encode())
        for block, text in zip(blocks, texts, strict=True):
            parts = [b"".join((int(v) & (1 << 8 * width) - 1).to_bytes(width, "little") for v in x) for x in block]
            if annotations_at is not None:
                parts.insert(annotations_at, text.ljust(room * width, b"\0"))
            file.write(b"".join(parts))


BOTH = pytest.mark.parametrize("kind", [SignalFile, SignalFileReference])
RATES = st.lists(st.sampled_from((1, 1, 1, 2, 3, 4, 7, 40)), min_size=1, max_size=6)


@st.composite
def signal_files(draw):
    """(format, samples per frame of each channel, frames, offset, samples, initial values)."""
    fmt, counts = draw(st.sampled_from(FORMATS)), draw(RATES)
    num_frames, offset = draw(st.integers(1, 60)), draw(st.integers(0, 40))
    flat = random_samples(fmt, num_frames * sum(counts), draw(st.integers(0, 2**31)))
    initial = [draw(st.integers(-1000, 1000)) for _ in counts]
    return fmt, counts, num_frames, offset, flat, initial


def write_signal_file(folder, case):
    """Of `signal_files`; (arguments, options) to open it with."""
    fmt, counts, num_frames, offset, flat, initial = case
    path = Path(folder) / "x.dat"
    path.write_bytes(b"\xa5" * offset + encode(fmt, flat))
    write_header(Path(folder), fmt, counts, num_frames, byte_offset=offset, initial_values=initial)
    arguments = (path, fmt, counts, num_frames)
    return arguments, {"byte_offset": offset, "initial_values": initial}
