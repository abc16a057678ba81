"""Values and gradients of every op, in each precision, against float64 definitions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import precision, subjects
from benchmarks.gate.context import Context
from benchmarks.gate.verdicts import Notebook
from benchmarks.mixedbatch import Batch, make_batch
from benchmarks.subjects import DENSE, SUBJECTS, Inputs, Subject
from physiofast import ops
from physiofast.ops import backends

DENSE_ROWS = "dense rows"
_INNER = ("_backward", "scale_gradient")  # ops that others run
_WITHOUT_GRADIENT = ("sample_plan",)  # compared bit for bit, in `contracts`


def uncovered() -> list[str]:
    """Ops with kernels that no subject is about."""
    covered = {op for subject in SUBJECTS for op in subject.covers}
    known = [op for op in backends.kernels() if not op.endswith(_INNER) and op not in _WITHOUT_GRADIENT]
    return [op for op in known if op not in covered]


def batches(context: Context, samples: torch.dtype) -> dict[str, Inputs]:
    """Geometries by name; that of `DENSE` is of one rate, and nothing is absent."""
    full = {"absent": 0.0, "invalid": 0.0, "empty_window": False}
    night = {"channels": (4, 1, 1, 1, 2, 1), "rates": (128,) * 6, "patches": 30, "batch": 16}
    short = {"channels": (2, 1, 1), "rates": (100,) * 3, "patches": 30, "batch": 16}
    large: dict[str, tuple[int, dict[str, Any]]] = {
        "three rates, gaps": (63, {"rates": (100, 63, 16), "patches": 10, "batch": 32}),
        "P 128": (512, night),
        "P 100 of int16": (256, short | {"dtype": torch.int16}),
        DENSE_ROWS: (64, {"channels": (2, 1), "rates": (32, 32), "patches": 8} | full),
    }
    small: dict[str, tuple[int, dict[str, Any]]] = {
        "three rates, gaps": (17, {"rates": (33, 16, 4), "patches": 4, "batch": 2}),
        DENSE_ROWS: (16, {"channels": (2, 1), "rates": (16, 16), "patches": 3, "batch": 2} | full),
    }
    return {
        name: Inputs.of(_of_order_one(make_batch(number, **({"dtype": samples} | options))), context.device.type, width)
        for number, (name, (width, options)) in enumerate((small if context.rehearses else large).items())
    }


def _of_order_one(batch: Batch) -> Batch:
    """With values as normalised recordings have them: of thousands of steps float16 has no room for the sums."""
    rows = batch.rows
    if rows.samples.is_floating_point():
        return batch
    return dataclasses.replace(batch, rows=dataclasses.replace(rows, row_scale=rows.row_scale / 1000))


def section(context: Context, notebook: Notebook, dtype: torch.dtype, tf32x3: bool = False) -> None:
    """Every subject on every geometry."""
    for name in uncovered():
        notebook.judge(f"{name} has kernels and is checked", False, "benchmarks/subjects.py does not know it")
    geometries = batches(context, dtype)
    if context.rehearses and (tf32x3 or dtype != torch.float32):
        del geometries[DENSE_ROWS]  # the interpreter takes its time, and the code is that of float32
    compare_all(context, notebook, geometries, dtype, tf32x3)


def compare_all(
    context: Context, notebook: Notebook, geometries: Mapping[str, Inputs], dtype: torch.dtype, tf32x3: bool
) -> None:
    """A line for every subject on each of the geometries."""
    products = functools.partial(precision.products, "high" if tf32x3 else "highest")
    for geometry, inputs in geometries.items():
        for subject in (*SUBJECTS, *((DENSE,) if geometry == DENSE_ROWS else ())):
            with products(), context.kernels(dtype):
                job = functools.partial(compare, subject, inputs, dtype, tf32x3, geometry, notebook)
                notebook.attempt(f"{subject.name}, {geometry}", job)


def compare(
    subject: Subject, inputs: Inputs, dtype: torch.dtype, tf32x3: bool, geometry: str, notebook: Notebook
) -> None:
    """One line: the output or gradient that comes nearest to its limit."""
    drawn = subjects.draw(subject, inputs, dtype)
    exact = subjects.definition(subject, inputs, drawn)
    plain = [0.0] * len(exact)
    if dtype in (torch.float16, torch.bfloat16):
        with precision.plain_arithmetic(dtype), ops.backend("reference"):
            plain = precision.errors(subjects.run(subject, inputs, drawn), exact)
    found = precision.errors(subjects.run(subject, inputs, drawn), exact)
    limits = subject.limits(dtype, plain, tf32x3)
    nearest = max(range(len(found)), key=lambda i: found[i] / max(limits[i], 1e-300))
    form = backends.form(subject.covers[0], inputs.rows.row_start.device.type, dtype == torch.float64)
    text = f"{subject.name} ({form.backend}), {geometry}, {str(dtype).removeprefix('torch.')}{' tf32x3' * tf32x3}"
    shown = f"error {found[nearest]:.2e} of result {nearest}, {limits[nearest]:.2e} allowed"
    notebook.judge(text, all(have <= most for have, most in zip(found, limits, strict=True)), shown)
    rows = [{"subject": subject.name, "geometry": geometry, "dtype": str(dtype), "tf32x3": tf32x3}]
    notebook.keep("errors", [row | {"found": found, "limits": limits, "plain": plain} for row in rows])


float32 = functools.partial(section, dtype=torch.float32)
tf32x3 = functools.partial(section, dtype=torch.float32, tf32x3=True)
float16 = functools.partial(section, dtype=torch.float16)
bfloat16 = functools.partial(section, dtype=torch.bfloat16)
