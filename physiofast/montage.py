"""Channels, modalities and the token geometry that follows from them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from physiofast.support.bounds import require_instance
from physiofast.support.lazy import lazy

VOLTAGE_MODALITIES = ("EEG", "EOG", "EMG", "ECG")
"""The modalities that are voltages between two electrodes."""
MODALITIES = (*VOLTAGE_MODALITIES, "RESP", "SPO2")
_LEADING_MODALITY = re.compile(rf"({'|'.join(MODALITIES)}|EKG)[\s:_.(-]+(.+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channel:
    """One channel of a montage."""

    name: str
    """Canonical name, such as `C3-M2`."""
    modality: str
    """One of `MODALITIES`."""
    aliases: tuple[str, ...] = ()
    """Other names for the channel in recordings; compared without case, spaces, punctuation and a leading modality.

    A recording may also have the two electrodes of a name such as `C3-A2`, whose difference is then taken; see
    `preparation.rereferencing`.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolution:
    """Mapping from a recording's channels to a montage's."""

    source: tuple[int | None, ...]
    """For each montage channel, the index of the recording's channel, or None if the recording lacks it."""
    ignored: tuple[str, ...]
    """Recording channels that are not used: unknown to the montage, or duplicates."""
    duplicates: Mapping[str, str]
    """Duplicates: recording channel -> montage channel already taken by another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Montage:
    """The fixed list of channels a model knows, and the token grid over one window.

    Token `n = c * S + s` is patch `s` of channel `c`. Channels are grouped by modality, so the tokens of
    a modality are contiguous. Every patch lasts `patch_s`; its length in samples differs with the rate.

    Raises:
        ValueError: unknown modality, channels not grouped by modality, a name without letters and digits, two channels
            that share a name or alias, or a rate at which a patch is not a whole number of samples.
    """

    channels: tuple[Channel, ...]
    """All channels, grouped by modality in the order of `MODALITIES`."""
    rate_hz: Mapping[str, float]
    """Sampling rate of each modality after preparation."""
    patch_s: float = 1.0
    """Duration of a patch in seconds."""
    window_s: float = 30.0
    """Duration of a window in seconds: the scoring epoch."""

    def __post_init__(self) -> None:
        _check_channels(self.channels)
        for name, seconds in (("patch_s", self.patch_s), ("window_s", self.window_s)):
            if not _is_number(seconds) or not 1e-6 <= seconds <= 1e6:
                raise ValueError(f"{name} must be a number of seconds above 0; found {reprlib.repr(seconds)}")
        if not _is_about(self.patches_per_window * self.patch_s, self.window_s):
            raise ValueError(f"window_s {self.window_s} is not a whole number of patches of {self.patch_s} s")
        for modality in self.modalities:
            if modality not in self.rate_hz:
                raise ValueError(f"rate_hz has no entry for {modality}; it has {sorted(self.rate_hz)}")
            rate = self.rate_hz[modality]
            if not _is_number(rate) or not 0 < rate < 1e9:
                raise ValueError(f"rate_hz of {modality} must be a number above 0; found {reprlib.repr(rate)}")
            length = self.rate_hz[modality] * self.patch_s
            if not _is_about(length, round(length)) or length < 1 - 1e-9:
                raise ValueError(
                    f"{modality} at {self.rate_hz[modality]} Hz gives {length} samples per {self.patch_s} s patch; "
                    "choose a rate at which this is a whole number"
                )

    @lazy
    def names(self) -> tuple[str, ...]:
        """Channel names, in order."""
        return tuple(channel.name for channel in self.channels)

    @lazy
    def modalities(self) -> tuple[str, ...]:
        """The M modalities that occur, in order."""
        return tuple(m for m in MODALITIES if any(c.modality == m for c in self.channels))

    @lazy
    def channel_modality(self) -> tuple[int, ...]:
        """For each of the C channels, the index of its modality in `modalities`."""
        return tuple(self.modalities.index(channel.modality) for channel in self.channels)

    @lazy
    def patch_lengths(self) -> tuple[int, ...]:
        """P_m, samples per patch of each modality."""
        return tuple(round(self.rate_hz[m] * self.patch_s) for m in self.modalities)

    @lazy
    def align(self) -> tuple[int, ...]:
        """For each modality, the greatest common divisor of its patch length and 8, which divides every patch start."""
        return tuple(math.gcd(length, 8) for length in self.patch_lengths)

    @property
    def patches_per_window(self) -> int:
        """S, patches of one channel in a window."""
        return round(self.window_s / self.patch_s)

    @property
    def tokens(self) -> int:
        """N = C * S, token ids of a window."""
        return len(self.channels) * self.patches_per_window

    @lazy
    def row_lengths(self) -> tuple[int, ...]:
        """Samples of each channel in a window."""
        return tuple(self.patch_lengths[m] * self.patches_per_window for m in self.channel_modality)

    @lazy
    def token_modality(self) -> np.ndarray:
        """int32 [N], the modality of each token."""
        return np.repeat(np.asarray(self.channel_modality, np.int32), self.patches_per_window)

    @lazy
    def token_time_s(self) -> np.ndarray:
        """float32 [N], the centre of each token's patch in seconds from the window's start."""
        centre = (np.arange(self.patches_per_window) + 0.5) * self.patch_s
        return np.tile(centre.astype(np.float32), len(self.channels))

    def channel_rate_hz(self, channel: int) -> float:
        """Rate of channel number `channel` after preparation."""
        return self.rate_hz[self.channels[channel].modality]

    def index(self, name: str) -> int:
        """Position of a channel by name or alias.

        Raises:
            ValueError: no such channel; the message names the nearest.
        """
        found = self._find(name)
        if found is None:
            raise ValueError(f"montage has no channel {name!r}{nearest(name, self.names)}")
        return found

    def resolve(self, names: Sequence[str], fits: Callable[[int, int], bool] | None = None) -> Resolution:
        """Find each montage channel among a recording's channel names.

        If several names match a channel, the first that fits wins, or the first if none fits. Names that match only
        without their leading modality come last.

        Args:
            names: the recording's channel names, in its order.
            fits: whether a candidate may be used, called as `fits(montage index, index in names)` if there are
                several; None accepts all.
        """
        places: list[list[int]] = [[] for _ in self.channels]
        anyhow = [self._find(name) for name in names]
        for found in ([self._spellings.get(normalise_name(name)) for name in names], anyhow):
            for position, channel in enumerate(found):
                if channel is not None and position not in places[channel]:
                    places[channel].append(position)
        source = tuple(
            next((i for i in of if fits(channel, i)), of[0]) if fits and len(of) > 1 else next(iter(of), None)
            for channel, of in enumerate(places)
        )
        unused = [position for position in range(len(names)) if position not in source]
        duplicates = {names[i]: self.names[channel] for i in unused if (channel := anyhow[i]) is not None}
        return Resolution(source=source, ignored=tuple(names[i] for i in unused), duplicates=duplicates)

    def near(self, name: str) -> str | None:
        """The channel whose name or alias is most similar to an unknown name; None if none is similar."""
        close = difflib.get_close_matches(normalise_name(name), self._spellings, n=1)
        return self.names[self._spellings[close[0]]] if close else None

    def select(self, names: Iterable[str]) -> Montage:
        """A montage of only the named channels, in this montage's order.

        Raises:
            ValueError: a name that the montage does not have; the message names the nearest.
        """
        wanted = {self.index(name) for name in names}
        kept = tuple(channel for i, channel in enumerate(self.channels) if i in wanted)
        return dataclasses.replace(self, channels=kept)

    def to_dict(self) -> dict:
        """Convert to plain data for JSON, which `from_dict` reads back."""
        channels = [dataclasses.asdict(channel) | {"aliases": list(channel.aliases)} for channel in self.channels]
        rates = {name: rate if isinstance(rate, int) else float(rate) for name, rate in self.rate_hz.items()}
        return dataclasses.asdict(self) | {"channels": channels, "rate_hz": rates}

    @classmethod
    def from_dict(cls, data: Mapping) -> Montage:
        """Restore a montage from the data that `to_dict` returns.

        Raises:
            ValueError: the data is not of that form, or describes no valid montage.
        """
        try:
            channels = tuple(
                Channel(name=c["name"], modality=c["modality"], aliases=tuple(c["aliases"])) for c in data["channels"]
            )
            return cls(
                channels=channels,
                rate_hz=dict(data["rate_hz"]),
                patch_s=data["patch_s"],
                window_s=data["window_s"],
            )
        except KeyError as error:
            raise ValueError(f"no entry {error}") from error
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error

    def _find(self, name: str) -> int | None:
        """The index of a channel by name or alias, with or without its modality as a prefix; None if there is none."""
        index, prefixed = self._spellings.get(normalise_name(name)), split_modality(name)
        if index is not None or prefixed is None:
            return index
        modality, rest = prefixed
        index = self._spellings.get(normalise_name(rest))
        return index if index is not None and self.channels[index].modality == modality else None

    @lazy
    def _spellings(self) -> dict[str, int]:
        return {normalise_name(s): i for i, c in enumerate(self.channels) for s in (c.name, *c.aliases)}


def _is_number(found: object) -> bool:
    return isinstance(found, numbers.Real) and not isinstance(found, bool)


def _is_about(found: float, wanted: float) -> bool:
    """Whether two numbers are equal up to rounding: 100 Hz times 0.55 s is slightly more than 55 samples."""
    return math.isclose(found, wanted, rel_tol=1e-9)


def normalise_name(name: str) -> str:
    """A channel name without case, spaces and punctuation: `EEG Fpz-Cz` -> `eegfpzcz`."""
    return "".join(ch for ch in name.lower() if ch.isalnum())


def split_modality(name: str) -> tuple[str, str] | None:
    """Split a name such as `EMG Chin1-Chin2` into its leading modality and the rest; None if it has no such prefix."""
    parts = _LEADING_MODALITY.fullmatch(name.strip())
    return parts and (parts[1].upper().replace("EKG", "ECG"), parts[2])


def nearest(name: str, allowed: Iterable[str], most: int | None = None) -> str:
    """The end of an error message about an unknown name: the nearest allowed name, then all or the first `most`."""
    allowed = list(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    more = "" if most is None or len(allowed) <= most else f", ... ({len(allowed)} in all)"
    return f"{hint} Allowed: {', '.join(allowed[:most])}{more}"


def require_montage(montage: object) -> None:
    """Refuse what is no Montage, such as a name.

    Raises:
        TypeError: with where to get one.
    """
    advice = "a store has one, store.montage, and physiofast.get_montage(name) gives one"
    require_instance(Montage, "montage", montage, advice)


def get_montage(name: str) -> Montage:
    """A montage of `MONTAGES` by name.

    Raises:
        ValueError: no such montage; the message names the nearest.
    """
    if name not in MONTAGES:
        raise ValueError(
            f"no montage is named {name!r}{nearest(name, MONTAGES)}; to use your own, pass it from Python: "
            "physiofast.prepare(..., PrepareConfig(montage=Montage(...)))"
        )
    return MONTAGES[name]


def _check_channels(channels: Sequence[Channel]) -> None:
    if not channels:
        raise ValueError("a montage needs at least one channel")
    spellings: dict[str, str] = {}
    last = -1
    for channel in channels:
        if channel.modality not in MODALITIES:
            found = f"channel {channel.name!r}: unknown modality {channel.modality!r}"
            raise ValueError(found + nearest(channel.modality, MODALITIES))
        if MODALITIES.index(channel.modality) < last:
            raise ValueError(f"channel {channel.name!r}: group channels by modality, in the order {MODALITIES}")
        last = MODALITIES.index(channel.modality)
        if not normalise_name(channel.name):
            raise ValueError(f"a channel's name needs a letter or digit; found {channel.name!r}")
        for spelling in {normalise_name(s) for s in (channel.name, *channel.aliases)}:
            if spelling in spellings:
                raise ValueError(f"channels {spellings[spelling]!r} and {channel.name!r} share the name {spelling!r}")
            spellings[spelling] = channel.name


def _eeg(site: str, mastoid: str, ear: str) -> Channel:
    aliases = (f"EEG {site}-{mastoid}", f"{site}-{ear}", f"EEG {site}-{ear}", f"EEG ({site}-{ear})")
    return Channel(name=f"{site}-{mastoid}", modality="EEG", aliases=aliases)


_CINC2018_CHANNELS = (
    _eeg("F3", "M2", "A2"),
    _eeg("F4", "M1", "A1"),
    _eeg("C3", "M2", "A2"),
    _eeg("C4", "M1", "A1"),
    _eeg("O1", "M2", "A2"),
    _eeg("O2", "M1", "A1"),
    Channel(
        name="E1-M2",
        modality="EOG",
        aliases=(
            "EOG",
            "EOG E1-M2",
            "E1-A2",
            "EOG horizontal",
            "LOC",
            "LOC-M2",
            "LOC-A2",
            "EOG(L)",
            "E1",
            "L EOG",
            "EOG Left",
            "Left EOG",
        ),
    ),
    Channel(
        name="Chin1-Chin2",
        modality="EMG",
        aliases=(
            "EMG",
            "Chin EMG",
            "EMG submental",
            "EMG chin",
            "Chin",
            "EMG1-EMG2",
            "L Chin-R Chin",
            "Chin L-Chin R",
            "Left Chin-Right Chin",
            "Chin Left-Chin Right",
            "L Chin",
            "Chin L",
            "Left Chin",
            "Chin Left",
        ),
    ),
    Channel(
        name="ECG",
        modality="ECG",
        aliases=("EKG", "ECG I", "ECG II", "ECG lead II", "II", "MLII", "ECG1-ECG2", "EKG1-EKG2", "ECG L-ECG R"),
    ),
    Channel(
        name="ABD",
        modality="RESP",
        aliases=(
            "Abdomen",
            "Abdominal",
            "Abdo",
            "ABDO RES",
            "ABDO EFFORT",
            "Resp abdominal",
            "Effort ABD",
            "Abd Effort",
            "Abdominal Effort",
            "Abdominal Belt",
            "Abdomen Belt",
            "RIP Abdomen",
            "RIP Abd",
        ),
    ),
    # Monitors call breathing by the impedance of the chest just RESP.
    Channel(
        name="CHEST",
        modality="RESP",
        aliases=(
            "Thorax",
            "Thoracic",
            "Thor",
            "THOR RES",
            "THOR EFFORT",
            "Resp chest",
            "RESP",
            "Resp Imp",
            "Tho",
            "Effort THO",
            "Chest Effort",
            "Thorax Effort",
            "Thoracic Effort",
            "Thoracic Belt",
            "Thorax Belt",
            "RIP Thorax",
            "RIP Thor",
        ),
    ),
    Channel(
        name="AIRFLOW",
        modality="RESP",
        aliases=("Resp oro-nasal", "Flow", "Resp nasal", "Nasal Pressure", "Nasal Flow", "Oronasal Flow"),
    ),
    Channel(name="SaO2", modality="SPO2", aliases=("SpO2", "SO2", "OSAT", "O2 Sat", "Sat O2")),
)

_SLEEP_EDFX_CHANNELS = (
    Channel(name="Fpz-Cz", modality="EEG", aliases=("EEG Fpz-Cz",)),
    Channel(name="Pz-Oz", modality="EEG", aliases=("EEG Pz-Oz",)),
    Channel(name="horizontal", modality="EOG", aliases=("EOG horizontal",)),
    Channel(name="submental", modality="EMG", aliases=("EMG submental",)),
    Channel(name="oro-nasal", modality="RESP", aliases=("Resp oro-nasal",)),
)

_SHHS_CHANNELS = (
    Channel(name="C4-A1", modality="EEG", aliases=("EEG", "C4-M1")),
    Channel(name="C3-A2", modality="EEG", aliases=("EEG(sec)", "EEG2", "C3-M2")),
    Channel(name="EOG(L)", modality="EOG"),
    Channel(name="EOG(R)", modality="EOG"),
    Channel(name="EMG", modality="EMG"),
    Channel(name="ECG", modality="ECG"),
    Channel(name="ABDO RES", modality="RESP"),
    Channel(name="THOR RES", modality="RESP"),
    Channel(name="AIRFLOW", modality="RESP", aliases=("NEW AIR", "NEW A/F")),
    Channel(name="SaO2", modality="SPO2"),
)

_MESA_CHANNELS = (
    Channel(name="Fz-Cz", modality="EEG", aliases=("EEG1",)),
    Channel(name="Cz-Oz", modality="EEG", aliases=("EEG2",)),
    Channel(name="C4-M1", modality="EEG", aliases=("EEG3",)),
    Channel(name="E1-FPz", modality="EOG", aliases=("EOG-L", "E1")),
    Channel(name="E2-FPz", modality="EOG", aliases=("EOG-R", "E2")),
    Channel(name="Chin", modality="EMG", aliases=("EMG",)),
    Channel(name="EKG", modality="ECG", aliases=("ECG",)),
    Channel(name="Abdo", modality="RESP"),
    Channel(name="Thor", modality="RESP"),
    Channel(name="Flow", modality="RESP"),
    Channel(name="SpO2", modality="SPO2"),
)


def _uniform(channels: tuple[Channel, ...], rate_hz: float, **slower_hz: float) -> Montage:
    return Montage(channels=channels, rate_hz=dict.fromkeys(MODALITIES, rate_hz) | slower_hz)


MONTAGES: dict[str, Montage] = {
    "cinc2018": _uniform(_CINC2018_CHANNELS, 128.0),
    "cinc2018-100hz": _uniform(_CINC2018_CHANNELS, 100.0),
    "cinc2018-mixed": _uniform(_CINC2018_CHANNELS, 128.0, RESP=32.0, SPO2=8.0),
    "sleep-edfx": _uniform(_SLEEP_EDFX_CHANNELS, 100.0),
    "shhs": _uniform(_SHHS_CHANNELS, 100.0, EOG=50.0, RESP=8.0, SPO2=1.0),
    "mesa": _uniform(_MESA_CHANNELS, 128.0, RESP=32.0, SPO2=1.0),
}
"""Montages by name. Rates are ours; 128 Hz makes a 1 s patch 128 samples.

Those of the Sleep Heart Health Study are the lowest of its two visits
(https://sleepdata.org/datasets/shhs/pages/10-montage-and-sampling-rate-information-shhs1.md); MESA's oximeter has 1 Hz.
"""
