"""Several processes that train one model: what they compute is what one computes, and what each of them says."""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from physiofast import ranks, training_config
from physiofast.checkpoint import latest_checkpoint
from physiofast.progress import Progress
from physiofast.ranks import ALONE
from physiofast.runfolder.metricslog import read_lines
from physiofast.support import strictjson
from physiofast.training import train
from tests.test_training import CONFIG


def free_port():
    """Below those that a system gives to whoever asks for any."""
    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


PORTS = itertools.count(20_000 + os.getpid() % 6_000 * 2)


def started(arguments, size, **more):
    """Processes with the environment that torchrun gives them."""
    shared = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]


def ended(processes):
    """(status, standard output, standard error) of each."""
    try:
        said = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *streams) for process, streams in zip(processes, said, strict=True)]


COLLECTIVES = """
import json
import numpy as np, torch
from physiofast.ranks import group_size, local_rank, open_ranks

with open_ranks() as ranks:
    found = {"size": ranks.size, "group": group_size(), "local": local_rank()}
    found["added"] = ranks.added(np.array([1, 10]) * (ranks.rank + 1)).tolist()
    found["any"] = [ranks.any(ranks.rank == 2), ranks.any(False)]
    found["made"] = ranks.by_first(lambda: "made")
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), float(ranks.rank))
    if ranks.rank == 1:
        parameters[1].grad = torch.ones(2)
    sums = ranks.add_gradients(parameters, [torch.tensor([2.0, 3.0]), torch.tensor(4.0)])
    found["gradients"] = [None if p.grad is None else p.grad.tolist() for p in parameters]
    found["sums"] = [s.tolist() for s in sums]
    found["again"] = []
    for _ in range(3):
        with open_ranks() as again:
            found["again"].append((again.size, again.host is ranks.host, again.any(True)))
    value = torch.full((3,), float(ranks.rank))
    ranks.share([torch.nn.Parameter(value)])
    found["shared"] = value.tolist()
    found["of_first"] = ranks.of_first({"rank": ranks.rank})
    ranks.need_same({"a": "1", "b": "2"})
    try:
        ranks.need_same({"a": "1", "b": str(ranks.rank // 2)})
    except ValueError as error:
        found["differ"] = str(error).partition(":")[0]
    def fail():
        raise FileNotFoundError(f"{ranks.rank} does not find it")
    try:
        ranks.by_first(fail)
    except (OSError, ValueError) as error:
        found["failed"] = [type(error).__name__, str(error)]
    print(json.dumps(found | {"part": [ranks.part(6).start, ranks.part(6).stop]}))
with open_ranks() as ranks:  # the group is still there
    assert ranks.size == 3 and ranks.any(ranks.rank == 2)
"""


def test_what_three_processes_tell_each_other():
    found = [(status, json.loads(out)) for status, out, _ in ended(started(["-c", COLLECTIVES], 3))]
    for rank, (status, said) in enumerate(found):
        kind = "ValueError" if rank else "FileNotFoundError"
        what = "b" if rank == 2 else "what another one of them has"
        assert (status, said) == (
            0,
            {
                "size": 3,
                "group": 3,
                "local": rank,
                "again": [[3, True, True]] * 3,
                "shared": [0.0] * 3,
                "of_first": {"rank": 0},
                "differ": f"the 3 processes that train together differ in {what}",
                "added": [6, 60],
                "any": [True, False],
                "made": None if rank else "made",
                "gradients": [[3.0, 3.0], [1.0, 1.0], None],
                "sums": [[6.0, 9.0], 12.0],
                "failed": [kind, "0 does not find it"],
                "part": [2 * rank, 2 * rank + 2],
            },
        )


def test_alone_everything_is_as_it_is_given():
    gradient = torch.ones(2)
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = gradient
    total = torch.ones(3)
    assert ALONE.add_gradients([parameter], [total])[0] is total and parameter.grad is gradient
    values = np.ones(3)
    assert ALONE.added(values) is values and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.by_first(lambda: 5) == 5 and ALONE.part(7) == slice(0, 7)
    assert (ranks.group_size(), ranks.local_rank()) == (1, None)


@pytest.fixture(scope="module")
def config():
    training = dataclasses.replace(CONFIG.training, accumulate=2, device="cpu", log_every=1)
    return dataclasses.replace(CONFIG, training=training)


@pytest.fixture(scope="module")
def alone(store, config, tmp_path_factory):
    """A run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(store, run, config, progress=Progress())
    torch.set_num_threads(before)
    return run


def assert_same(run, alone):
    """Weights, the optimiser's state and all numbers but times, bit for bit."""
    (step, file), (wanted, other) = latest_checkpoint(run), latest_checkpoint(alone)
    found, expected = load_file(file), load_file(other)
    assert step == wanted and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    lines = [read_lines(path / "metrics.jsonl") for path in (run, alone)]
    for line in [*lines[0], *lines[1]]:
        line.pop("windows_per_s", None)
    assert lines[0] == lines[1]


TRAIN = """
import sys
from pathlib import Path
from physiofast import training
from physiofast.config import from_dict
from physiofast.training_config import PretrainConfig
from physiofast.progress import Progress
from physiofast.store import Store
from physiofast.support.strictjson import load_json

store, run, config, rank, stop = Path(sys.argv[1]), Path(sys.argv[2]), load_json(Path(sys.argv[3])), *sys.argv[4:]
config = from_dict(config)
config = PretrainConfig(**{name: getattr(config, name) for name in PretrainConfig.__dataclass_fields__})
step = training.run_step
def watched(work, done):
    if done == 3 and work.ranks.rank == int(rank):
        exec(stop)
    return step(work, done)
training.run_step = watched
said = Progress()
said.say = lambda text: print(text) if text else None
result = training.train(Store.open(store), run, config, resume=run.exists(), progress=said)
print(result.step, result.finished, len(result.errors))
"""


def together(store, run, config, tmp_path, stop="", rank=0, size=2):
    """What each process says, of which one does something before the fourth step."""
    file = tmp_path / "config.json"
    strictjson.write_json(file, {k: v for k, v in dataclasses.asdict(config).items() if k != "probe"})
    return ended(started(["-c", TRAIN, store.path, run, file, rank, stop], size))


def test_two_processes_compute_what_one_does_and_are_stopped_and_go_on(store, config, alone, tmp_path):
    run = tmp_path / "run"
    # With two micro-batches and two processes the order in which gradients are added is the same, too.
    signal = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    stopped = together(store, run, config, tmp_path, signal, rank=1)
    assert [(status, out.splitlines()[-1:]) for status, out, _ in stopped] == [(0, ["4 False 0"])] * 2, stopped
    assert latest_checkpoint(run)[0] == 4
    first, other = together(store, run, config, tmp_path)
    steps, errors = config.training.steps, len(store.montage.modalities)
    assert first[:2] == other[:2] == (0, f"{steps} True {errors}\n"), (first, other)
    assert_same(run, alone)
    assert json.loads((run / "environment.json").read_text())["processes"] == 2


def test_a_process_that_dies_ends_the_others_with_a_reason(store, config, alone, tmp_path):
    run = tmp_path / "run"
    training = dataclasses.replace(config.training, checkpoint_every=2)
    config = dataclasses.replace(config, training=training)
    survivor, killed = together(store, run, config, tmp_path, "import os; os._exit(9)", rank=1)
    assert killed[0] == 9 and survivor[0] == 1
    assert "ConnectionError: another process of this training has ended" in survivor[2]
    assert latest_checkpoint(run)[0] == 2
    said = Progress()
    told = []
    said.say = told.append
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train(store, run, config, resume=True, progress=said).finished
    torch.set_num_threads(before)
    assert "processes 2 -> 1" in told[0]
    assert_same(run, alone)


def test_processes_of_different_runs_are_refused(store, config, tmp_path):
    """As of a sweep that starts one run in each: they would add up gradients of two models."""
    file = tmp_path / "config.json"
    strictjson.write_json(file, {k: v for k, v in dataclasses.asdict(config).items() if k != "probe"})
    one, two = tmp_path / "one", tmp_path / "two"
    code = TRAIN.replace("Path(sys.argv[2])", "Path(sys.argv[2 + 2 * (os.environ['RANK'] == '1')])")
    code = "import os\n" + code.replace("*sys.argv[4:]", "'0', ''")
    code = code.replace(
        "result = ", "import dataclasses\nconfig = dataclasses.replace(config, seed=len(run.name))\nresult = "
    )
    found = ended(started(["-c", code, store.path, one, file, tmp_path / "three"], 2))
    assert all("the 2 processes that train together differ in" in error for _, _, error in found), found
    assert "differ in run folder, config: all need the same config and store, and one run folder" in found[1][2]
    assert not list(two.glob("*")) and not list((one / "checkpoints").glob("*"))


def test_what_the_first_refuses_all_refuse(store, alone):
    flags = ["--store", store.path, "--training.device", "cpu", "--training.accumulate", 2, "--out", alone]
    found = ended(started(["-m", "physiofast", "train", "demo", *flags], 2))
    said = f"physiofast: {alone} already holds a run; continue it with"
    assert all(status == 1 and said in error for status, _, error in found), found


def test_micro_batches_that_cannot_be_shared_evenly_are_refused(store, config):
    training_config.check_fit(store, config, 2)
    advice = (
        "training.accumulate = 2 micro-batches of a step cannot be shared evenly by 4 processes; choose --training.a"
    )
    with pytest.raises(ValueError, match=f"{advice}ccumulate 4, and --training.batch by"):
        training_config.check_fit(store, config, 4)


def test_the_command_is_told_of_by_the_first_process_alone(store, tmp_path):
    toml = tmp_path / "tiny.toml"
    toml.write_text(
        "[training]\nsteps = 2\nbatch = 2\naccumulate = 2\neval_windows = 2\n[windows]\nmin_valid_share = 0.1\n"
    )
    arguments = ["train", "demo", toml, "--store", store.path, "--out", tmp_path / "run", "--training.device", "cpu"]
    first, other = ended(started(["-m", "physiofast", *arguments], 2))
    assert (first[0], other[0]) == (0, 0), (first, other)
    assert "2 steps, " in first[1] and other[1:] == ("", "")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["errors"]


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(training_config, "local_rank", lambda: 1)
    monkeypatch.setattr(training_config, "group_size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert training_config.pick_device(name) == torch.device("cuda", 1)
    assert training_config.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="one GPU for all 4 processes; with auto or cuda each takes one of its own"):
        training_config.pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="process 1 of this machine has no GPU of its own: torch .* sees 1"):
        training_config.pick_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert training_config.pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("gpus", "own", "backend"), [(2, [1], "cpu:gloo,cuda:nccl"), (1, [], "cpu:gloo,cuda:nccl"), (0, [], "gloo")]
)
def test_all_processes_ask_for_one_backend(monkeypatch, gpus, own, backend):
    """Also one that has no GPU, which would wait for those that have one, and not come to say so."""
    asked, chosen = [], []
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", asked.append)
    monkeypatch.setattr(ranks.atexit, "register", lambda *_: None)
    with ranks.open_ranks() as found:  # nothing was made: the process is alone
        assert found is ALONE
    assert (asked, chosen) == ([backend], own)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with ranks.open_ranks():
        assert len(asked) == 1
