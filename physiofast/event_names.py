"""Arousals and respiratory events: their names, and which texts of NSRR and EDF+ annotations denote them.

Names are those of Challenge 2018, such as `arousal_rera` and `resp_hypopnea`, or begin with `arousal` or `resp`.
"""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Iterable, Mapping

_NSRR_EVENTS = {
    "obstructive apnea": "resp_obstructiveapnea",
    "central apnea": "resp_centralapnea",
    "mixed apnea": "resp_mixedapnea",
    "rera": "arousal_rera",
    "respiratory effort related arousal": "arousal_rera",
    "arousal resulting from respiratory effort": "arousal_rera",
    "spontaneous arousal": "arousal_spontaneous",
    "unsure": "resp_hypopnea",
}
"""Events of the National Sleep Research Resource by the part of their text before `|`; others by their words.

Its `Unsure`, the one tag that scorers could give a meaning of their own, is a hypopnea that takes away more than half
of the airflow (https://sleepdata.org/datasets/mesa/pages/polysomnography-introduction.md, "Hypopnea event tags").
"""
_NSRR_WORDS = {"hypopnea": "resp_hypopnea", "apnea": "resp_apnea", "arousal": "arousal"}

_LIKE_BREATHING = re.compile(r"(?<![ck])apn|ypopn|ipopn", re.IGNORECASE)
"""Part of the word for an apnea or hypopnea in many languages, but not of capnography."""
_LIKE_AN_AROUSAL = re.compile(r"arousal|\brera\b", re.IGNORECASE)
_KINDS = {
    **dict.fromkeys(("obstructive", "obst", "obstr", "obstruktiv", "obstruktive", "obstructiva"), "obstructive"),
    **dict.fromkeys(("obstructieve", "ostruttiva", "obstrutiva"), "obstructive"),
    **dict.fromkeys(("central", "cent", "zentral", "zentrale", "centrale"), "central"),
    **dict.fromkeys(("mixed", "gemischt", "gemischte", "mixte", "mixta", "gemengd", "gemengde", "mista"), "mixed"),
}
"""Kinds of apneas and hypopneas in English, German, French, Spanish, Portuguese, Dutch and Italian."""
_APNEA = re.compile(r"(?:a|(?P<hypo>(?:hy|hi|i)po))pn(?:o?ea|oe|ee|eu|eia)")
"""Words for apneas and hypopneas in these languages, without accents: apnoe, apnee, apneia, apneu; ipopnea."""
_SHORT = {"a": "apnea", "h": "hypopnea"}
"""Abbreviations, as in `A. Obstructive`."""
_OF_AROUSALS = {"eeg", "cortical", "micro", "autonomic", "unclassified", "aro", "spont", "spontaneous", "associated"}
_OF_AROUSALS |= {"res", "resp", "respiratory", "effort", "related", "desat", "desaturation", "snore", "snoring"}
_OF_AROUSALS |= {"limb", "leg", "periodic", "movement", "lm", "plm", "plms", "event", "standard", "asda"}
_OF_BREATHING = {"resp", "respiratory", "sleep", "event", "unclassified"}
"""Words that may accompany the word for a respiratory event, as those above may that for an arousal."""


def nsrr_event(text: str) -> str | None:
    """The name of an event of the National Sleep Research Resource, such as `Obstructive apnea|Obstructive Apnea`.

    None if the text is no arousal or respiratory event.
    """
    concept = text.split("|")[0].strip().lower()
    of_words = (name for word, name in _NSRR_WORDS.items() if word in concept.split())
    return _NSRR_EVENTS.get(concept) or next(of_words, None)


def edf_event(text: str) -> str | None:
    """The name of an event in an EDF+ file; None unless every word of its text belongs to such an event.

    Accepted are the texts of the standard (`Obstructive apnea`, `EEG arousal@@EEG C3-A2`), of vendors
    (`APNEA-OBSTRUCTIVE`, `ObstructiveApnea`, `A. Obstructive`, `Arousal (ARO SPONT)`), of NSRR, and of other languages
    (`Obstruktive Apnoe`). An apnea or hypopnea in the text of an arousal is its cause.
    """
    if "|" in text:  # `nsrr_event` is too lenient here: a free text with a word such as apnea may deny it
        concept = text.split("|")[0]
        return _NSRR_EVENTS.get(concept.strip().lower()) or edf_event(concept)
    words = set(_words(text))
    kinds = {_KINDS[word] for word in words if word in _KINDS}
    if words & {"rera", "arousal"}:
        known = words <= {"rera", "arousal", "apnea", "hypopnea", *_KINDS, *_OF_AROUSALS}
        is_rera, is_spontaneous = "rera" in words or words >= {"effort", "related"}, words & {"spont", "spontaneous"}
        name = "arousal_rera" if is_rera else "arousal_spontaneous" if is_spontaneous else "arousal"
        return name if known else None
    if "apnea" in words and len(kinds) < 2 and words <= {"apnea", *_KINDS, *_OF_BREATHING}:
        return f"resp_{''.join(kinds)}apnea"
    return "resp_hypopnea" if "hypopnea" in words and words <= {"hypopnea", *_KINDS, *_OF_BREATHING} else None


def unknown_events(texts: Iterable[str]) -> Mapping[str, int]:
    """Texts of an EDF+ file that look like arousals or respiratory events but are unknown -> number of occurrences."""
    return collections.Counter(
        text for text in texts if (_is_like(text, True) or _is_like(text, False)) and edf_event(text) is None
    )


def could_be_event(text: str, is_apnea: bool) -> bool:
    """Whether a text of an EDF+ file is, or looks like, an apnea or hypopnea; or an arousal if `is_apnea` is False."""
    name = edf_event(text)
    return _is_like(text, is_apnea) if name is None else name.startswith("resp") == is_apnea


def _is_like(text: str, is_apnea: bool) -> bool:
    return (_LIKE_BREATHING if is_apnea else _LIKE_AN_AROUSAL).search(text) is not None


def _words(text: str) -> list[str]:
    """The words of a text without the channel that it was scored on: eeg, arousal of `EEG arousal@@EEG C3-A2`."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _without_accents(text.split("@@")[0])).lower()
    words = [_in_english(word) for word in re.findall(r"[^\W_]+", parted.replace("microarousal", "micro arousal"))]
    short = len(words) == 2 and words[0] in _SHORT and words[1] in _KINDS
    return [_SHORT[words[0]], words[1]] if short else words


def _in_english(word: str) -> str:
    """`apnea` and `hypopnea` for these words in other spellings and languages; other words as they are."""
    match = _APNEA.fullmatch(word)
    return word if match is None else "hypopnea" if match["hypo"] else "apnea"


def _without_accents(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
