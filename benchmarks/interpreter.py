"""Triton's interpreter, which runs kernels on CPU tensors, without work that it repeats."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch = interpreter._patch_lang


def _patch_unless_it_is(fn: FunctionType) -> Any:
    """What the interpreter calls before a kernel, and before each device function that a kernel calls.

    It puts its own functions into Triton's language, and the kernel's end takes them out again. Where they are in
    place, to look for them anew changes nothing, and takes a quarter of an interpreted kernel's time.
    """
    languages = [module for module in fn.__globals__.values() if module is tl or module is tl.core]
    if any(map(tl.core.is_builtin, [tl.tensor.to, *(module.load for module in languages)])):
        return _patch(fn)
    return interpreter._LangPatchScope()


def patch_once() -> None:
    """Prepare Triton's language once for each kernel; kernels compute what they did."""
    interpreter._patch_lang = _patch_unless_it_is
