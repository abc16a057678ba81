"""Stages, arousals and apneas from annotations whose labels are known by construction."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from physiofast.io.recording import Annotation, Recording, Signal
from physiofast.labels import (
    Event,
    apnea_target,
    apnea_windows,
    arousal_target,
    arousal_windows,
    events,
    read_official_arousal,
    read_official_stages,
    reduce_to_windows,
    stage_epochs,
)
from physiofast.labels import notes as notes_of

W, N1, N2, N3, R = range(5)


class NoSamples:
    def digital(self, spans: object) -> list:
        raise AssertionError("labels read no samples")

    physical = digital


def recording(
    notes: Sequence[tuple[int, str] | tuple[int, str, int]],
    *,
    annotator: str = "arousal",
    rate_hz: float = 200.0,
    seconds: float = 300.0,
) -> Recording:
    signal = Signal(
        name="C3-M2", rate_hz=rate_hz, unit="uV", gain=1.0, baseline=0.0, num_samples=round(seconds * rate_hz)
    )
    annotations = tuple(
        Annotation(sample=note[0], symbol='"', aux=note[1], duration=note[2] if len(note) > 2 else None)
        for note in notes
    )
    return Recording(
        record_id="rec",
        subject_id="rec",
        path=Path("rec.hea"),
        signals=(signal,),
        annotations=annotations,
        annotation_rate_hz=rate_hz,
        annotator=annotator,
        age_years=None,
        sex=None,
        files=(),
        warnings=(),
        reader=NoSamples(),
    )


def test_stage_changes_hold_until_the_next_one() -> None:
    """Published loaders read each change point as one epoch, and subtracted the first onset."""
    stages = stage_epochs(recording([(12000, "W"), (18000, "N1"), (36000, "N2"), (54000, "R")]))
    assert stages.tolist() == [-1, -1, W, N1, N1, N1, N2, N2, N2, R]
    assert stages.dtype == np.int8


def test_label_of_a_challenge_epoch_is_the_stage_at_its_first_sample() -> None:
    stages = stage_epochs(recording([(0, "W"), (5999, "N1"), (12001, "N2")], seconds=120.0))
    assert stages.tolist() == [W, N1, N1, N2]


@pytest.mark.parametrize("offset_s", [-14.9, -0.4, -0.001, 0.0, 0.001, 0.9, 14.9])
@pytest.mark.parametrize("has_durations", [True, False])
def test_elsewhere_an_epoch_takes_the_stage_at_its_middle(offset_s: float, has_durations: bool) -> None:
    names = ("Sleep stage W", "Sleep stage 1", "Sleep stage 2", "Sleep stage 3", "Sleep stage R")
    length = (30_000,) if has_durations else ()
    notes = [(round(1000 * (30 * k + offset_s)), name, *length) for k, name in enumerate(names)]
    found = recording(notes, annotator="edf+", rate_hz=1000.0, seconds=150.0)
    assert stage_epochs(found).tolist() == [W, N1, N2, N3, R]
    assert len(notes_of(found)) == (abs(offset_s) > 1)
    short = recording([(0, "Sleep stage W", 44_000)], annotator="edf+", rate_hz=1000.0, seconds=90.0)
    assert stage_epochs(short).tolist() == [W, -1, -1]


def test_an_epoch_of_st_annotations_takes_the_stage_at_its_middle() -> None:
    found = recording([(300, "W"), (6300, "1"), (12300, "R")], annotator="st", seconds=120.0)
    assert stage_epochs(found).tolist() == [W, N1, R, -1]


def test_an_arousal_of_its_own_in_st_is_no_stage() -> None:
    texts = [(0, "2"), (6000, "2"), (6000, "A"), (12000, "3"), (13000, "A"), (13000, "unscored")]
    found = recording(texts, annotator="st", seconds=90.0)
    assert stage_epochs(found).tolist() == [N2, N2, -1]
    found = recording(texts[:-1], annotator="st", seconds=90.0)
    assert stage_epochs(found).tolist() == [N2, N2, N3]
    assert notes_of(found) == ["2 annotations do not begin with a sleep stage that is known, and are left out: 'A' (2)"]


def test_only_whole_epochs_count() -> None:
    assert stage_epochs(recording([(0, "N3")], seconds=89.99)).tolist() == [N3, N3]
    assert stage_epochs(recording([(0, "N3")], seconds=90.0), epoch_s=20.0).tolist() == [N3] * 4


def challenge(*texts: str) -> Recording:
    """Each text at the start of an epoch of `.arousal`, beside events that end no stage."""
    notes = [(6000 * k, text) for k, text in enumerate(texts)]
    events_after = [(6000 * k + 9, bracketed) for k in range(len(texts)) for bracketed in ("(resp_x", "resp_x)")]
    return recording(sorted(notes + events_after), seconds=30.0 * len(texts))


@pytest.mark.parametrize(
    "texts",
    [
        ("W", "N1", "N2", "N3", "R", "undefined"),
        ("Wake", "S1", "S2", "S4", "REM", "MT"),
        ("awake", "nonrem1", "nonrem2", "nonrem3", "rem", "?"),
        ("Sleep stage W", "Sleep stage 1", "Stage 2", "Stage - N3", "Sleep stage R", "Movement time"),
        ("w", "1", "NREM 2", "Stage 3 sleep|3", "REM sleep|5", "movement"),
        ("W", "Non-REM 1", "N2", "4", "R", "Stage - No Stage"),
    ],
)
def test_spellings_of_stages_in_arousal(texts: Sequence[str]) -> None:
    found = challenge(*texts, "N2", "", "W")
    assert stage_epochs(found).tolist() == [W, N1, N2, N3, R, -1, N2, N2, W]
    assert notes_of(found) == []
    assert len(events(found)[0]) == 9


@pytest.mark.parametrize(
    "text", ["N5", "REM sleep", "Intubated", "A", "Sleep stage X", "light", "N2 (auto)", "Lights on"]
)
def test_a_text_in_arousal_that_is_neither_stage_nor_event_ends_the_stage_and_is_counted(text: str) -> None:
    found = challenge("W", "N2", text, "N3", text, text)
    assert stage_epochs(found).tolist() == [W, N2, -1, N3, -1, -1]
    assert notes_of(found) == [
        "3 annotations are neither events, such as '(resp_hypopnea', nor sleep stages that are known, and what follows "
        f"each is unscored: {text!r} (3)"
    ]
    assert arousal_windows(found).tolist() == [-1, 1, -1, 1, -1, -1]  # wake, and no stage


def test_events_between_stages_do_not_end_a_stage() -> None:
    notes = [(0, "N2"), (7000, "(arousal_rera"), (9000, "arousal_rera)"), (18000, "R")]
    assert stage_epochs(recording(notes, seconds=120.0)).tolist() == [N2, N2, N2, R]


def test_no_annotations_leave_everything_unscored() -> None:
    empty = recording([], annotator="")
    assert stage_epochs(empty).tolist() == [-1] * 10
    assert (arousal_target(empty) == -1).all()
    assert (apnea_target(empty) == -1).all()
    assert arousal_windows(empty).tolist() == apnea_windows(empty).tolist() == [-1] * 10
    assert events(empty) == ([], [])


def test_beats_are_no_stages() -> None:
    assert stage_epochs(recording([(5, "N"), (9, "R")], annotator="atr")).tolist() == [-1] * 10


def test_stages_of_another_annotator_are_not_read_and_noted() -> None:
    names = ("W", "N1", "N2", "N2", "R", "(N")
    found = recording([(6000 * k, name) for k, name in enumerate(names)], annotator="atr")
    assert stage_epochs(found).tolist() == [-1] * 10
    assert notes_of(found) == [
        "5 of the annotations in rec.atr are sleep stages ('N2' (2), 'W' (1), 'N1' (1), 'R' (1)), and none is read: "
        "stages are those of .arousal and .st; copy the file to rec.arousal where a stage lasts until the next, or to "
        "rec.st where each is that of the 30 s after it"
    ]
    for heart in (("N", "R", "W", "(AFIB", ""), ("MT", "?")):
        assert notes_of(recording([(9 * k, text) for k, text in enumerate(heart)], annotator="atr")) == []


def test_events_are_paired_and_the_unpaired_reported() -> None:
    notes = [
        (100, "(resp_hypopnea"),
        (150, "(arousal_rera"),
        (200, "resp_hypopnea)"),
        (250, "arousal_plm)"),
        (300, "(resp_hypopnea"),
        (310, "(resp_hypopnea"),
        (350, "resp_hypopnea)"),
        (390, "arousal_rera)"),
    ]
    found, unpaired = events(recording(notes))
    assert found == [
        Event(start=100, stop=200, name="resp_hypopnea"),
        Event(start=150, stop=390, name="arousal_rera"),
        Event(start=300, stop=350, name="resp_hypopnea"),
    ]
    assert unpaired == [
        "arousal_plm ends at sample 250 without having begun",
        "resp_hypopnea begins at sample 310 and never ends",
    ]


def at(start: int, stop: int, value: int, base: np.ndarray) -> np.ndarray:
    base[start:stop] = value
    return base


def test_arousal_target_around_a_rera() -> None:
    target = arousal_target(recording([(0, "N2"), (20000, "(arousal_rera"), (22000, "arousal_rera)")]))
    # 2 s before (and one sample, as the official arrays have it) to 10 s after.
    np.testing.assert_array_equal(target, at(20000 - 401, 22000 + 2000, 1, np.zeros(60000, np.int8)))


@pytest.mark.parametrize("name", ["arousal_plm", "arousal_spontaneous", "arousal_bruxism", "resp_cheynestokesbreath"])
def test_arousal_target_around_other_arousals(name: str) -> None:
    target = arousal_target(recording([(0, "N2"), (20000, f"({name}"), (22000, f"{name})")]))
    np.testing.assert_array_equal(target, at(20000 - 401, 22000 + 400, 1, np.zeros(60000, np.int8)))


@pytest.mark.parametrize("name", ["resp_hypopnea", "resp_centralapnea", "resp_obstructiveapnea", "resp_mixedapnea"])
def test_arousal_target_around_apneas(name: str) -> None:
    target = arousal_target(recording([(0, "N2"), (20000, f"({name}"), (22000, f"{name})")]))
    np.testing.assert_array_equal(target, at(20000 - 2001, 22000 + 2000, -1, np.zeros(60000, np.int8)))


def test_arousal_target_around_wake_outranks_arousals() -> None:
    notes = [(12000, "N1"), (17000, "(arousal_plm"), (18000, "W"), (19000, "arousal_plm)"), (24000, "N1")]
    target = arousal_target(recording(notes))
    expected = at(17000 - 401, 16000, 1, np.zeros(60000, np.int8))
    expected = at(18000 - 2002, 24000 - 1 + 2000, -1, expected)
    np.testing.assert_array_equal(target, expected)


def test_target_is_cut_at_the_ends() -> None:
    notes = [
        (0, "N1"),
        (10, "(arousal_plm"),
        (20, "arousal_plm)"),
        (1190, "(resp_hypopnea"),
        (1199, "resp_hypopnea)"),
    ]
    target = arousal_target(recording(notes, seconds=6.0))
    assert target.tolist() == [-1] * 1200
    notes = [(0, "N1"), (10, "(arousal_plm"), (20, "arousal_plm)")]
    assert np.flatnonzero(arousal_target(recording(notes, seconds=6.0)) == 1).tolist() == list(range(420))


def test_reduce_to_windows() -> None:
    target = np.array(
        [[0, 0, 0, 0], [0, 1, 0, -1], [-1, -1, 0, 0], [-1, -1, 1, 0], [-1, -1, -1, 1], [-1, -1, -1, -1]],
        np.int8,
    ).reshape(-1)
    assert reduce_to_windows(target, 4).tolist() == [0, 1, 0, 1, -1, -1]
    assert reduce_to_windows(target[:-1], 4).size == 5
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        reduce_to_windows(target, 0)
    assert reduce_to_windows(target[:0], 4).tolist() == reduce_to_windows(target[:3], 4).tolist() == []


@pytest.mark.parametrize("rate_hz", [199.95, 204.75, 200.0])
def test_windows_of_a_broken_number_of_samples_begin_at_the_nearest_one(rate_hz: float) -> None:
    places = [round(30 * rate_hz * k) for k in range(9)]
    notes = [(1, "W"), (places[3], "2 OA"), (places[4], "3"), (places[6], "R HA"), (places[7], "MT")]
    found = recording(notes, annotator="st", rate_hz=rate_hz, seconds=240.0)
    assert stage_epochs(found).tolist() == [W, -1, -1, N2, N3, -1, R, -1]
    assert apnea_windows(found)[[0, 1, 2, 5, 7]].tolist() == [0, -1, -1, -1, -1]
    assert apnea_windows(found)[[3, 6]].tolist() == [1, 1]
    target = np.random.default_rng(0).integers(-1, 2, 1000).astype(np.int8)
    edges = np.round(np.arange(151) * 6.65).astype(int)
    want = [
        -1 if 2 * (part == -1).sum() > len(part) else int((part == 1).any())
        for part in (target[low:high] for low, high in zip(edges, edges[1:], strict=False))
    ]
    assert reduce_to_windows(target, 6.65).tolist() == want


def test_arousal_windows_drop_what_nobody_scored() -> None:
    notes = [(12000, "N2"), (20000, "(arousal_plm"), (20100, "arousal_plm)")]
    windows = arousal_windows(recording(notes, seconds=150.0))
    assert windows.tolist() == [-1, -1, 0, 1, 0]
    assert (arousal_target(recording(notes))[:12000] == 0).all()


@pytest.mark.parametrize("gap_s", [-5, 0, 2, 7, 9, 15, 40])
@pytest.mark.parametrize("apnea", ["Obstructive apnea", "Hypopnea"])
def test_an_arousal_that_ends_an_apnea_is_one_for_the_scorer_and_none_that_the_challenge_scores(
    gap_s: int, apnea: str
) -> None:
    start = 270 + gap_s
    marks = [(0, "Sleep stage N2", 600), (250, apnea, 20), (start, "EEG arousal", 6), (450, "EEG arousal", 10)]
    scored = recording([(200 * s, text, 200 * d) for s, text, d in marks], annotator="edf+", seconds=600.0)
    windows = np.zeros(20, np.int8)
    windows[[start // 30, (start + 6 - 1) // 30, 15]] = 1
    assert arousal_windows(scored).tolist() == windows.tolist()
    assert np.flatnonzero(arousal_target(scored)).tolist() == [
        *range(200 * start, 200 * (start + 6)),
        *range(90_000, 92_000),
    ]

    notes = [(0, "N2"), (50_000, "(resp_hypopnea"), (54_000, "resp_hypopnea)")]
    notes += [(200 * start, "(arousal_spontaneous"), (200 * (start + 6), "arousal_spontaneous)")]
    found = recording(notes, seconds=600.0)
    target, left_out = arousal_windows(found), gap_s + 6 <= 10
    assert target[8] == -1 and target[9] == (-1 if left_out else 1 if gap_s < 30 else 0)
    np.testing.assert_array_equal(np.flatnonzero(target == 1), [] if left_out else [start // 30])


def test_an_arousal_that_wake_hides_is_not_none() -> None:
    notes = [(0, "N2"), (10_600, "(arousal_plm"), (11_800, "arousal_plm)"), (12_000, "W"), (24_000, "N2")]
    assert arousal_windows(recording(notes)).tolist() == [0, -1, -1, -1, 0, 0, 0, 0, 0, 0]
    marks = [(0, "Sleep stage N2", 60_000), (53_000, "EEG arousal", 6_000), (60_000, "Sleep stage W", 60_000)]
    marks += [(70_000, "EEG arousal", 6_000), (120_000, "Sleep stage N2", 180_000)]
    assert arousal_windows(recording(marks, annotator="edf+", rate_hz=1e3)).tolist() == [0, 1, -1, -1, *[0] * 6]


def test_apnea_windows_need_a_scored_stage() -> None:
    notes = [
        (3000, "(resp_hypopnea"),
        (5000, "resp_hypopnea)"),
        (6000, "N2"),
        (13000, "(resp_mixedapnea"),
        (18001, "resp_mixedapnea)"),
        (24500, "(arousal_rera"),
        (25000, "arousal_rera)"),
    ]
    found = recording(notes, seconds=150.0)
    assert apnea_windows(found).tolist() == [-1, 0, 1, 1, 0]
    target = apnea_target(found)
    assert (target[:6000] == -1).all()
    assert np.flatnonzero(target == 1).tolist() == list(range(13000, 18001))


def test_st_annotations_score_the_30_s_after_them() -> None:
    notes = [(1, "W"), (7500, "4 LA"), (15000, "1 CAA CAA"), (22500, "MT"), (37500, "R H"), (45000, "3 L X")]
    found = recording(notes, annotator="st", rate_hz=250.0, seconds=240.0)
    assert stage_epochs(found).tolist() == [W, N3, N1, -1, -1, R, N3, -1]
    assert apnea_windows(found).tolist() == [0, 0, 1, -1, -1, 1, 1, -1]
    assert [(e.start, e.name) for e in events(found)[0]] == [
        (15000, "resp_centralapnea"),
        (37500, "resp_hypopnea"),
        (45000, "resp_obstructiveapnea"),
    ]


def test_stages_of_st_in_other_spellings_and_those_that_are_not_known() -> None:
    texts = ("wake", "S1 HA", "N2", "S4", "REM", "M", "Sleep stage 2", "N5 X", "", "5", "5")
    notes = [(7500 * k, text) for k, text in enumerate(texts)]
    found = recording(notes, annotator="st", rate_hz=250.0, seconds=330.0)
    assert stage_epochs(found).tolist() == [W, N1, N2, N3, R, -1, N2, -1, -1, -1, -1]
    assert apnea_windows(found).tolist() == [0, 1, 0, 0, 0, -1, 0, -1, -1, -1, -1]
    assert notes_of(found) == [
        "3 annotations do not begin with a sleep stage that is known, and are left out: '5' (2), 'N5 X' (1)"
    ]
    assert notes_of(recording([(0, "X"), (7500, " ")], annotator="st")) == [
        "none of its 2 annotations is a sleep stage; found 'X' (1), ' ' (1); expected texts such as '2', '2 HA' or 'N2'"
    ]


def test_edf_hypnogram() -> None:
    notes = [
        (0, "Sleep stage W", 60_000),
        (10_000, "Lights off"),
        (60_000, "Sleep stage 1", 30_000),
        (90_000, "Sleep stage 4", 30_000),
        (120_000, "Movement time", 30_000),
        (150_000, "Sleep stage ?", 30_000),
        (180_000, "Sleep stage N2@@EEG C3-A2", 30_000),
        (240_000, "Sleep stage R"),
    ]
    found = recording(notes, annotator="edf+", rate_hz=1000.0)
    assert stage_epochs(found).tolist() == [W, W, N1, N3, -1, -1, N2, -1, R, R]
    assert apnea_windows(found).tolist() == arousal_windows(found).tolist() == [-1] * 10


@pytest.mark.parametrize(
    "texts",
    [
        ("Sleep stage W", "Sleep stage N1", "Sleep stage N2", "Sleep stage N3", "Sleep stage R", "Sleep stage ?"),
        ("Sleep stage W", "Sleep stage 1", "Sleep stage 2", "Sleep stage 4", "Sleep stage REM", "Movement time"),
        ("Stage - W", "Stage - N1", "Stage - N2", "Stage - N3", "Stage - R", "Stage - MT"),
        ("stage wake", "STAGE S1", "stage: 2", "Stage_3 (SWS)", "Stage R@@EEG C3-A2", "Sleep stage unscored"),
        ("W", "N1", "n2", "N3", "R", "?"),
        ("Wake", "NREM 1", "NREM2", "NREM-4", "REM", "MT"),
        ("WK", "N1", "N2", "N3/4", "REM", "MT"),
        ("wk", "N1", "N2", "SWS", "R", "?"),
        ("StageW", "Stage1", "Stage2", "Stage3", "StageR", "Stage?"),
        ("StageWake", "StageN1", "StageN2@@EEG C3-A2", "StageN3", "StageREM", "Stage unscored"),
        ("Stage W", "Stage 1", "Stage 2", "Stage 3/4", "Stage R", "Stage artifact"),
        ("Sleep stage 0", "Stage S1", "Stage S2", "Stage N3-4", "Stage R", "Stage M"),
        ("Stage S0", "Stage S1", "Stage S2", "Stage SWS", "Stage R", "Movement time"),
        ("SLEEP-S0", "SLEEP-S1", "SLEEP-S2", "SLEEP-S4", "SLEEP-REM", "SLEEP-UNSCORED"),
        ("Stadium W", "Stadium 1", "Stadium N2", "Stadium 4", "Stadium REM", "Stadium unbekannt"),
        ("Wach", "Schlafstadium N1", "Schlafstadium 2", "Schlafstadium N3", "REM-Schlaf", "Schlafstadium ?"),
        ("Wach", "N1", "N2", "N3", "REM", "MT"),
        ("Schlafstadium Wach", "Stadium S1", "Stadium S2", "Stadium S3/4", "Stadium REM", "Stadium MT"),
        ("Éveil", "Stade N1", "Stade 2", "Stade N3", "Sommeil paradoxal", "Stade indéterminé"),
        ("Wake|0", "Stage 1 sleep|1", "Stage 2 sleep|2", "Stage 4 sleep|4", "REM sleep|5", "Unscored|9"),
    ],
)
def test_spellings_of_stages_in_edf(texts: Sequence[str]) -> None:
    notes = [note for k, text in enumerate(texts) for note in ((30_000 * k, text), (30_000 * k + 9, "stage lights on"))]
    found = recording(notes, annotator="edf+", rate_hz=1000.0, seconds=180.0)
    assert stage_epochs(found).tolist() == [W, N1, N2, N3, R, -1]
    assert notes_of(found) == []


def test_texts_that_look_like_stages_and_are_not_known_are_counted() -> None:
    texts = (
        "Sleep stage W",
        "Sleep stage N",
        "Sleep stage 2",
        "REM sleep",
        "Sleep stage N",
        "Sleep stage ?",
        "Awakening",
    )
    notes = [(30_000 * k, text) for k, text in enumerate(texts)]
    found = recording(notes, annotator="edf+", rate_hz=1000.0, seconds=210.0)
    assert stage_epochs(found).tolist() == [W, -1, N2, -1, -1, -1, -1]  # each lasts until the next, known or not
    assert notes_of(found) == [
        "3 annotations look like sleep stages that are not known, and are unscored (a stage without a duration ends "
        "there): 'Sleep stage N' (2), 'REM sleep' (1)"
    ]


@pytest.mark.parametrize("has_durations", [True, False])
@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        ("Stage 2", "Stage X"),
        ("Sleep stage 2", "Stage: light"),
        ("N2", "Stadium 7"),
        ("N2", "WK2"),
        ("Stage 2", "delta sleep"),
        ("SLEEP-S2", "SLEEP-S7"),
        ("Stage N2", "Waking"),
    ],
)
def test_a_text_in_the_place_of_a_stage_ends_the_one_before_and_is_told(
    known: str, unknown: str, has_durations: bool
) -> None:
    texts = (known, known, unknown, unknown, known, unknown, known)
    length = (30_000,) if has_durations else ()
    notes = [(7_000 + 30_000 * k, text, *length) for k, text in enumerate(texts)]
    events_between = [(9_500, "Hypopnea", 10_000), (14_000, "Snoring"), (97_000, "Arousal", 5_000), (97_000, "left")]
    found = recording([*notes, *events_between, (101_000, "left")], annotator="edf+", rate_hz=1e3, seconds=217.0)
    found = dataclasses.replace(found, annotations=tuple(sorted(found.annotations, key=lambda a: a.sample)))
    assert stage_epochs(found).tolist() == [N2, N2, -1, -1, N2, -1, N2]
    assert notes_of(found)[0] == (
        "3 annotations look like sleep stages that are not known, and are unscored (a stage without a duration ends "
        f"there): {unknown!r} (3)"
    )


def test_a_note_about_wake_alone_is_no_hypnogram() -> None:
    found = recording([(40_000, "Wach"), (90_000, "Éveil")], annotator="edf+", rate_hz=1000.0)
    assert stage_epochs(found).tolist() == [-1] * 10
    assert "none of its 2 annotations is a sleep stage" in notes_of(found)[0]


@pytest.mark.parametrize("text", ["Stages", "Stage lights on", "sleep-talking", "Sleep onset", "Staged", "Stadiums"])
def test_words_that_begin_as_those_of_stages_are_none(text: str) -> None:
    notes = [(0, "Stage W"), (41_000, text), (60_000, "Stage N2")]
    found = recording(notes, annotator="edf+", rate_hz=1000.0)
    assert stage_epochs(found).tolist() == [W, W, *[N2] * 8]
    assert notes_of(found) == []


def test_bare_names_beside_titled_ones_are_left_out_and_it_is_said_why() -> None:
    texts = ("Sleep stage W", "Sleep stage 2", "N2", "REM", "REM", "Sleep stage W")
    notes = [(30_000 * k, text) for k, text in enumerate(texts)]
    found = recording(notes, annotator="edf+", rate_hz=1000.0, seconds=180.0)
    assert stage_epochs(found).tolist() == [W, N2, -1, -1, -1, W]
    told = (
        "3 annotations name a sleep stage without a word such as 'stage', and are left out, because other annotations "
        "of the file have one ('Sleep stage W'): 'REM' (2), 'N2' (1)"
    )
    assert notes_of(found) == [told]
    lasting = recording([(*note, 30_000) for note in notes], annotator="edf+", rate_hz=1000.0, seconds=180.0)
    assert stage_epochs(lasting).tolist() == [W, N2, -1, -1, -1, W]
    assert notes_of(lasting) == [told]


def test_marks_beside_titled_stages_without_durations_end_none() -> None:
    notes = [(30_000 * k, text) for k, text in enumerate(("Stage W", "Stage 2", "Stage 2", "WK", "Stage R"))]
    marks = [(61_000 + 3_000 * k, "REM") for k in range(20)]
    found = recording(sorted([*notes, *marks]), annotator="edf+", rate_hz=1000.0, seconds=150.0)
    assert stage_epochs(found).tolist() == [W, N2, N2, -1, R]
    assert notes_of(found)[0].endswith("have one ('Stage W'): 'REM' (20), 'WK' (1)")


@pytest.mark.parametrize("begin", [45_000, 60_000, 44_999])
@pytest.mark.parametrize("length", [(1_000,), (0,), ()])
def test_a_mark_within_a_stage_does_not_change_it(begin: int, length: tuple[int, ...]) -> None:
    names = ("W", "N1", "N2", "N3", "R")
    notes = [(30_000 * k, name, 30_000) for k, name in enumerate(names)]
    notes = sorted([*notes, (begin, "REM", *length), (75_000, "REM", 500)], key=lambda note: note[0])
    found = recording(notes, annotator="edf+", rate_hz=1000.0, seconds=180.0)
    assert stage_epochs(found).tolist() == [W, N1, N2, N3, R, -1]
    assert notes_of(found) == [
        "2 annotations of a sleep stage last less than 10 s or state no duration, and lie within another stage, so "
        "they mark something else, and are left out: 'REM' (2)"
    ]


def test_a_mark_within_a_stage_without_a_duration_does_not_change_it() -> None:
    notes = [(0, "N2"), (40_000, "REM", 1_000), (90_000, "R"), (120_000, "MT")]
    found = recording(notes, annotator="edf+", rate_hz=1000.0, seconds=150.0)
    assert stage_epochs(found).tolist() == [N2, N2, N2, R, -1]
    assert "left out: 'REM' (1)" in notes_of(found)[0]


def test_short_epochs_are_no_marks() -> None:
    notes = [(4_000 * k, name, 4_000) for k, name in enumerate(("W", "N1", "N2", "R") * 10)]
    found = recording(notes, annotator="edf+", rate_hz=1000.0, seconds=160.0)
    assert stage_epochs(found, 4.0).tolist() == [W, N1, N2, R] * 10
    last = recording([(0, "N2", 30_000), (30_000, "R", 5_000)], annotator="edf+", rate_hz=1000.0, seconds=35.0)
    assert stage_epochs(last, 5.0).tolist() == [*[N2] * 6, R]


NO_STAGES = ("artifact", ": unscored", "- no stage", "(MT)", "not scored", "unscorable", "...", "n/a", "movement time")


@pytest.mark.parametrize("text", [*(f"Sleep stage {name}" for name in NO_STAGES), "Wake-up call", "Rem: ask", "Remark"])
def test_texts_that_say_that_nobody_scored_or_something_else_are_not_counted(text: str) -> None:
    notes = [(0, "Sleep stage W"), (30_000, text), (60_000, "Sleep stage N2")]
    assert notes_of(recording(notes, annotator="edf+", rate_hz=1000.0)) == []


def test_what_is_no_stage_in_the_spelling_of_stages_ends_the_one_before() -> None:
    texts = ("W", "N2", "No Stage", "No Stage", "Mvt", "R")
    notes = [(30_000 * k, f"Stage - {text}") for k, text in enumerate(texts)]
    found = recording([*notes, (31_000, "stage lights on")], annotator="edf+", rate_hz=1000.0, seconds=180.0)
    assert stage_epochs(found).tolist() == [W, N2, -1, -1, -1, R]
    assert notes_of(found) == []


def test_texts_that_may_be_event_markers_are_no_stages() -> None:
    found = recording(
        [(0, "W"), (9000, "R"), (30_000, "2"), (60_000, "S1"), (75_000, "R")], annotator="edf+", rate_hz=1e3
    )
    assert stage_epochs(found).tolist() == [-1] * 10
    assert notes_of(found) == [
        "none of its 5 annotations is a sleep stage; found 'R' (2), 'W' (1), '2' (1), 'S1' (1); expected texts such as "
        "'Sleep stage N2', 'Stage - N2' or 'N2'"
    ]
    assert notes_of(recording([(5, "N")], annotator="atr")) == notes_of(recording([], annotator="")) == []


def test_stages_off_the_grid_are_noted() -> None:
    def scored(*seconds: float) -> Recording:
        names = ("W", "N1", "N1", "R")[: len(seconds)]
        return recording([(round(second * 200), name) for second, name in zip(seconds, names, strict=True)])

    (note,) = notes_of(scored(15, 75, 105, 135))
    assert note == (
        "stages do not change on the grid of 30 s windows: they begin 15 s after a window's start, so 3 of 10 windows "
        "hold two stages; each takes the one at its first sample"
    )
    edf = recording([(8_000, "Stage N1"), (38_000, "Stage N2")], annotator="edf+", rate_hz=1000.0)
    assert notes_of(edf)[0].endswith("so 2 of 10 windows hold two stages; each takes the one at its middle")
    assert "they begin 10 to 20.5 s after a window's start, so 2 of 10 windows" in notes_of(scored(0, 40, 60, 110.5))[0]
    assert "so 2 of 15 windows" in notes_of(scored(0, 30, 60, 90), 20.0)[0]
    assert notes_of(scored(0, 30.5, 60, 89.4)) == notes_of(scored(0, 30, 75, 120)) == []
    assert len(notes_of(scored(400, 415))) == 1  # that they lie outside
    assert notes_of(recording([(100, "arousal_plm)")])) == [
        "none of its 1 annotations is a sleep stage; found 'arousal_plm)' (1); expected texts such as 'N2' or 'REM'",
        "arousal_plm ends at sample 100 without having begun",
    ]


def test_stages_outside_of_the_recording_are_noted() -> None:
    texts = [(-86_280_000 + 30_000 * k, "Sleep stage N2", 30_000) for k in range(4)]
    outside = recording(texts, annotator="edf+", rate_hz=1000.0)
    assert stage_epochs(outside).tolist() == [-1] * 10
    assert notes_of(outside) == [
        "none of its 4 annotated sleep stages lies within the recording: they are -86280 to -86160 s after its start, "
        "and it lasts 300 s; look at the start dates and times of both headers"
    ]
    assert notes_of(recording([*texts, (270_000, "Sleep stage W")], annotator="edf+", rate_hz=1000.0)) == []


def test_window_of_less_than_a_sample_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a window of 0.0025 s is less than one sample of the annotation clock, 200 Hz"
    ):
        apnea_windows(recording([(0, "N1")]), window_s=0.0025)


def write_official(path: Path, arousals: np.ndarray, **stages: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file["data/arousals"] = arousals.astype(np.float64)[:, None]
        for name, values in stages.items():
            file[f"data/sleep_stages/{name}"] = values.astype(np.uint8)[None]
    return path


def test_official_arrays(tmp_path: Path) -> None:
    # The file's stages change one sample early and end undefined.
    codes = np.array([-1, -1, W, W, N1, N2, N3, R, R, -1])
    names = dict(zip(("wake", "nonrem1", "nonrem2", "nonrem3", "rem", "undefined"), (*range(5), -1), strict=True))
    one_hot = {name: codes == code for name, code in names.items()}
    arousals = np.array([0, 0, -1, -1, 0, 1, 1, 0, 0, 0])
    path = write_official(tmp_path / "a-arousal.mat", arousals, **one_hot)
    assert read_official_stages(path).tolist() == [-1, -1, -1, W, W, N1, N2, N3, R, R]
    assert read_official_arousal(path).tolist() == arousals.tolist()


def test_bad_official_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"b-arousal\.mat: no such file"):
        read_official_arousal(tmp_path / "b-arousal.mat")
    text = tmp_path / "c-arousal.mat"
    text.write_text("not HDF5")
    with pytest.raises(OSError, match=r"c-arousal\.mat: not a MATLAB 7\.3"):
        read_official_arousal(text)
    two = write_official(tmp_path / "d-arousal.mat", np.array([0, 2]), wake=np.ones(2))
    with pytest.raises(ValueError, match=r"data/arousals holds \[0\.0, 2\.0\]; allowed: -1, 0, 1"):
        read_official_arousal(two)
    with pytest.raises(ValueError, match=r"no data/sleep_stages/nonrem1; did you mean"):
        read_official_stages(two)
    stages = dict.fromkeys(("wake", "nonrem1", "nonrem2", "nonrem3", "rem", "undefined"), np.zeros(2))
    both = write_official(tmp_path / "e-arousal.mat", np.zeros(2), **(stages | {"wake": np.array([1, 0])}))
    with pytest.raises(ValueError, match="sample 1 is in 0 stages; expected exactly one"):
        read_official_stages(both)


def test_an_annotation_file_without_any_stage_gives_unscored_epochs() -> None:
    only_events = recording([(400, "(arousal_rera"), (900, "arousal_rera)")], seconds=60.0)
    assert stage_epochs(only_events).tolist() == [-1, -1]
    assert notes_of(only_events) == [
        "none of its 2 annotations is a sleep stage; found '(arousal_rera' (1), 'arousal_rera)' (1); expected texts "
        "such as 'N2' or 'REM'"
    ]
    assert notes_of(recording([])) == [
        "none of its 0 annotations is a sleep stage; found nothing; expected texts such as 'N2' or 'REM'"
    ]


IN_EDF = [(0, "Sleep stage N2", 300_000), (40_000, "Obstructive Apnea", 20_000), (200_000, "EEG arousal", 5_000)]


def test_events_of_an_edf_file_are_read_as_they_last() -> None:
    found, unread = events(recording(IN_EDF, annotator="edf+", rate_hz=1000.0))
    assert found == [
        Event(start=40_000, stop=60_000, name="resp_obstructiveapnea"),
        Event(start=200_000, stop=205_000, name="arousal"),
    ]
    assert unread == []
    scored = recording(IN_EDF, annotator="edf+", rate_hz=1000.0)
    np.testing.assert_array_equal(apnea_windows(scored), [0, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(arousal_windows(scored), [0, 0, 0, 0, 0, 0, 1, 0, 0, 0])


def test_an_edf_file_without_events_of_a_kind_was_not_looked_through_for_them() -> None:
    for kept, apneas, arousals in ((IN_EDF[:1], -1, -1), (IN_EDF[:2], 0, -1), (IN_EDF[::2], -1, 0)):
        scored = recording(kept, annotator="edf+", rate_hz=1000.0)
        assert apnea_windows(scored)[0] == apneas and apnea_target(scored)[0] == apneas
        assert arousal_windows(scored)[0] == arousals and arousal_target(scored)[0] == arousals


@pytest.mark.parametrize(
    ("mark", "apneas", "arousals"),
    [
        ((100_000, "Hypopnea 4%", 12_000), -1, 0),
        ((100_000, "Hypopnea"), -1, 0),
        ((100_000, "Arousal 3 of 5", 4_000), 0, -1),
        ((100_000, "RERA", 0), 0, -1),
        ((100_000, "arousal after hypopnea 4%", 4_000), -1, -1),
        ((100_000, "Arousal (ARO RES)", 4_000), 0, 0),
        ((100_000, "lights on", 4_000), 0, 0),
    ],
)
def test_beside_events_that_are_left_out_nothing_of_their_kind_is_zero(
    mark: tuple[int, str, int], apneas: int, arousals: int
) -> None:
    scored = recording([*IN_EDF, mark], annotator="edf+", rate_hz=1000.0)
    assert apnea_windows(scored)[5] == apneas and apnea_target(scored)[150_000] == apneas
    assert arousal_windows(scored)[5] == arousals and arousal_target(scored)[150_000] == arousals


def test_events_of_an_edf_file_that_are_not_read_are_told() -> None:
    marks = [(5_000, "Arousal"), (9_000, "Hypopnea", 0), (50_000, "no apnea here", 3), (60_000, "no apnea here")]
    scored = recording([*IN_EDF[:1], *marks], annotator="edf+", rate_hz=1000.0)
    assert notes_of(scored) == [
        "2 arousals and respiratory events state no duration, and are left out, and with them all of their kind",
        "2 annotations look like arousals or respiratory events that are not known, and are left out, and with them "
        "all of their kind: 'no apnea here' (2)",
    ]
    assert (arousal_windows(scored) == -1).all() and (apnea_windows(scored) == -1).all()
