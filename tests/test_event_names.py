"""Texts of arousals and respiratory events, as the EDF+ standard and vendors write them."""

import pytest

from physiofast.event_names import edf_event, unknown_events


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Apnea", "resp_apnea"),
        ("Obstructive apnea", "resp_obstructiveapnea"),
        ("Obstructive Apnea@@Flow", "resp_obstructiveapnea"),
        ("ObstructiveApnea", "resp_obstructiveapnea"),
        ("APNEA-OBSTRUCTIVE", "resp_obstructiveapnea"),
        ("A. Obstructive", "resp_obstructiveapnea"),
        ("Central Apnoea", "resp_centralapnea"),
        ("apnea_mixed", "resp_mixedapnea"),
        ("Hypopnea", "resp_hypopnea"),
        ("Hypopnoea", "resp_hypopnea"),
        ("Apnoe", "resp_apnea"),
        ("Obstruktive Apnoe", "resp_obstructiveapnea"),
        ("ZENTRALE APNOE", "resp_centralapnea"),
        ("Gemischte Apnoe@@Flow", "resp_mixedapnea"),
        ("Hypopnoe", "resp_hypopnea"),
        ("Obstruktive Hypopnoe", "resp_hypopnea"),
        ("Apnée obstructive", "resp_obstructiveapnea"),
        ("Apne\u0301e centrale", "resp_centralapnea"),
        ("Apnée mixte", "resp_mixedapnea"),
        ("Hypopnée", "resp_hypopnea"),
        ("Apnea obstructiva", "resp_obstructiveapnea"),
        ("Apnea mixta", "resp_mixedapnea"),
        ("Hipopnea", "resp_hypopnea"),
        ("Apneia obstrutiva", "resp_obstructiveapnea"),
        ("Hipopneia", "resp_hypopnea"),
        ("Obstructieve apneu", "resp_obstructiveapnea"),
        ("Gemengde apneu", "resp_mixedapnea"),
        ("Hypopneu", "resp_hypopnea"),
        ("Apnea ostruttiva", "resp_obstructiveapnea"),
        ("Apnea mista", "resp_mixedapnea"),
        ("Ipopnea", "resp_hypopnea"),
        ("Obstructive hypopnea", "resp_hypopnea"),
        ("H. Central", "resp_hypopnea"),
        ("EEG arousal@@EEG C3-A2", "arousal"),
        ("Arousal", "arousal"),
        ("Micro-arousal", "arousal"),
        ("Microarousal", "arousal"),
        ("Arousal event", "arousal"),
        ("Arousal (ARO RES)", "arousal"),
        ("Arousal (STANDARD)", "arousal"),
        ("ASDA arousal|Arousal (ASDA)", "arousal"),
        ("AROUSAL-HYPOPNEA", "arousal"),
        ("PLM Arousal", "arousal"),
        ("Arousal (ARO SPONT)", "arousal_spontaneous"),
        ("Spontaneous arousal", "arousal_spontaneous"),
        ("RERA", "arousal_rera"),
        ("Arousal - RERA", "arousal_rera"),
        ("Respiratory effort related arousal", "arousal_rera"),
        ("Hypopnea|Hypopnea", "resp_hypopnea"),
        ("Unsure|Unsure", "resp_hypopnea"),
        ("Arousal|Arousal ()", "arousal"),
    ],
)
def test_events(text: str, name: str) -> None:
    assert edf_event(text) == name
    assert unknown_events([text]) == {}


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("no apnea seen", True),
        ("no apnea | lights off", True),
        ("camera | arousal?", True),
        ("Obstructive central apnea", True),
        ("Apnea alarm off", True),
        ("post-arousal", True),
        ("Hypopnea 3%", True),
        ("Apnoen", True),
        ("Keine Apnoe", True),
        ("HYPOPN", True),
        ("Bezdech (apnoe)", True),
        ("EtCO2: capnography on", False),
        ("Kapnographie", False),
        ("Obstructive", False),
        ("Unsure", False),
        ("camera", False),
        ("Lights off", False),
        ("Sleep stage N2", False),
        ("Limb movement", False),
        ("A", False),
        ("", False),
    ],
)
def test_other_texts(text: str, looks: bool) -> None:
    assert edf_event(text) is None
    assert unknown_events([text, text]) == ({text: 2} if looks else {})
