"""summary.json of a run folder, which has the results of its stages and how long each took."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from physiofast.predictability import store_predictability
from physiofast.store import Store
from physiofast.support.messages import command
from physiofast.support.strictjson import load_json, write_json


def load_summary(run: Path) -> dict[str, Any]:
    """Read summary.json; returns an empty dict where there is none.

    Raises:
        ValueError: it is damaged; the message says what to do.
    """
    path = run / "summary.json"
    if not path.exists():
        return {}
    try:
        summary = load_json(path)
        if not isinstance(summary.get("seconds", {}), dict):
            raise ValueError(f"{path}: expected a JSON object at 'seconds', found {summary['seconds']!r}")
    except ValueError as error:
        raise ValueError(
            f"{error}; delete it: `{command('train', '--resume', run)}` and `{command('probe', run)}` write it anew, "
            "but for the times of earlier stages"
        ) from error
    return summary


@contextmanager
def timed(path: Path, stage: str) -> Iterator[None]:
    """Add the seconds that the body takes to those of a stage in summary.json, also when the body raises.

    Raises:
        ValueError: summary.json is damaged; this is raised before the body begins.
        OSError: summary.json cannot be written; this is not raised where the body raises something itself.
    """
    load_summary(path)
    began = time.perf_counter()
    try:
        yield
    except BaseException:
        with suppress(ValueError, OSError):
            _add_seconds(path, stage, time.perf_counter() - began)
        raise
    _add_seconds(path, stage, time.perf_counter() - began)


def _add_seconds(path: Path, stage: str, spent: float) -> None:
    with _held(path):
        seconds = load_summary(path).get("seconds", {})
        seconds[stage] = round(seconds.get(stage, 0.0) + spent, 2)
        _write(path, {"seconds": seconds})


def update_summary(path: Path, values: Mapping[str, Any]) -> None:
    """Change keys of summary.json, and keep what other processes change at the same time.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be written.
    """
    with _held(path):
        _write(path, values)


def write_errors(run: Path, errors: Mapping[str, float], store: Store, held_out: Collection[str]) -> None:
    """Write the hidden-patch errors of a finished training, and beside them each modality's predictable share.

    Where the store is too small to measure that share, the reason is written instead.

    Args:
        run: the run folder.
        errors: modality -> hidden-patch error on the held-out subjects.
        store: of the run.
        held_out: names of the held-out subjects.

    Raises:
        ValueError: summary.json is damaged.
        OSError: summary.json cannot be written.
    """
    entries: dict[str, Any] = {name: {"error": error, "predictable_share": None} for name, error in errors.items()}
    update_summary(run, {"errors": entries})
    try:
        with timed(run, "predictable share"):
            share = store_predictability(store, held_out)
    except ValueError as error:  # a yardstick beside the result: a store too small for it is no reason to fail
        update_summary(run, {"predictable_share_missing": str(error)})
        return
    for name in entries.keys() & share.keys():
        entries[name]["predictable_share"] = dataclasses.asdict(share[name])
    update_summary(run, {"errors": entries})


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_json(path / "summary.json", load_summary(path) | dict(values))


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keep other processes from changing the folder's summary, where the file system has locks for folders."""
    path.mkdir(parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
