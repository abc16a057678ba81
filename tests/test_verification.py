"""What `physiofast verify` notices: of files, of the manifest, and of both together."""

import json
import os

import numpy as np
import pytest

from physiofast import cli
from physiofast.preparation import prepare
from physiofast.store import Store, read_header
from physiofast.store.verification import verify_store
from physiofast.synthetic import CohortConfig, write_cohort


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    write_cohort(folder / "in", CohortConfig(subjects=3, hours=0.1, seed=2))
    prepare(folder / "in", folder / "store")
    return folder


@pytest.fixture
def store(prepared, tmp_path):
    (tmp_path / "store").mkdir()
    for file in (prepared / "store").iterdir():
        (tmp_path / "store" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "store"


def names(store):
    return sorted(file.stem for file in store.glob("*.safetensors"))


def damages(store):
    verification = verify_store(store)
    found = dict(verification.records)
    assert list(found) == names(store) and verification.total == 3
    return {record: damage for record, damage in found.items() if damage}


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)


def test_a_store_as_it_was_written(store, capsys):
    assert damages(store) == {}
    assert cli.main(["verify", str(store)]) == 0
    assert capsys.readouterr().out == "3 of 3 records are as they were written\n"


def test_every_damaged_file_is_named_and_prepare_mends_them(prepared, store, capsys):
    first, second, third = names(store)
    _, shape, begin = read_header(store / f"{first}.safetensors")[0]["samples"]
    flip(store / f"{first}.safetensors", begin + 2 * int(np.random.default_rng().integers(shape[0])))
    os.truncate(store / f"{third}.safetensors", 20_000)
    assert set(damages(store)) == {first, third}
    assert cli.main(["verify", str(store)]) == 1
    said = capsys.readouterr().out
    assert f"damaged {first}: {store}/{first}.safetensors: expected content_sha256 " in said
    assert f"damaged {third}: {store}/{third}.safetensors: tensor " in said and "1 of 3 records are as they" in said
    report = prepare(prepared / "in", store)
    assert (report.processed, report.skipped) == ((first, third), (second,))
    assert damages(store) == {}


def test_a_file_that_is_gone_does_not_hide_the_others(store):
    first, second, third = names(store)
    (store / f"{second}.safetensors").rename(store.parent / "elsewhere")
    flip(store / f"{third}.safetensors", -1)
    found = dict(verify_store(store).records)
    assert found[first] == "" and "No such file" in found[second] and "content_sha256" in found[third]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("age_years", 3.5),
        ("units", ["V"]),
        ("labels_sha256", "0" * 64),
        ("windows", 1),
        ("note", 0),
        ("patches", 10**14),
    ],
)
def test_a_manifest_that_says_otherwise(store, key, value):
    manifest = json.loads((store / "manifest.json").read_text())
    entry = manifest["records"][1]
    entry[key] = value
    (store / "manifest.json").write_text(json.dumps(manifest))
    (damage,) = damages(store).values()
    assert damage.endswith(f"manifest.json says otherwise of: {key}; run physiofast prepare again")


def test_a_manifest_with_another_config_or_another_records_file(store):
    text = (store / "manifest.json").read_text()
    manifest = json.loads(text)
    manifest["config"]["min_valid_share"] = 0.123
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert len(damages(store)) == 3 and all("otherwise of: config" in damage for damage in damages(store).values())
    (store / "manifest.json").write_text(text)
    first, second, _ = names(store)
    (store / f"{first}.safetensors").write_bytes((store / f"{second}.safetensors").read_bytes())
    (damage,) = damages(store).values()
    assert "prepared otherwise than the store's manifest.json says" in damage


@pytest.mark.parametrize(
    ("key", "value"), [("units", None), ("drops", [1]), ("file", 3), ("file", None), ("patches", "a")]
)
def test_an_entry_that_cannot_be_read_does_not_hide_the_others(store, key, value):
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["records"][0][key] = value
    (store / "manifest.json").write_text(json.dumps(manifest))
    (damage,) = damages(store).values()
    assert f"manifest.json is damaged: entry 0 of 'records' has for {key!r} {value!r}, which is not " in damage


@pytest.mark.parametrize("spoil", ["montage", "no montage", "physiofast"])
def test_what_a_manifest_says_of_all_records(store, spoil):
    manifest = json.loads((store / "manifest.json").read_text())
    if spoil == "montage":
        manifest["montage"]["channels"][0]["name"] = "Fpz"
    else:
        manifest[spoil.split()[-1]] = {}
    (store / "manifest.json").write_text(json.dumps(manifest))
    found = damages(store)
    assert len(found) == 3 and all(f"otherwise of: {spoil.split()[-1]};" in damage for damage in found.values())


def test_records_that_are_listed_twice_or_not_at_all(store, capsys):
    manifest = json.loads((store / "manifest.json").read_text())
    first, second, third = manifest["records"]
    (store / "manifest.json").write_text(json.dumps(manifest | {"records": [first, second, second]}))
    assert cli.main(["verify", str(store)]) == 1
    said = capsys.readouterr().out
    assert said.count("is listed 2 times in manifest.json") == 2
    assert f"not listed in manifest.json, and not verified: {third['record']}\n1 of 3 records" in said


def test_bytes_behind_the_last_tensor_and_a_file_that_cannot_be_read(store, monkeypatch):
    first, second, _ = names(store)
    with (store / f"{first}.safetensors").open("ab") as file:
        file.write(b"garbage")
    read = np.fromfile

    def fail(path, *given, **options):
        if path.stem == second:
            raise OSError(5, "Input/output error")
        return read(path, *given, **options)

    monkeypatch.setattr(np, "fromfile", fail)
    found = damages(store)
    assert set(found) == {first, second}
    assert " bytes, found " in found[first] and "Input/output error" in found[second]


def test_prepare_makes_anew_what_cannot_be_read(prepared, store, monkeypatch):
    first, *others = names(store)
    read = np.fromfile

    def fail(path, *given, **options):
        if path == store / f"{first}.safetensors":
            raise OSError(5, "Input/output error")
        return read(path, *given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(np, "fromfile", fail)
        report = prepare(prepared / "in", store)
    assert (report.processed, report.skipped, report.failed) == ((first,), tuple(others), ())
    assert damages(store) == {}


def test_what_is_no_store(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "is not a store: it has no manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("hours", "x"), ("age_years", 10**400), ("units", None), ("file", 3)])
def test_prepare_mends_an_entry_that_is_damaged(prepared, store, key, value):
    good = (store / "manifest.json").read_text()
    manifest = json.loads(good)
    manifest["records"][0][key] = value
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"entry 0 of 'records' has for '{key}'"):
        Store.open(store)
    prepare(prepared / "in", store)
    assert (store / "manifest.json").read_text() == good
