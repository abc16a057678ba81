"""physiofast: masked-autoencoder pretraining on many physiological signals at once.

Names are loaded when they are first used, so importing the package needs neither torch nor the C++ extension. Apart
from `ops`, no public name is also the name of a submodule, so an import can never replace one.
"""

from __future__ import annotations

import importlib
from typing import Any

from physiofast.support.versions import installed_version

_WHERE = {
    "backend": "ops",
    "Recording": "io",
    "find_records": "io",
    "open_recording": "io",
    "Channel": "montage",
    "Montage": "montage",
    "MONTAGES": "montage",
    "get_montage": "montage",
    "Inspection": "preparation",
    "ModalitySettings": "preparation",
    "PrepareConfig": "preparation",
    "PrepareReport": "preparation",
    "inspect": "preparation",
    "prepare": "preparation",
    "CohortConfig": "synthetic",
    "write_cohort": "synthetic",
    "Store": "store",
    "WindowReader": "windows",
    "WindowsConfig": "windows",
    "index_windows": "windows",
    "open_cohort": "cohort",
    "MaskingConfig": "masking",
    "Planner": "masking",
    "plan_weight": "masking",
    "ModalityAttention": "attention",
    "ModelConfig": "model",
    "MultimodalMAE": "model",
    "ObjectiveConfig": "objective",
    "hidden_errors": "objective",
    "masked_loss": "objective",
    "modality_variance": "objective",
    "PretrainConfig": "training_config",
    "TrainingConfig": "training_config",
    "train": "training",
    "embed_windows": "embedding",
    "pool_modalities": "embedding",
    "window_labels": "embedding",
    "attention_shares": "analysis",
    "load_pretrained": "runfolder.pretrained",
    "open_run": "runs",
    "probe_run": "runs",
    "report_run": "runs",
    "ProbeConfig": "probing",
    "compare_probes": "probing",
    "Config": "config",
    "RECIPES": "config",
    "get_recipe": "config",
}
__all__ = ["__version__", "ops", *_WHERE]

__version__ = installed_version("physiofast") or "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("physiofast.ops")
    if name not in _WHERE:
        raise AttributeError(f"module 'physiofast' has no attribute {name!r}")
    return getattr(importlib.import_module(f"physiofast.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
