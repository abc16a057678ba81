"""The choice of an op's form: its Triton kernels, its faster form for CPUs, or its twin."""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch

from physiofast.engine.native import unavailable_reason
from physiofast.ops import cpu, reference

Name = Literal["auto", "reference", "triton"]

_KERNELS = {
    "embed_patches": "embed",
    "embed_patches_backward": "embed_backward",
    "take_tokens": "assemble",
    "take_tokens_backward": "assemble",
    "take_hidden": "assemble",
    "take_hidden_backward": "assemble",
    "assemble_tokens": "assemble",
    "assemble_tokens_backward": "assemble",
    "modality_attention": "attention",
    "modality_attention_backward": "attention_backward",
    "modality_attention_stats": "attention_stats",
    "masked_mse": "loss",
    "scale_gradient": "loss",
    "sample_plan": "plan",
}
"""Op -> the module of `physiofast.ops.triton` that has its kernels."""
_COMPOSED = {"linear_masked_mse": "masked_mse"}
"""CPU-only op -> the op that its public function calls elsewhere, after plain PyTorch calls."""
_WITHOUT_FLOAT64 = frozenset(op for op, module in _KERNELS.items() if module != "plan")
_DTYPES = "for floats of 32 and 16 bits; those of 64 are left to the definition, but by kernels in the interpreter"
"""The dtypes that the lines of `explain` are about."""
_setting: Name = "auto"


class Form(NamedTuple):
    """A form of an op, and why it serves."""

    backend: str
    """`triton`, `cpu` or `reference`."""
    run: Callable[..., Any]
    """The function, which takes the arguments of the registered op."""
    reason: str
    """Why this form serves, as `explain` says it."""


class backend:  # noqa: N801  called like a function
    """Choose how ops run, for the whole process: `backend("reference")`, or `with backend("reference"): ...`.

    Ops read the choice when they run, also within compiled functions and in backward passes. Used as a context manager,
    the choice ends with the block.

    Args:
        name: `auto`, Triton kernels for CUDA tensors and the fastest other form elsewhere; `reference`, the plain
            PyTorch definitions; or `triton`, kernels wherever an op has some, also for CPU tensors, which needs
            `TRITON_INTERPRET=1` in the environment.

    Raises:
        ValueError: `name` is another.
        RuntimeError: `name` is `triton` and kernels cannot run; the message says why.
    """

    def __init__(self, name: Name) -> None:
        global _setting
        if name not in get_args(Name):
            raise ValueError(f"backend: expected one of {', '.join(get_args(Name))}; found {name!r}")
        if name == "triton":
            refused = refusal("cuda") and refusal("cpu")
            if refused:
                raise RuntimeError(f"backend('triton'): {refused}")
        self._before = _setting
        _setting = name
        form.cache_clear()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        global _setting
        _setting = self._before
        form.cache_clear()


def refusal(device: str) -> str | None:
    """Why Triton kernels cannot run on tensors of a device type, as a sentence; None when they can."""
    from physiofast.ops.triton import refusal as of_triton

    return of_triton(device)


@functools.lru_cache(maxsize=256)
def form(op: str, device: str, is_float64: bool) -> Form:
    """Choose the form of an op that serves tensors of a device type.

    Args:
        op: name, as `torch.ops.physiofast` has it.
        device: type of the device, such as `cuda`.
        is_float64: whether some argument is float64.
    """
    twin = getattr(reference, op)
    if _setting == "reference":
        return Form("reference", twin, "backend('reference') was chosen")
    reason = _without_kernels(op, device, is_float64)
    if reason is None:
        module = importlib.import_module(f"physiofast.ops.triton.{_KERNELS[op]}")
        limit = getattr(module, "LIMITS", {}).get(op)
        reason = "its kernels serve these tensors" + (f"; {limit}" if limit else "")
        return Form("triton", getattr(module, op), reason)
    if device == "cpu" and hasattr(cpu, op):
        if unavailable_reason is None:
            return Form("cpu", getattr(cpu, op), f"a faster form for CPUs; {reason}")
        reason = f"its faster form for CPUs is in C++, and {unavailable_reason}; {reason}"
    return Form("reference", twin, reason)


def runs_kernels_on_cpu(op: str) -> bool:
    """Whether Triton kernels serve an op on CPU tensors, which they do in the interpreter."""
    return form(op, "cpu", False).backend == "triton"


def _without_kernels(op: str, device: str, is_float64: bool) -> str | None:
    if op not in _KERNELS:
        return "it has no Triton kernel"
    if device == "cpu" and _setting != "triton":
        return "Triton kernels are for CUDA tensors"
    if device == "cuda" and is_float64 and op in _WITHOUT_FLOAT64:
        return "its kernels take no float64 on a GPU"
    return refusal(device)


def run(op: str, *args: Any, **hints: Any) -> Any:
    """Run an op in the form that the choice of backend and the arguments ask for; the first argument is a tensor."""
    chosen = form(*_form_of(op, args))
    if chosen.backend == "triton":
        return chosen.run(*args, **hints)
    # An autocast region of the caller must not lower sums to 16 bits.
    with torch.autocast(args[0].device.type, enabled=False):
        return chosen.run(*args, **hints)


class Prepared(NamedTuple):
    """A form that is ready for arguments of certain shapes, strides, dtypes and devices."""

    key: tuple[str, str, bool]
    """The arguments of `form` that chose it."""
    chosen: Form
    """The form."""
    run: Callable[..., Any]
    """The form's function, with what follows from shapes, such as its kernels, already found."""

    def is_current(self) -> bool:
        """Whether the choice of backend would choose the same form again."""
        return form(*self.key) is self.chosen


def prepare(op: str, *args: Any) -> Prepared:
    """Prepare the form that `run` would choose for arguments like these."""
    key = _form_of(op, args)
    chosen = form(*key)
    if chosen.backend != "triton":
        return Prepared(key, chosen, functools.partial(run, op))
    make = getattr(chosen.run, "prepare", None)
    return Prepared(key, chosen, chosen.run if make is None else make(*args))


def float32_precision() -> str:
    """How PyTorch is set to multiply float32: `highest` is in full.

    It does not answer where the setting of one backend disagrees with that of all; products on a GPU are asked about.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest" if torch.backends.cuda.matmul.fp32_precision == "ieee" else "high"


def kernels() -> tuple[str, ...]:
    """Names of the ops that have Triton kernels."""
    return tuple(_KERNELS)


def _form_of(op: str, args: tuple[Any, ...]) -> tuple[str, str, bool]:
    """The arguments that `form` needs for a call of an op."""
    device = "cuda" if args[0].is_cuda else args[0].device.type  # `is_cuda` is the cheaper check
    return op, device, torch.float64 in [arg.dtype for arg in args if isinstance(arg, torch.Tensor)]


def explain() -> str:
    """Say which form of each op serves CPU and CUDA tensors at present, and why: one line for each.

    The lines are about floats of 32 and 16 bits, as the first one says.
    """
    from physiofast.ops import registration

    lines = [f"backend: {_setting}, {_DTYPES}"]
    for op in registration.OPS:
        for device in ("cpu", "cuda"):
            chosen = _serving(op, device)
            lines.append(f"{op}, {device}: {chosen.backend}, because {chosen.reason}")
    return "\n".join(lines)


def _serving(op: str, device: str) -> Form:
    """The form in which a call of the public function ends."""
    last = _COMPOSED.get(op)
    if last is None or (device == "cpu" and not runs_kernels_on_cpu(last)):
        return form(op, device, False)
    chosen = form(last, device, False)
    return chosen._replace(reason=f"it is PyTorch's linear and {last} there; {chosen.reason}")
