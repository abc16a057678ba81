"""The per-op cases under pytest-benchmark: `pytest benchmarks --benchmark-only`, on the GPU where there is one.

The same providers, checked before they are timed, as in `python -m benchmarks.run ops`; here the wall is the clock, so
that on a GPU the starting of kernels counts. `PHYSIOFAST_BENCH=tiny` is for trying it out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import attentioncases, devices, opbatch
from benchmarks.harness import Case, Provider, verify
from benchmarks.opcases import OPCASES

DEVICE = devices.find("cuda" if torch.cuda.is_available() else "cpu")
MOST_PROVIDERS = 11
"""Of any case."""


def setting(sizes: ModuleType) -> Any:
    """Of the module that has a case's settings: sizes of the required figures on a GPU, the usual ones on a CPU."""
    if os.environ.get("PHYSIOFAST_BENCH") == "tiny":
        return sizes.tiny(DEVICE)
    if DEVICE.type == "cuda":
        return sizes.on_gpu(DEVICE, 0.0)
    return sizes.on_cpu(DEVICE, torch.get_num_threads(), 0.0)


CASES: dict[str, Callable[[], Case]] = {
    name: lambda make=make, sizes=sizes: make(setting(sizes), None)
    for sizes, cases in ((opbatch, OPCASES), (attentioncases, attentioncases.CASES))
    for name, make in cases.items()
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """One op's case; all its providers share one batch."""
    torch._dynamo.reset()
    with DEVICE.stream():
        yield CASES[request.param]()


@pytest.mark.parametrize("number", range(MOST_PROVIDERS))
def test_op(case: Case, number: int, benchmark: Any) -> None:
    """One provider of one op; its result is checked first."""
    assert len(case.providers) <= MOST_PROVIDERS
    if number >= len(case.providers):
        pytest.skip("no more providers")
    provider: Provider = case.providers[number]
    problem = verify(case, provider)
    assert problem is None, problem
    benchmark.group = f"{case.name}, {DEVICE.type}"
    benchmark.name = provider.name
    benchmark.extra_info.update(shape=dict(case.shape), bytes=case.moved_bytes, flops=case.flops, role=provider.role)

    def run() -> None:
        provider.run()
        DEVICE.synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
