"""Copies of a run's numbers and files for other services: experiment trackers and the Hugging Face Hub.

Both are extras: `pip install 'physiofast[trackers]'`, `pip install 'physiofast[hub]'`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

Tracker = Literal["none", "tensorboard", "wandb"]
Write = Callable[[Mapping[str, Any]], None]


def open_tracker(kind: Tracker, run: Path, config: Mapping[str, Any]) -> Write:
    """A function that sends one line of metrics.jsonl to a tracker.

    Args:
        kind: none, tensorboard (event files in the run folder) or wandb (project physiofast, run named as the folder).
        run: the run folder.
        config: plain data, for trackers that show it.

    Raises:
        ValueError: the tracker's package is not installed.
    """
    if kind == "tensorboard":
        writer = _need("torch.utils.tensorboard", "trackers").SummaryWriter(str(run / "tensorboard"))
        return lambda line: [writer.add_scalar(name, value, line["step"]) for name, value in _scalars(line)].clear()
    if kind == "wandb":
        tracked = _need("wandb", "trackers").init(
            project="physiofast", name=run.name, dir=str(run), config=dict(config)
        )
        return lambda line: tracked.log(dict(_scalars(line)), step=line["step"])
    return lambda line: None


def push_run(run: Path, repository: str) -> str:
    """Upload a run folder's newest state to a model repository of the Hugging Face Hub; returns its address.

    Raises:
        ValueError: huggingface_hub is not installed, or the folder is no run.
    """
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is not a run folder: it has no config.json; make one with `physiofast train`")
    api = _need("huggingface_hub", "hub").HfApi()
    address = str(api.create_repo(repository, exist_ok=True))
    api.upload_folder(folder_path=str(run), repo_id=repository, commit_message="physiofast run")
    return address


def _scalars(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(k, v) for k, v in {**line, **line.get("eval", {})}.items() if k not in ("step", "eval")]


def _need(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}; install it with: pip install 'physiofast[{extra}]'") from error
