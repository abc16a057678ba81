"""What of a run leaves this machine."""

import json
import sys
import types
from collections import namedtuple

import numpy as np
import pytest

from physiofast import cli, sharing
from physiofast.runfolder.files import load_probes
from tests.test_report import make_probes

SECRETS = ("patient-7", "patient-8", "/home/somebody", "41.5")
Added = namedtuple("Added", ("path_in_repo", "path_or_fileobj"))


class Hub(types.ModuleType):
    """Stands in for huggingface_hub, with one repository."""

    CommitOperationAdd = Added

    def __init__(self):
        super().__init__("huggingface_hub")
        self.private, self.contents = None, {}

    def HfApi(self):  # noqa: N802
        return self

    def create_repo(self, repository, *, private, exist_ok):
        assert exist_ok
        if self.private is None:
            self.private = private
        return f"https://example.org/{repository}"

    def repo_info(self, repository):
        return types.SimpleNamespace(private=self.private)

    def create_commit(self, repo_id, operations, *, commit_message):
        for name, content in operations:
            if isinstance(content, str):
                with open(content, "rb") as file:
                    content = file.read()
            self.contents[name] = content


@pytest.fixture
def hub(monkeypatch):
    found = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    return found


@pytest.fixture
def run(tmp_path):
    """Every file that a run folder can hold, those of subjects with their names."""
    folder = tmp_path / "run"
    for part in ("checkpoints", "tensorboard"):
        (folder / part).mkdir(parents=True)
    names = {"train_subjects": ["patient-7"], "test_subjects": ["patient-8"]}
    probes = make_probes().to_dict() | names
    config = {"recipe": "base", "store": "/home/somebody/store", "config": {"seed": 3}}
    record = {"record": "patient-7", "subject": "patient-7", "age_years": 41.5, "sex": "F"}
    manifest = {"montage": {"patch_s": 1.0}, "config": {"montage": "cinc2018"}, "records": [record], "failed": []}
    summary = {
        "errors": {"EEG": {"error": 0.5, "predictable_share": None}},
        "predictable_share_missing": "/home/somebody/store/patient-7.safetensors is damaged",
        "probes": probes,
        "config": config,
    }
    for name, values in (("config", config), ("prepare", manifest), ("summary", summary), ("probe", probes)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    (folder / "environment.json").write_text('{"torch": "2.13.0"}')
    (folder / "metrics.jsonl").write_text('{"step": 6, "loss": 0.5}\n')
    np.savez(folder / "predictions.npz", record=np.array(["patient-8"]))
    for name in (
        "checkpoints/step-00000003.safetensors",
        "checkpoints/step-00000006.safetensors",
        "checkpoints/.step-00000006.safetensors.0123456789abcdef.part",
        ".training.lock",
        ".probe.json.0123456789abcdef.part",
        "report.html",
        "tensorboard/events.out",
    ):
        (folder / name).write_text("patient-8" if name == "report.html" else name)
    return folder


SENT = {
    "checkpoints/step-00000006.safetensors",
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "prepare.json",
    "summary.json",
}
KEPT = {
    "checkpoints/step-00000003.safetensors",
    "predictions.npz",
    "probe.json",
    "report.html",
    "tensorboard/events.out",
}


def test_subjects_stay_here_and_the_repository_is_private(hub, run, tmp_path, capsys):
    assert cli.main(["push", str(run), "someone/model"]) == 0
    assert hub.private is True
    assert set(hub.contents) == SENT
    text = b"\n".join(hub.contents.values()).decode()
    assert not [secret for secret in SECRETS if secret in text]
    assert json.loads(hub.contents["config.json"])["config"] == {"seed": 3}
    assert json.loads(hub.contents["prepare.json"])["montage"] == {"patch_s": 1.0}
    assert json.loads(hub.contents["summary.json"])["errors"]["EEG"]["error"] == 0.5
    printed = capsys.readouterr().out.splitlines()
    assert set(printed[0].removeprefix("sent: ").split(", ")) == SENT
    assert set(printed[1].removeprefix("not sent: ").split(";")[0].split(", ")) == KEPT
    assert printed[2] == "https://example.org/someone/model (private)"
    there = tmp_path / "there"
    there.mkdir()
    (there / "summary.json").write_bytes(hub.contents["summary.json"])
    assert load_probes(there).tasks == make_probes().tasks


def test_everything_is_sent_where_it_is_asked_for(hub, run):
    pushed = sharing.push_run(run, "someone/model", everything=True)
    assert set(hub.contents) == SENT | KEPT == set(pushed.sent)
    assert pushed.kept == () and pushed.private
    assert hub.contents["prepare.json"] == (run / "prepare.json").read_bytes()


def test_a_public_repository_is_only_sent_to_where_it_is_asked_for(hub, run):
    hub.private = False
    with pytest.raises(ValueError, match="example.org/someone/model is public already; send there with --public"):
        sharing.push_run(run, "someone/model")
    assert hub.contents == {}
    assert not sharing.push_run(run, "someone/model", public=True).private
    assert set(hub.contents) == SENT


def test_what_is_no_run_or_has_no_checkpoint_makes_no_repository(hub, run):
    with pytest.raises(ValueError, match="is not a run folder"):
        sharing.push_run(run / "nowhere", "someone/model")
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="has no checkpoint; make one with"):
        sharing.push_run(run, "someone/model")
    assert hub.private is None


def test_the_missing_package_names_the_extra(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'physiofast\[hub\]'"):
        sharing.push_run(run, "someone/model")
