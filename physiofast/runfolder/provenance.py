"""The provenance of a run: config.json, environment.json and prepare.json in its folder."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import platform
from pathlib import Path
from typing import Any

import torch

from physiofast import engine
from physiofast.checkpoint import latest_checkpoint, read_metadata
from physiofast.ranks import group_size
from physiofast.store import Store
from physiofast.store.manifest import manifest_changes, manifest_damage, manifest_sha256, read_manifest
from physiofast.support.messages import command
from physiofast.support.strictjson import load_json, write_json, write_text
from physiofast.support.versions import installed_version
from physiofast.training_config import PretrainConfig, pick_device

SHOWS_IN_BITS = (
    "physiofast",
    "torch",
    "triton",
    "numpy",
    "threads",
    "processes",
    "native_engine",
    "instructions",
    "device",
    "attention",
)
"""Entries of an environment on which the bits of a step may depend."""

SENT_STORE = "store"
"""The store's path in the config.json that `push` sends."""
NAMED_STORE = "--store DIR (in Python: the argument `store` of `open_run`)"
"""How a run's store is named that is not where config.json says."""
_OTHERS = "Other recordings are embedded without it: physiofast.load_pretrained({run!r}), then embed_windows"


def write_provenance(run: Path, store: Store, config: PretrainConfig, recipe: str | None = None) -> None:
    """Write all three files of provenance for a run that begins.

    Raises:
        OSError: they cannot be written.
    """
    write_json(run / "environment.json", environment(config))
    write_text(run / "prepare.json", (store.path / "manifest.json").read_text())
    saved = {"recipe": recipe, "store": str(store.path.resolve()), "config": dataclasses.asdict(config)}
    write_json(run / "config.json", saved)


def update_provenance(run: Path, store: Store, config: PretrainConfig) -> None:
    """Write the store and config with which a run continues into config.json; all three files where that is missing.

    Raises:
        ValueError: config.json is damaged.
        OSError: a file cannot be written.
    """
    if not (run / "config.json").exists():
        return write_provenance(run, store, config)
    saved = load_json(run / "config.json")
    before = saved.get("config", {})
    if not isinstance(before, dict):
        raise ValueError(f"{run / 'config.json'}: `config` must be an object; found {before!r:.60}")
    whole = before | dataclasses.asdict(config)  # its probes are not of a PretrainConfig
    write_json(run / "config.json", saved | {"store": str(store.path.resolve()), "config": whole})


def way_to_resume(run: Path) -> str:
    """Say how to continue a run: the command line needs config.json, and Python code writes it anew."""
    if (run / "config.json").exists():
        return f"continue it with `{command('train', '--resume', run)}`"
    return (
        "put that file back, or continue the run from Python with its store and its config, by "
        f"`physiofast.train(store, Path({str(run)!r}), config, resume=True, ...)`, which writes that file"
    )


def check_same_store(run: Path, store: Path) -> None:
    """Refuse a store whose manifest differs from the one it had when the run was started.

    Raises:
        ValueError: the store has changed, with what; or prepare.json is damaged or missing.
    """
    before = read_prepare(run)
    if not before["records"]:
        return _check_sent(run, store)
    changes = manifest_changes(before, read_manifest(store))
    if changes:
        raise ValueError(
            f"the store {store} is not what it was when {run} was started ({changes}), so its windows need not be "
            f"the same; name the run's own store with {NAMED_STORE}, or start a new run with --out"
        )


def _check_sent(run: Path, store: Path) -> None:
    """Check the store of a run that `push` sent without its list of recordings, by the digest in the checkpoint."""
    before = read_metadata(latest_checkpoint(run)[1]).get("store_sha256")
    if before != manifest_sha256(read_manifest(store)):
        raise ValueError(
            f"the store {store} is another than the one that {run} was trained on: `physiofast push` sent that run "
            "without its list of recordings, so which subjects were held out is known with its own store alone; name "
            f"that with {NAMED_STORE}. {_OTHERS.format(run=str(run))}"
        )


def refuse_sent(run: Path) -> None:
    """Refuse a run that `push` sent without the path of its store, where no store is given.

    Raises:
        ValueError: with what to do.
    """
    if not read_prepare(run)["records"]:
        raise ValueError(
            f"{run} was sent by `physiofast push`, without where its store is and which recordings are in it; name the "
            f"store that it was trained on with {NAMED_STORE}. {_OTHERS.format(run=str(run))}"
        )


def read_prepare(path: Path) -> dict[str, Any]:
    """Read the manifest that the store had when the run was started; `push` sends it without records.

    Raises:
        ValueError: it is damaged or missing.
    """
    file = path / "prepare.json"
    advice = "put back the one that `physiofast train` wrote when the run was started, or start a new run with --out"
    try:
        manifest = load_json(file)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}; {advice}") from error
    damage = manifest_damage(manifest | {"failed": []})  # failures are not compared
    if damage:
        raise ValueError(f"{file} is damaged: {damage}; {advice}")
    return manifest


def note_environment(run: Path, first: int, config: PretrainConfig) -> str:
    """Record in environment.json the environment in which a run continues after `first` steps, or begins.

    Entries that the file lacks are recorded as changes, too; a damaged file is left as it is.

    Returns:
        A sentence on the differences from the environment before that may change bits; empty where there are none.

    Raises:
        OSError: it cannot be written.
    """
    file, now = run / "environment.json", environment(config)
    if not first:  # whatever an earlier start computed is not kept
        write_json(file, now)
        return ""
    try:
        saved = load_json(file)
        resumed = {step: changes for step, changes in saved.get("resumed", {}).items() if int(step) < first}
        before = functools.reduce(operator.or_, resumed.values(), saved)
    except (ValueError, OSError, AttributeError, TypeError) as error:
        if not file.exists():
            write_json(file, {"resumed": {str(first): now}})
        return f"nobody can tell whether {run} goes on under the environment it had ({error})"
    changes = {key: value for key, value in now.items() if key not in before or before[key] != value}
    if changes:
        resumed[str(first)] = changes
    if resumed != saved.get("resumed", {}):
        write_json(file, {**saved, "resumed": resumed})
    shown = [f"{key} {before[key]} -> {changes[key]}" for key in SHOWS_IN_BITS if key in before and key in changes]
    if not shown:
        return ""
    return (
        f"{run} goes on after step {first} under another environment: {', '.join(shown)}. From here on it may differ "
        f"in bits from a run that was not stopped; {file.name} records it"
    )


def environment(config: PretrainConfig) -> dict[str, Any]:
    """Describe the versions, hardware and forms of computation on which results depend."""
    packages = ("physiofast", "torch", "triton", "numpy", "scipy", "scikit-learn")
    versions = {name: installed_version(name) or "not installed" for name in packages}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = pick_device(config.training.device)
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "processes": group_size(),
        "gpu": gpu,
        "native_engine": engine.unavailable_reason or "in use",
        "instructions": f"{torch.backends.cpu.get_cpu_capability()} (engine {engine.instruction_set()})",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "attention": config.model.attention,
    }
