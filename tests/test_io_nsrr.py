"""Scoring of the National Sleep Research Resource: which file it is, what it says, and what becomes of it."""

from collections.abc import Sequence
from pathlib import Path

import edfio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physiofast import labels
from physiofast.io import Recording, nsrr, open_recording
from physiofast.preparation import PrepareConfig, prepare
from physiofast.store import Store

Event = tuple[str, object, object]
"""Concept, start and duration in seconds; None where the file has none."""
STAGES: tuple[Event, ...] = (
    ("Wake|0", 0, 60.0),
    ("Stage 1 sleep|1", 60, "30"),
    ("Stage 2 sleep|2", 90, 30),
    ("Stage 3 sleep|3", 120, 30),
    ("Stage 4 sleep|4", 150, 30),
    ("REM sleep|5", 180, 30),
    ("Movement|6", 210, 30),
    ("Unscored|9", 240, 30),
)
CODES = [0, 0, 1, 2, 3, 3, 4, -1, -1, -1]
RATES = {"EEG": 125, "EEG(sec)": 125, "EOG(L)": 50, "EMG": 125, "ECG": 125, "THOR RES": 10, "NEW AIR": 10, "SaO2": 1}


def write_xml(path: Path, events: Sequence[Event]) -> Path:
    parts = [
        "<ScoredEvent><EventType/><EventConcept>Recording Start Time</EventConcept><Start>0</Start>"
        "<Duration>300.0</Duration><ClockTime>01.01.85 21.30.00</ClockTime></ScoredEvent>"
    ]
    for concept, start, duration in events:
        fields = {"EventType": "Any|Any", "EventConcept": concept, "Start": start, "Duration": duration}
        inside = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items() if value is not None)
        parts.append(f"<ScoredEvent>\n{inside}\n</ScoredEvent>")
    body = "\n".join(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n<PSGAnnotation>\n<EpochLength>30</EpochLength>\n'
        f"<ScoredEvents>\n{body}\n</ScoredEvents>\n</PSGAnnotation>\n"
    )
    return path


def write_night(path: Path, annotations: Sequence[edfio.EdfAnnotation] | None = None) -> Path:
    """300 s as the Sleep Heart Health Study has them: slow signals, eight bits, saturation without a unit."""
    rng = np.random.default_rng(len(path.name))
    signals = []
    for label, rate in RATES.items():
        data = rng.normal(0, 20, 300 * rate) if label != "SaO2" else np.linspace(90, 99, 300)
        unit = {"SaO2": "", "THOR RES": "", "NEW AIR": "", "ECG": "mV"}.get(label, "uV")
        span = (0, 100) if label == "SaO2" else (-125, 125)
        bits = {"digital_range": (-128, 127)} if label != "SaO2" else {}
        signals.append(edfio.EdfSignal(data, rate, label=label, physical_dimension=unit, physical_range=span, **bits))
    path.parent.mkdir(parents=True, exist_ok=True)
    edfio.Edf(signals, annotations=annotations).write(path)
    return path


def scored(tmp_path: Path, events: Sequence[Event]) -> Recording:
    write_xml(tmp_path / "night-nsrr.xml", events)
    return open_recording(write_night(tmp_path / "night.edf"))


def test_stages_and_where_they_come_from(tmp_path: Path) -> None:
    recording = scored(tmp_path, STAGES)
    assert (recording.annotator, recording.warnings) == ("nsrr", ())
    assert [file.name for file in recording.files] == ["night.edf", "night-nsrr.xml"]
    assert [(a.sample, a.duration, a.aux) for a in recording.annotations[:2]] == [
        (0, 60_000, "Wake|0"),
        (60_000, 30_000, "Stage 1 sleep|1"),
    ]
    assert labels.stage_epochs(recording).tolist() == CODES
    assert labels.notes(recording) == []


def test_a_datasets_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last `edfs` of a path is exchanged; a file beside the signals goes before one in another folder."""
    base = tmp_path / "edfs" / "polysomnography"
    edf = write_night(base / "edfs" / "shhs1" / "shhs1-200001.edf")
    assert nsrr.scoring_of(edf) is None
    nowhere = open_recording(edf)
    assert nowhere.annotator == ""
    assert nowhere.warnings[0].endswith("NAME-nsrr.xml, or in a dataset's folders edfs and annotations-events-nsrr")
    far = write_xml(base / "annotations-events-nsrr" / "shhs1" / "shhs1-200001-nsrr.xml", STAGES)
    assert nsrr.scoring_of(edf) == far
    assert labels.stage_epochs(open_recording(edf)).tolist() == CODES
    monkeypatch.chdir(edf.parent)
    assert labels.stage_epochs(open_recording(edf.name)).tolist() == CODES
    beside = write_xml(edf.with_name("shhs1-200001-nsrr.xml"), STAGES[:1])
    assert nsrr.scoring_of(edf) == beside
    assert labels.stage_epochs(open_recording(edf)).tolist() == [0, 0, *[-1] * 8]
    assert labels.stage_epochs(open_recording(edf, hypnogram=far)).tolist() == CODES


def test_events(tmp_path: Path) -> None:
    """Not of stages and artefacts; `Unsure` is a hypopnea of more than half, and each is a stretch of its own."""
    found = [
        ("Obstructive apnea|Obstructive Apnea", 100.5, 20.25),
        ("Hypopnea|Hypopnea", 140, 10),
        ("Mixed apnea|Mixed Apnea", 190, 10),
        ("Central apnea|Central Apnea", 205, 10),
        ("Arousal|Arousal ()", 118, 5.2),
        ("ASDA arousal|Arousal (ASDA)", 119, 4),
        ("Arousal resulting from respiratory effort|Arousal (ARO RES)", 155, 4),
        ("Unsure|Unsure", 192, 12),
        ("SpO2 desaturation|SpO2 desaturation", 125, 20),
        ("Hypopnea|Hypopnea", 170, None),
        ("Periodic leg movement - left|PLM (Left)", 150, 3),
        ("Arousal resulting from periodic leg movement|Arousal (PLM)", 156, 4),
    ]
    recording = scored(tmp_path, [*STAGES, *found])
    events, left = labels.events(recording)
    assert left == ["1 arousals and respiratory events state no duration, and are left out"]
    assert labels.notes(recording) == left
    assert [(e.start, e.stop, e.name) for e in events] == [
        (100_500, 120_750, "resp_obstructiveapnea"),
        (118_000, 123_200, "arousal"),
        (119_000, 123_000, "arousal"),
        (140_000, 150_000, "resp_hypopnea"),
        (155_000, 159_000, "arousal_rera"),
        (156_000, 160_000, "arousal"),
        (190_000, 200_000, "resp_mixedapnea"),
        (192_000, 204_000, "resp_hypopnea"),
        (205_000, 215_000, "resp_centralapnea"),
    ]
    assert labels.apnea_windows(recording).tolist() == [0, 0, 0, 1, 1, 0, 1, -1, -1, -1]
    apnea = labels.apnea_target(recording)
    assert (apnea[100_500:120_750] == 1).all()
    assert apnea[[100_499, 120_750, 209_999, 210_000]].tolist() == [0, 0, 1, -1]
    arousal = labels.arousal_target(recording)
    wake = np.arange(arousal.size) < 60_000
    marked = np.isin(np.arange(arousal.size) // 1000, [*range(118, 123), *range(155, 160)])
    marked[123_000:123_200] = True
    np.testing.assert_array_equal(arousal[:210_000], np.where(wake, -1, marked)[:210_000])
    assert (arousal[210_000:] == -1).all()
    assert labels.arousal_windows(recording).tolist() == [-1, -1, 0, 1, 1, 1, 0, -1, -1, -1]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Central hypopnea|Central Hypopnea", "resp_hypopnea"),
        ("Obstructive hypopnea|Obstructive Hypopnea", "resp_hypopnea"),
        ("Apnea|APNEA", "resp_apnea"),
        ("Arousal resulting from periodic leg movement|Arousal (PLM)", "arousal"),
        ("Respiratory artifact|Respiratory artifact", None),
        ("Periodic breathing|Periodic Breathing", None),
    ],
)
def test_events_that_are_in_no_list_are_what_a_word_says(tmp_path: Path, text: str, name: str | None) -> None:
    events, _ = labels.events(scored(tmp_path, [*STAGES, (text, 100, 12)]))
    assert [event.name for event in events] == ([] if name is None else [name])
    assert all(event.is_apnea == name.startswith("resp") for event in events if name)


def test_a_namespace_changes_nothing(tmp_path: Path) -> None:
    file = write_xml(tmp_path / "x.xml", STAGES)
    plain = nsrr.read_scoring(file)
    file.write_text(file.read_text().replace("<PSGAnnotation>", '<PSGAnnotation xmlns="http://nowhere/1">'))
    assert nsrr.read_scoring(file) == plain
    assert len(plain.events.texts) == len(STAGES)


def test_annotations_within_the_file_are_left_out_and_told(tmp_path: Path) -> None:
    write_xml(tmp_path / "n-nsrr.xml", STAGES)
    write_night(tmp_path / "n.edf", [edfio.EdfAnnotation(0, 300, "Sleep stage N2")])
    recording = open_recording(tmp_path / "n.edf")
    assert labels.stage_epochs(recording).tolist() == CODES
    assert recording.warnings == ("annotations within it, 1 in all, are left out for those in n-nsrr.xml",)


def test_stages_that_are_not_known_are_told(tmp_path: Path) -> None:
    recording = scored(tmp_path, [*STAGES[:3], ("Stage 7 sleep|7", 120, 30), ("Cheese|Cheese", 150, 30)])
    assert labels.stage_epochs(recording).tolist() == [0, 0, 1, 2, *[-1] * 6]
    (note,) = labels.notes(recording)
    assert note == "1 events look like sleep stages that are not known, and are left out: 'Stage 7 sleep|7' (1)"
    late = scored(tmp_path, [("Wake|0", 900, 30)])
    assert labels.notes(late) == [
        "none of its 1 annotated sleep stages lies within the recording: they are 900 to 930 s after its start, and it "
        "lasts 300 s"
    ]
    none = scored(tmp_path, [("Arousal|Arousal ()", 3, 4)])
    assert "expected texts such as 'Stage 2 sleep|2'" in labels.notes(none)[0]


@pytest.mark.parametrize(
    "event",
    [
        ("Wake|0", None, 30),
        ("Wake|0", "soon", 30),
        ("Wake|0", "nan", 30),
        ("Wake|0", 0, -30),
        ("Wake|0", 0, "inf"),
        ("Wake|0", 1e300, 30),
        (None, 0, 30),
        ("", 0, 30),
    ],
)
def test_events_that_cannot_be_read_are_told(tmp_path: Path, event: Event) -> None:
    recording = scored(tmp_path, [event, *STAGES[1:]])
    assert labels.stage_epochs(recording).tolist() == [-1, -1, *CODES[2:]]
    (warning,) = recording.warnings
    concept, start, duration = ("" if field is None else str(field) for field in event)
    assert warning == (
        "night-nsrr.xml: annotations that cannot be read are left out, 1 in all; the first in "
        f"{concept!r}, from {start!r} for {duration!r}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.xml: not XML that can be read: no element found: line 1, column 0"),
        ("W\nN1\n", "x.xml: not XML that can be read: syntax error: line 1"),
        ("<PSGAnnotation><ScoredEvents>", "x.xml: not XML that can be read: no element found"),
        (
            '<?xml version="1.0" encoding="foo"?><PSGAnnotation/>',
            "x.xml: not XML that can be read: unknown encoding: foo",
        ),
        ('<?xml version="1.0" encoding="shift_jis"?><PSGAnnotation/>', "x.xml: not XML that can be read: multi-byte"),
        ("<html></html>", "expected scoring as the .* has it, <PSGAnnotation>, found <html>: the resource has"),
        ("<CMPStudyConfig/>", "found <CMPStudyConfig>: Profusion's .* in annotations-events-nsrr, as NAME-nsrr"),
    ],
)
def test_files_of_something_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_recording(write_night(tmp_path / "x.edf"), hypnogram=tmp_path / "x.xml")


@pytest.mark.parametrize(
    ("duration_s", "told"),
    [("300.0", False), ("299", False), ("329", False), ("330", True), ("32520", True), ("0", False)],
)
def test_scoring_of_a_recording_of_another_length_is_told(tmp_path: Path, duration_s: str, told: bool) -> None:
    file = write_xml(tmp_path / "night-nsrr.xml", STAGES)
    file.write_text(file.read_text().replace("<Duration>300.0<", f"<Duration>{duration_s}<"))
    recording = open_recording(write_night(tmp_path / "night.edf"))
    note = f"night-nsrr.xml was made of a recording of {duration_s} s, and this one lasts 300 s"
    assert recording.warnings == ((f"{note}; does it belong to another one?",) if told else ())
    assert labels.stage_epochs(recording).tolist() == CODES


def test_entities_do_not_fill_memory(tmp_path: Path) -> None:
    lines = ['<!ENTITY a "aaaaaaaaaaaaaaaa">']
    lines += [f'<!ENTITY {name} "{f"&{of};" * 32}">' for of, name in zip("abcdefg", "bcdefgh", strict=True)]
    text = f"<!DOCTYPE PSGAnnotation [{''.join(lines)}]><PSGAnnotation>&h;</PSGAnnotation>"
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(ValueError, match="not XML that can be read"):
        nsrr.read_scoring(tmp_path / "x.xml")


@given(st.lists(st.tuples(st.floats(0, 290), st.sampled_from([s[0] for s in STAGES])), max_size=8))
def test_events_come_in_time_order(tmp_path_factory: pytest.TempPathFactory, events: list[tuple[float, str]]) -> None:
    path = tmp_path_factory.mktemp("xml") / "x.xml"
    found = nsrr.read_scoring(write_xml(path, [(concept, start, 10) for start, concept in events]))
    assert [text.onset_s for text in found.events.texts] == sorted(start for start, _ in events)
    assert sorted((text.onset_s, text.text) for text in found.events.texts) == sorted(events)
    assert found.events.unreadable == []


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("shhs1-200001", "shhs-200001"),
        ("shhs2-200001", "shhs-200001"),
        ("mros-visit2-aa0001", "mros-aa0001"),
        ("chat-followup-300001", "chat-300001"),
        ("abc-baseline-900001", "abc-900001"),
        ("abc-month09-900001", "abc-900001"),
        ("wsc-visit2-10119-nsrr", "wsc-10119"),
        ("sof-visit-8-00001", "sof-00001"),
        ("pats-812345-followup", "pats-812345"),
        ("mesa-sleep-0001", "mesa-sleep-0001"),
    ],
)
def test_visits_of_one_subject(tmp_path: Path, name: str, subject: str) -> None:
    assert open_recording(write_night(tmp_path / f"{name}.edf")).subject_id == subject


def test_a_dataset_becomes_a_store(tmp_path: Path) -> None:
    """Two visits are one subject's; an oximeter of 1 Hz keeps its samples, one to a patch."""
    base = tmp_path / "polysomnography"
    for name in ("shhs1-200001", "shhs2-200001", "shhs1-200002"):
        write_night(base / "edfs" / name[:5] / f"{name}.edf")
        write_xml(base / "annotations-events-nsrr" / name[:5] / f"{name}-nsrr.xml", STAGES)
    config = PrepareConfig(montage="shhs", unique_subjects=False)
    assert prepare(base / "edfs", tmp_path / "store", config).failed == ()
    store = Store.open(tmp_path / "store")
    assert [record.subject for record in store.records] == ["shhs-200001", "shhs-200002", "shhs-200001"]
    record = store.records[0]
    assert record.stage.tolist() == CODES
    saturation = record.physical(store.montage.index("SaO2"))
    np.testing.assert_allclose(saturation, np.linspace(90, 99, 300), atol=0.02)
    names = ("C4-A1", "C3-A2", "EOG(L)", "EMG", "ECG", "THOR RES", "AIRFLOW", "SaO2")
    assert {n for n, there in zip(store.montage.names, record.valid.any(axis=-1), strict=True) if there} == set(names)
