"""Triton's interpreter, which runs kernels on CPU tensors, without work that it repeats and with three mendings."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_patch = interpreter._patch_lang
_patch_attr = interpreter._patch_attr
_dtype_of = interpreter._get_np_dtype
_dtypes: dict[str, np.dtype] = {}
_make_tensor = tl.core.tensor.__init__
_tensors: dict[str, dict[str, Any]] = {}
_make_block_type = tl.core.block_type.__init__
_block_types: dict[tuple[str, ...], dict[str, Any]] = {}
_check = interpreter.TritonSemantic.binary_op_type_checking_impl
_operands: dict[tuple[Any, ...], list[tl.dtype]] = {}
_numbers: dict[tuple[Any, ...], tl.tensor] = {}
_MOST_NUMBERS = 1000
_broadcast = interpreter.TritonSemantic.broadcast_impl_value
_broadcasts: dict[tuple[str, str], list[tl.dtype]] = {}
_reduce = interpreter.ReduceOps.generic_reduce
_patch_tensor = interpreter._patch_lang_tensor
_compute = interpreter.InterpreterBuilder.binary_op
_dot = interpreter.InterpreterBuilder.create_dot
_builder = interpreter.interpreter_builder
_options = _builder.options


def _patch_unless_it_is(fn: FunctionType) -> Any:
    """What the interpreter calls before a kernel, and before each device function that a kernel calls.

    It puts its own functions into Triton's language, and the kernel's end takes them out again. Where they are in
    place, to look for them anew changes nothing, and takes a quarter of an interpreted kernel's time.
    """
    languages = [module for module in fn.__globals__.values() if module is tl or module is tl.core]
    if any(map(tl.core.is_builtin, [tl.tensor.to, *(module.load for module in languages)])):
        return _patch(fn)
    return interpreter._LangPatchScope()


def _patch_attr_without_a_copy(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    """What is put into Triton's language; its own copies the named arguments of each call."""

    def call(*args: Any, **named: Any) -> Any:
        named["_semantic"] = interpreter.interpreter_semantic
        return member(*args, **named)

    scope.set_attr(owner, name, call)


def _dtype_once(kind: tl.dtype) -> np.dtype:
    """NumPy's type for elements of Triton's; the interpreter's own writes down all types to look at one."""
    name = kind.scalar.name
    if name not in _dtypes:
        _dtypes[name] = _dtype_of(kind)
    return _dtypes[name]


def _options_without_what_is_not_looked_at(options: Any) -> Any:
    """Whether integers overflow is computed for each sum, in six operations, and asserted where `debug` is set only.

    Nobody looks, and it takes a third of an interpreted kernel's time.
    """
    return options if options.debug else dataclasses.replace(options, sanitize_overflow=False)


def _make_tensor_by_its_type(tensor: tl.tensor, handle: Any, kind: tl.dtype) -> None:
    """A tensor of a type that there was has that one's attributes: a shape of constants is seven objects."""
    if kind.name not in _tensors:
        _make_tensor(tensor, handle, kind)
        _tensors[kind.name] = {name: value for name, value in vars(tensor).items() if name not in ("handle", "type")}
    vars(tensor).update(_tensors[kind.name], handle=handle, type=kind)


def _make_block_type_once(kind: tl.block_type, element: tl.dtype, shape: Iterable[Any]) -> None:
    key = (element.name, *map(operator.index, shape))
    if key not in _block_types:
        _make_block_type(kind, element, shape)
        _block_types[key] = vars(kind).copy()
    vars(kind).update(_block_types[key])


def _operands_by_their_types(
    semantic: Any,
    lhs: Any,
    rhs: Any,
    allow_lhs_ptr: bool = False,
    allow_rhs_ptr: bool = False,
    arithmetic_check: bool = True,
    div_or_mod: bool = False,
) -> tuple[tl.tensor, tl.tensor]:
    """What types two operands take is found once for each two types, and for each number beside a type."""
    how = (allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)
    if type(lhs) is not tl.tensor or type(rhs) not in (tl.tensor, int, float):
        return _check(semantic, lhs, rhs, *how)
    if type(rhs) is not tl.tensor:
        key = (lhs.type.name, type(rhs), repr(rhs), how)  # -0.0 equals 0.0
        if key in _numbers:
            return lhs, _numbers[key]
        found, number = _check(semantic, lhs, rhs, *how)
        if found is lhs and len(_numbers) < _MOST_NUMBERS:
            _numbers[key] = number
        return found, number
    key = (lhs.type.name, rhs.type.name, how)
    if key not in _operands:
        _operands[key] = [found.type.scalar for found in _check(semantic, lhs, rhs, *how)]
    a, b = _operands[key]
    lhs = lhs if lhs.type.scalar.name == a.name else semantic.cast(lhs, a)
    rhs = rhs if rhs.type.scalar.name == b.name else semantic.cast(rhs, b)
    return _broadcast_by_their_types(semantic, lhs, rhs)


def _broadcast_by_their_types(semantic: Any, a: tl.tensor, b: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    key = (a.type.name, b.type.name)
    if key not in _broadcasts:
        _broadcasts[key] = [found.type for found in _broadcast(semantic, a, b)]
    found = _broadcasts[key]
    return _stretched(semantic, a, found[0]), _stretched(semantic, b, found[1])


def _stretched(semantic: Any, tensor: tl.tensor, kind: tl.dtype) -> tl.tensor:
    if tensor.type.name == kind.name:
        return tensor
    if tensor.type.is_block():
        return semantic.tensor(semantic.builder.create_broadcast(tensor.handle, kind.shape), kind)
    return semantic.tensor(semantic.builder.create_splat(kind, tensor.handle), kind)


def _reduce_by_numpy(reduction: Any, tensors: tuple[tl.tensor, ...]) -> Any:
    """The reduction of Triton's sort, too, where the interpreter knows sums and extremes and goes by element else."""
    if reduction.combine_fn is tl.standard._xor_combine:
        return reduction.min_max(tensors, val_reduce_op=np.bitwise_xor.reduce)
    return _reduce(reduction, tensors)


def _patch_tensor_with_index(tensor: Any, scope: Any) -> None:
    """In Triton 3.6 a tensor of one number is no limit of a `range` where NumPy is 2.4."""
    _patch_tensor(tensor, scope)
    tensor.__index__ = lambda found: int(found.handle.data.item())


def _compute_with_its_type(builder: Any, a: Any, b: Any, op: Any) -> Any:
    """A comparison is of bools, not of what was compared: in Triton 3.9 a mask of wider numbers is refused."""
    found = _compute(builder, a, b, op)
    if found.data.dtype == np.bool_:
        found.dtype = tl.int1
    return found


def _dot_by_rows(builder: Any, a: Any, b: Any, d: Any, *how: Any) -> Any:
    """A product whose rows do not depend on where they lie; in NumPy's BLAS, on AMD's CPUs, their last bits do."""
    if 8 in (a.dtype.primitive_bitwidth, b.dtype.primitive_bitwidth):
        return _dot(builder, a, b, d, *how)
    left, right = (operand.data.astype(d.data.dtype, copy=False) for operand in (a, b))
    return interpreter.TensorHandle(np.einsum("...ij,...jk->...ik", left, right) + d.data, d.dtype.scalar)


FASTER = (
    (interpreter, "_patch_lang", _patch, _patch_unless_it_is),
    (interpreter, "_patch_attr", _patch_attr, _patch_attr_without_a_copy),
    (interpreter, "_get_np_dtype", _dtype_of, _dtype_once),
    (tl.core.tensor, "__init__", _make_tensor, _make_tensor_by_its_type),
    (tl.core.block_type, "__init__", _make_block_type, _make_block_type_once),
    (interpreter.TritonSemantic, "binary_op_type_checking_impl", _check, _operands_by_their_types),
    (interpreter.TritonSemantic, "broadcast_impl_value", _broadcast, _broadcast_by_their_types),
    (interpreter.ReduceOps, "generic_reduce", _reduce, _reduce_by_numpy),
    (_builder, "options", _options, _options_without_what_is_not_looked_at(_options)),
)
"""Owner, name, Triton's own and ours, which gives the same results."""
MENDED = (
    (interpreter, "_patch_lang_tensor", _patch_tensor, _patch_tensor_with_index),
    (interpreter.InterpreterBuilder, "binary_op", _compute, _compute_with_its_type),
    (interpreter.InterpreterBuilder, "create_dot", _dot, _dot_by_rows),
)


def patch_once() -> None:
    """Prepare Triton's language once for each kernel, compute no more than is looked at, and mend what is wrong."""
    for owner, name, _, ours in (*FASTER, *MENDED):
        setattr(owner, name, ours)
