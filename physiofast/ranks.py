"""Processes that train one model together, as torchrun starts them.

Each computes its part of a step's micro-batches. Their gradients are added up, so that all take the same step; the
first process alone holds the run folder and writes into it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

_Result = TypeVar("_Result")
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Which process this is of how many; the only one, unless `open_ranks` says otherwise.

    Each method but `part` is to be called by all of them.

    Raises:
        ConnectionError: by each method that waits for the others, where one of them has ended.
    """

    rank: int = 0
    size: int = 1
    host: distributed.ProcessGroup | None = None
    """Adds what lies on the host."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of `count` things are this process's, where each has as many."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def added(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The sum of all processes' arrays, of one shape and dtype on the host."""
        if self.size == 1:
            return values
        total = torch.from_numpy(np.array(values))
        with _others_may_end():
            distributed.all_reduce(total, group=self.host)
        return total.numpy()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return bool(self.added(np.asarray(int(flag))))

    def by_first(self, job: Callable[[], _Result]) -> _Result | None:
        """What the first process makes of a job, which the others wait for; None in those.

        Raises:
            Exception: in the first process, what the job raises; in the others a ValueError with the same text.
        """
        if self.size == 1:
            return job()
        made, error = None, None
        if self.first:
            try:
                made = job()
            except Exception as raised:
                error = raised
        said = [None if error is None else str(error)]
        with _others_may_end():
            distributed.broadcast_object_list(said, group=self.host)
        if error is not None:
            raise error
        if said[0] is not None:
            raise ValueError(said[0])
        return made

    def add_gradients(self, parameters: Sequence[nn.Parameter], sums: Sequence[Tensor]) -> list[Tensor]:
        """Give every parameter the sum of its gradients, and return the sums of some tensors: one message for all.

        A parameter that no process has a gradient of gets none. All tensors are float32 on one device.
        """
        if self.size == 1:
            return list(sums)
        given = torch.tensor([float(p.grad is not None) for p in parameters], device=sums[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        every = [*gradients, given, *sums]
        flat = torch.cat([tensor.flatten() for tensor in every])
        with _others_may_end():
            distributed.all_reduce(flat, group=None if flat.is_cuda else self.host)
        parts = [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in every]), every, strict=True)]
        for parameter, gradient, is_given in zip(parameters, parts, parts[len(parameters)].tolist(), strict=False):
            parameter.grad = gradient if is_given else None
        return parts[len(parameters) + 1 :]


ALONE = Ranks()
"""One process."""


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Within, the processes of PyTorch's process group; torchrun's is made, where there is none yet.

    Gradients on GPUs are added by NCCL, on a CPU by gloo.
    """
    if not distributed.is_available():
        yield ALONE
        return
    is_asked = all(os.environ.get(name) for name in _OF_TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1
    begin = is_asked and not distributed.is_initialized()
    if begin:
        has_gpu = torch.cuda.is_available() and int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count()
        if has_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if has_gpu else "gloo")
    if group_size() == 1:
        yield ALONE
        return
    try:
        host = distributed.new_group(backend="gloo")
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), host)
    finally:
        if begin:
            distributed.destroy_process_group()


def group_size() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def local_rank() -> int | None:
    """Which of the processes on this machine this is; None where only one trains."""
    return int(os.environ.get("LOCAL_RANK", distributed.get_rank())) if group_size() > 1 else None


@contextmanager
def _others_may_end() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this training has ended, which says why where it prints; the run can be resumed once "
            f"all have ended ({error})"
        ) from error
