"""Strict JSON: values without NaN or infinity, and files of JSON objects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from physiofast.support.atomic import atomic_path


def strict(value: Any, digits: int | None = None) -> Any:
    """Copy plain data with NaN and infinity replaced by None, and floats optionally rounded.

    Args:
        value: a number, string, mapping, list or tuple, nested as needed.
        digits: significant digits to round floats to; None for no rounding.
    """
    if isinstance(value, Mapping):
        return {key: strict(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item, digits) for item in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if digits is None else float(f"{value:.{digits}g}")


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with null for NaN and infinity; the folder is made if it does not exist."""
    write_text(path, json.dumps(strict(values), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; the folder is made if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_text(text)
