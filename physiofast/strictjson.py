"""Values that JSON can say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def strict(value: Any, digits: int | None = None) -> Any:
    """Plain data with None for NaN and infinities, which JSON has no number for; with so many digits, if that is said.

    Args:
        value: numbers, strings and what holds them: mappings, lists, tuples.
        digits: significant ones of a float; all when None.
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
