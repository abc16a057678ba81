"""What `python -m benchmarks.run` can run: cases have peers, studies have claims of their own."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import attention, studies, tokens, windowing
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
_ATTENTION: dict[str, Callable[[Workspace], Case]] = {**attention.CASES}
CASES = _WINDOWING | _TOKENS | _ATTENTION
STUDIES: dict[str, Callable[[Workspace, int], Study]] = {
    "memory": studies.memory,
    "python_threads": studies.python_threads,
    "scaling": studies.scaling,
    "prepare": studies.prepare,
}
GROUPS: dict[str, tuple[str, ...]] = {
    "windowing": (*_WINDOWING, "memory", "python_threads"),
    "tokens": tuple(_TOKENS),
    "attention": tuple(_ATTENTION),
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
