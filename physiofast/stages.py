"""Sleep stages: their names and codes, and which texts of annotations denote them."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence

EPOCH_S = 30
"""Duration of a scoring epoch in seconds (AASM)."""
STAGES = ("W", "N1", "N2", "N3", "R")
"""Stage names; a stage's code is its index here."""
UNSCORED = -1
"""Code of an epoch or sample that was not scored."""

_TITLED = re.compile(
    r"(?P<title>(?:(?:sleep|schlaf|slaap)[\s_-]*)?(?:stage|stadium|stade|e?stadio)|sleep(?=[_-]))"
    r"(?P<gap>[\s:_=-]*)(?P<name>.*)",
    re.IGNORECASE,
)
_LIGHTS = re.compile(r"lights?\b", re.IGNORECASE)
"""What `stage` is followed by where it tells of the lights."""
_DEPTHS = {f"{prefix}{depth}": min(depth, 3) for prefix in ("N", "NREM", "NONREM") for depth in (1, 2, 3, 4)}
_DEPTHS |= dict.fromkeys(("N34", "N3/4", "N3/N4", "NREM34", "NREM3/4"), 3)
"""Stage names that are unlikely to denote anything else."""
_BARE_STAGES = {**_DEPTHS, **dict.fromkeys(("W", "WAKE", "AWAKE", "WK"), 0), "SWS": 3, **dict.fromkeys(("R", "REM"), 4)}
_BARE_STAGES |= dict.fromkeys(("MT", "?"), UNSCORED)
"""Stage names that count without the word `stage`, in files that also have one of `_DEPTHS`."""
_UNTITLED = dict.fromkeys(("WACH", "EVEIL", "ÉVEIL"), 0) | dict.fromkeys(("REMSCHLAF", "SOMMEILPARADOXAL"), 4)
"""Stages that have no title in languages in which others have one, as `Wach` beside `Schlafstadium N1`, or `N1`."""
_STAGE_NAMES = {f"{prefix}{depth}": min(depth, 3) for prefix in ("", "S") for depth in (1, 2, 3, 4)}
_STAGE_NAMES |= dict.fromkeys(("34", "3/4", "S34", "S3/4", "S3/S4"), 3) | {"0": 0, "S0": 0}
_STAGE_NAMES |= {**_BARE_STAGES, **_UNTITLED, "M": UNSCORED}
"""Stage names that follow `Sleep stage`, `Stage` and the like, or stand alone where every text is a stage."""
_NSRR_STAGES = {"wake|0": 0, "rem sleep|5": 4, "movement|6": UNSCORED, "unscored|9": UNSCORED}
_NSRR_STAGES |= {f"stage {depth} sleep|{depth}": min(depth, 3) for depth in (1, 2, 3, 4)}
"""Stages of the National Sleep Research Resource, in its XML and in EDF+ files converted from it."""
_CODED = re.compile(r"[^|]*\|\d")
"""Form of the National Sleep Research Resource's stages: a name and a number."""
_LIKE_A_STAGE = re.compile(r"(awake|wake|n?rem|n[1-4])(?![\w:-])", re.IGNORECASE)
"""Begin of a text without a title that may be meant as a stage."""
_NO_STAGE = re.compile(r"|a|art[ei]fact|mvt|movement.*|(un|in)\w+|none|n/a|not?\W(scored|stage)", re.IGNORECASE)
"""Names after `stage` that mean unscored."""
_NO_STAGE_ALONE = re.compile(
    r"art[ei]fact|mvt|movement.*|uns(cored|ure)|unknown|undefined|undetermined|in(valid|determinate)|none|n/a|"
    r"not?\W(scored|stage)",
    re.IGNORECASE,
)
"""Texts without `stage` that mean unscored; fewer, since a bare `A` is an arousal and `Intubated` a note."""


def stage_codes(texts: Sequence[str], annotator: str) -> list[int | None]:
    """The stage code of each text; None for texts that are no stages.

    Args:
        texts: the texts of all annotations of a recording.
        annotator: `Recording.annotator`. In `arousal` every text is a stage except events, `(name` and `name)`, and an
            unknown text begins an unscored period. In `st` the text or its first word is a stage, in `eannot` any text
            that is no number. In others, such as `edf+`, texts may mean anything, and only those count that are stages
            beyond doubt.
    """
    if annotator == "arousal":
        return [_code_of_change(text) for text in texts]
    if annotator == "st":
        return [_first_code(text) for text in texts]
    if annotator == "eannot":
        return [_code_of_epoch(text) for text in texts]
    return _codes_among_others(texts)


def has_stage(texts: Sequence[str], annotator: str) -> bool:
    """Whether at least one of the texts is a stage other than unscored."""
    return any(code not in (None, UNSCORED) for code in stage_codes(texts, annotator))


def is_event(text: str) -> bool:
    """Whether a text of an `.arousal` file begins or ends an event: `(resp_hypopnea`, `resp_hypopnea)`."""
    return text.startswith("(") or (text.endswith(")") and "(" not in text)


def _code_of_change(text: str) -> int | None:
    """The code of a text of an `.arousal` file; an unknown text begins an unscored period, an event is None."""
    if not text or is_event(text):
        return None
    code = _code(text)
    return UNSCORED if code is None else code


def _first_code(text: str) -> int | None:
    """The code of a text of an `.st` file: `2 HA`, which is a stage and an event, or `Sleep stage 2`."""
    words = text.split()
    if not words:
        return None
    code = _code(text)
    return _code(words[0]) if code is None else code


def _code_of_epoch(text: str) -> int | None:
    """The code of a line of an `.eannot` file, where `L` is lights on. Numbers are ambiguous (4 is REM or N3): None."""
    return None if text.isdecimal() else UNSCORED if text == "L" else _code(text)


def _code(text: str) -> int | None:
    """The code of a text that is meant as a stage; None if it is unknown."""
    code = _STAGE_NAMES.get(_stage_name(text), _titled_code(text))
    if code is not None and not _is_unknown(text, code):
        return code
    name = _titled_name(text)
    is_none = _NO_STAGE_ALONE.fullmatch(text) if name is None else _NO_STAGE.fullmatch(name)
    return UNSCORED if is_none else None


def _codes_among_others(texts: Sequence[str]) -> list[int | None]:
    """The codes of texts that may mean anything.

    Texts that are explicitly stages (`Sleep stage N2`) take precedence. Bare names (`N2`) count only in a file without
    such texts and with at least one of `_DEPTHS` among its bare names.
    """
    codes = {text: _titled_code(text) for text in set(texts)}
    names = {text: _stage_name(text) for text in codes}
    has_titled = any(code not in (None, UNSCORED) for code in codes.values())
    if has_titled or any(name in _DEPTHS for name in names.values()):
        others = _UNTITLED if has_titled else _BARE_STAGES | _UNTITLED
        codes |= {text: others[name] for text, name in names.items() if name in others}
    return [codes[text] for text in texts]


def unknown_stages(texts: Sequence[str], annotator: str) -> Mapping[str, int]:
    """Texts that are meant as stages, or look like stages, but are unknown -> number of occurrences."""
    counts = collections.Counter(zip(texts, stage_codes(texts, annotator), strict=True))
    if annotator == "arousal":
        return {text: count for (text, code), count in counts.items() if code is not None and _code(text) is None}
    if annotator in ("st", "eannot"):
        return {text: count for (text, code), count in counts.items() if text and code is None}
    if annotator == "nsrr":
        return {
            text: count
            for (text, code), count in counts.items()
            if code in (None, UNSCORED) and _CODED.fullmatch(text) and text.lower() not in _NSRR_STAGES
        }
    bare = bare_stages_left_out(texts)
    return {text: count for (text, code), count in counts.items() if _is_unknown(text, code) and text not in bare}


def bare_stages_left_out(texts: Sequence[str]) -> Mapping[str, int]:
    """Texts of an EDF+ file that name a stage without a word such as `stage`, which others have -> occurrences.

    A letter alone may mean anything there.
    """
    counts = collections.Counter(zip(texts, _codes_among_others(texts), strict=True))
    names = {text: _stage_name(text) for text, code in counts if code is None}
    return {text: counts[text, None] for text, name in names.items() if name in _BARE_STAGES and len(name) > 1}


def _is_unknown(text: str, code: int | None) -> bool:
    if code not in (None, UNSCORED):
        return False
    name = _titled_name(text)
    if name is None:
        return code is None and _LIKE_A_STAGE.match(text) is not None
    name = name.strip(" \t-_:=.()[]")
    return _stage_name(name) not in _STAGE_NAMES and _NO_STAGE.fullmatch(name) is None


def _titled_name(text: str) -> str | None:
    """The `N2` of `Sleep stage N2`, `StageN2`, `SLEEP-N2` or `Stadium N2`; None for texts without such a title."""
    match = _TITLED.match(text)
    if match is None or _LIGHTS.match(match["name"]):
        return None
    name, is_loose = match["name"], match["title"].lower() == "sleep"
    if is_loose and _stage_name(name) not in _STAGE_NAMES and not _NO_STAGE_ALONE.fullmatch(name):
        return None  # `sleep-talking`
    if not match["gap"] and name[:1].isalpha() and _known_name(name) is None:
        return None  # `Stages`
    return name


def _titled_code(text: str) -> int | None:
    """The code of a text like `Sleep stage N2`; None for others. A name that is not known is unscored."""
    if text.lower() in _NSRR_STAGES:
        return _NSRR_STAGES[text.lower()]
    if text.lower().startswith("movement time"):
        return UNSCORED
    name = _titled_name(text)
    if not name:
        return None
    code = _known_name(name)
    return UNSCORED if code is None else code


def _known_name(name: str) -> int | None:
    """The code of a name after a title, or of its first word; None if it is unknown or empty."""
    known = [_STAGE_NAMES[part] for part in map(_stage_name, (name, *name.split()[:1])) if part in _STAGE_NAMES]
    return known[0] if known else None


def _stage_name(text: str) -> str:
    """Normalise a stage's name: `nrem 2@@EEG C3-A2`, which names the channel it was scored on, becomes `NREM2`."""
    return re.sub(r"[\s_-]", "", text.split("@@")[0]).upper()
