"""Units of signals and factors between them."""

from __future__ import annotations

import re

from physiofast.montage import MODALITIES, nearest

_VOLTAGE = {"nv": 1e-3, "uv": 1.0, "mv": 1e3, "v": 1e6}
_SATURATION = dict.fromkeys(("", "%", "percent", "pct", "%spo2", "%sao2", "%o2"), 1.0)
_BREATHING = (
    "",
    "nu",
    "adu",
    "au",
    "a.u.",
    "%",
    "l",
    "ml",
    "l/s",
    "l/min",
    "ohm",
    "mohm",
    "cmh2o",
    "mmhg",
    "pa",
    "kpa",
)


def unit_scale(unit: str, modality: str) -> tuple[float, str]:
    """The factor that converts a signal to its modality's unit: uV for EEG, EOG, EMG and ECG, % for SPO2.

    Breathing is recorded in many arbitrary units and compared only by its robust scale: voltages become uV, and every
    other known unit is kept. Oxygen saturation without a unit is taken as %: given as a fraction it would be below the
    range of valid values.

    Args:
        unit: the unit as the file spells it; case and spaces are ignored, µ equals u, volts equals V.
        modality: one of `MODALITIES`.

    Returns:
        The factor and the resulting unit.

    Raises:
        ValueError: an unknown modality, or a unit that it cannot have; the message names the nearest.
    """
    if modality not in MODALITIES:
        raise ValueError(f"unknown modality {modality!r}{nearest(modality, MODALITIES)}")
    spelling = _spelling(unit)
    if modality == "SPO2" and spelling in _SATURATION:
        return _SATURATION[spelling], "%"
    if modality != "SPO2" and spelling in _VOLTAGE:
        return _VOLTAGE[spelling], "uV"
    if modality == "RESP" and spelling in _BREATHING:
        return 1.0, unit.strip() or "NU"
    allowed = {"SPO2": tuple(filter(None, _SATURATION)), "RESP": (*_VOLTAGE, *filter(None, _BREATHING))}.get(
        modality, ("nV", "uV", "mV", "V")
    )
    raise ValueError(f"unit {unit!r} is not known for {modality}{nearest(unit, allowed)}")


def unit_ratio(unit: str, other: str) -> float | None:
    """The factor that converts `unit` to `other`; None unless they are the same unit or both voltages."""
    one, two = _spelling(unit), _spelling(other)
    if one == two:
        return 1.0
    for units in (_VOLTAGE, _SATURATION):
        if one in units and two in units:
            return units[one] / units[two]
    return None


def _spelling(unit: str) -> str:
    """Normalise a unit: lower case, no spaces, \u00b5 and \u03bc as u, volts as v."""
    short = "".join(unit.replace("\u00b5", "u").replace("\u03bc", "u").lower().split())
    return re.sub(r"volts?$", "v", short)
