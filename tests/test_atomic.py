import pytest

from physiofast.support.atomic import atomic_path


def test_the_file_appears_whole(tmp_path):
    target = tmp_path / "x.json"
    with atomic_path(target) as part:
        part.write_text("half")
        assert not target.exists()
        assert part.parent == tmp_path  # os.replace cannot cross file systems
        part.write_text("whole")
    assert target.read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")

    def write_half():
        with atomic_path(target) as part:
            part.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_move_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "x.json"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"), atomic_path(target) as part:
        part.write_text("new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_names_the_file_and_not_its_part(tmp_path):
    target = tmp_path / "gone" / "x.json"
    with pytest.raises(FileNotFoundError, match=r"gone/x\.json'$"), atomic_path(target) as part:
        part.write_text("x")


def test_names_may_be_as_long_as_file_systems_allow_and_a_full_disk_has_a_name(tmp_path):
    target = tmp_path / f"{'x' * 250}.json"
    with atomic_path(target) as part:
        part.write_text("whole")
    assert target.read_text() == "whole"
    with pytest.raises(OSError, match="No space left on device: .*xxx.json") as caught, atomic_path(target):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(target)
    with pytest.raises(OSError, match="^12 requested and 0 written$"), atomic_path(target):
        raise OSError("12 requested and 0 written")
