"""Recipes, which are functions that return a full frozen config, and changes to a config by files and flags."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from physiofast.masking import MaskingConfig
from physiofast.model import ModelConfig
from physiofast.montage import nearest
from physiofast.probing import ProbeConfig
from physiofast.support.bounds import by_key, field_types, is_finite
from physiofast.support.messages import flag
from physiofast.support.paths import given_path
from physiofast.training_config import PretrainConfig, TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """Everything that decides what a run computes from a store: pretraining, then probes."""

    probe: ProbeConfig = ProbeConfig()


def base() -> Config:
    """The recipe for a GPU: width 256, 6 layers, 20,000 steps of 64 windows."""
    return Config()


def demo() -> Config:
    """The recipe for 90 s on two CPU cores, half of it training: width 96, 3 layers, 480 steps of 16 windows."""
    return Config(
        masking=MaskingConfig(keep=0.4),
        model=ModelConfig(width=96, depth=3, decoder_width=96, decoder_depth=1, mlp_ratio=2.0),
        training=TrainingConfig(steps=480, batch=16, lr=8e-3, eval_every=240, checkpoint_every=240, eval_windows=128),
    )


def small() -> Config:
    """The recipe for four minutes on two CPU cores: width 128, 4 layers, 1,200 steps of 16 windows."""
    return Config(
        masking=MaskingConfig(keep=0.4),
        model=ModelConfig(width=128, depth=4, decoder_width=96, decoder_depth=1, mlp_ratio=2.0),
        training=TrainingConfig(steps=1200, batch=16, lr=6e-3, eval_every=400, checkpoint_every=400, eval_windows=256),
    )


def strict_cross_modal() -> Config:
    """The base recipe with an intra-modal encoder and a cross-modal decoder: no modality rebuilds itself."""
    return Config(model=ModelConfig(encoder_pairs="intra", decoder_pairs="cross"))


RECIPES: dict[str, Callable[[], Config]] = {
    "base": base,
    "demo": demo,
    "small": small,
    "strict-cross-modal": strict_cross_modal,
}


_OPTIONS = {
    "recipe": "train RECIPE",
    "store": "--store DIR",
    "out": "--out DIR",
    "init": "--init RUN",
    "resume": "--resume RUN",
}
"""Names that people put into a file of keys though they belong on the command line -> how to write them there."""


def get_recipe(name: str) -> Config:
    """Return the config of a recipe.

    Raises:
        ValueError: there is no such recipe; the message names the nearest.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is named {name!r}{nearest(name, RECIPES)}")
    return RECIPES[name]()


def read_toml(path: str | os.PathLike[str], config: Config) -> Config:
    """Return a config with the keys of a TOML file changed.

    Raises:
        OSError: the file cannot be read; the message names the nearest file of its folder.
        ValueError: the file is no TOML, or has an unknown key or a value that is not allowed; with the file's name.
    """
    path = given_path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows puts a mark at the beginning
    except OSError as error:
        others = sorted(str(other) for other in path.parent.glob("*.toml"))
        near = nearest(str(path), others) if others else "; a TOML file holds keys of a recipe that are to change"
        raise OSError(f"the TOML file {path} cannot be read: {error.strerror}{near}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not TOML, which is text in UTF-8: {error}") from error
    try:
        return merge(config, tomllib.loads(text))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_draft(path: Path, of_file: Config, draft: Config) -> Config:
    """Check a config that was made from a TOML file and flags within `drafting`, which leaves such checks out.

    Args:
        path: of the file.
        of_file: the recipe with the file's keys, before the flags.
        draft: `of_file` with the values of flags.

    Raises:
        ValueError: keys do not fit each other; with the file's name if its keys alone do not, and else with the flags.
    """
    misfit = _misfit(draft)
    if misfit is None:
        return draft
    alone, before = _misfit(of_file), by_key(of_file)
    changes = {key: value for key, value in by_key(draft).items() if value != before[key]}
    concerned = [key for key in changes if re.search(rf"\b{key.rpartition('.')[2]}\b", misfit)]
    if alone is not None and (alone == misfit or not concerned):
        raise ValueError(f"{path}: {misfit}")
    flags = [flag(key, changes[key]) for key in concerned or changes]
    raise ValueError(f"{' and '.join(flags)} {'does' if len(flags) == 1 else 'do'} not fit {path}: {misfit}")


def _misfit(draft: Config) -> str | None:
    """What keys of a config that was made within `drafting` do not fit each other; None if all do."""
    try:
        merge(draft, to_dict(draft))
    except ValueError as error:
        return str(error)
    return None


def to_dict(config: Any) -> dict:
    """Convert a config to plain data, the inverse of `from_dict`."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Make a config from what `to_dict` returned; missing keys get their defaults."""
    return merge(Config(), values)


def merge(config: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a config dataclass with the fields in `values` changed; nested mappings change sections.

    Raises:
        ValueError: a key is unknown (the message names the nearest), or a value has the wrong type.
    """
    hints = field_types(type(config))
    changes = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"unknown config key {prefix + key!r}{_instead(hints, key, prefix)}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ValueError(f"config key {prefix + key!r} is a section; found {value!r}")
            changes[key] = merge(current, value, f"{prefix}{key}.")
        else:
            changes[key] = _convert(value, hints[key])
    return dataclasses.replace(config, **changes)


def _instead(names: Iterable[str], key: str, prefix: str) -> str:
    """The end of the message that refuses an unknown key: what to write instead of it."""
    if key in _OPTIONS:
        return f"; that is said on the command line: {_OPTIONS[key]}"
    places = [f"{key} in the section [{name}]" for name, kind in field_types(Config).items() if key in _keys(kind)]
    if prefix and key in field_types(Config):
        places.append(f"{key} before all sections" if not _keys(field_types(Config)[key]) else f"a section [{key}]")
    return f"; did you mean {' or '.join(places)}?" if places else nearest(key, names)


def _keys(kind: type) -> Iterable[str]:
    """The keys of a section; none if `kind` is no section."""
    return field_types(kind) if dataclasses.is_dataclass(kind) else ()


def _convert(value: Any, hint: Any) -> Any:
    """Convert a value of TOML or JSON to the type of its field; the config itself checks whether it is allowed."""
    if isinstance(value, list):
        return tuple(_convert(item, (typing.get_args(hint) or (hint,))[0]) for item in value)
    if hint is float and type(value) is int and is_finite(value):
        return float(value)
    return value
