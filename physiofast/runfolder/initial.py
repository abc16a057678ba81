"""The initial weights of a run: random weights of its seed, or the weights of another run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from physiofast.checkpoint import initial_path, load_checkpoint, save_initial
from physiofast.cohort import open_cohort
from physiofast.model import ModelConfig, MultimodalMAE, load_by_name
from physiofast.runfolder.pretrained import read_config, read_pretrained
from physiofast.runfolder.provenance import read_prepare
from physiofast.splits import subject_split
from physiofast.store import Store
from physiofast.support.messages import first_names, flag
from physiofast.support.strictjson import load_json, write_json
from physiofast.training_config import PretrainConfig

NOTE = "init.json"
"""File of a run folder that names the other run whose weights it began with."""
_NOTED = {"run": str, "step": int, "anew": list, "subjects": list | None, "held_out": list | None}
_WIRING = ("attention", "encoder_pairs", "decoder_pairs")
"""Keys of a model's config on which no parameter's size depends."""


@dataclasses.dataclass(frozen=True)
class Initial:
    """Initial weights that come from another run."""

    model: MultimodalMAE
    """The new run's model with these weights."""
    note: dict[str, Any]
    """Contents of the file `NOTE`; its schema is in `physiofast.runfolder`."""


def new_model(store: Store, config: PretrainConfig) -> MultimodalMAE:
    """Make a model with the random weights of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MultimodalMAE(store.montage, config.model)


def initial_of(store: Store, config: PretrainConfig, source: Path) -> Initial:
    """Take initial weights from another run's newest checkpoint, matched by the names of modalities and channels.

    Parameters that the other montage does not know, or has in another size, keep the random weights of the seed.

    Args:
        store: of the run that begins.
        config: of the run that begins.
        source: folder of the other run, whose store may be another.

    Raises:
        ValueError: `source` is no run folder or has no checkpoint that can be read; or its model has other sizes, or
            no modality of this store.
    """
    origin, step = read_pretrained(source)
    _check_sizes(source, origin.config, config.model)
    if not set(origin.montage.modalities) & set(store.montage.modalities):
        raise ValueError(
            f"--init {source}: its model knows {', '.join(origin.montage.modalities)}, and none of "
            f"{', '.join(store.montage.modalities)}, which the store has"
        )
    model = new_model(store, config)
    anew = load_by_name(model, origin.state_dict(), origin.montage)
    subjects = _trained_on(source)
    held_out = open_cohort(store, config.windows).test_subjects
    seen = None if subjects is None else [name for name in held_out if name in subjects]
    note = {"run": str(source.resolve()), "step": step, "anew": anew, "subjects": subjects, "held_out": seen}
    return Initial(model, note)


def keep_initial(run: Path, initial: Initial | None) -> None:
    """Write the initial weights and their note into a run folder; for random weights, which are None, write nothing.

    The files of an earlier start in this folder are replaced or removed. The caller holds the folder's lock.

    Raises:
        OSError: they cannot be written.
    """
    if initial is None:
        initial_path(run).unlink(missing_ok=True)
        (run / NOTE).unlink(missing_ok=True)
        return
    save_initial(run, initial.model)
    write_json(run / NOTE, initial.note)


def load_initial(run: Path, model: MultimodalMAE) -> None:
    """Load the initial weights that `keep_initial` wrote into a run folder, if it wrote any.

    Raises:
        ValueError: they cannot be read, or are missing though the run's note says that it began with some.
    """
    path, note = initial_path(run), read_note(run)
    if path.exists():
        load_checkpoint(path, model)
    elif note is not None:
        raise ValueError(
            f"{path} is not there, though {run} began with the weights of {note['run']}; put it back, or start the run "
            "again with --init, in another folder"
        )


def read_note(run: Path) -> dict[str, Any] | None:
    """Read the note on the run whose weights a run began with; None where it began with random weights.

    Raises:
        ValueError: the note is damaged.
    """
    file = run / NOTE
    if not file.exists():
        return None
    note = load_json(file)
    for key, kinds in _NOTED.items():
        if not isinstance(note.get(key, ...), kinds):
            raise ValueError(
                f"{file} is damaged: {key!r} is {note.get(key, 'not there')!r:.60}. It only says what the run began "
                "with: put it back, or delete it"
            )
    return note


def describe_initial(run: Path) -> str:
    """Say which weights a run began with, and whether they may have seen its held-out subjects.

    Returns:
        Sentences for the user; empty for random weights.

    Raises:
        ValueError: the run's note is damaged.
    """
    note = read_note(run)
    if note is None:
        return ""
    source, anew, seen = note["run"], note["anew"], note["held_out"]
    said = f"It began with the weights of {source} after step {note['step']}"
    if anew:
        said += f", but for {first_names(anew, 3)}, which that run lacks in this size and which began at random"
    if seen is None:
        said += ". Which subjects that run was trained on is not known here, so held-out ones may be among them"
    elif seen:
        said += (
            f". {len(seen)} of its held-out subjects ({first_names(seen)}) are named as subjects that those weights "
            "were trained on: if they are the same, scores on them are not of sleepers that the model has never seen; "
            "with --windows.split-seed and --windows.test-share of that run, the same are held out of the same store"
        )
    return said


def _check_sizes(source: Path, before: ModelConfig, now: ModelConfig) -> None:
    keys = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in _WIRING]
    changed = [key for key in keys if getattr(before, key) != getattr(now, key)]
    if changed:
        found = ", ".join(f"model.{key} {getattr(before, key)} there and {getattr(now, key)} here" for key in changed)
        flags = " ".join(flag(f"model.{key}", getattr(before, key)) for key in changed)
        raise ValueError(f"--init {source}: its model has other sizes: {found}. Take those of that run: {flags}")


def _trained_on(source: Path) -> list[str] | None:
    """The subjects that a run, and the runs whose weights it began with, were trained on; None where unknown."""
    records = read_prepare(source)["records"]
    if not records:  # `push` leaves them out
        return None
    windows = read_config(source)[1].windows
    subjects = subject_split([record["subject"] for record in records], windows.test_share, windows.split_seed)[0]
    note = read_note(source) or {"subjects": []}
    return None if note["subjects"] is None else sorted({*subjects, *note["subjects"]})
