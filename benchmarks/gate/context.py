"""Where the gate runs, and how large its inputs are there."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import torch

from benchmarks import devices, opbatch
from benchmarks.devices import Device
from physiofast import ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """A GPU, or a CPU that rehearses in Triton's interpreter."""

    device: Device
    folder: Path
    """Of notebooks: a section may read what an earlier one found."""
    rehearses: bool
    compiler: str
    """Backend of torch.compile."""
    many: int
    """Batches, replays or rounds where many are asked for."""

    @classmethod
    def on_gpu(cls, folder: Path) -> Context:
        """The current CUDA device."""
        return cls(device=devices.find("cuda"), folder=folder, rehearses=False, compiler="inductor", many=1000)

    @classmethod
    def rehearsal(cls, folder: Path) -> Context:
        """The same code on CPU tensors, tiny."""
        return cls(device=devices.find("cpu"), folder=folder, rehearses=True, compiler="aot_eager", many=12)

    def kernels(self, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
        """Within it, ops run their kernels wherever they have some and can."""
        # Triton's interpreter is wrong in bfloat16: there the other forms of the ops rehearse.
        return ops.backend("triton" if self.rehearses and dtype != torch.bfloat16 else "auto")

    def setting(self, patch: int, large_copy: float = 0.0) -> opbatch.Setting:
        """Of the benchmark cases."""
        if self.rehearses:
            return dataclasses.replace(opbatch.tiny(self.device, patch=patch), demanding=patch == 128)
        return opbatch.on_gpu(self.device, large_copy, patch)
