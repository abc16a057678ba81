"""Formats numbers and names for the page, and orders modalities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from physiofast.montage import MODALITIES
from physiofast.probing.metrics import Estimate


def number(value: float | None, digits: int = 3) -> Markup:
    """Format a rounded number; the exact one is in the `value` attribute."""
    if value is None or not math.isfinite(value):
        return Markup('<span class="none" title="not defined">–</span>')
    text = f"{value:,.{digits}f}".replace("-", "−").replace(",", "\u202f")
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), text)


def signed_number(value: float | None, digits: int = 3) -> Markup:
    """Format a rounded number with its sign, even if that is a plus; the exact one is in the `value` attribute."""
    shown = number(value, digits)
    positive = value is not None and math.isfinite(value) and value >= 0
    return Markup(str(shown).replace('">', '">+', 1)) if positive else shown


def interval(found: Estimate, digits: int = 3, signed: bool = False) -> Markup:
    """Format an estimate and, if it has one, its interval."""
    show = signed_number if signed else number
    if math.isnan(found.low):
        return show(found.value, digits)
    return Markup('{} <span class="ci">[{}, {}]</span>').format(
        show(found.value, digits), show(found.low, digits), show(found.high, digits)
    )


def pretty(name: str) -> Markup:
    """Write out the name of a feature set, or of a pair of them, in words."""
    return escape(name.replace("_", " ").replace(" - ", " minus "))


def in_order(names: Mapping[str, Any]) -> list[str]:
    """Sort names: modalities in the order of `MODALITIES`, then other names alphabetically."""
    return sorted(names, key=lambda name: (MODALITIES.index(name) if name in MODALITIES else len(MODALITIES), name))
