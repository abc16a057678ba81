"""A store gives back what was written, mapped, and says what is wrong with files that are not its own."""

import json
import os
import pickle
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from physiofast.engine import FileError
from physiofast.montage import get_montage
from physiofast.store import PreparedRecord, Store, StoreRecord, lay_out_planes, read_header, write_record
from physiofast.store.manifest import read_manifest, write_atomic, write_manifest

MONTAGE = get_montage("sleep-edfx")
PATCHES, WINDOWS = 77, 2


def plain_record(seed=0, name="a"):
    rng = np.random.default_rng(seed)
    lengths = np.array([7700, 7700, 0, 7701, 7700], np.int64)
    starts, total = lay_out_planes(lengths)
    numbers = rng.random((4, 5)).astype(np.float32)
    return PreparedRecord(
        samples=rng.integers(-32768, 32768, total).astype(np.int16),
        plane_start=starts,
        plane_length=lengths,
        scale=numbers[0],
        shift=numbers[1],
        unit_scale=numbers[2],
        unit_shift=numbers[3],
        valid=rng.random((5, PATCHES)) < 0.7,
        stage=np.array([-1, 4], np.int8),
        arousal=np.array([0, 1], np.int8),
        apnea=np.array([1, -1], np.int8),
        provenance={
            "record": name,
            "subject": f"subject {name}",
            "age_years": 61.0,
            "sex": None,
            "hours": 77 / 3600,
            "windows": WINDOWS,
            "patches": PATCHES,
            "units": ["uV", "uV", "", "uV", "NU"],
            "drops": {"horizontal": "absent"},
            "warnings": ["µ"],
        },
    )


def write_plain_store(folder, names=("a", "b")):
    records = {name: plain_record(i, name) for i, name in enumerate(names)}
    for name, record in records.items():
        write_record(folder / f"{name}.safetensors", record)
    entries = [{"file": f"{name}.safetensors"} | dict(record.provenance) for name, record in records.items()]
    manifest = {"montage": MONTAGE.to_dict(), "config": {"montage": "sleep-edfx"}, "records": entries}
    write_manifest(folder, manifest | {"failed": [{"record": "c", "path": "x/c.hea", "reason": "truncated"}]})
    return records


def test_a_store_gives_back_what_was_written(tmp_path):
    written = write_plain_store(tmp_path)
    store = Store.open(tmp_path)
    assert (store.path, store.montage, store.failed) == (tmp_path, MONTAGE, (("c", "truncated"),))
    assert [record.record for record in store.records] == ["a", "b"]
    for record in store.records:
        expected = written[record.record]
        for name in ("samples", "plane_start", "plane_length", "scale", "shift", "unit_scale", "unit_shift"):
            got, want = getattr(record, name), getattr(expected, name)
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(got, want)
        for name in ("valid", "stage", "arousal", "apnea"):
            np.testing.assert_array_equal(getattr(record, name), getattr(expected, name))
            assert getattr(record, name).dtype == getattr(expected, name).dtype
        assert record.subject == f"subject {record.record}"
        assert (record.age_years, record.sex, record.hours) == (61.0, None, 77 / 3600)
        assert (record.num_windows, record.num_patches) == (WINDOWS, PATCHES)
        assert record.units == ("uV", "uV", "", "uV", "NU")
        assert record.drops == {"horizontal": "absent"}
        assert record.provenance["warnings"] == ["µ"]


def test_samples_are_mapped_and_read_only(tmp_path):
    write_plain_store(tmp_path)
    samples = Store.open(tmp_path).records[0].samples
    assert isinstance(samples, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        samples[0] = 1


def test_planes_are_aligned_and_physical_values_follow(tmp_path):
    written = write_plain_store(tmp_path)["a"]
    record = Store.open(tmp_path).records[0]
    assert record.plane_start.tolist() == [0, 7744, -1, 15488, 23232]
    assert record.samples.size == 30976
    assert record.samples.size % 64 == 0
    np.testing.assert_array_equal(record.plane(3), written.samples[15488 : 15488 + 7701])
    assert record.plane(2).size == 0
    expected = written.samples[15588:15688].astype(np.float64) * written.unit_scale[3] + written.unit_shift[3]
    np.testing.assert_allclose(record.physical(3, 100, 200), expected, rtol=1e-5, atol=1e-3)


def test_layout_of_nothing():
    starts, total = lay_out_planes(np.zeros(3, np.int64))
    assert starts.tolist() == [-1, -1, -1]
    assert total == 0


def test_other_readers_of_safetensors_see_the_same(tmp_path):
    written = write_plain_store(tmp_path)["a"]
    tensors = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tensors["samples"], written.samples)
    assert tensors["valid"].shape == (5, 10)
    bits = np.unpackbits(tensors["valid"], axis=1, bitorder="little")[:, :PATCHES]
    np.testing.assert_array_equal(bits.astype(bool), written.valid)


def test_the_bytes_are_the_same_every_time(tmp_path):
    for name in ("x", "y"):
        write_record(tmp_path / name, plain_record())
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_pickling_keeps_the_path_alone(tmp_path):
    written = write_plain_store(tmp_path)["b"]
    record = Store.open(tmp_path).records[1]
    assert record.samples.size and record.valid.any()
    packed = pickle.dumps(record)
    assert len(packed) < 2000
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again.samples, written.samples)
    assert again.subject == "subject b"


def test_files_are_opened_when_arrays_are_asked_for(tmp_path):
    write_plain_store(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"broken")
    store = Store.open(tmp_path)
    assert store.records[0].samples.size
    with pytest.raises(ValueError, match=r"b\.safetensors: byte 0: expected a header"):
        _ = store.records[1].samples


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "x"
    target.write_bytes(b"before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, b"after")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert target.read_bytes() == b"before"


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def test_what_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a store: it has no manifest.json; make one with physiofast"):
        Store.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        Store.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected format 'physiofast-store', found None"):
        Store.open(tmp_path)


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


def check_damages(folder, spoil):
    """Each manifest that is made of a good one is refused, with these words."""
    write_plain_store(folder)
    file = folder / "manifest.json"
    for spoilt, damage in spoil(json.loads(file.read_text())):
        file.write_text(json.dumps(spoilt))
        with pytest.raises(ValueError, match=re.escape(f"{file} is damaged: {damage}; run physiofast prepare again")):
            Store.open(folder)


def test_a_damaged_manifest_says_what_is_missing_and_what_to_do(tmp_path):
    def spoil(good):
        first, second = good["records"]
        rates = good["montage"]["rate_hz"] | {"EEG": float("inf")}
        yield without(good, "failed"), "it has no list 'failed'"
        yield without(good, "montage"), "it has no object 'montage'"
        yield good | {"records": {}}, "it has no list 'records'"
        yield good | {"records": [first, without(second, "units")]}, "entry 1 of 'records' has no 'units'"
        yield good | {"records": ["a"]}, "entry 0 of 'records' is not an object"
        yield good | {"failed": [{"record": "c"}]}, "entry 0 of 'failed' has no 'reason'"
        failed = {"record": "c", "reason": None}
        yield good | {"failed": [failed]}, "entry 0 of 'failed' has for 'reason' None, which is not a text"
        for montage, reason in (
            (without(good["montage"], "rate_hz"), "no entry 'rate_hz'"),
            (good["montage"] | {"rate_hz": rates}, "rate_hz of EEG must be a number above 0; found inf"),
        ):
            yield good | {"montage": montage}, f"its montage cannot be read ({reason})"

    check_damages(tmp_path, spoil)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hours", 10**400, "100000000000000000...0000000000000000000, which is not a number"),
        ("hours", float("nan"), "nan, which is not a number"),
        ("patches", 10**30, f"{10**30}, which is not a count"),
        ("windows", -1, "-1, which is not a count"),
        ("file", 3, "3, which is not the name of a file beside it"),
        ("file", "../a", "'../a', which is not the name of a file beside it"),
        ("age_years", "61", "'61', which is not a number or null"),
        ("units", "uV", "'uV', which is not a list of texts"),
        ("drops", {"ECG": 1}, "{'ECG': 1}, which is not an object of texts"),
    ],
)
def test_values_of_entries_are_of_their_kinds(tmp_path, key, value, said):
    def spoil(good):
        first, second = good["records"]
        yield good | {"records": [first | {key: value}, second]}, f"entry 0 of 'records' has for {key!r} {said}"
        yield good | {"records": [first, second | {key: value}]}, f"entry 1 of 'records' has for {key!r} {said}"

    check_damages(tmp_path, spoil)


def test_another_version(tmp_path):
    write_plain_store(tmp_path)
    edit_manifest(tmp_path, version=2)
    with pytest.raises(ValueError, match="reads stores of version 1, found version 2; prepare the recordings again"):
        read_manifest(tmp_path)


def test_a_record_of_another_version(tmp_path):
    record = plain_record()
    write_record(tmp_path / "a", PreparedRecord(**vars(record) | {"provenance": {"version": 9}}))
    with pytest.raises(ValueError, match="reads records of version 1, found 9"):
        read_header(tmp_path / "a")


def test_missing_files_and_empty_stores(tmp_path):
    write_plain_store(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 record files are missing \(b\.safetensors\); run physiofast"):
        Store.open(tmp_path)
    edit_manifest(tmp_path, records=[])
    with pytest.raises(ValueError, match="holds no record"):
        Store.open(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, 40_000])
def test_truncated_records(tmp_path, keep):
    written = write_plain_store(tmp_path)
    path = tmp_path / "a.safetensors"
    assert path.stat().st_size > 61_000
    entry = {"file": path.name} | dict(written["a"].provenance)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="a.safetensors: .*truncated"):
        _ = StoreRecord(path, entry).samples


def test_small_arrays_of_a_record_that_shrinks_while_open(tmp_path):
    write_plain_store(tmp_path)
    record = Store.open(tmp_path).records[0]
    assert record.provenance["record"] == "a"  # the header is known
    os.truncate(record.path, 500)
    for name in ("plane_start", "valid", "stage", "samples"):
        with pytest.raises(
            FileError, match=r"a\.safetensors: byte 500: expected \d+ bytes or more, .* found 500 bytes: .* truncated"
        ):
            getattr(record, name)


def spoil(path, name, channel, value):
    """Put another number into a record's file, where that of a channel was."""
    dtype, shape, begin = read_header(path)[0][name]
    values = np.memmap(path, dtype, "r+", begin, tuple(shape))
    values[channel] = value
    values.flush()


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("plane_start", 7744 ^ (1 << 6), "planes of .* of 30976 samples, found them at .0, 7680, -1, 15488, 23232. of"),
        ("plane_start", 7744 ^ (1 << 62), "planes of .* found them at "),
        ("plane_start", -1, "planes of .* found them at .0, -1, -1, 15488, 23232. of"),
        ("plane_length", 7700 ^ (1 << 12), "planes of .7700, 3604, 0, 7701, 7700. samples begin at .* found"),
        ("plane_length", -(2**63), "planes of .7700, -9223372036854775808, 0, 7701, 7700. samples begin at .* found"),
        ("scale", 0.0, "a finite scale above 0 for each plane, found .*, 0.0,"),
        ("scale", -0.5, "a finite scale above 0 for each plane, found .*, -0.5,"),
        ("unit_scale", np.inf, "a finite unit_scale above 0 for each plane, found .*, inf,"),
        ("shift", np.nan, "a finite shift for each plane, found .*, nan,"),
        ("unit_shift", -np.inf, "a finite unit_shift for each plane, found .*, -inf,"),
    ],
)
def test_numbers_that_no_file_was_written_with_are_refused(tmp_path, name, value, found):
    write_plain_store(tmp_path)
    path = tmp_path / "a.safetensors"
    spoil(path, name, 1, value)
    record = Store.open(tmp_path).records[0]
    end = "; the file is damaged: run physiofast prepare again, it prepares this record anew"
    for read in (lambda: getattr(record, "plane_start" if name == "plane_length" else name), record.check):
        with pytest.raises(ValueError, match=rf"a\.safetensors: expected {found}.*{end}"):
            read()
    Store.open(tmp_path).records[1].check()


def test_numbers_of_a_channel_that_is_absent_are_free(tmp_path):
    write_plain_store(tmp_path)
    for name in ("scale", "shift", "unit_scale", "unit_shift"):
        spoil(tmp_path / "a.safetensors", name, 2, np.nan)
    record = Store.open(tmp_path).records[0]
    assert all(np.isnan(getattr(record, name)[2]) for name in ("scale", "shift", "unit_scale", "unit_shift"))


NUMBERS = ("plane_start", "plane_length", "scale", "shift", "unit_scale", "unit_shift")


@pytest.mark.parametrize("name", ["samples", *NUMBERS, "valid", "stage", "arousal", "apnea"])
def test_each_bit_that_flips_is_noticed(tmp_path, name):
    write_plain_store(tmp_path)
    path = tmp_path / "a.safetensors"
    whole = path.read_bytes()
    dtype, shape, begin = read_header(path)[0][name]
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    for place in {0, size - 1, *np.random.default_rng().integers(size, size=3).tolist()}:
        for bit in (1, 128):
            spoilt = bytearray(whole)
            spoilt[begin + place] ^= bit
            path.write_bytes(spoilt)
            with pytest.raises(ValueError, match="the file is damaged: run physiofast prepare again"):
                Store.open(tmp_path).records[0].check()
    path.write_bytes(whole)
    Store.open(tmp_path).records[0].check()


def test_a_changed_word_of_the_provenance_is_noticed(tmp_path):
    write_plain_store(tmp_path)
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes().replace(b'\\"age_years\\": 61.0', b'\\"age_years\\": 67.0'))
    assert read_header(path)[1]["age_years"] == 67
    with pytest.raises(ValueError, match=r"expected content_sha256 \w{64}, found \w{64}; the file is damaged"):
        Store.open(tmp_path).records[0].check()


def test_a_record_without_samples_has_a_digest_too(tmp_path):
    record = plain_record()
    nothing = {"samples": np.zeros(0, np.int16), "plane_length": np.zeros(5, np.int64)}
    nothing |= {"plane_start": np.full(5, -1), "stage": np.zeros(0, np.int8)}
    nothing |= {name: np.zeros(0, np.int8) for name in ("arousal", "apnea")}
    write_record(tmp_path / "a", PreparedRecord(**vars(record) | nothing))
    StoreRecord(tmp_path / "a", record.provenance).check()


def test_a_header_that_lies(tmp_path):
    write_plain_store(tmp_path)
    path = tmp_path / "a.safetensors"
    original = path.read_bytes()
    path.write_bytes(original.replace(b'"dtype":"I16"', b'"dtype":"F32"'))
    with pytest.raises(ValueError, match="'samples': .* does not describe itself consistently"):
        read_header(path)
    path.write_bytes(original.replace(b'"physiofast"', b'"physiofAst"'))
    with pytest.raises(ValueError, match="byte 8: not the header of a physiofast record"):
        read_header(path)


def test_a_channels_name_is_no_number(tmp_path):
    write_plain_store(tmp_path)
    store = Store.open(tmp_path)
    with pytest.raises(TypeError, match=r"store.montage.index\('ECG'\) gives that of a name"):
        store.records[0].physical("ECG")
