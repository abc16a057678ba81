"""What environment.json says of the machines that a run was computed on."""

import json
import signal

import pytest

from physiofast.checkpoint import latest_checkpoint
from physiofast.runfolder import provenance
from physiofast.runfolder.provenance import SHOWS_IN_BITS, environment, note_environment
from physiofast.training import train
from tests.test_training import CONFIG, StopAfter


class Hears(StopAfter):
    """Remembers what was said, and stops after some steps, or never."""

    def __init__(self, steps=-1):
        super().__init__(steps, signal.SIGINT)
        self.said = []

    def say(self, text):
        self.said += [text] if text else []


@pytest.fixture
def machine(monkeypatch):
    """The environment, to change."""
    found = environment(CONFIG)
    monkeypatch.setattr(provenance, "environment", lambda _: dict(found))
    return found


def saved(run):
    return json.loads((run / "environment.json").read_text())


def test_a_run_that_goes_on_elsewhere_says_so_and_keeps_it(store, tmp_path, machine):
    hears = Hears(steps=7)
    train(store, tmp_path, CONFIG, progress=hears)
    first = dict(machine)
    assert saved(tmp_path) == first
    threads = machine["threads"]
    machine |= {"threads": threads + 1, "torch": "9.9", "platform": "another"}
    assert not train(store, tmp_path, CONFIG, resume=True, progress=Hears(steps=2)).finished
    here = {"7": {"torch": "9.9", "platform": "another", "threads": threads + 1}}
    assert saved(tmp_path) == first | {"resumed": here}
    assert latest_checkpoint(tmp_path)[0] == 9
    hears = Hears(steps=1)  # on the same one once more: nothing to say
    train(store, tmp_path, CONFIG, resume=True, progress=hears)
    assert (hears.said, saved(tmp_path)["resumed"]) == ([], here)
    machine["threads"] = threads
    hears = Hears()
    assert train(store, tmp_path, CONFIG, resume=True, progress=hears).finished
    assert saved(tmp_path) == first | {"resumed": here | {"10": {"threads": threads}}}
    (said,) = hears.said
    assert f"goes on after step 10 under another environment: threads {threads + 1} -> {threads}. From" in said
    assert "may differ in bits from a run that was not stopped; environment.json" in said
    before = (tmp_path / "environment.json").read_bytes()
    machine["threads"] = threads + 7
    hears = Hears()  # no step is left to be computed
    train(store, tmp_path, CONFIG, resume=True, progress=hears)
    assert (hears.said, (tmp_path / "environment.json").read_bytes()) == ([], before)


def test_steps_that_are_computed_again_forget_where_they_were(tmp_path, machine):
    started = dict(machine)
    (tmp_path / "environment.json").write_text(json.dumps(started | {"resumed": {"7": {"threads": 77}}}))
    assert f"threads 77 -> {started['threads']}" in note_environment(tmp_path, 9, CONFIG)
    assert set(saved(tmp_path)["resumed"]) == {"7", "9"}
    assert note_environment(tmp_path, 5, CONFIG) == ""
    assert saved(tmp_path) == started | {"resumed": {}}
    started["threads"] = machine["threads"] = 99
    assert note_environment(tmp_path, 0, CONFIG) == ""
    assert saved(tmp_path) == started


def test_what_shows_in_no_bit_is_kept_and_not_said(tmp_path, machine):
    (tmp_path / "environment.json").write_text(json.dumps(machine))
    machine["scipy"] = "9.9"
    assert note_environment(tmp_path, 5, CONFIG) == ""
    assert saved(tmp_path)["resumed"] == {"5": {"scipy": "9.9"}}
    assert set(SHOWS_IN_BITS) < set(machine)


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"resumed": 3}', '{"resumed": {"x": {}}}', '{"resumed": {"1": 2}}']
)
def test_an_environment_that_cannot_be_read_ends_no_run_and_is_left(tmp_path, content):
    if content is not None:
        (tmp_path / "environment.json").write_text(content)
    assert "nobody can tell whether" in note_environment(tmp_path, 5, CONFIG)
    if content is None:
        assert saved(tmp_path) == {"resumed": {"5": environment(CONFIG)}}
        assert note_environment(tmp_path, 6, CONFIG) == ""
    else:
        assert (tmp_path / "environment.json").read_text() == content


def test_an_environment_is_compared_by_what_it_has(tmp_path, machine):
    (tmp_path / "environment.json").write_text(json.dumps({"torch": machine["torch"], "threads": 77}))
    said = note_environment(tmp_path, 5, CONFIG)
    assert f"another environment: threads 77 -> {machine['threads']}. From" in said
    machine["attention"] = "sdpa"  # of which it said nothing
    assert "another environment: attention packed -> sdpa. From" in note_environment(tmp_path, 6, CONFIG)


@pytest.mark.parametrize("config", [None, [1]])
def test_a_config_that_is_no_object_is_named(store, tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    with pytest.raises(ValueError, match="config.json: `config` must be an object; found "):
        provenance.update_provenance(tmp_path, store, CONFIG)
