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

_TITLED = re.compile(r"(?P<sleep>sleep[\s_-]*)?stage(?![a-z])[\s:_=-]*(?P<name>.*)", re.IGNORECASE)
_DASHED = re.compile(r"stage\s*-\s*\S", re.IGNORECASE)
"""In a file with `Stage - N2`, any other text of this form, such as `Stage - No Stage`, begins an unscored period."""
_DEPTHS = {f"{prefix}{depth}": min(depth, 3) for prefix in ("N", "NREM", "NONREM") for depth in (1, 2, 3, 4)}
"""Stage names that are unlikely to denote anything else."""
_BARE_STAGES = {**_DEPTHS, "W": 0, "WAKE": 0, "AWAKE": 0, "R": 4, "REM": 4, "MT": UNSCORED, "?": UNSCORED}
"""Stage names that count without the word `stage`, in files that also have one of `_DEPTHS`."""
_STAGE_NAMES = {f"{prefix}{depth}": min(depth, 3) for prefix in ("", "S") for depth in (1, 2, 3, 4)}
_STAGE_NAMES |= {**_BARE_STAGES, "M": UNSCORED}
"""Stage names that follow `Sleep stage` or `Stage`, or stand alone where every text is a stage."""
_NSRR_STAGES = {"wake|0": 0, "rem sleep|5": 4, "movement|6": UNSCORED, "unscored|9": UNSCORED}
_NSRR_STAGES |= {f"stage {depth} sleep|{depth}": min(depth, 3) for depth in (1, 2, 3, 4)}
"""Stages of the National Sleep Research Resource, in its XML and in EDF+ files converted from it."""
_CODED = re.compile(r"[^|]*\|\d")
"""Form of the National Sleep Research Resource's stages: a name and a number."""
_LIKE_A_STAGE = re.compile(r"sleep[\s_-]*stage(?![a-z])|(awake|wake|n?rem|n[1-4])(?![\w:-])", re.IGNORECASE)
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
    title = _TITLED.match(text)
    is_none = _NO_STAGE.fullmatch(title["name"]) if title else _NO_STAGE_ALONE.fullmatch(text)
    return UNSCORED if is_none else None


def _codes_among_others(texts: Sequence[str]) -> list[int | None]:
    """The codes of texts that may mean anything.

    Texts that are explicitly stages (`Sleep stage N2`) take precedence. Bare names (`N2`) count only in a file without
    such texts and with at least one of `_DEPTHS` among its bare names.
    """
    codes = _with_ended_stretches(texts, [_titled_code(text) for text in texts])
    names = [_stage_name(text) for text in texts]
    has_titled = any(code not in (None, UNSCORED) for code in codes)
    if has_titled or not any(name in _DEPTHS for name in names):
        return codes
    return [_BARE_STAGES.get(name, code) for name, code in zip(names, codes, strict=True)]


def _with_ended_stretches(texts: Sequence[str], codes: Sequence[int | None]) -> list[int | None]:
    """Set texts of the form `Stage - ...` that name no stage to unscored, in a file where others of that form do."""
    dashed = [_DASHED.match(text) is not None for text in texts]
    pairs = list(zip(dashed, codes, strict=True))
    if not any(is_dashed and code not in (None, UNSCORED) for is_dashed, code in pairs):
        return list(codes)
    return [UNSCORED if is_dashed and code is None else code for is_dashed, code in pairs]


def unknown_stages(texts: Sequence[str], annotator: str) -> Mapping[str, int]:
    """Texts that are meant as stages, or look like stages, but are unknown -> number of occurrences."""
    counts = collections.Counter(zip(texts, stage_codes(texts, annotator), strict=True))
    if annotator == "arousal":
        return {text: count for (text, code), count in counts.items() if code is not None and _code(text) is None}
    if annotator in ("st", "eannot"):
        return {text: count for (text, code), count in counts.items() if text and code is None}
    if annotator == "nsrr":
        return {text: count for (text, code), count in counts.items() if code is None and _CODED.fullmatch(text)}
    return {text: count for (text, code), count in counts.items() if _is_unknown(text, code)}


def _is_unknown(text: str, code: int | None) -> bool:
    look = _LIKE_A_STAGE.match(text)
    if look is None or code not in (None, UNSCORED):
        return False
    if look[1]:
        return code is None
    name = text[look.end() :].strip(" \t-_:=.()[]")
    return _stage_name(name) not in _STAGE_NAMES and _NO_STAGE.fullmatch(name) is None


def _titled_code(text: str) -> int | None:
    """The code of a text like `Sleep stage N2`; None for others. An unknown name after `Sleep stage` is unscored."""
    if text.lower() in _NSRR_STAGES:
        return _NSRR_STAGES[text.lower()]
    if text.lower().startswith("movement time"):
        return UNSCORED
    match = _TITLED.match(text)
    if match is None or not match["name"]:
        return None
    first = match["name"].split()[0]
    known = [_STAGE_NAMES[name] for name in map(_stage_name, (match["name"], first)) if name in _STAGE_NAMES]
    return known[0] if known else UNSCORED if match["sleep"] else None


def _stage_name(text: str) -> str:
    """Normalise a stage's name: `nrem 2@@EEG C3-A2`, which names the channel it was scored on, becomes `NREM2`."""
    return re.sub(r"[\s_-]", "", text.split("@@")[0]).upper()
