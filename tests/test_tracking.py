import sys
import types

import pytest

from physiofast import tracking

LINES = [{"step": 3, "loss": 0.5, "lr": 0.1}, {"step": 6, "eval": {"error.EEG": 0.7}}]


class Recorder:
    """Stands in for a tracker's or the hub's module; remembers what it was told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return "https://example.org/someone/model" if name == "create_repo" else self

        return call


@pytest.fixture
def module(monkeypatch):
    def install(name):
        recorder = Recorder()
        fake = types.ModuleType(name)
        fake.SummaryWriter = fake.HfApi = lambda *arguments: recorder
        fake.init = recorder.init
        monkeypatch.setitem(sys.modules, name, fake)
        return recorder

    return install


def test_tensorboard_gets_every_number_at_its_step(module, tmp_path):
    recorder = module("torch.utils.tensorboard")
    write = tracking.open_tracker("tensorboard", tmp_path, {})
    for line in LINES:
        write(line)
    assert [call[1] for call in recorder.calls] == [("loss", 0.5, 3), ("lr", 0.1, 3), ("error.EEG", 0.7, 6)]


def test_wandb_gets_config_and_lines(module, tmp_path):
    recorder = module("wandb")
    write = tracking.open_tracker("wandb", tmp_path / "mine", {"seed": 3})
    for line in LINES:
        write(line)
    assert recorder.calls[0][2] == {
        "project": "physiofast",
        "name": "mine",
        "dir": str(tmp_path / "mine"),
        "config": {"seed": 3},
    }
    assert [(c[1], c[2]) for c in recorder.calls[1:]] == [
        (({"loss": 0.5, "lr": 0.1},), {"step": 3}),
        (({"error.EEG": 0.7},), {"step": 6}),
    ]


def test_push_uploads_the_run_folder(module, tmp_path):
    recorder = module("huggingface_hub")
    (tmp_path / "config.json").write_text("{}")
    assert tracking.push_run(tmp_path, "someone/model") == "https://example.org/someone/model"
    name, _, options = recorder.calls[-1]
    assert name == "upload_folder"
    assert options["folder_path"] == str(tmp_path)
    assert options["repo_id"] == "someone/model"
    with pytest.raises(ValueError, match="is not a run folder"):
        tracking.push_run(tmp_path / "nowhere", "someone/model")


def test_missing_packages_name_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'physiofast\[trackers\]'"):
        tracking.open_tracker("wandb", tmp_path, {})
