"""Launches kernels; or records what would be launched, for compilation without a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from physiofast.ops import reference
from physiofast.ops.backends import float32_precision
from physiofast.ops.triton import version
from physiofast.ops.triton.table import Launch


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedLaunch:
    """A launch of a kernel, with its arguments."""

    kernel: Any
    """The jitted function."""
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    """Positional arguments: tensors, ints and floats."""
    constants: dict[str, Any]
    """Compile-time constants by name."""
    launch: Launch
    again: Callable[[], None]
    """Launches it, as it would have been launched."""


_written: list[RecordedLaunch] | None = None


@contextlib.contextmanager
def written_down() -> Iterator[list[RecordedLaunch]]:
    """Within the block no kernel runs: each start is appended to the list. Tensors may be on any device."""
    global _written
    before, _written = _written, []
    try:
        yield _written
    finally:
        _written = before


@functools.cache
def by_definition(twin: Callable[..., Any]) -> Callable[..., Any]:
    """The definition of an op where its kernels have no room, with sums that a caller's autocast does not lower."""

    @functools.wraps(twin)
    def run(*args: Any, **hints: Any) -> Any:
        with torch.autocast(args[0].device.type, enabled=False):
            return twin(*args, **hints)

    return run


def by_definition_if_rounded(op: str, summed: tuple[Tensor, ...], about_rows: tuple[Tensor, ...]) -> Any:
    """The definition of an op whose kernels would round scales or shifts to what they sum in; None where they do not.

    Args:
        op: name.
        summed: the tensors that say what that is.
        about_rows: scales and shifts.
    """
    is_rounded = reference.accumulator(*summed) != reference.accumulator(*summed, *about_rows)
    return by_definition(getattr(reference, op)) if is_rounded else None


def prepared(
    prepare: Callable[..., Callable[..., Any]] | None = None, *, as_they_lie: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """An op's form in two steps: what follows from shapes, dtypes and strides, and the rest.

    Args:
        prepare: takes the arguments of the registered op and returns a function of arguments like these. That may know
            all of them but the tensors' values and addresses, and keeps none of the tensors. Kernels read numbers that
            lie side by side: of a tensor whose numbers do not it gets a copy.
        as_they_lie: places of tensors that it takes with any strides.

    Returns:
        A function of the same arguments that does both steps. Its attribute `prepare` does the first one, once for
        arguments that are alike; `cache_clear` forgets what that has found.
    """
    if prepare is None:
        return functools.partial(prepared, as_they_lie=as_they_lie)
    kept: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def find(*args: Any) -> Callable[..., Any]:
        key = (float32_precision(), *map(_alike, args))
        form = kept.get(key)
        if form is None:
            if len(kept) >= _MOST_KEPT:
                kept.clear()
            form = kept[key] = _of_contiguous(prepare, args, as_they_lie)
        return form

    @functools.wraps(prepare)
    def run(*args: Any, **hints: Any) -> Any:
        return find(*args)(*args, **hints)

    run.prepare, run.cache_clear = find, kept.clear  # type: ignore[attr-defined]
    return run


def _of_contiguous(
    prepare: Callable[..., Callable[..., Any]], args: tuple[Any, ...], as_they_lie: tuple[int, ...]
) -> Callable[..., Any]:
    """What `prepare` makes of arguments; where some have to be copied first, a function that does so."""
    is_spread = [
        isinstance(arg, Tensor) and place not in as_they_lie and not arg.is_contiguous()
        for place, arg in enumerate(args)
    ]
    if True not in is_spread:
        return prepare(*args)

    def together(args: tuple[Any, ...]) -> list[Any]:
        return [arg.contiguous() if spread else arg for arg, spread in zip(args, is_spread, strict=True)]

    form = prepare(*together(args))
    return lambda *args, **hints: form(*together(args), **hints)


def _alike(arg: Any) -> Any:
    """Equal for arguments that are alike."""
    if isinstance(arg, Tensor):
        return arg.shape, arg.stride(), arg.dtype, arg.device
    return tuple(arg) if isinstance(arg, list) else arg


class Kernel:
    """A jitted function with all that it is compiled for but its arguments.

    Triton binds and hashes arguments anew at every launch, which takes longer than many of these kernels run. We keep
    the compiled kernel by what Triton specialises on, and launch it directly, on the current stream. Knobs of Triton's
    that are changed later affect only kernels not yet compiled.

    Args:
        function: the jitted function.
        launch: blocks, which are constants too, warps and stages.
        constants: the other compile-time constants.
    """

    def __init__(self, function: Any, launch: Launch, **constants: Any) -> None:
        self.function, self.launch, self.blocks = function, launch, launch.blocks
        self.constants = constants | launch.blocks
        assert self.constants.keys() <= set(function.arg_names), function
        self._options = launch.options | {"enable_fp_fusion": True}
        self.ordered_constants = tuple(self.constants[name] for name in function.arg_names if name in self.constants)
        self.compiled: dict[tuple[Any, ...], Any] = {}
        """What Triton compiled, by what it specialises on."""
        self._bound: dict[tuple[Any, ...], BoundLaunch] = {}

    def start(
        self,
        grid: tuple[int, ...],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        sizes: tuple[int, ...] = (),
        *scalars: float,
    ) -> None:
        """Start it on the device of its first tensor, on that device's current stream.

        Args:
            grid: programs along each axis; nothing is started where one is 0.
            inputs: its first arguments.
            outputs: the tensors after them. What Triton specialises on is not looked at: their dtypes follow from
                inputs and constants, and they begin where an allocation does, at a multiple of 16 bytes. Any other
                tensor is an input.
            sizes: the ints after these.
            scalars: the floats after these.
        """
        key = (inputs[0].get_device(), grid, sizes, *[tensor.dtype for tensor in inputs])
        launch = self._bound.get(key)
        if launch is None:
            if len(self._bound) >= _MOST_KEPT:
                self._bound.clear()
            launch = self._bound[key] = self.prepare(grid, inputs, sizes)
        launch(inputs, outputs, *scalars)

    def prepare(self, grid: tuple[int, ...], inputs: Sequence[Tensor], sizes: tuple[int, ...] = ()) -> BoundLaunch:
        """A start for inputs of these dtypes, on their device; arguments as `start` has them."""
        return BoundLaunch(self, grid, inputs[0].get_device(), [tensor.dtype for tensor in inputs], sizes)

    def start_by_triton(self, key: tuple[Any, ...], grid: tuple[int, ...], args: tuple[Any, ...]) -> None:
        """Launch it by Triton's own call, which compiles it if need be, and keep what was compiled."""
        compiled = self.function[grid](*args, **self.constants, **self._options)
        if _KEEPS and compiled is not None:  # the interpreter compiles nothing
            self.compiled[key] = compiled

    def is_hooked(self) -> bool:
        """Whether somebody, such as a profiler, wants to be called when a kernel is started; then Triton does that."""
        first, last = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        return bool(getattr(first, "calls", first) or getattr(last, "calls", last) or self.function.pre_run_hooks)


class BoundLaunch:
    """A kernel with its grid and sizes, for inputs of known dtypes, so that only their alignment is left to check.

    Args:
        kernel: what is started.
        grid: programs along each axis.
        device: number of a CUDA device; -1 of a CPU.
        dtypes: of the inputs.
        sizes: the kernel's ints.
    """

    def __init__(
        self, kernel: Kernel, grid: tuple[int, ...], device: int, dtypes: Sequence[torch.dtype], sizes: tuple[int, ...]
    ) -> None:
        self._kernel, self._grid, self._device, self._sizes = kernel, grid, device, sizes
        self._specialised = (device, *dtypes, *map(size_class, sizes))
        self._axes, self._is_empty = (*grid, 1, 1)[:3], 0 in grid
        self._compiled: dict[tuple[bool, ...], Any] = {}

    def __call__(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], *scalars: float) -> None:
        """Arguments as `Kernel.start` has them."""
        kernel, device = self._kernel, self._device
        args = (*inputs, *outputs, *self._sizes, *scalars)
        if _written is not None:
            known = {"kernel": kernel.function, "constants": kernel.constants, "launch": kernel.launch}
            again = functools.partial(self, inputs, outputs, *scalars)
            _written.append(RecordedLaunch(grid=self._grid, args=args, again=again, **known))
            return
        if self._is_empty:
            return
        if device >= 0 and device != torch._C._cuda_getDevice():
            with torch.cuda.device(device):
                return self(inputs, outputs, *scalars)
        bits = 0
        for tensor in inputs:
            bits |= tensor.data_ptr()
        # Nearly always all are aligned, which the addresses' bits together tell sooner than each by itself.
        aligned = tuple([tensor.data_ptr() % 16 == 0 for tensor in inputs]) if bits % 16 else ()
        compiled = self._compiled.get(aligned)
        if compiled is None:
            compiled = self._compiled[aligned] = kernel.compiled.get((*self._specialised, *aligned))
        if compiled is None or kernel.is_hooked():
            kernel.start_by_triton((*self._specialised, *aligned), self._grid, args)
            return
        stream = driver.active.get_current_stream(device)
        handles = (stream, compiled.function, compiled.packed_metadata, None, None, None)  # no metadata and hooks
        compiled.run(*self._axes, *handles, *args, *kernel.ordered_constants)


@functools.lru_cache(maxsize=1 << 14)
def size_class(size: int) -> str:
    """What Triton compiles an int for: 1 is a constant, multiples of 16 are known to be, others have a width."""
    if size == 1:
        return "1"
    width = "i32" if -(1 << 31) <= size < 1 << 31 else "i64"
    return width if size % 16 else f"{width}, 16 divides it"


_KEEPS = (3, 6) <= version()[:2] <= (3, 9)
"""Whether this Triton's compiled kernels are started by what `Kernel.start` calls; others go through its own call."""
_MOST_KEPT = 1 << 10
"""Of one kernel or form that are kept, for batches of any size."""
