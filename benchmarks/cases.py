"""What `python -m benchmarks.run` can run: cases have peers, studies have claims of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from benchmarks import attention, attentioncases, devices, opbatch, opcases, steps, studies, tokens, windowing
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


def _op(name: str, space: Workspace) -> Case:
    """A per-op case: on a CPU at its usual size, on a GPU at that of the required figures."""
    torch._dynamo.reset()  # the case before this one compiled for its own sizes
    if space.device == "cpu":
        threads = max(space.threads)
        torch.set_num_threads(threads)
        large = devices.copy_bytes_per_s(space.on, 1 << 28, rounds=3)
        return opcases.OPCASES[name](opbatch.on_cpu(space.on, threads, large), None)
    setting = opbatch.on_gpu(space.on, space.patch, devices.copy_bytes_per_s(space.on, 1 << 30))
    return opcases.OPCASES[name](setting, devices.GraphTimer(space.on, cool_down_s=0.005))


def _attention(name: str, space: Workspace) -> Case:
    """The same for attention alone."""
    torch._dynamo.reset()
    make = attentioncases.CASES[name]
    if space.device == "cpu":
        threads = max(space.threads)
        torch.set_num_threads(threads)
        return make(
            attentioncases.on_cpu(space.on, threads, devices.copy_bytes_per_s(space.on, 1 << 28, rounds=3)), None
        )
    setting = attentioncases.Setting(device=space.on, large_copy=devices.copy_bytes_per_s(space.on, 1 << 30))
    return make(setting, devices.GraphTimer(space.on, cool_down_s=0.005))


_OPS = {name: functools.partial(_op, name) for name in opcases.OPCASES}
_OPS |= {name: functools.partial(_attention, name) for name in attentioncases.CASES}
_TOGETHER: dict[str, Callable[[Workspace], Case]] = {**attention.CASES}
CASES = _WINDOWING | _TOKENS | _STEPS | _TOGETHER | _OPS
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
    "attention": tuple(_TOGETHER),
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
