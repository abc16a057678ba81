"""How recordings are prepared: channels, filters, and what counts as a fault. Every default is ours."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from physiofast import conditioning
from physiofast.engine import Resampler
from physiofast.io import unit_scale
from physiofast.montage import Montage, get_montage
from physiofast.support.bounds import Bounds, check_fields

VOLTAGE_MODALITIES = ("EEG", "EOG", "EMG", "ECG")
_NYQUIST_SHARE = 15 / 16
_SLOWEST_HZ = 0.001
"""Lower edges ring for so long that there is no memory for it."""
_TREATMENT_BOUNDS = {
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
class Treatment:
    """How the channels of one modality are filtered and judged. Every default is ours."""

    low_hz: float | None = None
    """Lower band edge in Hz; None leaves slow changes in."""
    high_hz: float
    """Upper band edge in Hz; lowered to 15/16 of half the montage's rate where it lies above."""
    flat_lsb: int | None = 1
    """A patch whose raw values span no more than this many steps is flat; None never."""
    flat_s: float = 1.0
    """How long a signal must be flat for its patches to count as invalid, in seconds."""
    clipping: bool = True
    """Whether standing still at the signal's own extreme counts as clipping."""
    pop_step: float | None = None
    """A larger change from one raw sample to the next is an electrode pop, in uV (ECG mV); None never."""
    least: float | None = None
    """A patch with a smaller value, in the store's unit, holds no signal (an oximeter's probe is off); None never."""
    most: float | None = None
    """The same of a larger value, such as a device's code for an error."""

    def __post_init__(self) -> None:
        check_fields(self, "", _TREATMENT_BOUNDS)
        if self.low_hz is not None and not self.low_hz < self.high_hz:
            raise ValueError(f"low_hz must be below high_hz; found {self.low_hz} and {self.high_hz}")
        if not (-math.inf if self.least is None else self.least) < (math.inf if self.most is None else self.most):
            raise ValueError(f"least must be below most, or None; found {self.least} and {self.most}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How recordings are prepared. Every default is ours."""

    montage: str | Montage = "cinc2018"
    """Channels and rates: cinc2018, cinc2018-100hz, cinc2018-mixed, sleep-edfx, shhs or mesa; in Python, one's own."""
    channels: tuple[str, ...] = ()
    """Only these channels of the montage; all of them when empty."""
    required: tuple[str, ...] = ()
    """Channels without which a record is refused."""
    labels: Literal["auto", "required", "optional"] = "auto"
    """Whether records without stages are refused: where others have some, always, or never (they stay unscored)."""
    unique_subjects: bool = True
    """Refuse the second record of a subject; False where subjects have several nights."""
    eeg: Treatment = Treatment(low_hz=0.3, high_hz=35.0, pop_step=1000.0)
    """Brain waves: the band that sleep scoring looks at."""
    eog: Treatment = Treatment(low_hz=0.3, high_hz=15.0, pop_step=1000.0)
    """Eye movements."""
    emg: Treatment = Treatment(low_hz=10.0, high_hz=60.0, flat_lsb=0)
    """Muscle tone; a relaxed chin may stay within one step."""
    ecg: Treatment = Treatment(low_hz=0.5, high_hz=40.0)
    """Heart."""
    resp: Treatment = Treatment(low_hz=0.05, high_hz=5.0, flat_s=30.0)
    """Breathing, which pauses: only a long standstill is a fault."""
    spo2: Treatment = Treatment(high_hz=1.0, flat_lsb=None, clipping=False, least=50.0, most=105.0)
    """Oxygen saturation in %, which may rest at one value, also at 100; without a finger oximeters say 0 or 127."""
    order: int = 4
    """Order of the Butterworth band-pass in one of its two passes."""
    notch_hz: float | None = None
    """Mains frequency to remove from the voltage channels; None removes nothing."""
    notch_quality: float = 30.0
    """Centre frequency of the notch over its width."""
    attenuation_db: float = 60.0
    """What would alias is attenuated by this much before the rate is lowered."""
    min_valid_share: float = 0.05
    """A channel with a smaller share of valid patches is dropped."""

    def __post_init__(self) -> None:
        check_fields(self, "", _BOUNDS)
        montage = self.resolve_montage()
        for name in self.required:
            montage.index(name)
        for modality in montage.modalities:
            self._check_band(modality, montage.rate_hz[modality])

    def resolve_montage(self) -> Montage:
        """The montage, with only the chosen channels.

        Raises:
            ValueError: no such montage or channel; the message names the nearest.
        """
        montage = get_montage(self.montage) if isinstance(self.montage, str) else self.montage
        return montage.select(self.channels) if self.channels else montage

    def treatment(self, modality: str) -> Treatment:
        """The treatment of a modality of `montage.MODALITIES`."""
        return getattr(self, modality.lower())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; tuples as lists."""
        montage = self.montage if isinstance(self.montage, str) else self.montage.to_dict()
        lists = {"channels": list(self.channels), "required": list(self.required)}
        return dataclasses.asdict(self) | {"montage": montage} | lists

    def _check_band(self, modality: str, rate_hz: float) -> None:
        """The upper edge may be lowered to below the lower one."""
        plan = FilterPlan.of(self, modality, rate_hz)
        if plan.low_hz is not None and not plan.low_hz < plan.high_hz:
            key = f"{modality.lower()}.low_hz"
            raise ValueError(
                f"{key} must be below {plan.high_hz:g}, as far as {modality} at the montage's {rate_hz:g} Hz can go "
                f"(15/16 of half that rate); found {plan.low_hz}. Lower {key}, or raise rate_hz of {modality} in the "
                "montage"
            )


def unit_factor(modality: str, unit: str) -> tuple[float, str]:
    """What to multiply values with, and the unit of the store that gives: ECG in mV, else as `io.unit_scale`.

    Raises:
        ValueError: not a unit of this modality; the message names the nearest.
    """
    factor, canonical = unit_scale(unit, modality)
    return (factor / 1000, "mV") if modality == "ECG" else (factor, canonical)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterPlan:
    """The filters of one channel, with every edge settled."""

    low_hz: float | None
    high_hz: float
    order: int
    notch_hz: float | None
    notch_quality: float
    target_hz: float
    attenuation_db: float

    @classmethod
    def of(cls, config: PrepareConfig, modality: str, target_hz: float) -> FilterPlan:
        """The filters that a modality gets at the montage's rate; the notch only below half of it."""
        treatment = config.treatment(modality)
        notched = modality in VOLTAGE_MODALITIES and config.notch_hz is not None and config.notch_hz < target_hz / 2
        return cls(
            low_hz=treatment.low_hz,
            high_hz=min(treatment.high_hz, _NYQUIST_SHARE * target_hz / 2),
            order=config.order,
            notch_hz=config.notch_hz if notched else None,
            notch_quality=config.notch_quality,
            target_hz=target_hz,
            attenuation_db=config.attenuation_db,
        )

    @property
    def _design(self) -> tuple[float | None, float, int, float | None, float]:
        """What `conditioning.filter_sos` is given besides the rate."""
        return self.low_hz, self.high_hz, self.order, self.notch_hz, self.notch_quality

    def sos(self, rate_hz: float) -> npt.NDArray[np.float64]:
        """Band-pass and notch, see `conditioning.filter_sos`."""
        return conditioning.filter_sos(rate_hz, *self._design)

    def resampler(self, rate_hz: float) -> Resampler:
        """What brings the channel to the montage's rate, see `conditioning.design_resampler`."""
        return conditioning.design_resampler(rate_hz, self.target_hz, self.high_hz, attenuation_db=self.attenuation_db)

    def step_reach_s(self, rate_hz: float, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """How far jumps reach before no more than these shares of them are left, see `conditioning.step_reach_s`."""
        return conditioning.step_reach_s(shares, rate_hz, *self._design)

    def support_s(self, rate_hz: float) -> float:
        """How far an invalid sample reaches, see `conditioning.filter_support_s`."""
        return conditioning.filter_support_s(rate_hz, *self._design)
