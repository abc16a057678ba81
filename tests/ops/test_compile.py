"""One compiled graph serves every batch."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.gate.compiled import MOST_GRAPHS, Chain


@pytest.mark.parametrize("dynamic", [None, True])
def test_one_chain_compiles_to_few_graphs_for_all_batches(dynamic):
    """Sizes of packings come from short lists, and a graph knows none of them: eight are the most that may be built."""
    torch._dynamo.reset()
    chain, counter = Chain("cpu", 8, 8, 30), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(chain.loss, fullgraph=True, backend=counter, dynamic=dynamic)
    sizes, graphs, batches = set(), [], chain.batches(1000)
    for batch in itertools.islice(batches, 40):
        sizes.add(tuple(len(getattr(batch[1], name).ids) for name in ("visible", "hidden", "present")))
        got, want = (torch.autograd.grad(form(*batch), chain.parameters) for form in (compiled, chain.loss))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        graphs.append(counter.frame_count)
    assert len(sizes) > 4
    assert graphs[-1] == graphs[20]
    assert graphs[-1] <= (2 if dynamic else min(MOST_GRAPHS, len(sizes) - 1))  # a second where two sizes were equal
    if dynamic is None:
        for batch in batches:  # 960 more
            compiled(*batch)
        assert counter.frame_count == graphs[-1]
