"""The benchmark's own rules: nothing wrong gets a time, everything is written down, peers and ours agree."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import attention, cases, chain, footprint, ours, peers, run, steps, table, tokens, traffic, windowing
from benchmarks.harness import Case, Provider, Row, close_per_channel, measure, poisoned
from benchmarks.studies import Claim, Study
from benchmarks.workspace import Workspace
from physiofast import engine
from tests.memory import hoard, refuse
from tests.test_definitions import shrink_steps


@pytest.fixture(autouse=True)
def default_threads():
    """Jobs of ours choose a number of threads for the whole process; other tests get the default back."""
    yield
    engine.set_threads(None)


def scripted(**changes):
    """A case whose providers return the seconds that they are then said to take."""
    providers = [
        Provider(name="slow", run=lambda: 8.0),
        Provider(name="fast", run=lambda: 4.0),
        Provider(name="fastest, but no peer", run=lambda: 1.0, role="also"),
        Provider(name="physiofast", run=lambda: 0.5, role="ours", threads=1),
        Provider(name="physiofast", run=lambda: 0.25, role="ours", threads=2),
    ]
    options = {
        "name": "scripted",
        "title": "a scripted job",
        "providers": providers,
        "check": lambda found: None if found > 0 else "not a time",
        "required": {1: 8, 2: 17},
        "goal": {1: 9},
        "seconds": lambda job: job(),
        "moved_bytes": 10**9,
        "windows": 100,
    }
    return Case(**(options | changes))


def run_case(monkeypatch, capsys, tmp_path, case):
    """Exit status, what was printed, and the JSON of a run of one case."""
    monkeypatch.setitem(cases.CASES, "scripted", lambda space: case)
    file = tmp_path / "found.json"
    status = run.main(["scripted", "--json", str(file), "--repeats", "2"])
    return status, capsys.readouterr().out, json.loads(file.read_text())


def test_ratios_are_to_the_fastest_peer_and_judged():
    rows = measure(scripted(), repeats=3)
    one, two = rows[3:]
    assert (one.peer, one.ratio, one.required, one.goal, one.holds) == ("fast", 8.0, 8, 9, True)
    assert (two.ratio, two.required, two.goal, two.holds) == (16.0, 17, None, False)
    assert one.gb_per_s == 2.0
    assert one.windows_per_s == 200.0
    assert all(row.ratio is None and row.holds is None for row in rows[:3])
    assert [row.ratio_of_ours for row in rows] == [None, None, 2.0, None, None]


def test_what_is_no_peer_is_compared_with_ours_where_it_does_the_same_job(monkeypatch, capsys, tmp_path):
    case = scripted()
    also = case.providers[2]
    others = [
        dataclasses.replace(also, name="on two threads", threads=2),
        dataclasses.replace(also, name="on three threads", threads=3),
        dataclasses.replace(also, name="another job", check=lambda found: None),
        dataclasses.replace(also, name="a wrong one", run=lambda: -1.0),
    ]
    case = scripted(required={}, providers=[*case.providers, *others])
    _, printed, found = run_case(monkeypatch, capsys, tmp_path, case)
    assert [row["ratio_of_ours"] for row in found["rows"][5:]] == [4.0, None, None, None]
    assert printed.count("ours is 2.00x as fast") == printed.count("ours is 4.00x as fast") == 1
    assert printed.count("as fast\n") == 2


def test_quantiles_and_calls():
    times = iter([5.0, 4.0, 2.0, 3.0, 1.0])
    case = scripted(providers=[Provider(name="peer", run=lambda: 1)], seconds=lambda job: next(times), calls=10)
    (row,) = measure(case, repeats=5)
    expected = np.quantile([0.5, 0.4, 0.2, 0.3, 0.1], (0.2, 0.5, 0.8))
    assert row.seconds_min == pytest.approx(0.1)
    assert [row.seconds_q20, row.seconds_median, row.seconds_q80] == pytest.approx(expected)
    assert row.repeats == 5


def test_providers_take_turns_and_a_wrong_one_is_never_timed():
    turns = []
    providers = [Provider(name=name, run=lambda name=name: turns.append(name) or name) for name in "abc"]
    case = scripted(
        providers=providers, check=lambda found: "wrong" if found == "b" else None, seconds=lambda job: len(job())
    )
    measure(case, repeats=3)
    assert "".join(turns) == "abc" + "ac" + "ca" + "ac"


def test_who_is_far_slower_than_ours_has_few_turns_and_no_wall_loop():
    """Those slower than 20 ms and than 20 times ours; what was measured of them stays."""
    times = {"ours": 0.002, "slow": 0.041, "not so slow": 0.039, "slow, of a few": 0.5}
    turns, walls = [], []
    providers = [
        Provider(name=name, run=lambda name=name: times[name], role="ours" if name == "ours" else "also")
        for name in times
    ]
    case = scripted(
        providers=providers,
        required={},
        seconds=lambda job: turns.append(job()) or job() + 0.01,
        idle=lambda: 0.0,
        wall=lambda job: walls.append(job()) or job(),
        turns_of_slow=3,
    )
    rows = measure(case, repeats=5)
    assert [row.repeats for row in rows] == [5, 3, 5, 3]
    assert [row.seconds_median for row in rows] == pytest.approx(list(times.values()))
    assert [row.wall_seconds for row in rows] == [0.002, None, 0.039, None]
    assert sorted(walls) == [0.002] * 5 + [0.039] * 5
    assert [row.ratio_of_ours for row in rows[1:]] == pytest.approx([20.5, 19.5, 250])
    fast = {"ours": 0.0005, "slow": 0.019}
    few = [dataclasses.replace(one, run=lambda name=one.name: fast[name]) for one in providers[:2]]
    assert [row.repeats for row in measure(dataclasses.replace(case, providers=few), repeats=5)] == [5, 5]
    assert [row.repeats for row in measure(dataclasses.replace(case, turns_of_slow=None), repeats=5)] == [5] * 4
    nobody = dataclasses.replace(case, providers=providers[1:])
    assert [row.repeats for row in measure(nobody, repeats=5)] == [5] * 3


def test_a_red_check_prints_no_time_and_exits_with_1(monkeypatch, capsys, tmp_path):
    def fails():
        raise OSError("no such night")

    case = scripted()
    wrong = dataclasses.replace(case.providers[3], run=lambda: -0.5)
    broken = dataclasses.replace(case.providers[1], run=fails)
    case = scripted(providers=[case.providers[0], broken, wrong], required={1: 1})
    status, printed, found = run_case(monkeypatch, capsys, tmp_path, case)
    assert status == 1
    assert "WRONG  not a time" in printed
    assert "WRONG  OSError: no such night" in printed
    assert "500 ms" not in printed
    slow, broken, wrong = found["rows"]
    assert slow["checked"]
    assert slow["seconds_min"] == 8.0
    for row in (broken, wrong):
        assert not row["checked"]
        assert all(row[key] is None for key in row if key.startswith("seconds") or key in ("gb_per_s", "ratio"))
    assert wrong["holds"] is False


def test_a_wrong_peer_alone_exits_with_1(monkeypatch, capsys, tmp_path):
    case = scripted(required={})
    wrong = dataclasses.replace(case.providers[0], run=lambda: -8.0)
    status, _, _ = run_case(
        monkeypatch, capsys, tmp_path, scripted(required={}, providers=[wrong, *case.providers[1:]])
    )
    assert status == 1


@pytest.mark.parametrize(("required", "status"), [({1: 8.0}, 0), ({1: 8.1}, 1), ({}, 0)])
def test_exit_status_says_whether_requirements_hold(monkeypatch, capsys, tmp_path, required, status):
    found, printed, _ = run_case(monkeypatch, capsys, tmp_path, scripted(required=required))
    assert found == status
    assert ("FAILS" in printed) == bool(status)


def test_json_is_complete_and_is_drawn(monkeypatch, capsys, tmp_path):
    _, printed, found = run_case(monkeypatch, capsys, tmp_path, scripted())
    assert [set(row) for row in found["rows"]] == [{field.name for field in dataclasses.fields(Row)}] * 5
    assert set(found) == {"date", "commit", "machine", "versions", "settings", "rows", "studies"}
    assert {"cpu", "cores", "kernel", "copy_gb_per_s"} <= set(found["machine"])
    assert {"python", "numpy", "scipy", "wfdb"} <= set(found["versions"])
    settings = {"names": ["scripted"], "hours": 8.0, "repeats": 2, "threads": [1, 2], "device": "cpu", "patch": 128}
    settings |= {"max_autotune": False}
    assert found["settings"] == settings
    assert (tmp_path / "found.png").stat().st_size > 10_000
    assert not (tmp_path / "found_scaling.png").exists()
    assert "found.png" in printed


def test_a_copy_beside_the_peers_changes_nothing_that_is_drawn(monkeypatch, capsys, tmp_path):
    copy = Provider(name="copy of the same bytes", run=lambda: 0.1, role="copy")
    case = scripted(required={}, providers=[*scripted().providers, copy])
    status, _, found = run_case(monkeypatch, capsys, tmp_path, case)
    assert status == 0
    assert [row["share_of_copy"] for row in found["rows"][3:]] == pytest.approx([0.2, 0.4, 1.0])
    assert found["rows"][3]["peer"] == "fast"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found.json", "found.png"]


def test_a_failed_claim_of_a_study_exits_with_1(monkeypatch, capsys):
    for holds, status in ((True, 0), (None, 0), (False, 1)):
        study = Study("claims", "about nothing", [], ["one line"], [Claim("it is so", "42", holds)])
        monkeypatch.setitem(cases.STUDIES, "claims", lambda space, repeats, study=study: study)
        assert run.main(["claims"]) == status
        word = {True: "holds", None: "noted", False: "FAILS"}[holds]
        assert f"{word}  it is so: 42" in capsys.readouterr().out


def test_unknown_names_are_refused_and_groups_written_out(capsys):
    assert cases.resolve(["edf", "windowing", "edf"])[:2] == ["edf", "windows_100"]
    with pytest.raises(SystemExit) as stopped:
        run.main(["windwing"])
    assert stopped.value.code == 2
    assert (
        "no case 'windwing'; there are windowing, tokens, steps, attention, ops, windows_100" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hours", "0"], "--hours: 0 is not 0.01 or more: a window has 30 s"),
        (["--hours", "nan"], "--hours: nan is not 0.01 or more"),
        (["--hours", "long"], "--hours: long is no number"),
        (["prepare", "--hours", "0.05"], "--hours: of prepare it must be at least 0.1 and at most 24.0; found 0.05"),
        (["--json", "{file}/below.json"], "--json: cannot write {file}/below.json: "),
        (["--json", "{folder}"], "--json: cannot write {folder}: Is a directory; nothing was timed yet"),
        (["--device", "cuda"], "--device cuda: PyTorch sees no CUDA device; leave it out"),
    ],
)
def test_what_would_end_a_run_is_refused_before_it(flags, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(cases.CASES, "scripted", lambda space: pytest.fail("was timed"))
    places = {"file": tmp_path / "file", "folder": tmp_path}
    places["file"].write_text("kept")
    with pytest.raises(SystemExit) as stopped:
        run.main(["scripted", *(flag.format(**places) for flag in flags)])
    assert stopped.value.code == 2
    assert said.format(**places) in capsys.readouterr().err
    assert [file.read_text() for file in tmp_path.iterdir()] == ["kept"]


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    file = tmp_path / "new" / "found.json"
    assert run._refusal(file) is None and not file.exists()
    file.write_text("kept")
    assert run._refusal(file) is None and file.read_text() == "kept"


@pytest.mark.parametrize(("load", "warns"), [(1.4, False), (1.6, True)])
def test_a_busy_machine_is_said(load, warns):
    machine = {"cpu": "one", "cores": 2, "kernel": "6", "load": load, "copy_gb_per_s": 9.0}
    lines = table.heading({"machine": machine, "versions": {"torch": "2"}, "commit": "abc", "date": "today"})
    said = f"WARNING: load {load} before the start; times and shares of a copy are of a busy machine"
    assert lines.endswith(said) == warns


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "Expecting property name"), ("[]", "has no rows"), ('{"3.7.1": {}}', "has no rows"), (None, "No")],
)
def test_a_table_of_another_file_is_refused(text, said, capsys, tmp_path):
    file = tmp_path / "other.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        table.main([str(file)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.34, "12.3 s"), (1.0, "1.00 s"), (0.99951, "1.00 s"), (0.1234, "123 ms"), (45.6e-6, "45.6 us"), (None, "-")],
)
def test_seconds_have_three_figures(value, text):
    assert table.seconds(value) == text


def test_close_per_channel():
    expected = np.array([[1.0, 100.0], [0.01, 0.02]])
    assert close_per_channel(np.array([[1.09, 100.09], [0.01, 0.02]]), expected, 1e-3, axis=0) is None
    assert "channel 1: error 0.001" in close_per_channel(
        np.array([[1.0, 100.0], [0.011, 0.021]]), expected, 1e-3, axis=0
    )
    assert "channel 0" in close_per_channel(np.array([[1.0, math.nan], [0.01, 0.02]]), expected, 1e-3, axis=0)
    assert "shape" in close_per_channel(expected[:, :1], expected, 1e-3)


def test_buffers_nobody_wrote_are_found():
    assert np.isnan(poisoned((2, 3), np.float32)).all()
    batches = [np.arange(2)]
    whole = np.ones((4, 2, 3), np.int16)
    case = windowing._batch(
        "batch", "", [Provider(name="idle", run=lambda: poisoned((2, 2, 3), np.int16))], whole, batches, {}, {}
    )
    assert "differ" in measure(case, 1)[0].problem


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("bench"), hours=0.5, threads=(1, 2))


SMALL_CASES = ("windows_100", "windows_128", "chain_scipy", "random_window", "random_open", "batch_numpy")


@pytest.mark.parametrize("name", SMALL_CASES)
def test_every_provider_of_a_small_case_is_right(space, name, monkeypatch):
    monkeypatch.setattr(windowing, "RANDOM_POSITIONS", 10)
    rows = measure(cases.CASES[name](space), repeats=1)
    assert {row.provider: row.problem for row in rows if not row.checked} == {}
    assert {"ours", "peer"} <= {row.role for row in rows}
    assert all(row.seconds_min > 0 for row in rows)
    assert all(row.ratio > 0 for row in rows if row.role == "ours")


@pytest.fixture
def small_steps(monkeypatch):
    shrink_steps(monkeypatch)


class Counted(TorchDispatchMode):
    """Within it the operations of matrix products of PyTorch's are counted; those within our ops are not seen."""

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.flops += 2 * args[-1].numel() * out.shape[0]  # the last factor is [inner, outer]
        return out


@pytest.mark.parametrize("name", ["step_joint", "step_cross", "step_cross_dropout"])
def test_operations_of_a_step_are_those_of_its_products(small_steps, name, monkeypatch):
    case = cases.CASES[name](Workspace(Path(), threads=(1,)))
    attended, nothing = [], traffic.Traffic(bytes_read=0, bytes_written=0)
    monkeypatch.setattr(traffic, "modality_attention", lambda shape: attended.append(shape) or nothing)
    monkeypatch.setattr(traffic, "modality_attention_backward", lambda shape: nothing)
    one = steps.Ours(name.split("_")[1], 0.2 if "dropout" in name else 0.0)
    shape, moved = steps.least(one)
    assert case.moved_bytes == moved.moved > 0
    assert case.flops > moved.flops > 0
    with Counted() as counted:
        one()
    embedded = 2 * 2 * shape["visible"] * shape["patch"] * shape["width"]  # within an op of ours
    assert 0 <= counted.flops - (moved.flops - embedded) < 0.05 * counted.flops
    assert [len(each.lengths) for each in attended] == [3, 3]


def test_a_step_by_hand_has_no_product_that_ours_has_not(small_steps, monkeypatch):
    """Tokens that are seen are gathered first, and the last block of the decoder serves hidden ones alone."""
    monkeypatch.setattr(steps, "SIZES", dataclasses.replace(steps.SIZES, decoder_depth=2))
    sides = {"ours": steps.Ours("joint", 0.0), "by hand": steps.MaeStyle(0.0, steps.GatherFirst)}
    sides["mae"], found = steps.MaeStyle(0.0), {}
    for name, side in sides.items():
        with Counted() as counted:
            side()
        found[name] = counted.flops
    shape, _ = steps.least(sides["ours"])
    found["ours"] += 2 * 2 * shape["visible"] * shape["patch"] * shape["width"]  # within an op
    assert found["by hand"] <= found["ours"] < 1.05 * found["by hand"]
    assert found["mae"] > 1.3 * found["by hand"]


def test_rows_on_a_cpu_say_how_large_they_are(small_steps, monkeypatch):
    monkeypatch.setattr(tokens, "WINDOWS", 4)
    monkeypatch.setattr(attention, "WINDOWS", 12)
    for name in ("token_ops", "attention_few", "step_joint", "step_cross"):
        rows = measure(cases.CASES[name](Workspace(Path(), threads=(1,))), repeats=1)
        assert {row.provider: row.problem for row in rows if not row.checked} == {}
        assert [row.role for row in rows].count("copy") == 1
        for row in rows:
            assert row.shape["windows"] in (3, 4, 12)
            assert row.moved_bytes > 0 and row.flops > 0 and row.share_of_copy > 0


def test_both_sides_of_a_step_see_as_many_tokens(small_steps):
    ours_now, mae = steps.Ours("joint", 0.0), steps.MaeStyle(0.0)
    _, quotas, _ = ours_now.prepare()
    _, hidden = mae.model(mae.patches, *mae.draw())
    assert quotas.sum(1).tolist() == (1 - hidden).sum(1).tolist() == [98] * 3
    padded = steps.MaeStyle(0.5)
    noise, kept = padded.draw()
    _, hidden = padded.model(padded.patches, noise, kept)
    assert torch.equal((1 - hidden).sum(1).long(), kept)
    assert len(set(kept.tolist())) > 1
    for window in range(3):
        visible = (hidden[window] == 0).nonzero()[:, 0].tolist()
        assert set(visible) == set(noise[window].argsort()[: kept[window]].tolist())


def test_the_night_has_faults_and_the_chain_sees_them(space):
    valid = space.truth.valid
    assert valid.shape == (13, 1800)
    faulty = np.flatnonzero(~valid.all(1))
    assert faulty.tolist() == [0, 3, 6, 9, 12]
    assert ((~valid[faulty]).sum(1) >= 39).all()
    windows, found = ours.chain(space.night, 1)()
    found[0, 5] ^= True
    assert chain.check_scaled(space.truth, 1.0)((windows, found)) == "1 of 23400 flags differ"
    found[0, 5] ^= True
    windows[7, 4, 100] += 1
    assert "channel 4: error" in chain.check_scaled(space.truth, windowing.OUR_STEPS)((windows, found))


def test_edf_is_read_equal_by_edfio_and_ours(space):
    check = windowing._check_edf(space)
    for job in (
        peers.edfio_physical(space.edf, lazy=True),
        peers.edfio_calibrated(space.edf, True),
        ours.edf(space.edf, 1),
        ours.edf_reused(space.edf, 2),
    ):
        assert check(job()) is None
    planes = peers.edfio_physical(space.edf, lazy=False)()
    planes[10][5] += 0.01
    assert "signal 10" in check(planes)


def test_the_footprint_of_a_known_job(capfd):
    assert 60 < footprint.extra_megabytes(hoard, 64) < 72
    with pytest.raises(RuntimeError, match="refuse failed"):
        footprint.extra_megabytes(refuse)
    assert "no job today" in capfd.readouterr().err


def test_whoever_is_faster_than_what_is_asked_stands_in_the_table_too():
    seconds = {"ours": 1.0, "asked": 4.0, "slower": 5.0, "faster": 3.0, "fastest": 2.0}
    roles = {"ours": "ours", "asked": "peer"}
    rows = [
        {"case": "one", "provider": name, "role": roles.get(name, "also"), "seconds": found, "shape": {}}
        for name, found in seconds.items()
    ]
    rows += [
        rows[-1] | {"case": "another", "seconds": 0.5},
        rows[-1] | {"provider": "copy", "role": "copy", "seconds": 0.1},
    ]
    assert table._faster(rows, rows[0], {"asked", "of the speed of a copy"}) == [("fastest", 2.0), ("faster", 3.0)]
    assert table._faster(rows, rows[0], {}) == [("fastest", 2.0)]


ROOT = Path(__file__).parents[1]


PERFORMANCE = "docs/performance.md"


def between_marks(page, name, command="python -m benchmarks.table"):
    """What a page says is from files of results."""
    text = (ROOT / page).read_text()
    begin = f"<!-- from benchmarks/results/{name} by {command} -->\n"
    assert text.count(begin) == 1
    return text.split(begin)[1].split("<!-- end -->")[0]


@pytest.mark.parametrize("name", ["windowing.json", "cpu.json", "gate.json"])
def test_tables_of_performance_are_what_was_measured(capsys, name):
    assert table.main([str(ROOT / "benchmarks/results" / name)]) == 0
    assert between_marks(PERFORMANCE, name) == capsys.readouterr().out


def test_the_table_of_the_readme_is_what_was_measured(capsys):
    files = [ROOT / "benchmarks/results" / name for name in ("windowing.json", "cpu.json")]
    assert table.main(["--short", *map(str, files)]) == 0
    command = "python -m benchmarks.table --short"
    assert between_marks("README.md", "windowing.json cpu.json", command) == capsys.readouterr().out


def test_a_short_table_has_the_strongest_alternative_on_as_many_threads():
    found = [  # of a peer, by hand, and ours
        ("mne", "peer", 1, 4.0, None),
        ("by hand", "also", 2, 2.0, None),
        ("physiofast, reused", "also", 2, 0.1, None),
        ("physiofast", "ours", 1, 0.8, True),
        ("physiofast", "ours", 2, 0.5, False),
        ("a copy", "copy", 2, 0.01, None),
    ]
    names = ("provider", "role", "threads", "seconds_min", "holds")
    rows = [dict(zip(names, row, strict=True)) | {"case": case} for case in table._SHORT for row in found]
    lines = table.short_markdown([{"rows": rows}]).splitlines()[2:]
    assert len(lines) == len(table._SHORT)
    assert {line.split(" | ", 1)[1] for line in lines} == {"by hand | 2.00 s | 500 ms | 2 | 4.00x, **missed** |"}


def test_what_pages_say_of_results_is_so():
    windows, cpu, gate = (
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("windowing", "cpu", "gate")
    )
    assert {row["case"] for row in windows["rows"]} == set(cases.GROUPS["windowing"]) & set(cases.CASES)
    assert windows["settings"]["hours"] == 8
    assert {row["case"] for row in cpu["rows"]} == {
        case for group in ("tokens", "attention", "steps") for case in cases.GROUPS[group]
    }
    page = " ".join((ROOT / PERFORMANCE).read_text().split())
    command = f"benchmarks.run {' '.join(cpu['settings']['names'])} --repeats {cpu['settings']['repeats']} --json"
    assert command in page
    assert f"load {cpu['machine']['load']} " in page
    assert gate["gpu"]["name"] == "NVIDIA H200"
    for job in windows["studies"]["memory"]["rows"]:
        assert f"{job['extra_mb']:.{0 if job['extra_mb'] >= 100 else 1}f} MB" in page


def test_the_readme_begins_with_what_was_measured():
    windows, cpu = (
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["rows"] for name in ("windowing", "cpu")
    )
    head = " ".join((ROOT / "README.md").read_text().split("## Install")[0].split())
    whole = [row for row in windows if row["case"] in ("windows_100", "windows_128", "chain_scipy", "chain_mne", "edf")]
    alone = [row["ratio"] for row in whole if row["role"] == "ours" and row["threads"] == 2]
    shared = [row["ratio_of_ours"] for row in whole if row["provider"].endswith("2 Python threads")]
    assert f"on two threads {min(alone):.1f} to {max(alone):.1f} times as fast" in head
    assert f"{min(shared):.1f} to {max(shared):.1f} times as fast as SciPy" in head
    ours = {row["case"]: table.ratio(row["ratio"]) for row in cpu if row["role"] == "ours"}
    (by_hand,) = (
        row["ratio_of_ours"] for row in cpu if (row["case"], row["provider"]) == ("token_ops", "gather first")
    )
    assert f"{ours['token_ops']} as fast as facebook/mae's way and {table.ratio(by_hand)} as fast" in head
    assert f"{ours['attention_few']} and {ours['attention_all']} as fast" in head
