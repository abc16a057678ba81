"""What `python -m benchmarks.run` can run: cases have peers, studies have claims of their own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from benchmarks import (
    attentioncases,
    attentionpeers,
    devices,
    opbatch,
    opcases,
    opjobs,
    steps,
    studies,
    tokens,
    windowing,
)
from benchmarks.harness import Case
from benchmarks.studies import Study
from benchmarks.workspace import Workspace

_WINDOWING: dict[str, Callable[[Workspace], Case]] = {
    "windows_100": windowing.windows_100,
    "windows_128": windowing.windows_128,
    "chain_scipy": windowing.chain_scipy,
    "chain_mne": windowing.chain_mne,
    "edf": windowing.edf,
    "random_window": windowing.random_window,
    "random_open": windowing.random_open,
    "batch_numpy": windowing.batch_numpy,
    "batch_loops": windowing.batch_loops,
}
_TOKENS: dict[str, Callable[[Workspace], Case]] = {"token_ops": tokens.token_ops}
_STEPS: dict[str, Callable[[Workspace], Case]] = {
    "step_joint": steps.step_joint,
    "step_cross": steps.step_cross,
    "step_joint_dropout": steps.step_joint_dropout,
    "step_cross_dropout": steps.step_cross_dropout,
}


AUTOTUNE = "max-autotune-no-cudagraphs"
"""Of torch.compile: kernels of products are chosen by trying them out. Calls are captured whole, so without graphs."""
_COMPILED = (opjobs.BEST, opjobs.BEST_COPIED, *attentionpeers.COMPILED)


def with_autotuned(make: Callable[[Any], Case], setting: Any) -> Case:
    """The case, and its compiled alternatives a second time, in the mode that tries out kernels."""
    usual, tuned = make(setting), make(dataclasses.replace(setting, compile_mode=AUTOTUNE))
    more = [
        dataclasses.replace(provider, name=f"{provider.name}, max-autotune", role="also")
        for provider in tuned.providers
        if provider.name in _COMPILED
    ]
    *others, copy = usual.providers
    return dataclasses.replace(usual, providers=[*others, *more, copy])


def _alone(make: Callable[..., Case], sizes: ModuleType, space: Workspace, **of_gpu: int) -> Case:
    """A case of one op: on a CPU at its usual size, on a GPU at that of the required figures.

    Args:
        make: takes a setting and a timer.
        sizes: the module that has its settings.
        space: says which device it is.
        of_gpu: what else the setting of a GPU takes.
    """
    torch._dynamo.reset()  # the case before this one compiled for its own sizes
    if space.device == "cpu":
        threads = max(space.threads)
        torch.set_num_threads(threads)
        setting = sizes.on_cpu(space.on, threads, devices.copy_bytes_per_s(space.on, 1 << 28, rounds=3))
        timer = None
    else:
        setting = sizes.on_gpu(space.on, devices.copy_bytes_per_s(space.on, 1 << 30), **of_gpu)
        timer = devices.GraphTimer(space.on, cool_down_s=0.005)
    made = functools.partial(make, timer=timer)
    return with_autotuned(made, setting) if space.autotuned else made(setting)


def _op(name: str, space: Workspace) -> Case:
    return _alone(opcases.OPCASES[name], opbatch, space, patch=space.patch)


def _attention(name: str, space: Workspace) -> Case:
    return _alone(attentioncases.CASES[name], attentioncases, space)


_OPS = {name: functools.partial(_op, name) for name in opcases.OPCASES}
_OPS |= {name: functools.partial(_attention, name) for name in attentioncases.CASES}
CASES = _WINDOWING | _TOKENS | _STEPS | attentioncases.TOGETHER | _OPS
STUDIES: dict[str, Callable[[Workspace, int], Study]] = {
    "memory": studies.memory,
    "python_threads": studies.python_threads,
    "scaling": studies.scaling,
    "prepare": studies.prepare,
}
GROUPS: dict[str, tuple[str, ...]] = {
    "windowing": (*_WINDOWING, "memory", "python_threads"),
    "tokens": tuple(_TOKENS),
    "steps": tuple(_STEPS),
    "attention": tuple(attentioncases.TOGETHER),
    "ops": tuple(_OPS),
}


def resolve(names: list[str]) -> list[str]:
    """Names of cases and studies, groups written out, each once and in order.

    Raises:
        ValueError: an unknown name.
    """
    known = (*CASES, *STUDIES)
    unknown = [name for name in names if name not in (*known, *GROUPS)]
    if unknown:
        raise ValueError(f"no case {unknown[0]!r}; there are {', '.join((*GROUPS, *known))}")
    return list(dict.fromkeys(found for name in names for found in GROUPS.get(name, (name,))))
