"""From recordings to a store: numbers equal to the SciPy chain, every drop and failure with its reason."""

import dataclasses
import json
import math
import os
import re
import resource
import shutil
import signal as signals
import subprocess
import sys
import time

import edfio
import numpy as np
import pytest
import wfdb
from scipy import signal

from physiofast import conditioning, workers
from physiofast.config import get_recipe
from physiofast.io import find_records, open_recording
from physiofast.montage import MONTAGES, Channel, Montage, get_montage
from physiofast.preparation import ModalitySettings, PrepareConfig, inspect_recording, prepare, refusals
from physiofast.runs import open_run, start_run
from physiofast.store import Store, read_header
from physiofast.store.manifest import manifest_changes, read_manifest
from physiofast.support.locks import hold_store
from physiofast.windows import WindowReader, index_windows

RATE = 200
SECONDS = 95
UNITS = {"SaO2": ("%", 655.35, -32768), "ECG": ("mV", 1000, 0)}


def make_signals(names, seconds=SECONDS, rate=RATE, seed=0):
    """int16 [n, C]: band-limited noise, breathing and saturation in the Challenge's units."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    columns = []
    for name in names:
        unit, gain, baseline = UNITS.get(name, ("uV", 1, 0))
        if name == "SaO2":
            values = 96 + np.sin(2 * np.pi * t / 40) + 0.05 * rng.normal(size=t.size)
        elif name in ("ABD", "CHEST", "AIRFLOW"):
            values = 900 * np.sin(2 * np.pi * 0.25 * t) + 20 * rng.normal(size=t.size)
        else:
            values = (0.3 if unit == "mV" else 60) * (rng.normal(size=t.size) + np.sin(2 * np.pi * 3 * t)) + 7
        columns.append(np.rint(values * gain + baseline))
    return np.stack(columns, 1).clip(-32768, 32767).astype(np.int16)


def write_wfdb(folder, record, names, digital=None, rate=RATE, seed=0, units=None):
    folder.mkdir(parents=True, exist_ok=True)
    digital = make_signals(names, rate=rate, seed=seed) if digital is None else digital
    settings = [(units or UNITS).get(name, ("uV", 1, 0)) for name in names]
    wfdb.wrsamp(
        record,
        rate,
        [unit for unit, _, _ in settings],
        list(names),
        d_signal=digital.astype(np.int64),
        fmt=["16"] * len(names),
        adc_gain=[gain for _, gain, _ in settings],
        baseline=[baseline for _, _, baseline in settings],
        write_dir=str(folder),
    )
    return digital


def score(folder, record, changes=((6000, "W"), (12000, "N2")), annotator="arousal"):
    wfdb.wrann(
        record,
        annotator,
        np.array([sample for sample, _ in changes]),
        symbol=['"'] * len(changes),
        aux_note=[note for _, note in changes],
        write_dir=str(folder),
    )


def open_wfdb(folder, record):
    return open_recording(folder / f"{record}.hea")


def contents(store):
    """Names of the files that a run leaves behind; the lock beside them says nothing and stays."""
    return sorted(path.name for path in store.iterdir() if path.name != ".prepare.lock")


NAMES = ("C3-M2", "Chin1-Chin2", "ECG", "AIRFLOW", "SaO2", "Snore")


def chain(x, low, high, target, rate=RATE, order=4):
    kind = "lowpass" if low is None else "bandpass"
    sos = signal.butter(order, high if low is None else (low, high), kind, fs=rate, output="sos")
    y = signal.sosfiltfilt(sos, x)
    if rate == target:
        return y
    design = conditioning.design_resampler(rate, target, high)
    return signal.resample_poly(y, design.up, design.down, window=design.taps, padtype="edge")


@pytest.mark.parametrize(
    ("montage", "rates"),
    [
        ("cinc2018", {"C3-M2": 128, "Chin1-Chin2": 128, "ECG": 128, "AIRFLOW": 128, "SaO2": 128}),
        ("cinc2018-100hz", dict.fromkeys(NAMES[:5], 100)),
        ("cinc2018-mixed", {"C3-M2": 128, "Chin1-Chin2": 128, "ECG": 128, "AIRFLOW": 32, "SaO2": 8}),
    ],
)
def test_stored_values_are_the_scipy_chain(tmp_path, montage, rates):
    digital = write_wfdb(tmp_path / "in", "r1", NAMES)
    config = PrepareConfig(montage=montage)
    report = prepare(tmp_path / "in", tmp_path / "out", config)
    assert (report.processed, report.failed, report.hours) == (("r1",), (), pytest.approx(SECONDS / 3600))
    store = Store.open(tmp_path / "out")
    record = store.records[0]
    assert (record.num_windows, record.num_patches) == (3, SECONDS)
    for column, name in enumerate(NAMES[:5]):
        unit, gain, baseline = UNITS.get(name, ("uV", 1, 0))
        c = store.montage.index(name)
        modality = store.montage.channels[c].modality
        settings = config.settings(modality)
        high = min(settings.high_hz, 15 / 32 * rates[name])
        expected = chain((digital[:, column] - float(baseline)) / gain, settings.low_hz, high, rates[name])
        expected = expected[: SECONDS * rates[name]]
        assert record.plane_length[c] == SECONDS * rates[name]
        assert record.valid[c].all()
        lsb = record.unit_scale[c]
        doublings = np.log2(lsb * gain * 8)
        assert doublings == pytest.approx(round(doublings), abs=1e-5) and round(doublings) >= 0
        got = record.plane(c) * np.float64(lsb) + np.float64(record.unit_shift[c])
        assert np.abs(got - expected).max() <= 0.5001 * lsb + 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(record.physical(c), expected, atol=0.51 * lsb + 1e-5 * np.abs(expected).max())
        z = record.plane(c) * record.scale[c] + record.shift[c]
        low_q, median, high_q = np.quantile(z, (0.25, 0.5, 0.75))
        assert median == pytest.approx(0, abs=1e-3)
        assert high_q - low_q == pytest.approx(1.349, rel=1e-3)
        assert record.units[c] == unit
    absent = [c for c, name in enumerate(store.montage.names) if name not in NAMES]
    assert (record.plane_start[absent] == -1).all() and not record.valid[absent].any()
    assert (record.scale[absent] == 0).all()


def test_the_raw_step_over_eight_where_it_fits(tmp_path):
    write_wfdb(tmp_path / "in", "r1", ("C3-M2", "SaO2"))
    prepare(tmp_path / "in", tmp_path / "out")
    store = Store.open(tmp_path / "out")
    assert store.records[0].unit_scale[store.montage.index("C3-M2")] == 0.125
    assert store.records[0].unit_scale[store.montage.index("SaO2")] == pytest.approx(1 / 655.35 / 8)


def test_millivolts_become_microvolts(tmp_path):
    digital = write_wfdb(tmp_path / "in", "r1", ("C3-M2",))
    write_wfdb(tmp_path / "in", "r2", ("C3-M2",), digital, units={"C3-M2": ("mV", 1000, 0)})
    prepare(tmp_path / "in", tmp_path / "out")
    one, two = Store.open(tmp_path / "out").records
    np.testing.assert_array_equal(one.samples, two.samples)
    assert one.units[2] == two.units[2] == "uV"
    np.testing.assert_allclose(one.unit_scale, two.unit_scale, rtol=1e-6)


def test_the_notch(tmp_path):
    t = np.arange(SECONDS * RATE) / RATE
    rng = np.random.default_rng(0)
    x = np.rint(50 * rng.normal(size=t.size) + 400 * np.sin(2 * np.pi * 30 * t)).astype(np.int16)
    write_wfdb(tmp_path / "in", "r1", ("C3-M2",), x[:, None])
    for name, notch_hz in (("with", 30.0), ("without", None)):
        prepare(tmp_path / "in", tmp_path / name, PrepareConfig(notch_hz=notch_hz))
    power = {}
    for name in ("with", "without"):
        y = Store.open(tmp_path / name).records[0].physical(2)[1280:-1280]
        hz, density = signal.periodogram(y, 128)
        power[name] = density[np.abs(hz - 30) < 0.05].sum()
    assert power["with"] < 1e-3 * power["without"]


def test_invalid_samples_mark_their_neighbourhood_only(tmp_path):
    clean = make_signals(("C3-M2",))
    broken = clean.copy()
    broken[20 * RATE + 50 : 20 * RATE + 90] = -32768  # missing
    broken[40 * RATE + 50 : 40 * RATE + 60] = 32767  # clipped
    broken[60 * RATE : 62 * RATE] = 5  # flat
    write_wfdb(tmp_path / "in", "clean", ("C3-M2",), clean)
    write_wfdb(tmp_path / "in", "broken", ("C3-M2",), broken)
    prepare(tmp_path / "in", tmp_path / "out")
    records = {record.record: record for record in Store.open(tmp_path / "out").records}
    invalid = np.flatnonzero(~records["broken"].valid[2]).tolist()
    assert invalid == [20, 40, 59, 60, 61, 62]  # what is bridged reaches some hundredths of a second beside it
    good = np.repeat(records["broken"].valid[2], 128)
    error = np.abs(records["broken"].physical(2) - records["clean"].physical(2))
    far = np.convolve(~good, np.ones(257), "same") < 0.5
    assert error[far].max() < 3.0
    assert np.median(error[good]) <= 0.125
    assert records["broken"].unit_scale[2] == 0.125
    found = inspect_recording(open_wfdb(tmp_path / "in", "broken"), PrepareConfig()).channels[2]
    assert found.missing_share == pytest.approx(40 / (SECONDS * RATE))
    assert found.clipped_share == pytest.approx(10 / (SECONDS * RATE))
    assert found.flat_share == pytest.approx(2 / SECONDS)
    assert found.valid_share == pytest.approx(1 - 6 / SECONDS)


def test_saturation_and_pauses_of_breath_are_no_faults(tmp_path):
    digital = make_signals(("AIRFLOW", "SaO2"))
    digital[10 * RATE : 35 * RATE, 0] = 3
    digital[: 60 * RATE, 1] = 32767  # 100 %
    write_wfdb(tmp_path / "in", "r1", ("AIRFLOW", "SaO2"), digital)
    prepare(tmp_path / "in", tmp_path / "out")
    store = Store.open(tmp_path / "out")
    assert store.records[0].valid[store.montage.index("AIRFLOW")].all()
    assert store.records[0].valid[store.montage.index("SaO2")].all()


def test_inspection_says_what_is_dropped_and_prepare_agrees(tmp_path):
    names = ("F3-M2", "C3-M2", "Chin1-Chin2", "SaO2", "ECG", "Snore")
    digital = make_signals(names)
    digital[:, 0] = -4
    digital[: 93 * RATE, 2] = 1
    digital[:, 3] = 30000
    digital[:, 4] = -32768
    write_wfdb(tmp_path / "in", "r1", names, digital)
    found = inspect_recording(open_wfdb(tmp_path / "in", "r1"), PrepareConfig())
    assert found.drops["F3-M2"] == "constant: every sample has the raw value -4"
    assert found.drops["SaO2"] == "constant: every sample has the raw value 30000"
    assert found.drops["ECG"] == "no sample: all of them are missing"
    assert found.drops["Chin1-Chin2"].startswith("1.1% of its patches are valid, fewer than 5.0% (flat 97.9%")
    assert found.drops["F4-M1"].startswith("absent")
    assert "C3-M2" not in found.drops and not found.errors
    assert found.ignored == (("Snore", 200.0, "uV"),)
    assert (found.windows, found.hours) == (3, pytest.approx(SECONDS / 3600))
    assert json.loads(json.dumps(found.to_dict()))["drops"] == found.drops
    prepare(tmp_path / "in", tmp_path / "out")
    assert Store.open(tmp_path / "out").records[0].drops == found.drops
    assert read_manifest(tmp_path / "out")["records"][0]["drops"] == found.drops


def test_a_native_rate_that_is_too_low_is_never_raised(tmp_path):
    write_wfdb(tmp_path / "in", "r1", ("C3-M2", "AIRFLOW"), rate=100)
    report = prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(montage="cinc2018"))
    assert report.failed[0][0] == "r1"
    reason = (
        "native rate 100 Hz is too low for EEG at 128 Hz (band up to 35 Hz); it is never upsampled: use a montage with "
        "EEG at 100 Hz or less: another --montage, or your own from Python, PrepareConfig(montage=...)"
    )
    assert f"C3-M2: {reason}" in report.failed[0][1]
    assert "no channel is left" in report.failed[0][1]
    assert "--montage: cinc2018, cinc2018-100hz, cinc2018-mixed, sleep-edfx" in report.failed[0][1]
    mixed = prepare(tmp_path / "in", tmp_path / "out2", PrepareConfig(montage="cinc2018-mixed"))
    assert mixed.processed == ("r1",)
    record = Store.open(tmp_path / "out2").records[0]
    assert record.drops["C3-M2"] == reason
    assert record.plane_length.max() == 32 * SECONDS
    same_rate = prepare(tmp_path / "in", tmp_path / "out3", PrepareConfig(montage="cinc2018-100hz"))
    assert same_rate.failed == ()


def test_a_rate_that_is_hardly_too_low_is_told_from_the_montages(tmp_path):
    write_wfdb(tmp_path, "r1", ("C3-M2",), rate=127.99987)
    drops = inspect_recording(open_wfdb(tmp_path, "r1"), PrepareConfig()).drops
    assert drops["C3-M2"].startswith("native rate 127.9999 Hz is too low for EEG at 128 Hz (band up to 35 Hz)")


def test_a_channel_of_unknown_unit_is_dropped(tmp_path):
    write_wfdb(tmp_path / "a", "r1", ("C3-M2", "ECG"), units={"C3-M2": ("mVult", 1, 0), "ECG": ("mV", 1000, 0)})
    edf = tmp_path / "a" / "r2.edf"
    write_edf(edf, ("Sleep stage W",), units={"C3-M2": "uV", "C4-M1": ""})
    assert prepare(tmp_path / "a", tmp_path / "out", PrepareConfig(labels="optional")).processed == ("r1", "r2")
    one, two = (record.drops for record in Store.open(tmp_path / "out").records)
    assert "ECG" not in one and "C3-M2" not in two
    cure = "; set its unit in the file's header"
    assert one["C3-M2"] == f"unit 'mVult' is not known for EEG; did you mean 'mV'? Allowed: nV, uV, mV, V{cure}"
    assert two["C4-M1"] == f"unit '' is not known for EEG. Allowed: nV, uV, mV, V{cure}"
    assert inspect_recording(open_wfdb(tmp_path / "a", "r1"), PrepareConfig()).drops == one
    config = PrepareConfig(labels="optional", required=("C4-M1",))
    assert (
        f"required channel 'C4-M1' is dropped: {two['C4-M1']}"
        in dict(prepare(edf, tmp_path / "o2", config).failed)["r2"]
    )


def test_unknown_units_of_all_and_required_channels_refuse_the_record(tmp_path):
    write_wfdb(tmp_path / "a", "r1", ("C3-M2",), units={"C3-M2": ("mVult", 1, 0)})
    report = prepare(tmp_path / "a", tmp_path / "out")
    assert "no channel is left (C3-M2: unit 'mVult' is not known for EEG; did you mean 'mV'?" in report.failed[0][1]
    write_wfdb(tmp_path / "b", "r1", ("C3-M2", "C4-A9"))
    config = PrepareConfig(required=("C3-M2", "C4-M1"))
    found = inspect_recording(open_wfdb(tmp_path / "b", "r1"), config)
    assert found.errors == ("required channel 'C4-M1' is absent; did you mean 'C4-A9'? Allowed: C3-M2, C4-A9",)
    assert found.errors[0] in prepare(tmp_path / "b", tmp_path / "out", config).failed[0][1]


def test_only_some_channels(tmp_path):
    write_wfdb(tmp_path / "in", "r1", NAMES)
    prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(channels=("ECG", "C3-A2")))
    store = Store.open(tmp_path / "out")
    assert store.montage.names == ("C3-M2", "ECG")
    assert store.records[0].plane_start.tolist() == [0, 12160]


def own_montage(**settings):
    channels = (Channel(name="Vertex", modality="EEG", aliases=("C3-M2",)), Channel(name="ECG", modality="ECG"))
    return Montage(**({"channels": channels, "rate_hz": {"EEG": 64.0, "ECG": 100.0}} | settings))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_montage_of_ones_own(tmp_path, workers):
    source, out, run = tmp_path / "in", tmp_path / "out", tmp_path / "run"
    digital = {record: write_wfdb(source, record, ("C3-M2", "ECG"), seed=ord(record)) for record in "abc"}
    config = PrepareConfig(montage=own_montage(), required=("Vertex",))
    assert prepare(source, out, config, workers=workers).processed == ("a", "b", "c")
    store = Store.open(out)
    assert store.montage == own_montage()
    assert store.config == read_manifest(out)["config"] == json.loads(json.dumps(config.to_dict()))
    for record in store.records:
        expected = chain(digital[record.record][:, 0], 0.3, 15 / 32 * 64, 64)[: SECONDS * 64]
        np.testing.assert_allclose(record.physical(0), expected, atol=0.51 * record.unit_scale[0] + 1e-3)
    start_run(run, store, get_recipe("demo"), "demo")
    assert prepare(source, out, config).skipped == ("a", "b", "c")
    assert open_run(run).store.montage == own_montage()
    other = PrepareConfig(montage=own_montage(rate_hz={"EEG": 64.0, "ECG": 64.0}))
    with pytest.raises(ValueError, match=r"out is a store that was prepared with other settings \(montage\), on which"):
        prepare(source, out, other)
    assert prepare(source, out, other, replace=True).processed == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"is not what it was when .* \(the montage; how it was prepared\), so"):
        open_run(run)


def test_labels_and_manifest(tmp_path):
    source = tmp_path / "in"
    for record in ("tr03-0005", "tr04-0001"):
        write_wfdb(source / record, record, ("C3-M2",), seed=int(record[-1]))
        score(source / record, record)
    (source / "age-sex.csv").write_text("Record,Age,Sex\ntr03-0005,61,m\ntr04-0001,38,F\n")
    (source / "RECORDS").write_text("tr03-0005/\ntr04-0001/\n")
    prepare(source, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert [entry["record"] for entry in manifest["records"]] == ["tr03-0005", "tr04-0001"]
    first = manifest["records"][0]
    assert (first["subject"], first["age_years"], first["sex"]) == ("tr03-0005", 61.0, "M")
    assert (first["windows"], first["patches"], first["file"]) == (3, SECONDS, "tr03-0005.safetensors")
    assert manifest["config"] == PrepareConfig().to_dict()
    assert manifest["failed"] == []
    record = Store.open(tmp_path / "out").records[0]
    assert record.stage.tolist() == [-1, 0, 2]
    assert record.arousal.shape == record.apnea.shape == (3,)
    assert record.apnea.tolist() == [-1, 0, 0]
    files = {entry["file"] for entry in record.provenance["sources"]}
    assert files >= {"tr03-0005.hea", "tr03-0005.dat", "tr03-0005.arousal"}
    assert all(len(entry["sha256"]) == 64 for entry in record.provenance["sources"])
    found = inspect_recording(open_wfdb(source / "tr03-0005", "tr03-0005"), PrepareConfig())
    assert found.stage_hours["W"] == pytest.approx(30 / 3600)
    assert found.stage_hours["unscored"] == pytest.approx(30 / 3600)


def test_a_missing_annotation_file_where_others_have_theirs(tmp_path):
    source = tmp_path / "in"
    for record in ("a", "b"):
        write_wfdb(source, record, ("C3-M2",))
    score(source, "a")
    report = prepare(source, tmp_path / "out")
    assert report.processed == ("a",)
    assert report.failed[0][0] == "b"
    assert "b.hea: no sleep stages (no annotation file: looked for b.arousal" in report.failed[0][1]
    assert refusals(find_records(source), PrepareConfig()) == [None, report.failed[0][1]]
    relaxed = prepare(source, tmp_path / "out", PrepareConfig(labels="optional"))
    assert relaxed.processed == ("a", "b")
    strict = PrepareConfig(labels="required")
    assert "no sleep stages" in inspect_recording(open_wfdb(source, "b"), strict).errors[0]
    reason = prepare(source / "b.hea", tmp_path / "alone", strict).failed[0][1]
    assert "no sleep stages" in reason and "--labels optional" in reason


EVENTS = ((6000, "(resp_hypopnea"), (8000, "resp_hypopnea)"))
UNKNOWN = ((6000, "Czuwanie"), (12000, "Leichtschlaf"))


@pytest.mark.parametrize(
    ("changes", "annotator", "said"),
    [
        (EVENTS, "arousal", "none of its 2 annotations is a sleep stage; found '(resp_hypopnea' (1), "),
        (UNKNOWN, "arousal", "2 annotations are neither events, such as '(resp_hypopnea', nor sleep stages that are "),
        (EVENTS, "st", "none of its 2 annotations is a sleep stage; found '(resp_hypopnea' (1), "),
        (((6000, "W"), (12000, "N2")), "atr", "2 of the annotations in b.atr are sleep stages ('W' (1), 'N2' (1)), "),
    ],
)
def test_annotations_without_stages_are_said_and_refused_where_others_have_some(tmp_path, changes, annotator, said):
    source = tmp_path / "in"
    write_wfdb(source, "b", ("C3-M2",))
    score(source, "b", changes, annotator)
    report = prepare(source, tmp_path / "alone")
    assert report.processed == ("b",)
    ((record, note),) = report.notes
    assert (record, note[: len(said)]) == ("b", said)
    assert Store.open(tmp_path / "alone").records[0].stage.tolist() == [-1, -1, -1]
    reason = prepare(source, tmp_path / "none", PrepareConfig(labels="required")).failed[0][1]
    assert reason == f"{source / 'b.hea'}: no sleep stages ({note}); `--labels optional` takes it unscored"
    write_wfdb(source, "a", ("C3-M2",))
    score(source, "a")
    report = prepare(source, tmp_path / "out")
    assert report.processed == ("a",)
    assert f"b.hea: no sleep stages ({note}), while other .hea records of the source have them" in report.failed[0][1]
    assert prepare(source, tmp_path / "out", PrepareConfig(labels="optional")).processed == ("a", "b")


def test_scoring_off_the_grid_is_said(tmp_path):
    for record, late in (("on", 0), ("off", 3000)):
        write_wfdb(tmp_path / "in", record, ("C3-M2",), seed=late)
        score(tmp_path / "in", record, ((late, "W"), (6000 + late, "N2")))
    found = inspect_recording(open_wfdb(tmp_path / "in", "off"), PrepareConfig())
    assert found.warnings[0].startswith("stages do not change on the grid of 30 s windows: they begin 15 s after")
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert report.notes == (("off", found.warnings[0]),)
    assert prepare(tmp_path / "in", tmp_path / "out").notes == report.notes
    assert read_manifest(tmp_path / "out")["records"][0]["warnings"] == [found.warnings[0]]


def write_edf(path, texts, rate=200, units=(("C3-M2", "uV"),)):
    values = make_signals(("C3-M2",)).ravel() / 3
    edfio.Edf(
        [edfio.EdfSignal(values, rate, label=name, physical_dimension=unit) for name, unit in dict(units).items()],
        annotations=[edfio.EdfAnnotation(30 * k, 30, text) for k, text in enumerate(texts)],
    ).write(path)


def test_annotations_that_are_no_stages_are_shown(tmp_path):
    (tmp_path / "in").mkdir()
    write_edf(tmp_path / "in" / "a.edf", ("Faza 2", "Faza 2", "Czuwanie"))
    report = prepare(tmp_path / "in", tmp_path / "out")
    note = "none of its 3 annotations is a sleep stage; found 'Faza 2' (2), 'Czuwanie' (1); expected texts such as "
    assert report.processed == ("a",) and report.notes[0][1].startswith(note)
    strict = prepare(tmp_path / "in", tmp_path / "strict", PrepareConfig(labels="required"))
    assert f"no sleep stages ({note}'Sleep stage N2'" in strict.failed[0][1]
    write_edf(tmp_path / "in" / "b.edf", ("N1", "N2", "W"))
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert report.processed == ("b",)
    assert f"a.edf: no sleep stages ({note}" in report.failed[0][1]
    assert Store.open(tmp_path / "out").records[0].stage.tolist() == [1, 2, 0]


def test_a_missing_signal_file_is_the_reason_whatever_else_is_missing(tmp_path):
    for record in ("a", "b", "c"):
        write_wfdb(tmp_path / "in", record, ("C3-M2",))
    score(tmp_path / "in", "a")
    wfdb.wrann("c", "atr", np.array([5]), symbol=["N"], write_dir=str(tmp_path / "in"))
    (tmp_path / "in" / "b.dat").unlink()
    reasons = dict(prepare(tmp_path / "in", tmp_path / "out").failed)
    assert re.fullmatch(r".*b\.dat: no such signal file, which .*b\.hea names", reasons["b"])
    assert "c.hea: no sleep stages (its .atr annotations hold none), while" in reasons["c"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_run_and_names_the_file(tmp_path, workers):
    source, out = tmp_path / "in", tmp_path / "out"
    write_wfdb(source, "a", ("C3-M2",))
    write_wfdb(source, "b", NAMES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"b\.safetensors: \d+ bytes cannot be written: File too large; make room or allow"
        ):
            prepare(source, out, workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    report = prepare(source, out)
    assert report.failed == () and "b" in report.processed
    assert contents(out) == ["a.safetensors", "b.safetensors", "manifest.json"]


def test_a_path_that_cannot_be_a_store(tmp_path):
    write_wfdb(tmp_path / "in", "a", ("C3-M2",))
    (tmp_path / "afile").write_text("")
    with pytest.raises(OSError, match="afile: the store needs a folder, .*: it is a file; choose another path"):
        prepare(tmp_path / "in", tmp_path / "afile")
    with pytest.raises(OSError, match="below: the store needs a folder, .*: Not a directory; choose another path"):
        prepare(tmp_path / "in", tmp_path / "afile" / "below")
    with pytest.raises(OSError, match="/proc/st: the store needs a folder, .*; choose another path for the store"):
        prepare(tmp_path / "in", "/proc/st")


def test_a_name_that_is_too_long_for_a_file_fails_alone(tmp_path):
    """`.edf` makes `.safetensors`; that of 240 letters fits."""
    (tmp_path / "in").mkdir()
    for letters in (3, 240, 250):
        write_edf(tmp_path / "in" / f"{'x' * letters}.edf", ("N1", "N2", "W"))
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert set(report.processed) == {"x" * 240, "x" * 3}
    ((failed, reason),) = report.failed
    assert failed == "x" * 250 and "File name too long" in reason


def test_a_name_that_is_no_text_trains_as_others_do(tmp_path):
    name = os.fsdecode(b"b\xffd")
    (tmp_path / "in").mkdir()
    write_edf(tmp_path / "in" / "a.edf", ("N1", "N2", "W"))
    (tmp_path / "in" / "a.edf").rename(tmp_path / "in" / f"{name}.edf")
    write_edf(tmp_path / "in" / "a.edf", ("N1", "N2", "W"))
    prepare(tmp_path / "in", tmp_path / "out")
    store = Store.open(tmp_path / "out")
    assert {record.subject for record in store.records} == {"a", name} and len(index_windows(store)) > 0
    start_run(tmp_path / "run", store, get_recipe("demo"), "demo")
    assert {record.subject for record in open_run(tmp_path / "run").store.records} == {"a", name}


def test_bad_records_are_listed_and_the_others_go_on(tmp_path):
    source = tmp_path / "in"
    for record in ("good", "cut", "damaged", "gone", "header", "nogain", "short"):
        write_wfdb(
            source,
            record,
            ("C3-M2", "ECG"),
            make_signals(("C3-M2", "ECG"), 20) if record == "short" else None,
        )
    cut = source / "cut.dat"
    cut.write_bytes(cut.read_bytes()[:-1000])
    damaged = bytearray((source / "damaged.dat").read_bytes())
    damaged[4000] ^= 0x55
    (source / "damaged.dat").write_bytes(damaged)
    (source / "gone.dat").unlink()
    (source / "header.hea").write_text("header 2 200\n")
    text = (source / "nogain.hea").read_text()
    (source / "nogain.hea").write_text(re.sub(r" [\d.]+\(0\)/uV", " 1e31(0)/uV", text))
    seen = []
    report = prepare(source, tmp_path / "out", progress=seen.append)
    assert report.processed == ("good",)
    reasons = dict(report.failed)
    assert set(reasons) == {"cut", "damaged", "gone", "header", "nogain", "short"}
    for record, words in {
        "cut": "cut.dat: byte 75000: expected 76000 bytes",
        "damaged": "damaged.dat: byte 0: expected samples with the checksum ",
        "gone": "no such signal file",
        "header": "signal lines",
        "nogain": "gain",
        "short": "it lasts 20 s, less than one window of 30 s",
    }.items():
        assert words in reasons[record], reasons[record]
        assert record in reasons[record]
    assert [p.done for p in seen] == list(range(1, 8)) and {p.total for p in seen} == {7}
    assert {p.record: p.status for p in seen}["good"] == "processed"
    store = Store.open(tmp_path / "out")
    assert [record.record for record in store.records] == ["good"]
    assert dict(store.failed) == reasons
    assert contents(tmp_path / "out") == ["good.safetensors", "manifest.json"]


def test_a_subject_that_occurs_twice(tmp_path):
    for record in ("SC4001E0-PSG", "SC4002E0-PSG"):
        write_wfdb(tmp_path / "in", record, ("C3-M2",))
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert report.processed == ("SC4001E0-PSG",)
    record, reason = report.failed[0]
    assert record == "SC4002E0-PSG"
    assert "SC4002E0-PSG.hea: subject SC400 is already in" in reason and "SC4001E0-PSG.hea" in reason
    assert "several nights of one person, take them all with --no-unique-subjects" in reason
    nights = prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(unique_subjects=False))
    assert nights.failed == ()
    assert [record.subject for record in Store.open(tmp_path / "out").records] == ["SC400", "SC400"]


def test_a_record_that_occurs_twice(tmp_path):
    for folder in ("x", "y"):
        write_wfdb(tmp_path / "in" / folder, "r1", ("C3-M2",))
    report = prepare(tmp_path / "in", tmp_path / "out")
    assert report.processed == ("r1",)
    assert "r1 was already found as" in dict(report.failed)["r1"]
    assert len(Store.open(tmp_path / "out").records) == 1


def test_another_cohort_in_a_store_is_refused(tmp_path):
    for folder, records in (("a", "pq"), ("b", "q"), ("c", "uvwxyz")):
        for seed, record in enumerate(records):
            write_wfdb(tmp_path / folder, record, ("C3-M2",), seed=seed)
    out = tmp_path / "out"
    prepare(tmp_path / "a", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="records that are not in this source: p; choose another .* --replace"):
        prepare(tmp_path / "b", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    replaced = prepare(tmp_path / "b", out, replace=True)
    assert (replaced.processed, replaced.unlisted) == (("q",), ("p",))
    assert [record.record for record in Store.open(out).records] == ["q"]
    assert prepare(tmp_path / "a", out).processed == ("q",)  # p is there already, q was another recording
    prepare(find_records(tmp_path / "c"), tmp_path / "many")
    with pytest.raises(ValueError, match=r"not in this source: u, v, w, x, y and 1 more; choose"):
        prepare(tmp_path / "a", tmp_path / "many")
    (out / "manifest.json").write_text("half a man")
    with pytest.raises(ValueError, match="is not JSON .* write the manifest anew with --replace"):
        prepare(tmp_path / "a", out)
    assert prepare(tmp_path / "a", out, replace=True).skipped == ("p", "q")
    with pytest.raises(ValueError, match="no record to prepare"):
        prepare([], out)


def test_an_empty_folder_and_a_missing_one(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no record in this folder"):
        prepare(tmp_path / "in", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such record or folder"):
        prepare(tmp_path / "inn", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="workers must be 1 or more; found 0"):
        prepare(tmp_path / "in", tmp_path / "out", workers=0)


def test_resuming_redoes_what_changed_and_nothing_else(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for seed, record in enumerate(("a", "b", "c")):
        write_wfdb(source, record, ("C3-M2",), seed=seed)
    assert prepare(source, out).processed == ("a", "b", "c")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    again = prepare(source, out)
    assert (again.processed, again.skipped) == ((), ("a", "b", "c"))
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")} == before
    write_wfdb(source, "b", ("C3-M2",), seed=9)
    (out / "c.safetensors").write_bytes(b"half")
    (out / ".c.safetensors.123.part").write_bytes(b"left by a killed run")
    (out / "z.safetensors").write_bytes(b"of another source")
    resumed = prepare(source, out)
    assert (resumed.processed, resumed.skipped, resumed.unlisted) == (("b", "c"), ("a",), ("z",))
    assert (out / "a.safetensors").stat().st_mtime_ns == before["a.safetensors"]
    assert [path.name for path in out.glob(".*")] == [".prepare.lock"]
    other = PrepareConfig(notch_hz=50.0, min_valid_share=0.1)
    with pytest.raises(ValueError, match=r"settings \(notch_hz, min_valid_share\), .* make all .* anew with --replace"):
        prepare(source, out, other)
    assert prepare(source, out).skipped == ("a", "b", "c")
    assert prepare(source, out, other, replace=True).processed == ("a", "b", "c")
    assert len(Store.open(out).records) == 3
    which = PrepareConfig(notch_hz=50.0, min_valid_share=0.1, labels="optional")  # which records, not what is in them
    assert len(prepare(source, out, which).failed) == 0


@pytest.mark.parametrize("other", [{"montage": "cinc2018-100hz"}, {"notch_hz": 60.0}])
def test_a_store_that_is_half_prepared_anew_is_refused(tmp_path, other):
    """The manifest is of the run before; of the records some are, others not."""
    source, out = tmp_path / "in", tmp_path / "out"
    for seed, record in enumerate(("a", "b", "c")):
        write_wfdb(source, record, ("C3-M2",), seed=seed)
    prepare(source, out)

    def stop(done):
        if done.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, PrepareConfig(**other), replace=True, progress=stop)
    store = Store.open(out)
    with pytest.raises(
        ValueError, match=r"a\.safetensors: prepared otherwise than the store's manifest.json says.*again"
    ):
        WindowReader(store)
    assert len(store.records[2].samples) > 0
    assert prepare(source, out, PrepareConfig(**other), replace=True).skipped == ("a", "b")
    WindowReader(Store.open(out))


def test_one_process_prepares_into_a_store(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_wfdb(source, "a", ("C3-M2",))
    out.mkdir()
    with (
        hold_store(out),
        pytest.raises(ValueError, match=r"out is being prepared by process \d+ on .*; wait until it ends"),
    ):
        prepare(source, out)
    assert not list(out.glob("*.safetensors"))
    assert prepare(source, out).processed == ("a",)


def test_what_is_read_otherwise_today_is_done_again(tmp_path, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "out"
    for seed, record in enumerate(("a", "b")):
        write_wfdb(source, record, ("C3-M2", "ECG"), seed=seed)
    score(source, "a")
    config = PrepareConfig(labels="optional")
    with monkeypatch.context() as patch:  # an earlier state, which did not know these stages
        patch.setattr("physiofast.labels.stage_epochs", lambda *_: np.full(3, -1, np.int8))
        assert prepare(source, out, config).processed == ("a", "b")
    assert prepare(source, out, config).processed == ("a",)
    assert Store.open(out).records[0].stage.tolist() == [-1, 0, 2]
    without_alias = Channel(name="Vertex", modality="EEG"), Channel(name="ECG", modality="ECG")
    for definition in (own_montage(channels=without_alias), own_montage()):
        monkeypatch.setitem(MONTAGES, "mine", definition)
        config = PrepareConfig(montage="mine", labels="optional")
        assert prepare(source, tmp_path / "mine", config).processed == ("a", "b")
        assert prepare(source, tmp_path / "mine", config).skipped == ("a", "b")
    assert Store.open(tmp_path / "mine").records[0].drops == {}


def test_a_store_that_is_prepared_again_keeps_its_runs(tmp_path):
    source, out, run = tmp_path / "in", tmp_path / "out", tmp_path / "run"
    for seed, record in enumerate(("a", "b", "c")):
        write_wfdb(source, record, ("C3-M2", "ECG"), seed=seed)
        score(source, record)
    prepare(source, out)
    before = (out / "manifest.json").read_bytes()
    start_run(run, Store.open(out), get_recipe("demo"), "demo")
    assert prepare(source, out).skipped == ("a", "b", "c")
    assert (out / "manifest.json").read_bytes() == before
    manifest = read_manifest(out)
    manifest["failed"] = [{"record": "d", "path": "/elsewhere/d.hea", "reason": "another day's words"}]
    (out / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))
    assert open_run(run).store.records[0].record == "a"


def scored_otherwise(source):
    score(source, "b", ((6000, "W"), (12000, "N3")))


def recorded_otherwise(source):
    write_wfdb(source, "b", ("C3-M2", "ECG"), seed=9)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (scored_otherwise, r"\(b: labels_sha256, sources\)"),
        (recorded_otherwise, r"\(b: sources\)"),
        (lambda source: (source / "b.hea").unlink(), r"\(b is gone\)"),
    ],
)
def test_a_store_that_changed_under_a_run_is_noticed(tmp_path, change, found):
    source, out, run = tmp_path / "in", tmp_path / "out", tmp_path / "run"
    for seed, record in enumerate(("a", "b", "c")):
        write_wfdb(source, record, ("C3-M2", "ECG"), seed=seed)
        score(source, record)
    prepare(source, out)
    start_run(run, Store.open(out), get_recipe("demo"), "demo")
    change(source)
    prepare(source, out, replace=True)
    with pytest.raises(
        ValueError, match=f"is not what it was when .*run was started {found}, .* start a new run with --out"
    ):
        open_run(run)


def test_changes_of_a_manifest_are_named():
    entry = {"subject": "s", "warnings": ["as it was"], "sources": []}
    before = {
        "montage": {},
        "config": {},
        "physiofast": "1",
        "records": [entry | {"record": f"r{i}"} for i in range(9)],
    }
    assert manifest_changes(before, before | {"failed": [1]}) == ""
    assert manifest_changes(before, before | {"montage": {"channels": []}}) == "the montage"
    assert manifest_changes(before, before | {"records": before["records"][::-1]}) == "the order of records"
    again = [entry | {"record": f"r{i}", "subject": "t", "warnings": []} for i in range(1, 10)]
    assert manifest_changes(before, before | {"records": again}) == (
        "r0 is gone; r1: subject; r2: subject; r3: subject; r4: subject, and 5 more"
    )


def test_the_number_of_workers_changes_no_bit(tmp_path):
    source = tmp_path / "in"
    for seed, record in enumerate(("a", "b", "c")):
        write_wfdb(source, record, NAMES, seed=seed)
    (source / "b.dat").write_bytes(b"")
    one = prepare(source, tmp_path / "one")
    two = prepare(source, tmp_path / "two", workers=2)
    assert (one.processed, one.failed) == (two.processed, two.failed)
    files = contents(tmp_path / "one")
    assert files == ["a.safetensors", "c.safetensors", "manifest.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def pools_asked_for(monkeypatch):
    """How many workers each pool that is made from now on has."""
    asked, plain = [], workers.worker_pool

    def pool(count):
        asked.append(count)
        return plain(count)

    monkeypatch.setattr(workers, "worker_pool", pool)
    return asked


def test_no_more_workers_than_records(tmp_path, monkeypatch):
    asked = pools_asked_for(monkeypatch)
    for seed, record in enumerate(("a", "b")):
        write_wfdb(tmp_path / "in", record, ("C3-M2",), seed=seed)
    assert prepare(tmp_path / "in", tmp_path / "out", workers=5).processed == ("a", "b")
    assert asked == [2]


@pytest.mark.parametrize("damage", ["a key", "no object"])
def test_a_record_with_a_damaged_header_is_made_anew(tmp_path, damage):
    source, out = tmp_path / "in", tmp_path / "out"
    write_wfdb(source, "a", ("C3-M2", "ECG"))
    prepare(source, out)
    file = out / "a.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].replace(b"data_offsets", b"dataoffsets_", 1)
    if damage == "no object":
        header = b"[1]".ljust(length)
    file.write_bytes(whole[:8] + header + whole[8 + length :])
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        read_header(file)
    assert prepare(source, out).processed == ("a",)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(("name", "value"), [("plane_start", 64), ("scale", 0.0)])
def test_a_record_with_a_damaged_number_is_made_anew(tmp_path, name, value):
    source, out = tmp_path / "in", tmp_path / "out"
    write_wfdb(source, "a", ("C3-M2", "ECG"))
    prepare(source, out)
    whole, record = (out / "a.safetensors").read_bytes(), Store.open(out).records[0]
    dtype, shape, begin = read_header(record.path)[0][name]
    values = np.memmap(record.path, dtype, "r+", begin, tuple(shape))
    values[np.flatnonzero(record.plane_start >= 0)[0]] = value
    values.flush()
    with pytest.raises(ValueError, match=r"a\.safetensors: .*; the file is damaged: run physiofast prepare again"):
        WindowReader(Store.open(out))
    assert prepare(source, out).processed == ("a",)
    assert (out / "a.safetensors").read_bytes() == whole


@pytest.mark.parametrize("key", ["warnings", "drop", "patches", "sources"])
def test_a_record_whose_header_lacks_what_the_manifest_lists_is_made_anew(tmp_path, key):
    source, out = tmp_path / "in", tmp_path / "out"
    write_wfdb(source, "a", ("C3-M2", "ECG"))
    prepare(source, out)
    whole, manifest = (out / "a.safetensors").read_bytes(), (out / "manifest.json").read_bytes()
    named, renamed = (f'\\"{name}\\"'.encode() for name in (key, key[::-1]))
    assert named in whole
    (out / "a.safetensors").write_bytes(whole.replace(named, renamed))
    report = prepare(source, out)
    assert (report.processed, report.failed) == (("a",), ())
    assert (out / "a.safetensors").read_bytes() == whole
    assert (out / "manifest.json").read_bytes() == manifest


def test_a_killed_run_leaves_whole_files_and_resumes(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for seed in range(6):
        write_wfdb(source, f"r{seed}", ("C3-M2", "ECG"), make_signals(("C3-M2", "ECG"), 1500, seed=seed))
    code = (
        "from physiofast.preparation import prepare\n"
        f"if __name__ == '__main__': prepare({str(source)!r}, {str(out)!r}, workers=2)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.safetensors"))) < 2 and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.002)
    os.kill(run.pid, signals.SIGKILL)
    run.communicate(timeout=20)  # its output ends with the last of its workers
    done = {path.stem for path in out.glob("*.safetensors")}
    assert 2 <= len(done) < 6
    report = prepare(source, out)
    assert set(report.skipped) == done
    assert set(report.processed) == {f"r{seed}" for seed in range(6)} - done
    assert [path.name for path in out.glob(".*")] == [".prepare.lock"]
    assert len(Store.open(out).records) == 6


def test_a_worker_that_dies_costs_its_own_record_only(tmp_path, monkeypatch):
    """What was in work with it is tried alone; the others go on in parallel."""
    source = tmp_path / "in"
    for seed, record in enumerate(("a", "deadly", "e", "f", "g", "h", "i")):
        write_wfdb(source, record, ("C3-M2",), seed=seed)
    hook = tmp_path / "hook"
    hook.mkdir()
    # Imported by every new interpreter: a stand-in for the kernel's out-of-memory killer.
    (hook / "sitecustomize.py").write_text(
        "import os, hashlib\n"
        "plain = hashlib.file_digest\n"
        "def file_digest(file, name):\n"
        "    if 'deadly' in file.name: os._exit(9)\n"
        "    return plain(file, name)\n"
        "hashlib.file_digest = file_digest\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    asked, seen = pools_asked_for(monkeypatch), []
    report = prepare(source, tmp_path / "out", workers=2, progress=seen.append)
    assert asked[:2] == [2, 1]
    assert len(asked) <= 4  # not one for each record that was left: at most two alone, then all others together
    assert report.processed == ("a", "e", "f", "g", "h", "i")
    assert sorted(done.record for done in seen) == ["a", "deadly", "e", "f", "g", "h", "i"]
    assert [record for record, _ in report.failed] == ["deadly"]
    assert "deadly.hea: its worker process died, also with no other beside it;" in report.failed[0][1]


def test_what_is_written_when_another_worker_dies_was_not_there_already(tmp_path, monkeypatch):
    """Its process is ended with the pool's, between the file and the word of it; the second try finds the file."""
    source, out, hook = tmp_path / "in", tmp_path / "out", tmp_path / "hook"
    for seed, record in enumerate(("there", "written", "deadly")):
        write_wfdb(source, record, ("C3-M2",), seed=seed)
    assert prepare(source / "there", out).processed == ("there",)
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import hashlib, os, pathlib, time\n"
        f"written, died = pathlib.Path({str(out / 'written.safetensors')!r}), pathlib.Path({str(hook / 'died')!r})\n"
        "plain, replace = hashlib.file_digest, os.replace\n"
        "def file_digest(file, name):\n"
        "    if 'deadly' in file.name:\n"
        "        while not written.exists(): time.sleep(0.01)\n"
        "        died.touch()\n"
        "        os._exit(9)\n"
        "    return plain(file, name)\n"
        "def late(source, target, **options):\n"
        "    replace(source, target, **options)\n"
        "    if pathlib.Path(target) == written: time.sleep(600)\n"
        "hashlib.file_digest, os.replace = file_digest, late\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    report = prepare(source, out, workers=2)
    assert (hook / "died").exists()
    assert (report.processed, report.skipped) == (("written",), ("there",))
    assert [record for record, _ in report.failed] == ["deadly"]
    report = prepare(source, out, workers=2)
    assert (report.processed, report.skipped) == ((), ("there", "written"))


def test_lists_of_several_folders_may_name_a_record_once(tmp_path):
    """Each of two would be the other's file and window ids."""
    for seed, folder in enumerate(("one", "two")):
        write_wfdb(tmp_path / folder, "a", ("C3-M2",), seed=seed)
    both = [*find_records(tmp_path / "one"), *find_records(tmp_path / "two")]
    report = prepare(both, tmp_path / "out", PrepareConfig(unique_subjects=False))
    assert report.processed == ("a",) and [record for record, _ in report.failed] == ["a"]
    assert "record a was already found as" in report.failed[0][1]
    assert "keep one of them, or rename one if they are two nights" in report.failed[0][1]
    assert "prepare a folder of links to them, with a name of its own for each" in report.failed[0][1]
    renamed = [dataclasses.replace(found, record_id=name) for found, name in zip(both, ("x", "y"), strict=True)]
    report = prepare(renamed, tmp_path / "other")
    assert [reason.partition(": ")[2] for _, reason in report.failed] == [
        f"a record has the name of its file, a; found {name!r}. Link or copy it under the name that it is to have"
        for name in ("x", "y")
    ]


def test_what_is_dropped_and_what_is_there_twice_is_told(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for record, seed in (("a", 1), ("b", 2), ("c", 1)):
        digital = make_signals(("C3-M2", "ECG"), seed=seed)
        digital[:, 1] = 7
        write_wfdb(source, record, ("C3-M2", "ECG"), digital)
        score(source, record)
    for _ in range(2):  # also of what is there already
        report = prepare(source, out)
        assert report.dropped == tuple((r, "ECG", "constant: every sample has the raw value 7") for r in "abc")
        assert report.notes == (
            (
                "c",
                "its file c.dat is the same, to the byte, as one of a; remove one of them, or one recording is in the "
                "store twice",
            ),
        )


def test_sleep_edfx(real_data, tmp_path):
    config = PrepareConfig(montage="sleep-edfx")
    report = prepare(real_data / "sleep-edfx" / "short_psg.edf", tmp_path, config)
    assert report.failed == ()
    store = Store.open(tmp_path)
    record = store.records[0]
    assert (record.num_windows, record.num_patches) == (10, 300)
    assert record.units[:3] == ("uV", "uV", "uV")
    for name in ("submental", "oro-nasal"):
        assert record.drops[name].startswith("native rate 1 Hz is too low for")
    recording = open_recording(real_data / "sleep-edfx" / "short_psg.edf")
    for c, name in enumerate(("EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal")):
        expected = chain(recording.physical(recording.names.index(name)), 0.3, 15 if c == 2 else 35, 100, rate=100)
        good = np.repeat(record.valid[c], 100)
        assert good.mean() > 0.9
        assert np.abs(record.physical(c) - expected)[good].max() <= 0.51 * record.unit_scale[c]


@pytest.mark.parametrize(
    ("name", "montage", "channel"),
    [
        ("wfdb/a103l", "cinc2018", "ECG"),
        ("wfdb/100", "cinc2018-100hz", "ECG"),
        ("wfdb/100s", "cinc2018", "ECG"),
    ],
)
def test_wfdb_sample_records(real_data, tmp_path, name, montage, channel):
    config = PrepareConfig(montage=montage)
    assert prepare(real_data / name, tmp_path, config).failed == ()
    store = Store.open(tmp_path)
    record, c = store.records[0], store.montage.index(channel)
    recording = open_recording(real_data / name)
    index = store.montage.resolve(recording.names).source[c]
    rate, target = recording.signals[index].rate_hz, store.montage.channel_rate_hz(c)
    expected = chain(recording.physical(index), 0.5, 40, target, rate=rate)[: record.plane_length[c]]
    good = np.repeat(record.valid[c], round(target))
    assert good.mean() > 0.9
    assert np.abs(record.physical(c) - expected)[good].max() <= 0.02 * np.abs(expected).max()
    assert np.quantile(np.abs(record.physical(c) - expected)[good], 0.9) <= 0.51 * record.unit_scale[c]
    assert (record.stage == -1).all()


def test_true_annotations_with_synthetic_signals(real_data, tmp_path):
    seconds = 5147000 // RATE
    folder = tmp_path / "in" / "tr03-0005"
    write_wfdb(folder, "tr03-0005", ("C3-M2",), make_signals(("C3-M2",), seconds))
    shutil.copy(real_data / "cinc2018" / "tr03-0005.arousal", folder)
    assert prepare(tmp_path / "in", tmp_path / "out").failed == ()
    record = Store.open(tmp_path / "out").records[0]
    assert record.num_windows == seconds // 30
    assert np.flatnonzero(record.stage == 2)[0] * 30 == 780
    assert set(np.unique(record.arousal)) == set(np.unique(record.apnea)) == {-1, 0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"montage": "cinc2081"}, "did you mean 'cinc2018'"),
        ({"montage": "mine"}, r"no montage is named 'mine'.* pass it from Python: .*PrepareConfig\(montage=Montage"),
        ({"channels": ("C3-M3",)}, "no channel 'C3-M3'; did you mean 'C3-M2'"),
        ({"required": ("EKKG",)}, "no channel 'EKKG'"),
        ({"channels": "C3-M2"}, "channels must be a list; found 'C3-M2'"),
        ({"montage": 3}, "montage must be str; found 3"),
        ({"labels": "requird"}, "labels must be one of 'auto', 'required', 'optional'; found 'requird'"),
        ({"unique_subjects": "no"}, "unique_subjects must be bool; found 'no'"),
        ({"eeg": None}, "eeg must be ModalitySettings; found None"),
        ({"order": 0}, "order must be at least 1 and at most 10; found 0"),
        ({"order": 60}, "order must be at least 1 and at most 10; found 60"),
        ({"order": 2.5}, "order must be int; found 2.5"),
        ({"order": True}, "order must be int; found True"),
        ({"notch_hz": -50.0}, "notch_hz must be above 0, or None; found -50.0"),
        ({"notch_hz": math.inf}, "notch_hz must be a finite number above 0, or None; found inf"),
        ({"notch_quality": 0.0}, "notch_quality must be above 0; found 0.0"),
        ({"notch_quality": math.inf}, "notch_quality must be a finite number above 0; found inf"),
        ({"attenuation_db": 5.0}, "attenuation_db must be at least 20 and at most 150; found 5.0"),
        ({"min_valid_share": 2.0}, "min_valid_share must be at least 0 and at most 1; found 2.0"),
        ({"min_valid_share": True}, "min_valid_share must be float; found True"),
    ],
)
def test_config_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**arguments)


def test_numbers_of_numpy_are_those_of_python():
    found = PrepareConfig(order=np.int64(2), min_valid_share=np.float32(0.5), notch_hz=np.float64(50))
    assert found == PrepareConfig(order=2, min_valid_share=0.5, notch_hz=50.0)
    assert [type(value) for value in (found.order, found.min_valid_share)] == [int, float]
    with pytest.raises(ValueError, match="order must be int; found True"):
        PrepareConfig(order=True)


def test_a_band_that_the_montages_rate_leaves_empty_is_refused_before_any_record():
    montage = get_montage("cinc2018")
    slow = dataclasses.replace(montage, rate_hz=montage.rate_hz | {"EMG": 16.0})
    message = (
        r"emg.low_hz must be below 7.5, as far as EMG at the montage's 16 Hz can go .*; found 10.0. Lower emg.low_hz"
    )
    with pytest.raises(ValueError, match=message):
        PrepareConfig(montage=slow)
    assert PrepareConfig(montage=slow, channels=("C3-M2",)).resolve_montage().names == ("C3-M2",)
    assert PrepareConfig(montage=slow, emg=ModalitySettings(low_hz=5, high_hz=60)).emg.low_hz == 5


def test_the_steepest_filters_and_narrow_bands_are_prepared(tmp_path):
    write_wfdb(tmp_path / "in", "r1", ("C3-M2", "Chin1-Chin2"))
    narrow = PrepareConfig(
        order=10, notch_hz=50, emg=ModalitySettings(low_hz=55, high_hz=60), eeg=ModalitySettings(high_hz=60)
    )
    assert prepare(tmp_path / "in", tmp_path / "out", narrow).failed == ()


def test_of_several_channels_the_first_whose_rate_and_unit_fit_is_prepared(tmp_path):
    (tmp_path / "in").mkdir()
    eeg = make_signals(("C3-M2", "C4-M1")).T / 3
    signals = [
        edfio.EdfSignal(np.linspace(90, 97, SECONDS), 1, label="SpO2", physical_dimension="%"),
        edfio.EdfSignal(eeg[0], RATE, label="EEG C3-A2", physical_dimension="furlong"),
        edfio.EdfSignal(eeg[0], RATE, label="C3-M2", physical_dimension="uV"),
        edfio.EdfSignal(eeg[1], RATE, label="C3-A2", physical_dimension="uV"),
        edfio.EdfSignal(np.linspace(91, 98, SECONDS * RATE), RATE, label="SaO2", physical_dimension="%"),
    ]
    edfio.Edf(signals).write(tmp_path / "in" / "night.edf")
    found = inspect_recording(open_recording(tmp_path / "in" / "night.edf"), PrepareConfig())
    assert [c.source for c in found.channels if c.source] == ["C3-M2", "SaO2"]
    assert found.duplicates == {"SpO2": "SaO2", "EEG C3-A2": "C3-M2", "C3-A2": "C3-M2"}
    assert found.near == {} and [name for name, _, _ in found.ignored] == ["SpO2", "EEG C3-A2", "C3-A2"]
    assert prepare(tmp_path / "in", tmp_path / "out").processed == ("night",)
    assert Store.open(tmp_path / "out").records[0].drops.keys().isdisjoint({"SaO2", "C3-M2"})
    assert prepare(tmp_path / "in", tmp_path / "out").skipped == ("night",)


def test_channels_of_a_list_are_those_of_a_tuple():
    assert PrepareConfig(channels=["C3-M2"], required=["C3-M2"]) == PrepareConfig(
        channels=("C3-M2",), required=("C3-M2",)
    )


def test_modality_settings_refuse():
    with pytest.raises(ValueError, match="low_hz must be at least 0.001, or None; found 1e-07"):
        ModalitySettings(low_hz=1e-7, high_hz=35)
    with pytest.raises(ValueError, match="high_hz must be at least 0.001; found 1e-07"):
        ModalitySettings(high_hz=1e-7)
    with pytest.raises(ValueError, match="low_hz must be below high_hz; found 40 and 35"):
        ModalitySettings(low_hz=40, high_hz=35)
    with pytest.raises(ValueError, match="flat_lsb must be at least 0, or None; found -1"):
        ModalitySettings(high_hz=35, flat_lsb=-1)
    with pytest.raises(ValueError, match="flat_lsb must be int, or None; found 0.5"):
        ModalitySettings(high_hz=35, flat_lsb=0.5)
    with pytest.raises(ValueError, match="flat_s must be above 0; found 0"):
        ModalitySettings(high_hz=35, flat_s=0)
