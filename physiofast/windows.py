"""Windows of a store: which ones are usable, their order in training, and reading them as batches."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from physiofast import engine
from physiofast.montage import Montage, nearest
from physiofast.ops.contracts import Rows, channel_lengths
from physiofast.ops.moving import to_device, unchecked
from physiofast.ops.randomness import JITTER, random_words
from physiofast.store import PLANE_ALIGN, Store, StoreRecord, most_maps, padded
from physiofast.support.bounds import Bounds, check_fields, require_instance

_OPEN = "physiofast.Store.open(path) makes one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """Which windows are used, and how they are split. Every default is ours."""

    test_share: float = 1 / 3
    """Share of the subjects held out from pretraining and from fitting probes."""
    split_seed: int = 0
    """Seed of the split by subject."""
    min_valid_share: float = 0.5
    """Smallest share of valid patches, among the present channels, with which a window is used."""
    jitter: bool = True
    """Shift training windows by a random number of whole patches, up to half a window either way, unless the shifted
    window has fewer valid patches than `min_valid_share` requires."""

    def __post_init__(self) -> None:
        check_fields(
            self, "windows", {"test_share": Bounds(above=0, below=1), "min_valid_share": Bounds(least=0, most=1)}
        )


@dataclasses.dataclass(frozen=True)
class WindowIndex:
    """The usable windows of records of a store, in the order of records and time."""

    record: np.ndarray
    """int32 [n], index of each window's record in `store.records`."""
    epoch: np.ndarray
    """int32 [n], index of each window within its recording, which is the scoring epoch."""
    window_id: np.ndarray
    """int64 [n], an id of each window that depends only on the record's name and the epoch."""

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.record)

    def take(self, places: np.ndarray) -> WindowIndex:
        """An index of the windows at these positions, in their order."""
        return WindowIndex(self.record[places], self.epoch[places], self.window_id[places])

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yield all positions of the index in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield np.arange(start, min(start + size, len(self)))


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Choose at most `most` evenly spaced positions below `count`, including the first and the last; int64."""
    if most >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def index_windows(store: Store, subjects: Collection[str] | None = None, min_valid_share: float = 0.5) -> WindowIndex:
    """Index the windows of subjects that have enough valid patches.

    Args:
        store: prepared recordings.
        subjects: names of the subjects; all if None.
        min_valid_share: smallest share of valid patches among the window's present channels.

    Raises:
        ValueError: no window is left, or subjects that the store does not have.
        TypeError: `store` is a path, or `subjects` is a single name instead of a collection.
    """
    require_instance(Store, "store", store, _OPEN)
    if subjects is not None:
        _check_subjects(store, subjects)
    record, epoch, window_id = [], [], []
    for position, entry in enumerate(store.records):
        if subjects is not None and entry.subject not in subjects:
            continue
        usable = np.flatnonzero(valid_share(entry, store.montage) >= min_valid_share)
        record.append(np.full(len(usable), position, np.int32))
        epoch.append(usable.astype(np.int32))
        window_id.append((record_key(entry.record) << 20) + usable.astype(np.int64))
    if not sum(map(len, epoch)):
        raise ValueError(
            f"{store.path}: no window of {len(record)} records has {min_valid_share:.0%} valid patches; "
            f"look at the drops with `physiofast inspect`, or lower windows.min_valid_share"
        )
    return WindowIndex(np.concatenate(record), np.concatenate(epoch), np.concatenate(window_id))


def _check_subjects(store: Store, subjects: Collection[str]) -> None:
    if isinstance(subjects, str):
        raise TypeError(f"subjects must be a collection of names; found the text {subjects!r}: write [{subjects!r}]")
    known = {record.subject for record in store.records}
    unknown = [subject for subject in subjects if subject not in known]
    if unknown:
        more = f" and {len(unknown) - 1} more of {len(subjects)}" if len(unknown) > 1 else ""
        hint = nearest(str(unknown[0]), sorted(known), most=20)
        raise ValueError(f"{store.path} has no subject {unknown[0]!r}{more}{hint}")


def valid_share(record: StoreRecord, montage: Montage) -> np.ndarray:
    """The share of valid patches in each window, among the channels that the record has; float64 [E]."""
    present = record.valid[record.plane_start >= 0]
    patches = montage.patches_per_window
    if not len(present):
        return np.zeros(record.num_windows)
    return present[:, : record.num_windows * patches].reshape(len(present), -1, patches).mean((0, 2))


def record_key(name: str) -> int:
    """A 40-bit hash of a record's name, so that windows keep their ids when records are added to a store."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=5).digest(), "little")


def step_windows(count: int, seed: int, step: int, batch: int) -> np.ndarray:
    """Choose the windows of one optimiser step: positions below `count`, int64 [batch].

    Steps walk through all windows in one random permutation after another. The result depends only on the arguments, so
    a run resumes from the step number alone, and the global batches do not depend on the number of processes.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    chosen = np.empty(batch, np.int64)
    for number in np.unique(places // count):
        here = places // count == number
        chosen[here] = _permutation(count, seed, int(number))[places[here] % count]
    return chosen


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, number: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, number])).permutation(count)


def jitter_patches(seed: int, step: int, window_id: np.ndarray, patches: int) -> np.ndarray:
    """Draw each window's shift from (seed, step, window id): int64 [B], in patches, from -patches/2 to patches/2."""
    words = random_words(seed, step, window_id, 1, (JITTER,))[0, :, 0].astype(np.int64)
    return words % (patches + 1) - patches // 2


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A batch of windows, as the model takes it."""

    rows: Rows
    window_id: Tensor
    """int64 [B], ids of the windows, on the host."""
    valid: Tensor
    """bool [B, N], copy of `rows.valid` on the host, so that quotas are drawn without synchronising with a GPU."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """A copy with its rows on a device; the rest stays on the host."""
        return dataclasses.replace(self, rows=self.rows.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy with its rows in pinned memory, which a `DataLoader` asks for with `pin_memory=True`."""
        return dataclasses.replace(self, rows=self.rows.pin_memory())


torch.serialization.add_safe_globals([Batch])  # `torch.load` takes it as it takes tensors


class WindowReader:
    """Reads windows of a store as `Rows`: gathered into a fresh buffer, or in place in a resident store.

    Args:
        store: prepared recordings.
        device: device of the rows.
        resident: keep all samples of the store on the device, so that a batch consists only of row starts.

    Raises:
        TypeError: `store` is a path.
    """

    def __init__(self, store: Store, device: torch.device | str = "cpu", resident: bool = False) -> None:
        require_instance(Store, "store", store, _OPEN)
        self.store, self.montage, self.device = store, store.montage, torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:  # other threads have a current one of their own
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._scale = np.stack([record.scale for record in store.records])
        self._shift = np.stack([record.shift for record in store.records])
        self._plane = np.stack([record.plane_start for record in store.records])
        self._patch = np.asarray([self.montage.patch_lengths[m] for m in self.montage.channel_modality])
        self._length = np.asarray(self.montage.row_lengths)
        self._offsets = np.append(0, np.cumsum(padded(self._length)))
        ends = np.cumsum([0, *(record.num_samples for record in store.records)])
        self._base = ends[:-1]
        self._resident: Tensor | None = None
        if resident:
            everything = np.empty(ends[-1], np.int16)
            for entry, start, end in zip(store.records, ends, ends[1:], strict=False):
                everything[start:end] = entry.samples
            self._resident = torch.from_numpy(everything).to(self.device)

    def batch(
        self,
        index: WindowIndex,
        windows: Sequence[int] | np.ndarray,
        shift: np.ndarray | None = None,
        out: Tensor | None = None,
        min_valid_share: float = 0.0,
    ) -> Batch:
        """Read a batch of windows.

        Args:
            index: index of the reader's store.
            windows: [B] positions in the index.
            shift: int [B], number of patches by which each window starts later, clipped so that it stays in the record.
            out: int16 [at least `buffer_size(B)`] on the host, such as pinned memory, to gather samples into. The batch
                refers to it until it is used again. If None, memory is allocated. Unused with a resident store.
            min_valid_share: a window that shifting would leave with a smaller share of valid patches among its
                present channels is not shifted.

        On a GPU, without `out`, rows are copied on the current stream and are ready for computations on that stream.

        Raises:
            ValueError: no window, or an `out` of another type, too small or not on the host.
            TypeError: `windows` is a single position instead of a sequence.
        """
        if np.ndim(windows) == 0:
            raise TypeError(
                f"windows must be a sequence of positions; found {windows!r}: batch(index, [{windows!r}]), or a "
                "DataLoader with a BatchSampler and batch_size=None"
            )
        if not len(windows):
            raise ValueError("windows must name one window or more; found none")
        record, patches = index.record[windows], self.montage.patches_per_window
        epoch = index.epoch[windows].astype(np.int64) * patches
        last = np.asarray([self.store.records[r].valid.shape[1] - patches for r in record])
        start = np.clip(epoch + (0 if shift is None else shift), 0, last)
        valid = self._valid(record, start)
        if shift is not None and (few := self._valid_share(record, valid) < min_valid_share).any():
            start = np.where(few, epoch, start)
            valid[torch.from_numpy(few)] = self._valid(record[few], epoch[few])
        rows = self._rows(record, start, valid, out)
        # PyTorch gives fresh pinned memory to nobody else before copies from it have ended; a caller may reuse `out`.
        rows = to_device(rows, self.device, non_blocking=self.device.type == "cuda" and out is None)
        return Batch(rows, torch.from_numpy(index.window_id[windows]), valid)

    def signals(self, index: WindowIndex, windows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Read robust z-scores of windows: for each channel float32 [B, T_c], NaN where the channel is absent."""
        record = index.record[windows]
        start = index.epoch[windows].astype(np.int64) * self.montage.patches_per_window
        first = self._first_samples(record, start)
        flat = np.empty(self.buffer_size(len(record)), np.float32)
        row_start = self._gather(record, first, flat)
        signals = []
        for c, length in enumerate(self._length):
            values = flat[row_start[:, c, None] + np.arange(length)]
            values[first[:, c] < 0] = np.nan
            signals.append(values)
        return signals

    def valid(self, index: WindowIndex, windows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read which patches of windows are valid: bool [B, C, S]."""
        patches = self.montage.patches_per_window
        start = index.epoch[windows].astype(np.int64) * patches
        return self._valid(index.record[windows], start).numpy().reshape(len(start), -1, patches)

    def buffer_size(self, batch: int) -> int:
        """The number of samples that a batch of so many windows takes in a buffer."""
        return batch * int(self._offsets[-1])

    def _valid(self, record: np.ndarray, start: np.ndarray) -> Tensor:
        patches = self.montage.patches_per_window
        bits = [self.store.records[r].valid[:, s : s + patches] for r, s in zip(record, start, strict=True)]
        return torch.from_numpy(np.stack(bits).reshape(len(record), -1))

    def _valid_share(self, record: np.ndarray, valid: Tensor) -> np.ndarray:
        """The share of valid patches in each window among the channels that its record has, float64 [B]."""
        present = self._plane[record] >= 0
        bits = valid.numpy().reshape(*present.shape, -1) & present[:, :, None]
        return bits.sum((1, 2)) / np.maximum(present.sum(1) * bits.shape[2], 1)

    def _rows(self, record: np.ndarray, start: np.ndarray, valid: Tensor, out: Tensor | None) -> Rows:
        first = self._first_samples(record, start)
        if self._resident is not None:
            samples = self._resident
            row_start = np.where(first >= 0, first + self._base[record][:, None], -1)
        else:
            samples = self._buffer(len(record), out)
            row_start = np.where(first >= 0, self._gather(record, first, samples.numpy()), -1)
        return unchecked(
            Rows,
            samples=samples,
            row_start=torch.from_numpy(row_start),
            row_scale=torch.from_numpy(self._scale[record]),
            row_shift=torch.from_numpy(self._shift[record]),
            valid=valid,
            align=PLANE_ALIGN,
            patch_lengths=self.montage.patch_lengths,
            channel_lengths=channel_lengths(self.montage.patch_lengths, self.montage.channel_modality),
        )

    def _first_samples(self, record: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The first sample of each row in its record's samples, int64 [B, C]; -1 if absent."""
        plane = self._plane[record]
        return np.where(plane >= 0, plane + start[:, None] * self._patch, -1)

    def _buffer(self, batch: int, out: Tensor | None) -> Tensor:
        size = self.buffer_size(batch)
        if out is None and self.device.type == "cuda":
            with torch.cuda.device(self.device):  # else another thread opens the first GPU for it
                return torch.empty(size, dtype=torch.int16, pin_memory=True)
        if out is None:
            return torch.empty(size, dtype=torch.int16)
        fits = out.dtype == torch.int16 and out.dim() == 1 and out.is_contiguous() and out.device.type == "cpu"
        if not fits or len(out) < size:
            raise ValueError(
                f"out needs contiguous int16 [{size}] or more on the CPU for {batch} windows, found {out.dtype} "
                f"{list(out.shape)} on {out.device}"
            )
        return out

    def _gather(self, record: np.ndarray, first: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Gather rows into `out`, as stored or, if it is float32, as robust z-scores; returns their starts in it.

        The starts are int64 [B, C].
        """
        out_start = np.arange(len(record))[:, None] * self._offsets[-1] + self._offsets[:-1]
        used, plane = np.unique(record, return_inverse=True)
        factors = () if out.dtype == np.int16 else (self._scale[record], self._shift[record])
        most = most_maps()
        for begin in range(0, len(used), most):  # once, unless few files may be open
            here = (plane >= begin) & (plane < begin + most) if len(used) > most else slice(None)
            engine.gather_rows(
                [self.store.records[r].samples for r in used[begin : begin + most]],
                np.repeat(plane[here].astype(np.int64) - begin, first.shape[1]),
                first[here].reshape(-1),
                np.tile(self._length.astype(np.int64), len(plane[here])),
                out,
                out_start[here].reshape(-1),
                *(factor[here].reshape(-1) for factor in factors),
            )
        return out_start
