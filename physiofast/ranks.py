"""Processes that train one model together, as torchrun starts them.

Each computes its part of a step's micro-batches. Their gradients are added up, so that all take the same step. Only the
first process holds the lock of the run folder and writes into it.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """The rank of this process among those that train together; by default it is the only one.

    All processes must call each method but `part`.

    Raises:
        ConnectionError: by each method that waits for the other processes, if one of them has ended.
    """

    rank: int = 0
    """Number of this process, from 0 on."""
    size: int = 1
    """Number of processes."""
    host: distributed.ProcessGroup | None = None
    """Process group that adds tensors on the host; None for a single process."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """The slice of `count` things that belongs to this process; each process has as many."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def added(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Add up the arrays of all processes, which have one shape and dtype and are on the host."""
        if self.size == 1:
            return values
        total = torch.from_numpy(np.array(values))
        with _all_answer():
            distributed.all_reduce(total, group=self.host)
        return total.numpy()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return bool(self.added(np.asarray(int(flag))))

    def of_first(self, value: _Result) -> _Result:
        """Return the first process's value in all processes."""
        if self.size == 1:
            return value
        values = [value]
        with _all_answer():
            distributed.broadcast_object_list(values, group=self.host)
        return values[0]

    def by_first(self, job: Callable[[], _Result]) -> _Result | None:
        """Run a job in the first process while the others wait; returns its result there, and None in the others.

        Raises:
            Exception: in the first process, what the job raises; in the others a ValueError with the same text.
        """
        made, error = None, None
        if self.first:
            try:
                made = job()
            except Exception as raised:
                error = raised
        said = self.of_first(None if error is None else str(error))
        if error is not None:
            raise error
        if said is not None:
            raise ValueError(said)
        return made

    def need_same(self, facts: Mapping[str, str]) -> None:
        """Refuse to train where a process has other facts (name -> value) than the first one.

        Raises:
            ValueError: in all processes; those that differ name the facts.
        """
        first = self.of_first(facts)
        differing = [name for name in facts if facts[name] != first[name]]
        if self.any(bool(differing)):
            what = ", ".join(differing) or "what another one of them has"
            raise ValueError(
                f"the {self.size} processes that train together differ in {what}: all need the same config and store, "
                "and one run folder on a file system that they share. To train several runs at once, start each with "
                "an environment of its own"
            )

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors of all processes with the values of the first one's."""
        if self.size == 1:
            return
        with _all_answer():
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0, group=None if tensor.is_cuda else self.host)

    def add_gradients(self, parameters: Iterable[nn.Parameter], sums: Sequence[Tensor]) -> list[Tensor]:
        """Add up gradients and some more tensors over all processes, in one message.

        Args:
            parameters: each gets the sum of its gradients, or none where no process has one.
            sums: the other tensors. All tensors are float32 on one device.

        Returns:
            The sums of the other tensors.
        """
        if self.size == 1:
            return list(sums)
        parameters = list(parameters)
        given = torch.tensor([float(p.grad is not None) for p in parameters], device=sums[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        every = [*gradients, given, *sums]
        flat = torch.cat([tensor.flatten() for tensor in every])
        with _all_answer():
            distributed.all_reduce(flat, group=None if flat.is_cuda else self.host)
            parts = [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in every]), every, strict=True)]
            is_given = parts[len(parameters)].tolist()  # waits for a GPU, whose errors come then
        for parameter, gradient, has in zip(parameters, parts, is_given, strict=False):
            parameter.grad = gradient if has else None
        return parts[len(parameters) + 1 :]


ALONE = Ranks()
"""The ranks of a single process."""

_hosts: weakref.WeakKeyDictionary[distributed.ProcessGroup, distributed.ProcessGroup] = weakref.WeakKeyDictionary()
"""Process group -> the gloo group that adds on the host, kept as all processes have to join in to make one."""


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Yield the ranks of PyTorch's process group, which is made where torchrun started the processes.

    Gradients on GPUs are added by NCCL, on a CPU by gloo. A group that is made here lives until the program ends:
    torchrun's store keeps the addresses of a group that is gone, and ending a group while others wait in it, as an
    error would, waits for ever.

    Raises:
        ConnectionError: the other processes cannot be reached.
    """
    if _is_asked() and not distributed.is_initialized():
        local, has_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
        if has_gpus and local < torch.cuda.device_count():
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"  # of all, also of one without a GPU, which says so later
        with _all_answer():
            distributed.init_process_group(backend)
        atexit.register(_end_group, backend)
    if group_size() == 1:
        yield ALONE
        return
    world = distributed.group.WORLD
    assert world is not None
    if world not in _hosts:
        with _all_answer():
            _hosts[world] = distributed.new_group(backend="gloo")
    yield Ranks(distributed.get_rank(), distributed.get_world_size(), _hosts[world])


def _end_group(backend: str) -> None:
    """End the group before gloo's threads abort the program; after an error NCCL's stays, as others may wait in it."""
    if distributed.is_initialized() and (backend == "gloo" or not hasattr(sys, "last_value")):
        distributed.destroy_process_group()


def group_size() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def local_rank() -> int | None:
    """The number of this process among those on its machine; None where a single process trains."""
    return int(os.environ.get("LOCAL_RANK", distributed.get_rank())) if group_size() > 1 else None


def _is_asked() -> bool:
    is_torchruns = distributed.is_available() and all(os.environ.get(name) for name in _OF_TORCHRUN)
    return is_torchruns and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def _all_answer() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "another process of this training has ended, and says why where it prints, or cannot be reached; the run "
            f"can be resumed once all have ended ({error})"
        ) from error
