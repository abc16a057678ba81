"""The cases of the ops: every provider is right on any device's code path, and what is asked of ours is judged."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import alternatives, attentioncases, bench_ops, cases, devices, opbatch, opcases, plot
from benchmarks.attentionpeers import DENSE, FLEX, FLEX_FEATURED
from benchmarks.devices import GraphTimer
from benchmarks.harness import Case, Provider, measure
from benchmarks.opcases import OF_128, OPCASES
from benchmarks.opjobs import BEST, BEST_COPIED, FIGURES, MAE, MAE_EXPANDED, MULTIMAE, MULTIMAE_WHOLE, OURS, TWIN
from benchmarks.workspace import Workspace


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def setting(request):
    return opbatch.tiny(devices.find("cpu"), request.param)


@pytest.mark.parametrize("op", OPCASES)
def test_every_provider_of_every_case_is_right(op, setting):
    rows = opcases.measure_case(op, setting, 1)
    assert {row.provider: row.problem for row in rows if not row.checked} == {}
    assert {"ours", "peer", "also", "copy"} == {row.role for row in rows}
    for row in rows:
        assert row.device == "cpu"
        dtype = torch.float32 if op in OF_128 else setting.dtype
        assert row.shape["dtype"] == str(dtype).removeprefix("torch.")
        assert row.moved_bytes > 0
        assert row.seconds == row.seconds_min > 0
        assert row.share_of_copy > 0


@pytest.mark.parametrize("op", OPCASES)
def test_wrong_results_of_ours_are_noticed(op, monkeypatch):
    """One number of the largest result is moved by a twentieth of the largest value."""
    setting = opbatch.tiny(devices.find("cpu"))
    case = OPCASES[op](setting, None)
    (ours,) = (provider for provider in case.providers if provider.role == "ours")
    assert case.check(ours.run()) is None
    outcome = ours.run()
    for number, part in enumerate(outcome.parts):
        if part.dtype == torch.bool or not part.numel():
            continue
        spoilt = part.detach().clone()
        spoilt.view(-1)[0] += 1 if not part.is_floating_point() else max(float(spoilt.abs().max()) / 20, 1)
        parts = [spoilt if i == number else other for i, other in enumerate(outcome.parts)]
        assert "result" in case.check(dataclasses.replace(outcome, parts=tuple(parts))), number


def test_a_case_of_a_gpu_asks_for_the_figures_of_a_gpu():
    setting = dataclasses.replace(opbatch.tiny(devices.find("cpu")), demanding=True)
    for op, figures in FIGURES.items():
        case = OPCASES[op](setting, GraphTimer(setting.device))
        assert (case.least_ratios, case.least_share) == (figures.ratios, figures.share)
        assert set(case.least_ratios) <= {provider.name for provider in case.providers if provider.role == "peer"}
        assert case.statistic == "median"
    assert OPCASES["embed_patches"](opbatch.tiny(setting.device), None).least_ratios == {}


def scripted(**changes):
    """Providers return the seconds that they are then said to take; doing nothing takes one."""
    times = {"physiofast": 3.0, "facebook/mae style": 11.0, "copy": 2.5, "wrong": 5.0}
    roles = {"physiofast": "ours", "copy": "copy"}
    providers = [Provider(name=n, run=lambda s=s: s, role=roles.get(n, "peer")) for n, s in times.items()]
    options = {
        "name": "scripted",
        "title": "",
        "providers": providers,
        "check": lambda found: "not right" if found == 5.0 else None,
        "seconds": lambda job: job() or 1.0,
        "idle": lambda: None,
        "statistic": "median",
        "moved_bytes": 300,
        "large_copy": 200.0,
    }
    return Case(**(options | changes))


def test_what_timing_takes_is_subtracted_and_shares_are_of_the_copy():
    ours, mae, copy, wrong = measure(scripted(), 3)
    assert (ours.seconds, mae.seconds, copy.seconds, wrong.seconds) == (2.0, 10.0, 1.5, None)
    assert ours.ratio == 5.0
    assert ours.share_of_copy == 0.75
    assert ours.share_of_large_copy == 0.75
    assert mae.share_of_copy == 0.15
    assert ours.holds is None


@pytest.mark.parametrize(
    ("demand", "found", "holds"),
    [
        ({"least_ratios": {"facebook/mae style": 5.0}}, 5.0, True),
        ({"least_ratios": {"facebook/mae style": 5.1}}, 5.0, False),
        ({"least_ratios": {"wrong": 0.1}}, None, False),
        ({"least_share": 0.75}, 0.75, True),
        ({"least_share": 0.76}, 0.75, False),
        ({"most_seconds": 2.0}, 2.0, True),
        ({"most_seconds": 1.9}, 2.0, False),
    ],
)
def test_demands_are_judged(demand, found, holds):
    ours = measure(scripted(**demand), 3)[0]
    (judged,) = ours.demands
    assert (judged.found, judged.holds, ours.holds) == (found, holds, holds)


class Fake(devices.Cpu):
    """A device on which clearing the cache takes 1 s, and a job what it says."""

    def __init__(self):
        self.captured = []
        self.now = 0.0

    def capture(self, job):
        self.captured.append(job)
        return super().capture(job)

    def elapsed(self, job):
        cleared, seconds = job()
        assert not cleared.any()
        return 1.0 + (seconds or 0.0)


def test_a_job_is_captured_once_and_its_cache_is_cleared():
    device = Fake()
    timer = GraphTimer(device)
    job = lambda: 4.0  # noqa: E731
    timer._cache.fill_(7)
    assert [timer(job), timer(job), timer(timer.nothing)] == [5.0, 5.0, 1.0]
    assert len(device.captured) == 2
    waits = lambda: 2.0  # noqa: E731
    timer.eager(waits)
    assert timer(waits) == 3.0
    assert len(device.captured) == 2


class Asking(TorchDispatchMode):
    """Within it, calls whose result has a shape that only the device knows are counted."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.times += func.overloadpacket is torch.ops.aten.nonzero
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", OPCASES)
def test_definitions_that_ask_the_device_are_never_captured(op):
    device = Fake()
    device.elapsed = lambda job: 1.0
    timer = GraphTimer(device)
    case = OPCASES[op](opbatch.tiny(device), timer)
    (twin,) = (provider for provider in case.providers if provider.name == TWIN)
    with Asking() as asked:
        twin.run()
    timer(twin.run)
    assert len(device.captured) == (0 if asked.times else 1)


def test_a_job_that_cannot_be_captured_is_timed_with_its_launches():
    device = Fake()
    timer = GraphTimer(device)

    def refuse(job):
        raise RuntimeError("operation not permitted when stream is capturing")

    device.capture = refuse
    job = lambda: 4.0  # noqa: E731
    assert [timer(job), timer(job)] == [5.0, 5.0]
    assert list(timer.refused) == [job]
    assert "not permitted" in timer.refused[job]


def test_who_cannot_be_timed_has_a_problem_and_the_others_their_times():
    timer = GraphTimer(Fake())

    def run():
        if run.calls > 0:
            raise RuntimeError("out of memory")
        run.calls += 1
        return 1.0

    run.calls = 0
    providers = [
        Provider(name="physiofast", run=lambda: 3.0, role="ours"),
        Provider(name="fails later", run=run),
        Provider(name="peer", run=lambda: 6.0),
    ]
    case = Case(name="a", title="b", providers=providers, check=lambda found: None, seconds=timer, idle=timer.nothing)
    ours, failed, peer = measure(case, 2)
    assert (ours.seconds, peer.seconds, ours.peer, ours.ratio) == (3.0, 6.0, "peer", 2.0)
    assert (failed.checked, failed.seconds, failed.problem) == (False, None, "RuntimeError: out of memory")


def test_a_lost_device_is_no_problem_of_one_provider():
    def lose():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    case = Case(name="a", title="b", providers=[Provider(name="x", run=lose)], check=lambda found: None)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(case, 1)


def test_copies_are_timed_without_the_clearing():
    times = itertools.cycle([3.0, 1.0])
    device = Fake()
    device.elapsed = lambda job: next(times)
    assert devices.copy_bytes_per_s(device, 1000, rounds=3) == 1000.0


def test_multimae_keeps_the_same_number_in_each_window_and_divides_it_by_the_dirichlet():
    torch.manual_seed(0)
    per_kind = (30, 10, 20)
    quotas = alternatives.multimae_quotas(4000, len(per_kind), 15, 1.0, "cpu")
    kept, restore, mask = alternatives.multimae_sample(quotas, per_kind, 15)
    assert (mask.sum(1) == 45).all()
    assert torch.equal((mask == 0).nonzero()[:, 1].view(4000, 15), kept.sort(1).values)
    assert torch.equal(restore.gather(1, kept), torch.arange(15).expand(4000, -1))
    shares = torch.stack([(part == 0).sum(1) for part in mask.split(per_kind, 1)], 1).double()
    assert (shares.mean(0) - 5).abs().max() < 0.6  # quotas above a modality's tokens flow to the others
    assert 0.05 < float((shares == 0).any(1).double().mean()) < 0.3


def test_multimae_given_the_quotas_of_a_plan_keeps_them_and_another_choice_is_refused():
    case = OPCASES["sample_plan"](opbatch.tiny(devices.find("cpu")), None)
    peers = {provider.name: provider for provider in case.providers}
    given, whole = peers[MULTIMAE], peers[MULTIMAE_WHOLE]
    assert (given.role, whole.role) == ("peer", "also")
    outcome = given.run()
    assert given.check(outcome) is None
    mask = outcome.parts[2].clone()
    first, last = (int((mask[0] == seen).nonzero()[end, 0]) for seen, end in ((0, 0), (1, -1)))
    mask[0, first], mask[0, last] = 1, 0  # as many are kept, of other modalities
    assert whole.check(dataclasses.replace(outcome, parts=(*outcome.parts[:2], mask))) is None
    wrong = dataclasses.replace(outcome, parts=(*outcome.parts[:2], mask))
    assert given.check(wrong) == "a modality's quota is not kept"


@pytest.mark.parametrize("op", OF_128)
def test_as_trained_ours_is_float32_and_alternatives_multiply_in_bfloat16(op):
    case = OPCASES[op](opbatch.tiny(devices.find("cpu"), torch.bfloat16), None)
    whole = OPCASES[op.replace("_float32", "")](opbatch.tiny(devices.find("cpu")), None)
    assert (case.moved_bytes, case.flops, case.least_ratios) == (whole.moved_bytes, whole.flops, {})
    for provider in case.providers:
        outcome, name = provider.run(), provider.name
        if name in (MAE, MAE_EXPANDED, BEST):
            assert provider.check(outcome) is None
            assert "error" in case.check(outcome)  # too large for float32
        elif name in (OURS, TWIN):
            assert case.check(outcome) is None


def test_an_index_is_a_copy_as_published_and_none_where_it_is_expanded():
    index = torch.tensor([[2, 0, 1]])
    published, bare = (spread(index, 5) for spread in (alternatives.repeated, alternatives.expanded))
    assert torch.equal(published, bare)
    assert published.untyped_storage().nbytes() == 5 * bare.untyped_storage().nbytes()
    for op in ("embed_patches", "embed_patches_backward", "take_tokens", "assemble_tokens"):
        case = OPCASES[op](dataclasses.replace(opbatch.tiny(devices.find("cpu")), demanding=True), None)
        assert {MAE, MAE_EXPANDED} <= {provider.name for provider in case.providers if provider.role == "peer"}
        assert MAE_EXPANDED not in case.least_ratios


def test_features_beside_their_hidden_ones_are_no_copy():
    x, place = torch.randn(4, 3), torch.tensor([2])
    whole, copied = alternatives.gather_hidden(x, place)[0], alternatives.gather_hidden_copied(x, place)[0]
    assert whole.data_ptr() == x.data_ptr() != copied.data_ptr()


def test_pytest_benchmark_runs_every_provider(monkeypatch):
    monkeypatch.setenv("PHYSIOFAST_BENCH", "tiny")
    assert list(bench_ops.CASES) == list(cases.GROUPS["ops"]) == [*OPCASES, *attentioncases.CASES]
    # Of attention on a GPU: ours, two of PyTorch's padded, two of varlen_attn, one compiled, two of FlexAttention, the
    # definition twice, a copy.
    assert max(len(case().providers) for case in bench_ops.CASES.values()) <= bench_ops.MOST_PROVIDERS == 11


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_attention_alone_is_right_at_the_sizes_of_a_cpu(monkeypatch):
    """All but their number and the compiler."""
    usual = attentioncases.on_cpu
    less = lambda *known: dataclasses.replace(usual(*known), shrink=10, windows=3, compiler="eager")  # noqa: E731
    monkeypatch.setattr(attentioncases, "on_cpu", less)
    monkeypatch.setattr(devices, "copy_bytes_per_s", lambda *known, **options: 1e10)
    for name in ("attention_mix_forward", "attention_400"):
        rows = measure(cases.CASES[name](Workspace(Path(), threads=(1,))), 1)
        assert {row.provider: row.problem for row in rows if not row.checked} == {}
        assert [row.role for row in rows] == ["ours", "peer", "peer", "peer", "also", "also", "copy"]
        for row in rows:
            assert (row.case, row.shape["windows"], row.shape["heads"], row.shape["dtype"]) == (name, 3, 4, "float32")
            assert row.share_of_copy > 0 and row.flops > 0
        assert list(rows[0].demands) == []  # nothing is required of a CPU here


@pytest.mark.parametrize("name", ["take_hidden", "attention_50_forward"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_compiled_alternatives_in_their_longest_mode_stand_beside_the_others(name, monkeypatch):
    modes, right = [], torch.compile

    def compiled(function, *, mode=None, **known):
        modes.append(mode)
        return right(function, **known)

    monkeypatch.setattr(torch, "compile", compiled)
    of_op = name in OPCASES
    make, sizes = (OPCASES[name], opbatch) if of_op else (attentioncases.CASES[name], attentioncases)
    case = cases.with_autotuned(functools.partial(make, timer=None), sizes.tiny(devices.find("cpu")))
    torch._dynamo.reset()
    rows = measure(case, 1)
    assert {row.provider: row.problem for row in rows if not row.checked} == {}
    tuned = [row.provider for row in rows if row.provider.endswith(", max-autotune")]
    wanted = (BEST, BEST_COPIED) if of_op else (DENSE, FLEX, FLEX_FEATURED)
    assert tuned == [f"{peer}, max-autotune" for peer in wanted]
    assert {row.role for row in rows if row.provider in tuned} == {"also"}
    assert rows[-1].role == "copy"
    assert set(modes) == {None, cases.AUTOTUNE}


def test_times_of_ops_are_drawn(tmp_path):
    """Of a file of the gate, which has neither studies nor settings, and with a provider that is wrong."""
    setting = opbatch.tiny(devices.find("cpu"))
    rows = [dataclasses.asdict(row) for row in opcases.measure_case("take_tokens", setting, 1)]
    rows[1] |= {"checked": False, "problem": "off by one", "seconds": None}
    document = {"rows": rows, "machine": {"cpu": "x", "cores": 2}, "versions": {}, "commit": "0", "date": "2026-11-26"}
    file = tmp_path / "gate.json"
    file.write_text(json.dumps(document))
    assert plot.draw(file) == [tmp_path / "gate_ops.png"]
    assert (tmp_path / "gate_ops.png").stat().st_size > 10_000
