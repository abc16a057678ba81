"""Copies of a run's numbers for experiment trackers.

They are an extra: `pip install 'physiofast[trackers]'`.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from physiofast.support.atomic import atomic_path

Tracker = Literal["none", "tensorboard", "wandb"]
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class Track:
    """A copy of metrics.jsonl at an experiment tracker; this base class discards every line."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Send one line of metrics.jsonl."""

    def close(self) -> None:
        """Send the lines that are still under way; nothing may be written afterwards."""


class _TensorBoard(Track):
    def __init__(self, module: Any, run: Path, first: int) -> None:
        # What an earlier start logged after `first` is computed again: purged, or curves would have two branches.
        self._writer = module.SummaryWriter(str(run / "tensorboard"), purge_step=first + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        for name, value in _scalars(line):
            self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb(Track):
    def __init__(self, module: Any, run: Path, config: Mapping[str, Any]) -> None:
        # With the same id a resumed run goes on in the same chart; wandb itself drops steps that it has already.
        self._run = module.init(
            project="physiofast", name=run.name, id=_wandb_id(run), resume="allow", dir=str(run), config=dict(config)
        )

    def write(self, line: Mapping[str, Any]) -> None:
        self._run.log(dict(_scalars(line)), step=line["step"])

    def close(self) -> None:
        self._run.finish()


def open_tracker(kind: Tracker, run: Path, config: Mapping[str, Any], *, first: int = 0) -> Track:
    """Open the copy of a run's metrics.jsonl at a tracker, or continue it; the caller closes it.

    Args:
        kind: none, tensorboard (event files in the run folder) or wandb (project physiofast, run named as the folder).
        run: the run folder.
        config: plain data, for trackers that show it.
        first: number of finished steps from which the run continues; lines of later steps count as never sent.

    Raises:
        ValueError: the tracker's package is not installed.
    """
    module = need_tracker(kind)
    if kind == "tensorboard":
        return _TensorBoard(module, run, first)
    if kind == "wandb":
        return _Wandb(module, run, config)
    return Track()


def need_tracker(kind: Tracker) -> Any:
    """Import the module of a tracker; returns None for `none`.

    Raises:
        ValueError: it is not installed.
    """
    return None if kind == "none" else need_extra(_MODULES[kind], "trackers")


def _wandb_id(run: Path) -> str:
    file = run / "wandb-id"
    if not file.exists():
        run.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as part:
            part.write_text(uuid.uuid4().hex + "\n")
    return file.read_text().strip()


def _scalars(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    values = {**line, **line.get("eval", {})}
    return [(name, value) for name, value in values.items() if name not in ("step", "eval") and value is not None]


def need_extra(module: str, extra: str) -> Any:
    """Import a module that comes with an extra of this package.

    Raises:
        ValueError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}; install it with: pip install 'physiofast[{extra}]'") from error
