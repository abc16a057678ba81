"""Sleep stages: their names and codes, and the texts of EDF+ and WFDB annotations that say them."""

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
"""Where `Stage - N2` is a stage, `Stage - No Stage` and whatever else begins so is a stretch that nobody scored."""
_DEPTHS = {f"{prefix}{depth}": min(depth, 3) for prefix in ("N", "NREM", "NONREM") for depth in (1, 2, 3, 4)}
"""Names that no event marker has."""
_BARE_STAGES = {**_DEPTHS, "W": 0, "WAKE": 0, "AWAKE": 0, "R": 4, "REM": 4, "MT": UNSCORED, "?": UNSCORED}
"""Names that stand alone in files that also have one of `_DEPTHS`."""
_STAGE_NAMES = {f"{prefix}{depth}": min(depth, 3) for prefix in ("", "S") for depth in (1, 2, 3, 4)}
_STAGE_NAMES |= {**_BARE_STAGES, "M": UNSCORED}
"""Names that follow `Sleep stage` or `Stage`, and that stand alone where every text is a stage."""
_NSRR_STAGES = {"wake|0": 0, "rem sleep|5": 4, "movement|6": UNSCORED, "unscored|9": UNSCORED}
_NSRR_STAGES |= {f"stage {depth} sleep|{depth}": min(depth, 3) for depth in (1, 2, 3, 4)}
"""Stages of the National Sleep Research Resource, in its XML and as tools put them into EDF+."""
_CODED = re.compile(r"[^|]*\|\d")
"""Its texts with a number are stages."""
_LIKE_A_STAGE = re.compile(r"sleep[\s_-]*stage(?![a-z])|(awake|wake|n?rem|n[1-4])(?![\w:-])", re.IGNORECASE)
_NO_STAGE = re.compile(r"|a|art[ei]fact|mvt|movement.*|(un|in)\w+|none|n/a|not?\W(scored|stage)", re.IGNORECASE)
"""What stands for a stage where nobody scored one, behind a word that says that it is to be one."""
_NO_STAGE_ALONE = re.compile(
    r"art[ei]fact|mvt|movement.*|uns(cored|ure)|unknown|undefined|undetermined|in(valid|determinate)|none|n/a|"
    r"not?\W(scored|stage)",
    re.IGNORECASE,
)
"""The same without such a word, where `A` is an arousal and `Intubated` a note."""


def stage_codes(texts: Sequence[str], annotator: str) -> list[int | None]:
    """Code of each text that is a stage, None of the others.

    Args:
        texts: of all annotations of a recording.
        annotator: as `Recording.annotator` has it. In `arousal` every text is a stage but events, `(name` and
            `name)`: one that is not known is a stretch that nobody scored. In `st` a stage is a text, or its first
            word, in `eannot` a text that is no number. In others, such as `edf+`, texts are of many things, and
            those count that are stages beyond doubt.
    """
    if annotator == "arousal":
        return [_code_of_change(text) for text in texts]
    if annotator == "st":
        return [_first_code(text) for text in texts]
    if annotator == "eannot":
        return [_code_of_epoch(text) for text in texts]
    return _codes_among_others(texts)


def has_stage(texts: Sequence[str], annotator: str) -> bool:
    """Whether one of the texts is a stage that somebody scored."""
    return any(code not in (None, UNSCORED) for code in stage_codes(texts, annotator))


def is_event(text: str) -> bool:
    """Whether a text of an `.arousal` begins or ends an event: `(resp_hypopnea`, `resp_hypopnea)`."""
    return text.startswith("(") or (text.endswith(")") and "(" not in text)


def _code_of_change(text: str) -> int | None:
    """Of a text of an `.arousal`; what is not known ends the stage before it."""
    if not text or is_event(text):
        return None
    code = _code(text)
    return UNSCORED if code is None else code


def _first_code(text: str) -> int | None:
    """Of a text of an `.st`: `2 HA`, which is a stage and an event, or `Sleep stage 2`."""
    words = text.split()
    if not words:
        return None
    code = _code(text)
    return _code(words[0]) if code is None else code


def _code_of_epoch(text: str) -> int | None:
    """Of a line of an `.eannot`, where `L` is lights on. Numbers are none: 4 is REM for some, deep sleep for others."""
    return None if text.isdecimal() else UNSCORED if text == "L" else _code(text)


def _code(text: str) -> int | None:
    """Of a text that stands for a stage; None where it is not known."""
    code = _STAGE_NAMES.get(_stage_name(text), _titled_code(text))
    if code is not None and not _is_unknown(text, code):
        return code
    title = _TITLED.match(text)
    is_none = _NO_STAGE.fullmatch(title["name"]) if title else _NO_STAGE_ALONE.fullmatch(text)
    return UNSCORED if is_none else None


def _codes_among_others(texts: Sequence[str]) -> list[int | None]:
    """Where annotations are of many things.

    Texts that say of themselves that they are stages (`Sleep stage N2`) go before bare names (`N2`), which count where
    a file has none of the former, and one of `_DEPTHS` among the latter.
    """
    codes = _with_ended_stretches(texts, [_titled_code(text) for text in texts])
    names = [_stage_name(text) for text in texts]
    has_titled = any(code not in (None, UNSCORED) for code in codes)
    if has_titled or not any(name in _DEPTHS for name in names):
        return codes
    return [_BARE_STAGES.get(name, code) for name, code in zip(names, codes, strict=True)]


def _with_ended_stretches(texts: Sequence[str], codes: Sequence[int | None]) -> list[int | None]:
    """`Stage - ...` that names no stage ends the one before it, where others of that form name some."""
    dashed = [_DASHED.match(text) is not None for text in texts]
    pairs = list(zip(dashed, codes, strict=True))
    if not any(is_dashed and code not in (None, UNSCORED) for is_dashed, code in pairs):
        return list(codes)
    return [UNSCORED if is_dashed and code is None else code for is_dashed, code in pairs]


def unknown_stages(texts: Sequence[str], annotator: str) -> Mapping[str, int]:
    """Texts that are to be stages, or look like some, and are not known, and how often each is there."""
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
    """Of `Sleep stage N2` and the like; an unknown name after `Sleep stage` is a stretch that nobody scored."""
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
    """`nrem 2@@EEG C3-A2`, which names the channel it was scored on, as `NREM2`."""
    return re.sub(r"[\s_-]", "", text.split("@@")[0]).upper()
