"""What users build on, frozen: exports, op signatures, commands, flags and config keys. Change it deliberately:
`PHYSIOFAST_UPDATE_SURFACE=1 pytest tests/test_public_surface.py` rewrites the file that this test reads."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import physiofast
from physiofast import cli, ops
from physiofast.config import RECIPES, Config
from physiofast.preparation import PrepareConfig
from physiofast.synthetic import CohortConfig

SNAPSHOT = Path(__file__).with_name("public_surface.json")


def keys(config, prefix=""):
    """Every key of a config with its default."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= keys(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def surface():
    options = {name: value for name, value in vars(cli).items() if name.endswith("Options")}
    return {
        "exports": sorted(physiofast.__all__),
        "ops": {name: str(inspect.signature(getattr(ops, name))) for name in ops.__all__ if name.islower()},
        "contracts": {
            name: [field.name for field in dataclasses.fields(getattr(ops, name))]
            for name in ("Rows", "Packing", "Plan", "PlanSizes")
        },
        "commands": {
            name: sorted(field.name for field in dataclasses.fields(value)) for name, value in sorted(options.items())
        },
        "recipes": sorted(RECIPES),
        "config": keys(Config()),
        "prepare": keys(PrepareConfig()),
        "cohort": keys(CohortConfig()),
    }


def test_public_surface_is_as_recorded():
    found = json.loads(json.dumps(surface()))
    if os.environ.get("PHYSIOFAST_UPDATE_SURFACE"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(SNAPSHOT.read_text())


def test_every_export_exists_and_is_no_module_that_an_import_could_put_in_its_place():
    modules = {path.stem for path in Path(physiofast.__file__).parent.iterdir()} - {"ops"}
    for name in physiofast.__all__:
        assert name not in modules
        assert getattr(physiofast, name) is getattr(physiofast, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        physiofast.nothing  # noqa: B018


def test_help_and_config_agree(capsys):
    """Every config key is a flag of `physiofast train`."""
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    printed = capsys.readouterr().out
    for key, value in keys(Config()).items():
        assert f"--{key.replace('_', '-')}" in printed, (key, value)


def run_without(blocked, code):
    script = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))  # None: there is no such module\n{code}"
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


def test_import_needs_neither_torch_nor_triton_nor_the_extension():
    run_without(["torch", "triton", "physiofast._native"], "import physiofast; print(physiofast.__version__)")


def test_without_the_extension_the_twins_serve_and_say_why():
    code = "from physiofast import engine; print(engine.native, engine.unavailable_reason)"
    printed = run_without(["physiofast._native"], code)
    assert printed.startswith("False ")
    assert "import of physiofast._native halted" in printed


def test_a_model_runs_without_triton():
    code = """
import torch
from physiofast import Montage, MultimodalMAE, ModelConfig, MONTAGES
model = MultimodalMAE(MONTAGES["sleep-edfx"], ModelConfig(width=16, heads=2, decoder_width=16, depth=1))
print(sys.modules["triton"], sum(p.numel() for p in model.parameters()) > 0)
"""
    assert run_without(["triton"], code).split() == ["None", "True"]
