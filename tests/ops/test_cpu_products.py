"""Patches times the weights of their modalities, and the gradients of these, against the same in float64."""

import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine
from tests.settings import INSTRUCTIONS, on_torch_threads, with_instructions

pytestmark = [pytest.mark.native, pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))]

if engine.native:
    from physiofast import _native
    from physiofast.ops.cpu_threads import workers

FLOAT32 = 2.0**-24
COUNTS = (0, 1, 2, 7, 47, 48, 49, 130, 400)
LENGTHS = (1, 2, 5, 16, 63, 100, 129, 300)


def drawn(counts, lengths, width, rng, tail=0):
    """(values of all patches, where modalities begin and end, weight, gradient of the products)."""
    values = rng.standard_normal(sum(n * length for n, length in zip(counts, lengths, strict=True)), np.float32)
    edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    weight = rng.standard_normal((sum(lengths), width), np.float32)
    return values, edges, weight, rng.standard_normal((sum(counts) + tail, width), np.float32)


def modalities(values, edges, lengths):
    """(tokens, rows of the weight, patches [t, length]) of each."""
    begin = offset = 0
    for m, length in enumerate(lengths):
        tokens = slice(edges[m], edges[m + 1])
        size = (tokens.stop - tokens.start) * length
        yield tokens, slice(offset, offset + length), values[begin : begin + size].reshape(-1, length)
        begin, offset = begin + size, offset + length


def assert_is_product(found, a, b, terms):
    """Within the error of that many sums in float32, as a share of what they are sums of."""
    want, most = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    assert np.isfinite(found).all()
    assert (np.abs(found - want) <= (terms + 1) * FLOAT32 * most).all()


def both(values, edges, lengths, weight, grad, threads):
    """(products, gradient of the weights); what is not written is NaN."""
    places, ids, table = np.arange(len(grad), dtype=np.int32), np.zeros(len(grad), np.int32), np.zeros_like(weight[:1])
    products = embedded(values, edges, lengths, weight, places, ids, table, threads)
    dweight = np.full_like(weight, np.nan)
    _native.weight_gradients(values, edges, list(lengths), grad, dweight, _native.Workers(threads))
    return products, dweight


def embedded(values, edges, lengths, weight, order, ids, table, threads):
    out = np.full((len(order), weight.shape[1]), np.nan, np.float32)
    given = (values, edges, list(lengths), weight, order, ids, table)
    _native.embed_patches(*given, out, _native.Workers(threads))
    return out


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(COUNTS), st.sampled_from(LENGTHS)), min_size=1, max_size=4),
    st.sampled_from([1, 15, 16, 17, 32, 33, 48, 257]), st.sampled_from([0, 3]), st.sampled_from(INSTRUCTIONS),
    st.sampled_from([1, 3]), st.integers(0, 2**31),
)  # fmt: skip
def test_equal_the_definition(shapes, width, tail, instructions, threads, seed):
    counts, lengths = zip(*shapes, strict=True)
    values, edges, weight, grad = drawn(counts, lengths, width, np.random.default_rng(seed), tail)
    with with_instructions(instructions):
        products, dweight = both(values, edges, lengths, weight, grad, threads)
    for tokens, rows, patches in modalities(values, edges, lengths):
        assert_is_product(products[tokens], patches, weight[rows].astype(np.float64), patches.shape[1])
        terms = min(len(patches), 384) + len(patches) // 384  # blocks of tokens are added up
        assert_is_product(dweight[rows], patches.T, grad[tokens].astype(np.float64), terms)
    assert (products[edges[-1] :] == 0).all()


@pytest.mark.parametrize("width", [5, 48, 300])
def test_tokens_go_to_their_places_with_their_rows_of_the_table(width):
    rng = np.random.default_rng(4)
    values, edges, weight, grad = drawn((60, 3, 110), (9, 4, 20), width, rng, tail=6)
    places, table = rng.permutation(179).astype(np.int32), rng.standard_normal((12, 2 * width), np.float32)[:, :width]
    ids = rng.integers(0, 120, 179).astype(np.int32)
    ids[places[173:]] = -1
    products, _ = both(values, edges, (9, 4, 20), weight, grad, 1)
    found = embedded(values, edges, (9, 4, 20), weight, places, ids, table, 3)
    assert np.array_equal(found[places[:173]], products[:173] + table[ids[places[:173]] % 12])
    assert (found[places[173:]] == 0).all()


def test_bits_do_not_depend_on_threads_or_on_what_else_is_multiplied():
    given = drawn((300, 0, 700), (100, 7, 33), 70, np.random.default_rng(0))
    values, edges, weight, grad = given
    first = both(values, edges, (100, 7, 33), weight, grad, 1)
    for threads in (2, 5):
        assert all(map(np.array_equal, first, both(values, edges, (100, 7, 33), weight, grad, threads)))
    alone = both(values[30_000:], edges[2:] - 300, (33,), weight[107:], grad[300:], 1)
    assert np.array_equal(alone[0], first[0][300:]) and np.array_equal(alone[1], first[1][107:])
    part = both(values, edges, (100, 7, 33), weight[:, :41].copy(), grad[:, :41].copy(), 2)
    assert np.array_equal(part[0], first[0][:, :41]) and np.array_equal(part[1], first[1][:, :41])


def test_a_handler_that_embeds_changes_nothing_of_the_call_that_it_interrupts():
    """On PyTorch's threads, whose handlers are called between the packing of weights and the products with them."""
    rng, found = np.random.default_rng(5), []
    outer, inner = (drawn((40,), (1000,), width, rng) for width in (1000, 1500))

    def embed(values, edges, weight, grad):
        places, ids = np.arange(40, dtype=np.int32), np.zeros(40, np.int32)
        out = np.empty_like(grad)
        _native.embed_patches(values, edges, [1000], weight, places, ids, grad[:1], out, workers())
        return out

    with on_torch_threads(2):
        want, want_of_inner = embed(*outer), embed(*inner)
        before = signal.signal(signal.SIGALRM, lambda *_: found.append(np.array_equal(embed(*inner), want_of_inner)))
        try:
            same = []
            for step in range(60):
                signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + step % 20))
                same.append(np.array_equal(embed(*outer), want))
                signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert all(same) and all(found) and len(found) > 10


def test_many_tokens_lose_few_digits():
    """A sum of 30,000 terms in one float32 would be off by some hundred units in its last place."""
    rng = np.random.default_rng(1)
    values, grad = rng.random(30_000, np.float32) + 1, rng.random((30_000, 4), np.float32) + 1
    _, (dweight,) = both(values, np.array([0, 30_000], np.int32), (1,), np.ones((1, 4), np.float32), grad, 1)
    want = values.astype(np.float64) @ grad
    assert np.abs(dweight / want - 1).max() < 20 * FLOAT32


def test_nan_stays_in_its_token_and_reaches_each_weight_of_its_modality():
    values, edges, weight, grad = drawn((50, 20), (6, 4), 20, np.random.default_rng(2))
    clean = both(values, edges, (6, 4), weight, grad, 1)
    values[6 * 7 + 2] = np.nan
    products, dweight = both(values, edges, (6, 4), weight, grad, 1)
    others = np.arange(70) != 7
    assert np.isnan(products[7]).all() and np.array_equal(products[others], clean[0][others])
    assert np.isnan(dweight[2]).all() and np.array_equal(np.delete(dweight, 2, 0), np.delete(clean[1], 2, 0))


@pytest.mark.parametrize("edges", [[0, 3, 2], [-1, 1, 2], [0, 2, 6]])
def test_tokens_that_have_no_values_are_refused(edges):
    values, _, weight, grad = drawn((2, 3), (4, 2), 3, np.random.default_rng(3))
    with pytest.raises((_native.BoundsError, ValueError)):
        both(values, np.array(edges, np.int32), (4, 2), weight, np.vstack([grad, grad]), 1)
