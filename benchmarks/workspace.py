"""Files that cases share: made once per run, in one folder, read back so that the page cache is warm."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

from benchmarks import chain, devices
from benchmarks.devices import Device
from benchmarks.recordings import EdfNight, WfdbNight, write_edf, write_wfdb


@dataclasses.dataclass(frozen=True)
class Workspace:
    """Where cases find their recordings, and how large these are."""

    folder: Path
    hours: float = 8.0
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads that ours is timed with."""
    device: str = "cpu"
    """On which the per-op cases run, `cpu` or `cuda`."""
    patch: int = 128
    """P of the per-op cases on a GPU, 128 or 100."""
    autotuned: bool = False
    """Whether compiled alternatives of the per-op cases also run in torch.compile's mode that tries out kernels."""

    @cached_property
    def on(self) -> Device:
        """The device of the per-op cases."""
        return devices.find(self.device)

    @cached_property
    def night(self) -> WfdbNight:
        """A record in format 16."""
        night = write_wfdb(self.folder, self.hours)
        _read(night.signal_file)
        return night

    @cached_property
    def edf(self) -> EdfNight:
        """The same kind of night as an EDF file with mixed rates."""
        night = write_edf(self.folder, self.hours)
        _read(night.path)
        return night

    @cached_property
    def truth(self) -> chain.Truth:
        """What the full chain has to give for `night`."""
        return chain.truth(self.night)


def _read(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass
