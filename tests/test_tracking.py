import sys
import types

import pytest

from physiofast import tracking

LINES = [{"step": 3, "loss": 0.5, "lr": 0.1}, {"step": 6, "eval": {"error.EEG": 0.7}}]


class Recorder:
    """Stands in for a tracker's module; remembers what it was told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return self

        return call


@pytest.fixture
def module(monkeypatch):
    def install(name):
        recorder = Recorder()
        fake = types.ModuleType(name)
        fake.SummaryWriter = recorder.SummaryWriter
        fake.init = recorder.init
        monkeypatch.setitem(sys.modules, name, fake)
        return recorder

    return install


def test_tensorboard_gets_every_number_at_its_step(module, tmp_path):
    recorder = module("torch.utils.tensorboard")
    track = tracking.open_tracker("tensorboard", tmp_path, {})
    for line in LINES:
        track.write(line)
    track.close()
    scalars = [call[1] for call in recorder.calls if call[0] == "add_scalar"]
    assert scalars == [("loss", 0.5, 3), ("lr", 0.1, 3), ("error.EEG", 0.7, 6)]
    assert [call[0] for call in recorder.calls][-2:] == ["flush", "close"]


def test_tensorboard_forgets_what_a_resumed_run_computes_again(module, tmp_path):
    recorder = module("torch.utils.tensorboard")
    tracking.open_tracker("tensorboard", tmp_path, {}, first=5)
    assert recorder.calls == [("SummaryWriter", (str(tmp_path / "tensorboard"),), {"purge_step": 6})]


def test_wandb_gets_config_and_lines(module, tmp_path):
    recorder = module("wandb")
    track = tracking.open_tracker("wandb", tmp_path / "mine", {"seed": 3})
    for line in LINES:
        track.write(line)
    track.close()
    assert recorder.calls[0][2] == {
        "project": "physiofast",
        "name": "mine",
        "id": (tmp_path / "mine" / "wandb-id").read_text().strip(),
        "resume": "allow",
        "dir": str(tmp_path / "mine"),
        "config": {"seed": 3},
    }
    assert [(c[1], c[2]) for c in recorder.calls[1:-1]] == [
        (({"loss": 0.5, "lr": 0.1},), {"step": 3}),
        (({"error.EEG": 0.7},), {"step": 6}),
    ]
    assert recorder.calls[-1][0] == "finish"


def test_wandb_goes_on_in_the_same_run(module, tmp_path):
    recorder = module("wandb")
    for name in ("a", "a", "b"):
        tracking.open_tracker("wandb", tmp_path / name, {}, first=5).close()
    first, again, other = (call[2]["id"] for call in recorder.calls if call[0] == "init")
    assert first == again != other


def test_numbers_that_are_not_finite_are_left_out(module, tmp_path):
    recorder = module("wandb")
    tracking.open_tracker("wandb", tmp_path, {}).write({"step": 3, "loss": None, "lr": 0.1})
    assert recorder.calls[-1] == ("log", ({"lr": 0.1},), {"step": 3})


def test_no_tracker_takes_lines_and_does_nothing(tmp_path):
    track = tracking.open_tracker("none", tmp_path, {})
    track.write(LINES[0])
    track.close()
    assert not list(tmp_path.iterdir())


def test_missing_packages_name_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'physiofast\[trackers\]'"):
        tracking.open_tracker("wandb", tmp_path, {})
