"""What attention looks at: against sums over the matrix, window by window, and adding up over batches."""

import dataclasses

import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast import ops
from tests.ops.attention import make_case

TAUS = (0.5, 2.0, 5.0, 8.0, 13.0)


def stats_of(case, tau_s=TAUS):
    return ops.modality_attention_stats(case.q, case.k, *case.packings, **case.options, tau_s=tau_s)


def expected(case, tau_s=TAUS):
    """By the definition of attention, query by query."""
    a, b = case.packings
    heads, kinds = case.q.shape[1], case.options["allowed"].shape[0]
    wide = {"dtype": torch.float64}
    mass, dt = torch.zeros(heads + 1, kinds, kinds, **wide), torch.zeros(heads + 1, kinds, kinds, **wide)
    near = torch.zeros(len(tau_s), heads + 1, kinds, kinds, **wide)
    queries = torch.zeros(kinds, **wide)
    for w in range(len(a.cu_seqlens) - 1):
        keys = range(int(b.cu_seqlens[w]), int(b.cu_seqlens[w + 1]))
        for i in range(int(a.cu_seqlens[w]), int(a.cu_seqlens[w + 1])):
            m = int(a.modality[i])
            may = [j for j in keys if case.options["allowed"][m, b.modality[j]]]
            queries[m] += bool(may)
            if not may:
                continue
            apart = (a.time_s[i].double() - b.time_s[may].double()).abs()
            logits = torch.zeros(heads + 1, len(may), **wide)
            for h in range(heads):
                logits[h] = case.k[may, h].double() @ case.q[i, h].double() * case.q.shape[-1] ** -0.5
                logits[h] += case.options["pair_bias"][h, m, b.modality[may].long()].double()
                logits[h] -= case.options["time_decay"][h].double() * apart
            weights = logits.softmax(1).detach()
            kind = b.modality[may].long()
            mass[:, m].index_add_(1, kind, weights)
            dt[:, m].index_add_(1, kind, weights * apart)
            for t, tau in enumerate(tau_s):
                near[t, :, m].index_add_(1, kind, weights * (apart <= tau))
    return mass, near, dt, queries


@pytest.mark.parametrize("pairs", ["any", "cross"])
@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([5, 1, 0, 9], None), ([7, 3, 4], [0, 20, 33])])
def test_sums_equal_those_over_the_matrix(lengths_q, lengths_k, pairs, each_backend):
    case = make_case(lengths_q, lengths_k, pairs=pairs, heads=2)
    found, (mass, near, dt, queries) = stats_of(case), expected(case)
    wanted = (mass[:-1], near[:, :-1], dt[:-1], queries, mass[-1], near[:, -1], dt[-1])
    for name, got, want in zip(found._fields, found, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-11, rtol=0, msg=name)
    torch.testing.assert_close(found.mass.sum(2), found.queries.expand_as(found.mass.sum(2)))


def test_sums_of_batches_add_up():
    """Windows of one batch in two: each sum is the sum of the two."""
    whole = make_case([6, 11, 4], None, heads=2, tail=0)
    packing = whole.packings[0]

    def part(first, last, rows):
        cu = packing.cu_seqlens[first : last + 1] - packing.cu_seqlens[first]
        facts = {name: getattr(packing, name)[rows] for name in ("ids", "modality", "time_s")}
        of_part = dataclasses.replace(packing, cu_seqlens=cu, **facts)
        return dataclasses.replace(
            whole, q=whole.q[rows], k=whole.k[rows], v=whole.v[rows], packings=(of_part, of_part)
        )

    parts = [stats_of(part(0, 2, slice(0, 17))), stats_of(part(2, 3, slice(17, 21)))]
    for got, *both in zip(stats_of(whole), *parts, strict=True):
        torch.testing.assert_close(got, sum(both), atol=1e-12, rtol=0)


def test_without_options_modalities_are_those_of_the_packing(each_backend):
    batch = make_batch(3)
    packing = batch.plan.visible
    q = torch.randn(len(packing.ids), 2, 4)
    found = ops.modality_attention_stats(q, q, packing, packing, tau_s=[1])
    assert found.mass.shape == (2, 3, 3)
    assert found.near.shape == (1, 2, 3, 3)
    assert found.queries.tolist() == packing.cu_modality.diff().tolist()
    assert found.mass.dtype == torch.float32


def test_has_no_gradient_and_refuses_too_many_distances():
    case = make_case([4], None)
    assert not any(found.requires_grad for found in stats_of(case))
    for bad in (range(9), [-1.0], [float("nan")]):
        with pytest.raises(ValueError, match=r"tau_s may have up to 8 distances in seconds, zero or more; found \["):
            stats_of(case, bad)
    for bad in (1.0, "near", None):
        with pytest.raises(
            TypeError, match=r"tau_s must be a sequence of distances in seconds; found '?(1\.0|near|None)"
        ):
            stats_of(case, bad)


def test_sums_over_many_pairs_keep_the_precision_of_float32(each_backend):
    """Attention is even, so that each sum is known: windows x queries x a share of the keys."""
    kernels = each_backend == "triton"  # few pairs, as the interpreter is slow
    windows, tokens = (2, 64) if kernels else (64, 300)
    everything = torch.ones(windows, tokens, dtype=torch.bool)
    modality = (torch.arange(tokens) >= tokens // 3).long()
    packing = ops.Plan.from_mask(everything, everything, modality, torch.zeros(tokens)).present
    q = torch.zeros(windows * tokens, 1, 4)
    found = ops.modality_attention_stats(q, q, packing, packing, tau_s=[1.0])
    kinds = torch.stack([modality == 0, modality == 1]).double().sum(1)
    want = windows * kinds[:, None] * kinds / tokens
    for sums in (found.mass[0], found.near[0, 0], found.uniform_mass, found.uniform_near[0]):
        torch.testing.assert_close(sums.double(), want, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("patch_s", "patches"), [(0.1, 30), (0.2, 30), (0.3, 17), (1.1, 9), (1.0, 30)])
def test_a_distance_holds_the_tokens_that_are_just_as_far(patch_s, patches, dtype, each_backend):
    """Whatever float32 makes of multiples of decimal fractions; but none that are further."""
    time_s = ((torch.arange(patches) + 0.5) * patch_s).double()
    everything = torch.ones(1, patches, dtype=torch.bool)
    packing = ops.Plan.from_mask(everything, everything, torch.zeros(patches, dtype=torch.int64), time_s).present
    q, k = torch.zeros(2, patches, 1, 4, dtype=dtype)  # attention is even: a share counts keys
    steps = (0, 1, 2, 5)
    found = ops.modality_attention_stats(q, k, packing, packing, tau_s=[step * patch_s for step in steps])
    apart = (torch.arange(patches)[:, None] - torch.arange(patches)).abs()
    pairs = [int((apart <= step).sum()) for step in steps]
    for near in (found.near[:, 0, 0, 0], found.uniform_near[:, 0, 0]):
        assert (near * patches).round(decimals=2).tolist() == pairs


def test_far_into_a_long_window_neighbours_are_near_too():
    patches = 4096
    everything = torch.ones(1, patches, dtype=torch.bool)
    time_s = (torch.arange(patches, dtype=torch.float64) + 0.5) * 0.2
    packing = ops.Plan.from_mask(everything, everything, torch.zeros(patches, dtype=torch.int64), time_s).present
    q, k = torch.zeros(2, patches, 1, 1)
    found = ops.modality_attention_stats(q, k, packing, packing, tau_s=[0.2, 400.0])
    assert round(float(found.near[0, 0, 0, 0]) * patches) == 3 * patches - 2
    pairs = patches + 2 * sum(patches - step for step in range(1, 2001))  # 2,000 patches away, and not 2,001
    assert abs(float(found.near[1, 0, 0, 0]) * patches - pairs) < 500


def test_opcheck():
    case = make_case([4, 3], [2, 5], dtype=torch.float32, tail=0)
    a, b = case.packings
    sides = (a.cu_seqlens, b.cu_seqlens, a.modality, b.modality, a.time_s, b.time_s)
    options = [case.options[name].detach() for name in ("pair_bias", "allowed", "time_decay")]
    args = (case.q.detach(), case.k.detach(), *sides, *options, 0.5, a.max_len, b.max_len, [1.0, 2.0])
    torch.library.opcheck(torch.ops.physiofast.modality_attention_stats.default, args)
