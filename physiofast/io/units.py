"""Units of signals: what brings one to another."""

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
    """What brings a signal to its modality's unit: uV for EEG, EOG, EMG and ECG, % for SPO2.

    Breathing is recorded in many arbitrary units, which only its own scale makes comparable: voltages become
    uV and every other known unit is kept. Oxygen saturation without a unit is taken as %; as a share it would lie below
    all that counts as a saturation.

    Args:
        unit: as the file spells it; case and blanks do not matter, µ is u and volts are V.
        modality: one of `MODALITIES`.

    Returns:
        Factor, and the unit it leads to.

    Raises:
        ValueError: an unknown modality, or a unit that is not one of its; the message names the nearest.
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
    """How many of `other` one `unit` is, where both are spellings of one unit or voltages; else None."""
    one, two = _spelling(unit), _spelling(other)
    if one == two:
        return 1.0
    for units in (_VOLTAGE, _SATURATION):
        if one in units and two in units:
            return units[one] / units[two]
    return None


def _spelling(unit: str) -> str:
    """In lower case and without blanks, \u00b5 and \u03bc as u, and volts as v."""
    short = "".join(unit.replace("\u00b5", "u").replace("\u03bc", "u").lower().split())
    return re.sub(r"volts?$", "v", short)
