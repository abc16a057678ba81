"""The config and store that a checkpoint names, so that no run continues from it with others by mistake."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from physiofast.store import Store
from physiofast.store.manifest import manifest_sha256, read_manifest
from physiofast.support.bounds import by_key
from physiofast.support.messages import command
from physiofast.training_config import PretrainConfig

MAY_CHANGE = (
    "model.attention",
    "training.device",
    "training.resident",
    "training.log_every",
    "training.eval_every",
    "training.eval_windows",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.tracker",
)
"""Config keys that may change when a stopped run continues: where and by which form steps are computed, and when what
is written. All others decide what is computed; `training.steps` decides each step's learning rate."""

OF_A_PROBE = ("seed", "model.", "windows.", "masking.", "objective.")
"""Prefixes of the config keys that decide the embeddings of a run's windows, and which subjects are held out."""


def identity(store: Store, config: PretrainConfig) -> dict[str, str]:
    """Metadata that each checkpoint of a run carries: the config, by keys, and the digest of the store's manifest."""
    manifest = read_manifest(store.path)
    return {"config": json.dumps(_keys(config)), "store_sha256": manifest_sha256(manifest)}


def check_same(
    file: Path, store: Store, config: PretrainConfig, said: Mapping[str, str], keys: Sequence[str] = ("",)
) -> None:
    """Refuse a config or a store other than those that a checkpoint was computed with.

    Args:
        file: the checkpoint.
        store: the store to continue with.
        config: the config to continue with.
        said: metadata of the checkpoint.
        keys: prefixes of the config keys that are compared.

    Raises:
        ValueError: with what differs, and what to do.
    """
    check_settings(file, config, said, keys)
    check_store(file, store, said)


def check_settings(file: Path, config: PretrainConfig, said: Mapping[str, str], keys: Sequence[str] = ("",)) -> None:
    """Raise if config keys differ from those in the checkpoint; arguments are those of `check_same`.

    Raises:
        ValueError: with the keys that differ, and what to do.
    """
    before, now = json.loads(_said(file, said, "config")), _keys(config)
    compared = [key for key in now if key in before and key.startswith(tuple(keys)) and key not in MAY_CHANGE]
    changed = [key for key in compared if before[key] != now[key]]
    if changed:
        run, changes = file.parent.parent, ", ".join(f"{key} {before[key]!r} -> {now[key]!r}" for key in changed)
        why = ""
        if "training.steps" in changed:
            begin = command("train", "RECIPE", "--store", "DIR", "--out", "ANOTHER", "--init", run)
            why = (
                "; training.steps decides the learning rate of every step, so to train longer begin another run with "
                f"these weights: `{begin} --training.steps ...`"
            )
        may = f"only {', '.join(MAY_CHANGE)} may change"
        if tuple(keys) != ("",):
            may = f"here only {', '.join(key + '*' if key.endswith('.') else key for key in keys)} matter"
        raise ValueError(
            f"{file} was computed with other settings: {changes}{why}. Put them back in "
            f"{run / 'config.json'}, or in the config that Python code passes, or start a new run in another folder; "
            f"{may}"
        )


def check_store(file: Path, store: Store, said: Mapping[str, str]) -> None:
    """Raise if the store's digest differs from the one in the checkpoint; arguments are those of `check_same`.

    Raises:
        ValueError: with what to do.
    """
    before, now = _said(file, said, "store_sha256"), manifest_sha256(read_manifest(store.path))
    if before != now:
        raise ValueError(
            f"{file} was computed from another store than {store.path}: the SHA-256 of what its manifest says of "
            f"recordings was {before[:12]}..., and here is {now[:12]}.... Name the run's own store, or start a new run "
            "in another folder"
        )


def _said(file: Path, said: Mapping[str, str], key: str) -> str:
    if key not in said:
        raise ValueError(f"{file} does not say by which config and from which store it was computed: no run wrote it")
    return said[key]


def _keys(config: PretrainConfig) -> dict[str, Any]:
    """Config key -> value, as JSON has it, of all that pretraining depends on."""
    values: dict[str, Any] = json.loads(json.dumps(by_key(config, PretrainConfig)))
    return values
