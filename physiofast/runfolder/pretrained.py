"""Reads a run folder's config and the model of its newest checkpoint, without the store."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch

from physiofast import config as recipes
from physiofast.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from physiofast.config import Config
from physiofast.model import MultimodalMAE
from physiofast.montage import Montage
from physiofast.runfolder.identity import check_settings
from physiofast.runfolder.provenance import way_to_resume
from physiofast.support.paths import given_path
from physiofast.support.strictjson import load_json


def load_pretrained(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> MultimodalMAE:
    """Load the model of a run's newest checkpoint, in evaluation mode; its store and recordings are not needed.

    The model's `montage` says what it takes, and `embed_windows` computes embeddings of a store's windows with it.

    Args:
        path: a run folder, or one that was downloaded after `physiofast push`.
        device: where the model is wanted.

    Raises:
        ValueError: this is no run folder, it has no checkpoint, a file in it is damaged, or its config.json describes
            another model than the checkpoint's.
    """
    return read_pretrained(given_path(path), device)[0]


def read_pretrained(path: Path, device: torch.device | str = "cpu") -> tuple[MultimodalMAE, int]:
    """Load the newest checkpoint; returns (model in evaluation mode, number of finished optimiser steps)."""
    _, config = read_config(path)
    model, newest = MultimodalMAE(_read_montage(path), config.model).to(device), latest_checkpoint(path)[1]
    step = load_checkpoint(newest, model, check=functools.partial(check_settings, newest, config, keys=("model.",)))
    return model.eval(), step


def _read_montage(path: Path) -> Montage:
    file = path / "prepare.json"
    try:
        saved = load_json(file)
        if "montage" not in saved:
            raise ValueError("no entry 'montage'")
        return Montage.from_dict(saved["montage"])
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{file}: the model's montage cannot be read ({error})") from error


def read_config(path: Path) -> tuple[dict[str, Any], Config]:
    """Read config.json; returns (its contents, the config in it).

    Raises:
        ValueError: this is no run folder, or its config.json is damaged or of another version.
    """
    file = path / "config.json"
    need_run(path)
    try:
        saved = json.loads(file.read_text())
        return {**saved, "store": str(saved["store"])}, recipes.from_dict(saved["config"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: not the config of a run of this version ({reason})") from error


def need_run(path: Path) -> None:
    """Refuse a folder that is not a run folder.

    Raises:
        ValueError: with what to do.
    """
    if (path / "config.json").is_file():
        return
    if list_checkpoints(path):
        raise ValueError(f"{path} has checkpoints, but no config.json; {way_to_resume(path)}")
    raise ValueError(f"{path} is not a run folder: it has no config.json; make one with `physiofast train`")
