"""Upload of a run to the Hugging Face Hub, without subjects, recordings or paths of this machine.

It needs the extra: `pip install 'physiofast[hub]'`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from physiofast.checkpoint import latest_checkpoint
from physiofast.runfolder.initial import NOTE
from physiofast.runfolder.pretrained import need_run
from physiofast.runfolder.provenance import SENT_STORE
from physiofast.support.paths import given_path
from physiofast.support.strictjson import load_json
from physiofast.tracking import need_extra

_AS_THEY_ARE = ("environment.json", "metrics.jsonl")
_OF_A_SUMMARY = ("errors", "throughput", "seconds")
_OF_A_MANIFEST = ("format", "version", "montage", "config", "physiofast")


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What `push_run` did."""

    address: str
    """Address of the repository."""
    private: bool
    """Whether the repository is private."""
    sent: tuple[str, ...]
    """Files that were sent, unchanged or without subjects and paths."""
    kept: tuple[str, ...]
    """Files of the run folder that were not sent."""


def push_run(run: str | os.PathLike[str], repository: str, *, public: bool = False, everything: bool = False) -> Pushed:
    """Upload a run to a model repository of the Hugging Face Hub, which is created if it does not exist.

    Sent are the newest checkpoint, which knows the store only by a SHA-256; metrics.jsonl and environment.json;
    config.json without the store's path; the part of prepare.json that says how recordings were prepared; and
    summary.json and init.json with numbers in place of the names of subjects.

    Args:
        run: the run folder.
        repository: such as `someone/sleep-mae`.
        public: make a new repository public, and accept an existing one that is public.
        everything: send the files of the run folder as they are, with subjects, labels and signals.

    Raises:
        ValueError: huggingface_hub is not installed, the folder is no run or has no checkpoint, or the repository is
            public and `public` is False.
    """
    run = given_path(run)
    need_run(run)
    files = _files(run)
    contents = files if everything else _without_subjects(run, files)
    hub = need_extra("huggingface_hub", "hub")
    api = hub.HfApi()
    address = str(api.create_repo(repository, private=not public, exist_ok=True))
    private = bool(api.repo_info(repository).private)
    if not (private or public):
        raise ValueError(f"{address} is public already; send there with --public, or name another repository")
    operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=of) for name, of in contents.items()]
    api.create_commit(repo_id=repository, operations=operations, commit_message="physiofast run")
    return Pushed(address, private, tuple(contents), tuple(name for name in files if name not in contents))


def _files(run: Path) -> dict[str, str | bytes]:
    """Name -> path of the files in a run folder, without locks and half-written files of a killed process."""
    paths = sorted(path for path in run.rglob("*") if path.is_file())
    names = {path.relative_to(run): str(path) for path in paths}
    return {name.as_posix(): path for name, path in names.items() if not any(p.startswith(".") for p in name.parts)}


def _without_subjects(run: Path, files: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    """Name -> path or content of the files that a user of the model needs, without subjects and paths."""
    checkpoint = latest_checkpoint(run)[1].relative_to(run).as_posix()
    kept = {name: files[name] for name in (checkpoint, *_AS_THEY_ARE) if name in files}
    changes = {"config.json": _without_path, "prepare.json": _preparation, "summary.json": _numbered, NOTE: _unnamed}
    for name, change in changes.items():
        if name in files:
            kept[name] = (json.dumps(change(load_json(run / name)), indent=1) + "\n").encode()
    return kept


def _without_path(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {**saved, "store": SENT_STORE}


def _preparation(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that new recordings have to be prepared with: montage and settings."""
    return {key: manifest[key] for key in _OF_A_MANIFEST if key in manifest} | {"records": [], "failed": []}


def _unnamed(note: Mapping[str, Any]) -> dict[str, Any]:
    """The note on the run's initial weights, with the number of held-out subjects they have seen, and no names."""
    seen = note["held_out"]
    return {**note, "run": "another run", "subjects": None, "held_out": None if seen is None else _numbers_for(seen)}


def _numbered(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary whose probes count the subjects instead of naming them."""
    public = {key: summary[key] for key in _OF_A_SUMMARY if key in summary}
    if "probes" in summary:
        sides = {side: summary["probes"].get(side, []) for side in ("train_subjects", "test_subjects")}
        public["probes"] = summary["probes"] | {side: _numbers_for(names) for side, names in sides.items()}
    return public


def _numbers_for(names: Collection[str]) -> list[str]:
    """Replace names by numbers, as many as there are names."""
    return [str(number) for number in range(len(names))]
