"""The settings of `prepare`: channels, filters, and what counts as a fault. Every default is ours, not published."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from physiofast import conditioning
from physiofast.engine import Resampler
from physiofast.io import unit_scale
from physiofast.montage import VOLTAGE_MODALITIES, Montage, get_montage
from physiofast.support.bounds import Bounds, check_fields

_NYQUIST_SHARE = 15 / 16
"""Highest upper band edge, as a share of half the sampling rate."""
_SLOWEST_HZ = 0.001
"""Lowest band edge: the response of a filter with a lower one is too long for memory."""
_MODALITY_BOUNDS = {
    "low_hz": Bounds(least=_SLOWEST_HZ),
    "high_hz": Bounds(least=_SLOWEST_HZ),
    "flat_lsb": Bounds(least=0),
    "flat_s": Bounds(above=0),
    "pop_step": Bounds(above=0),
}
_BOUNDS = {
    "order": Bounds(least=1, most=10),
    "notch_hz": Bounds(above=0),
    "notch_quality": Bounds(above=0),
    "attenuation_db": Bounds(least=20, most=150),
    "min_valid_share": Bounds(least=0, most=1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModalitySettings:
    """Filters and fault thresholds for the channels of one modality. Every default is ours."""

    low_hz: float | None = None
    """Lower band edge in Hz; None for no high-pass filter."""
    high_hz: float
    """Upper band edge in Hz; limited to 15/16 of half the montage's rate."""
    flat_lsb: int | None = 1
    """Largest peak-to-peak value of a flat patch, in raw steps; None to find no flat patches."""
    flat_s: float = 1.0
    """Shortest flat run that makes its patches invalid, in seconds."""
    clipping: bool = True
    """Whether runs at the signal's own minimum or maximum count as clipping."""
    pop_step: float | None = None
    """Difference between adjacent samples above which it is an electrode pop, in uV (ECG: mV); None to find no pops."""
    least: float | None = None
    """Lowest value of a valid patch, in the store's unit: below it an oximeter's probe is off. None for no limit."""
    most: float | None = None
    """Highest value of a valid patch, in the store's unit: above it lie a device's error codes. None for no limit."""

    def __post_init__(self) -> None:
        check_fields(self, "", _MODALITY_BOUNDS)
        if self.low_hz is not None and not self.low_hz < self.high_hz:
            raise ValueError(f"low_hz must be below high_hz; found {self.low_hz} and {self.high_hz}")
        if not (-math.inf if self.least is None else self.least) < (math.inf if self.most is None else self.most):
            raise ValueError(f"least must be below most, or None; found {self.least} and {self.most}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of `prepare` and `inspect`. Every default is ours."""

    montage: str | Montage = "cinc2018"
    """Channels and rates: cinc2018, cinc2018-100hz, cinc2018-mixed, sleep-edfx, shhs or mesa; in Python, one's own."""
    channels: tuple[str, ...] = ()
    """Only these channels of the montage; all of them if empty."""
    required: tuple[str, ...] = ()
    """Channels without which a record is refused."""
    labels: Literal["auto", "required", "optional"] = "auto"
    """Whether sleep stages are required: auto requires them of a record if other records of its format have some."""
    unique_subjects: bool = True
    """Refuse the second record of a subject; False if subjects have several nights."""
    eeg: ModalitySettings = ModalitySettings(low_hz=0.3, high_hz=35.0, pop_step=1000.0)
    """Brain waves, in the band used for sleep scoring."""
    eog: ModalitySettings = ModalitySettings(low_hz=0.3, high_hz=15.0, pop_step=1000.0)
    """Eye movements."""
    emg: ModalitySettings = ModalitySettings(low_hz=10.0, high_hz=60.0, flat_lsb=0)
    """Muscle tone; a relaxed chin may stay within one raw step."""
    ecg: ModalitySettings = ModalitySettings(low_hz=0.5, high_hz=40.0)
    """Electrical activity of the heart."""
    resp: ModalitySettings = ModalitySettings(low_hz=0.05, high_hz=5.0, flat_s=30.0)
    """Breathing, which may pause: only a long flat run is a fault."""
    spo2: ModalitySettings = ModalitySettings(high_hz=1.0, flat_lsb=None, clipping=False, least=50.0, most=105.0)
    """Oxygen saturation in %, which may stay constant, also at 100; oximeters report 0 or 127 when the probe is off."""
    order: int = 4
    """Order of the Butterworth band-pass filter in each of its two passes."""
    notch_hz: float | None = None
    """Mains frequency to remove from EEG, EOG, EMG and ECG, in Hz; None for no notch filter."""
    notch_quality: float = 30.0
    """Quality factor of the notch: centre frequency over bandwidth."""
    attenuation_db: float = 60.0
    """Attenuation of frequencies that would alias when the rate is lowered, in dB."""
    min_valid_share: float = 0.05
    """Smallest share of valid patches with which a channel is kept."""

    def __post_init__(self) -> None:
        check_fields(self, "", _BOUNDS)
        montage = self.resolve_montage()
        for name in self.required:
            montage.index(name)
        for modality in montage.modalities:
            self._check_band(modality, montage.rate_hz[modality])

    def resolve_montage(self) -> Montage:
        """The montage that `montage` names or is, reduced to `channels` if any are given.

        Raises:
            ValueError: no such montage or channel; the message names the nearest.
        """
        montage = get_montage(self.montage) if isinstance(self.montage, str) else self.montage
        return montage.select(self.channels) if self.channels else montage

    def settings(self, modality: str) -> ModalitySettings:
        """The settings of a modality of `montage.MODALITIES`."""
        return getattr(self, modality.lower())

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON, with tuples as lists."""
        montage = self.montage if isinstance(self.montage, str) else self.montage.to_dict()
        lists = {"channels": list(self.channels), "required": list(self.required)}
        return dataclasses.asdict(self) | {"montage": montage} | lists

    def _check_band(self, modality: str, rate_hz: float) -> None:
        """Refuse a band whose upper edge, once limited by the montage's rate, is not above the lower one."""
        plan = FilterPlan.of(self, modality, rate_hz)
        if plan.low_hz is not None and not plan.low_hz < plan.high_hz:
            key = f"{modality.lower()}.low_hz"
            raise ValueError(
                f"{key} must be below {plan.high_hz:g}, as far as {modality} at the montage's {rate_hz:g} Hz can go "
                f"(15/16 of half that rate); found {plan.low_hz}. Lower {key}, or raise rate_hz of {modality} in the "
                "montage"
            )


def unit_factor(modality: str, unit: str) -> tuple[float, str]:
    """The factor that converts values to the store's unit, and that unit: mV for ECG, else that of `io.unit_scale`.

    Raises:
        ValueError: the unit does not belong to this modality; the message names the nearest.
    """
    factor, canonical = unit_scale(unit, modality)
    return (factor / 1000, "mV") if modality == "ECG" else (factor, canonical)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterPlan:
    """The filters of one channel: band edges and notch in Hz, as they apply at the montage's rate."""

    low_hz: float | None
    high_hz: float
    order: int
    notch_hz: float | None
    notch_quality: float
    target_hz: float
    attenuation_db: float

    @classmethod
    def of(cls, config: PrepareConfig, modality: str, target_hz: float) -> FilterPlan:
        """The filters of a modality at the montage's rate `target_hz`; a notch above half of it is left out."""
        settings = config.settings(modality)
        notched = modality in VOLTAGE_MODALITIES and config.notch_hz is not None and config.notch_hz < target_hz / 2
        return cls(
            low_hz=settings.low_hz,
            high_hz=min(settings.high_hz, _NYQUIST_SHARE * target_hz / 2),
            order=config.order,
            notch_hz=config.notch_hz if notched else None,
            notch_quality=config.notch_quality,
            target_hz=target_hz,
            attenuation_db=config.attenuation_db,
        )

    @property
    def _design(self) -> tuple[float | None, float, int, float | None, float]:
        """The arguments of `conditioning.filter_sos` after the rate."""
        return self.low_hz, self.high_hz, self.order, self.notch_hz, self.notch_quality

    def sos(self, rate_hz: float) -> npt.NDArray[np.float64]:
        """Second-order sections of band-pass and notch at a recording's rate, see `conditioning.filter_sos`."""
        return conditioning.filter_sos(rate_hz, *self._design)

    def resampler(self, rate_hz: float) -> Resampler:
        """The resampler from a recording's rate to the montage's, see `conditioning.design_resampler`."""
        return conditioning.design_resampler(rate_hz, self.target_hz, self.high_hz, attenuation_db=self.attenuation_db)

    def step_reach_s(self, rate_hz: float, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """How far from a jump at most these shares of it remain, in seconds, see `conditioning.step_reach_s`."""
        return conditioning.step_reach_s(shares, rate_hz, *self._design)

    def support_s(self, rate_hz: float) -> float:
        """How far an invalid sample influences filtered ones, in seconds, see `conditioning.filter_support_s`."""
        return conditioning.filter_support_s(rate_hz, *self._design)
