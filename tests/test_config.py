import contextlib
import dataclasses
import json
import math
import typing

import pytest

from physiofast.config import RECIPES, Config, from_dict, get_recipe, merge, read_toml, to_dict
from physiofast.model import ModelConfig
from physiofast.support.bounds import Bounds, field_types
from tests.helptexts import fields_without_text


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    config = get_recipe(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_toml_changes_fields_and_keeps_the_rest(tmp_path):
    file = tmp_path / "change.toml"
    file.write_text('seed = 7\n[training]\nlr = 1\nsteps = 30000\n[objective]\nnormalise = ["EEG"]\n')
    config = read_toml(file, get_recipe("base"))
    assert (config.seed, config.training.lr, config.training.steps) == (7, 1.0, 30000)
    assert config.objective.normalise == ("EEG",)
    assert config.model == ModelConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nstep = 3", "unknown config key 'training.step'; did you mean 'steps'"),
        ("[trainig]\nsteps = 3", "unknown config key 'trainig'; did you mean 'training'"),
        ("[training]\nsteps = 3.5", "training.steps must be int; found 3.5"),
        ("[training]\nsteps = true", "training.steps must be int; found True"),
        ('[model]\ndecoder = "conv"', "model.decoder must be one of 'joint', 'cross'; found 'conv'"),
        ("training = 3", "config key 'training' is a section; found 3"),
        ('[objective]\nnormalise = "EEG"', "objective.normalise must be a list"),
        ("[masking]\nkeep = 2.0", "masking.keep must be above 0 and at most 1"),
        ("[training", "change.toml"),
        ("steps = 3", r"unknown config key 'steps'; did you mean steps in the section \[training\]"),
        (
            "[training]\nkeep = 0.4",
            r"unknown config key 'training.keep'; did you mean keep in the section \[masking\]\?",
        ),
        (
            "[model]\nseed = 3",
            r"'model.seed'; did you mean seed in the section \[probe\] or seed before all sections\?",
        ),
        ("[masking.training]\nlr = 1", r"'masking.training'; did you mean a section \[training\]\?"),
        (
            '[training]\nstore = "x"',
            "unknown config key 'training.store'; that is said on the command line: --store DIR",
        ),
        ("[model]\nwidht = 3", "unknown config key 'model.widht'; did you mean 'width'"),
        ("seed = 1.5", "seed must be int; found 1.5"),
        ('store = "x"', "unknown config key 'store'; that is said on the command line: --store DIR"),
        ('init = "runs/a"', "unknown config key 'init'; that is said on the command line: --init RUN"),
        ('recipe = "base"', "unknown config key 'recipe'; that is said on the command line: train RECIPE"),
        ("[training]\nlr = nan", "training.lr must be a finite number at least 0; found nan"),
    ],
)
def test_bad_files_are_explained(tmp_path, text, message):
    file = tmp_path / "change.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_toml(file, Config())
    assert "change.toml" in str(caught.value)


def test_a_file_that_cannot_be_read_names_the_nearest(tmp_path):
    (tmp_path / "night.toml").write_text("seed = 3")
    with pytest.raises(OSError, match=r"nigth.toml cannot be read: No such file.*did you mean '.*/night.toml'"):
        read_toml(tmp_path / "nigth.toml", Config())
    with pytest.raises(OSError, match="cannot be read: Is a directory"):
        read_toml(tmp_path, Config())
    (tmp_path / "night.toml").write_bytes(b"\xff\xfe[training]\n")
    with pytest.raises(ValueError, match=r"night.toml: not TOML, which is text in UTF-8"):
        read_toml(tmp_path / "night.toml", Config())


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="no recipe is named 'demos'; did you mean 'demo'"):
        get_recipe("demos")


def sections():
    return [
        type(value) for f in dataclasses.fields(Config) if dataclasses.is_dataclass(value := getattr(Config(), f.name))
    ]


def every_key():
    """(section or "", key, its type) of a config."""
    for name, hint in field_types(Config).items():
        if dataclasses.is_dataclass(hint):
            yield from ((name, key, inner) for key, inner in field_types(hint).items())
        else:
            yield "", name, hint


def build(section, key, value):
    """A config with one key changed as Python does it, past what files and flags convert."""
    if not section:
        return dataclasses.replace(Config(), **{key: value})
    changed = dataclasses.replace(getattr(Config(), section), **{key: value})
    return dataclasses.replace(Config(), **{section: changed})


FLOATS = [(section, key, hint) for section, key, hint in every_key() if float in (hint, *typing.get_args(hint))]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
@pytest.mark.parametrize(("section", "key", "hint"), FLOATS)
def test_numbers_that_are_not_finite_are_refused_by_their_key(section, key, hint, value):
    given = (value,) if typing.get_origin(hint) is tuple else value
    with pytest.raises(ValueError, match=rf"^{section}\.{key} must be a finite number"):
        build(section, key, given)
    with pytest.raises(ValueError, match=rf"^{section}\.{key} must be a finite number"):
        merge(Config(), {section: {key: list(given) if isinstance(given, tuple) else given}})


def test_every_section_has_floats_that_are_tried():
    assert {section for section, *_ in FLOATS} == {"windows", "masking", "model", "training", "probe"}


@pytest.mark.parametrize(("section", "key", "hint"), [*every_key()])
def test_a_value_of_another_type_is_refused_by_its_key(section, key, hint):
    for value in (object(), b"x", [object()]):
        with pytest.raises(ValueError, match=rf"^{section}\.?{key} must be "):
            build(section, key, value)


@pytest.mark.parametrize(("section", "key", "hint"), [*every_key()])
def test_a_number_far_out_of_range_is_refused_or_survives_json(section, key, hint):
    """What is accepted can be read again, to the same config."""
    for value in (-(10**400), -3, -0.5, 0, 0.5, 1, 7, 1e300, 10**400):
        with contextlib.suppress(ValueError):
            config = build(section, key, value)
            assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_the_draws_cannot_take_is_refused(seed):
    with pytest.raises(ValueError, match=f"^seed must be at least 0 and below {2**63}; found {seed}"):
        Config(seed=seed)


@pytest.mark.parametrize("section", sections())
def test_every_field_has_its_text_for_help(section):
    assert not fields_without_text(section)


def test_a_field_without_text_is_found():
    assert fields_without_text(WithoutTexts) == ["bare", "last"]


@dataclasses.dataclass
class WithoutTexts:
    bare: int = 0
    described: int = 1
    """As it should be."""
    last: int = 2


def test_a_tenth_of_the_steps_warms_up_where_nothing_else_is_said():
    """So fewer steps fit every recipe, by file or by flag."""
    for name in RECIPES:
        config = get_recipe(name)
        assert config.training.warmup_steps is None
        assert config.training.warmup == min(config.training.steps // 10, 500)
        assert merge(config, {"training": {"steps": 50}}).training.warmup == 5
    assert merge(Config(), {"training": {"steps": 5}}).training.warmup == 0
    chosen = merge(merge(Config(), {"training": {"steps": 50}}), {"training": {"warmup_steps": 20}})
    assert chosen.training.warmup == 20
    with pytest.raises(ValueError, match="training.warmup_steps must be below steps = 50; found 50"):
        merge(Config(), {"training": {"steps": 50, "warmup_steps": 50}})


def test_merge_is_pure():
    config = Config()
    changed = merge(config, {"training": {"steps": 1000}})
    assert config.training.steps == 20_000
    assert changed.training.steps == 1000


def test_bounds_hold_and_say_what_they_are():
    assert [value in Bounds(above=0, most=1) for value in (0, 0.5, 1, 1.5)] == [False, True, True, False]
    assert [value in Bounds(least=0, below=1) for value in (-1, 0, 0.5, 1)] == [False, True, True, False]
    assert str(Bounds(above=0, most=1)) == "above 0 and at most 1"
    assert str(Bounds(least=0, below=1)) == "at least 0 and below 1"


def test_a_file_that_windows_has_marked_is_read(tmp_path):
    (tmp_path / "my.toml").write_bytes(b"\xef\xbb\xbf[training]\r\nsteps = 7\r\n")
    assert read_toml(tmp_path / "my.toml", get_recipe("demo")).training.steps == 7
