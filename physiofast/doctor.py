"""Diagnoses an installation: versions, the processor, the engine in use and why, and a quick self-test."""

from __future__ import annotations

import dataclasses
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy import signal

from physiofast import engine
from physiofast.engine.native import requested, threads_and_why
from physiofast.printing import say
from physiofast.support.versions import installed_version

_PACKAGES = ("physiofast", "torch", "triton", "numpy", "scipy", "wfdb")
_OPTIONAL = ("triton",)
_INSTRUCTION_SETS = {"SSE2": ("sse2",), "AVX2": ("avx2", "fma"), "AVX-512": ("avx512f", "avx512bw", "avx512vl")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The result of `physiofast doctor`."""

    versions: dict[str, str | None]
    """Versions of Python and of relevant packages; None for one that is not installed."""
    cpu: str
    """Model of the processor."""
    cpus: int
    """Number of CPUs of the machine."""
    cpu_instruction_sets: tuple[str, ...]
    """Vector instruction sets of the processor."""
    native: bool
    """Whether the C++ engine is used."""
    native_reason: str | None
    """Why the C++ engine is not used, and what to do; None if it is."""
    instruction_set: str | None
    """Instruction set that the engine's kernels use; None if the C++ engine is not used."""
    threads: int | None
    """Number of threads of one call of the engine; None if the setting is refused."""
    threads_reason: str
    """Where the number of threads comes from, or why the setting is refused."""
    gpu: str | None
    """Name of the GPU that PyTorch uses; None if there is none."""
    kernels_refusal: str | None
    """Why Triton kernels cannot be used for CUDA tensors, so that PyTorch is used instead; None if they can."""
    self_test: dict[str, str]
    """Part of the self-test -> `ok` or what differs; empty if the C++ engine is not used."""
    problems: tuple[str, ...]
    """Problems, each with what to do; empty if there are none."""


def diagnose() -> Diagnosis:
    """Diagnose this process, its machine and its settings, and run the self-test."""
    versions = {"python": platform.python_version(), **{name: installed_version(name) for name in _PACKAGES}}
    problems = [
        f"{name} is not installed; run: pip install {name}"
        for name, found in versions.items()
        if found is None and name not in _OPTIONAL
    ]
    if engine.unavailable_reason is not None and requested:
        problems.append(engine.unavailable_reason)
    threads, threads_reason = _threads()
    if threads is None:
        problems.append(threads_reason)
    self_test = dict(_self_test()) if engine.native and threads is not None else {}
    problems += [f"self-test of {name}: {verdict}" for name, verdict in self_test.items() if verdict != "ok"]
    model, flags = _processor()
    try:
        gpu, kernels_refusal = _gpu()
    except Exception as error:  # of a damaged PyTorch or driver, whatever it is
        gpu, kernels_refusal = None, f"{type(error).__name__}: {error}"
        problems.append(f"PyTorch cannot be asked for a GPU: {kernels_refusal}")
    return Diagnosis(
        versions=versions,
        cpu=model,
        cpus=os.cpu_count() or 1,
        cpu_instruction_sets=tuple(name for name, needs in _INSTRUCTION_SETS.items() if flags.issuperset(needs)),
        native=engine.native,
        native_reason=engine.unavailable_reason,
        instruction_set=engine.instruction_set(),
        threads=threads,
        threads_reason=threads_reason,
        gpu=gpu,
        kernels_refusal=kernels_refusal,
        self_test=self_test,
        problems=tuple(problems),
    )


def print_diagnosis(found: Diagnosis, console: Console) -> None:
    """Print a diagnosis as lines, with problems last."""
    say(console, ", ".join(f"{name} {value or 'not installed'}" for name, value in found.versions.items()), "versions:")
    sets = ", ".join(found.cpu_instruction_sets) or "no vector instruction set that the engine knows"
    say(console, f"{found.cpu}, {found.cpus} CPUs, {sets}", "processor:")
    serves = "C++" if found.native else f"twins in NumPy and SciPy, because {found.native_reason}"
    say(console, serves, "signal engine:")
    if found.native:
        say(console, str(found.instruction_set), "instruction set:")
        say(console, f"{found.threads or 'none'} ({found.threads_reason})", "threads:")
    say(console, found.gpu or "none", "GPU:")
    kernels = "serve CUDA tensors"
    if found.kernels_refusal:
        kernels = f"serve no CUDA tensors, because {found.kernels_refusal}"
    say(console, f"{kernels}; physiofast.ops.explain() says what serves each op", "Triton kernels:")
    for name, verdict in found.self_test.items():
        say(console, f"{name}: {verdict}", "self-test:")
    for problem in found.problems:
        say(console, problem, "problem", "red")
    say(console, "" if found.problems else "No problem found.")


def _threads() -> tuple[int | None, str]:
    try:
        return threads_and_why()
    except ValueError as error:
        return None, str(error)


def _gpu() -> tuple[str | None, str | None]:
    """The name of the GPU, and why kernels cannot run on it; each may be None."""
    import torch

    from physiofast.ops.backends import refusal

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None, refusal("cuda")


def _processor() -> tuple[str, frozenset[str]]:
    """The processor's model and feature flags, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return facts.get("model name") or platform.machine(), frozenset(facts.get("flags", "").split())


def _self_test() -> Iterator[tuple[str, str]]:
    """Compare each part of the engine with its twin on fresh random numbers."""
    rng = np.random.default_rng()
    for name, test in {
        "decode": _decode,
        "filter": _filter,
        "gather": _gather,
        "gather float16": _gather_float16,
    }.items():
        try:
            same = all(np.array_equal(*test(rng)) for _ in range(3))
        except Exception as error:  # a self-test reports whatever goes wrong
            yield name, f"{type(error).__name__}: {error}"
        else:
            yield (
                name,
                "ok" if same else "the C++ result differs from its twin; choose PHYSIOFAST_NATIVE=0 and report it",
            )


_Pair = tuple[np.ndarray, np.ndarray]


def _decode(rng: np.random.Generator) -> _Pair:
    frames = rng.integers(-32768, 32768, (5001, 13)).astype("<i2")
    channels = rng.permutation(13)[:7].tolist()
    with tempfile.NamedTemporaryFile() as file:
        file.write(frames.tobytes())
        file.flush()
        opened = engine.SignalFile(file.name, 16, [1] * 13, len(frames))
        return opened.decode(channels), frames.T[channels]


def _filter(rng: np.random.Generator) -> _Pair:
    """Compare a band-pass with resampling from 200 to 128 Hz; errors may be a millionth of the largest value."""
    samples = rng.integers(-2000, 2000, (3, 20_001)).astype(np.int16)
    sos = signal.butter(4, (0.3, 35), "bandpass", fs=200, output="sos")
    resampler = engine.Resampler(16, 25, signal.firwin(801, 1 / 25))
    filters = [engine.ChannelFilter(channel=c, sos=sos, resampler=resampler) for c in range(3)]
    found = engine.condition(samples, filters)
    wanted = np.stack([engine.condition_reference(samples[c], filters[c]) for c in range(3)])
    return np.abs(found - wanted) <= 1e-6 * np.abs(wanted).max(), np.ones(found.shape, np.bool_)


def _gather(rng: np.random.Generator) -> _Pair:
    return _gathered(rng, np.int16)


def _gather_float16(rng: np.random.Generator) -> _Pair:
    return _gathered(rng, np.float16, *rng.normal(size=(2, 400)).astype(np.float32))


def _gathered(rng: np.random.Generator, dtype: type, *factors: np.ndarray) -> _Pair:
    rows, length = 400, 1501  # enough for several tasks, so that threads take part
    planes = [rng.integers(-32768, 32768, 20_000).astype(np.int16) for _ in range(3)]
    columns = rng.integers(0, 3, rows), rng.integers(-1, 18_000, rows), np.full(rows, length)
    results: np.ndarray = np.zeros((2, rows * length), dtype)
    for gather, out in zip((engine.gather_rows, engine.gather_rows_reference), results, strict=True):
        gather(planes, *columns, out, np.arange(rows) * length, *factors)
    return results[0], results[1]
