import os
import resource

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from physiofast import checkpoint
from physiofast.checkpoint import FORMAT, latest_checkpoint, load_checkpoint, save_checkpoint


def trained(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        model(torch.randn(5, 3)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return model, optimiser


def test_everything_comes_back(tmp_path):
    model, optimiser = trained()
    path = save_checkpoint(tmp_path, 3, model, optimiser)
    other, fresh = trained(1)
    fresh.state.clear()
    assert load_checkpoint(path, other, fresh) == 3
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert optimiser.state[a].keys() == fresh.state[b].keys()
        assert all(torch.equal(optimiser.state[a][k], fresh.state[b][k]) for k in optimiser.state[a])


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_other_files_may_read_a_checkpoint(tmp_path, mask):
    before = os.umask(mask)
    try:
        path = save_checkpoint(tmp_path, 3, *trained())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_checkpoint_that_may_not_be_read_is_not_called_broken(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, 3, *trained())

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(
        PermissionError,
        match=r"step-00000003.safetensors cannot be read: Permission denied; .*`chmod u\+r .*3.safetensors`",
    ):
        load_checkpoint(path, *trained())


def test_any_bit_that_flips_in_a_checkpoint_is_noticed_and_the_good_one_named(tmp_path):
    model, optimiser = trained()
    good, broken = (save_checkpoint(tmp_path, step, model, optimiser, about={"run": "x"}) for step in (3, 6))
    content = broken.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    for place in (
        begin,
        begin + 37,
        len(content) - 1,
        content.index(b'"run":"x"') + 7,
        content.index(b'"step":"6"') + 8,
    ):
        for bit in (1, 64):
            flipped = bytearray(content)
            flipped[place] ^= bit
            broken.write_bytes(flipped)
            with pytest.raises(ValueError, match="00006.safetensors is not a readable checkpoint") as caught:
                load_checkpoint(broken, *trained(1))
            assert f"{good} is readable; delete the broken file" in str(caught.value)
    assert load_checkpoint(good, *trained(1)) == 3
    broken.write_bytes(content)
    other = bytearray(good.read_bytes())
    other[-1] ^= 1
    good.write_bytes(other)
    broken.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="contents are not what was written: their SHA-256 .*the run has no other"):
        load_checkpoint(broken, *trained(1))


@pytest.mark.parametrize("noted", [True, False])
def test_a_missing_state_of_the_optimiser_is_an_error(tmp_path, noted):
    path = save_checkpoint(tmp_path, 3, *trained())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["optimiser.1.weight/exp_avg_sq"]
    if not noted:
        del metadata["sha256"]
    save_file(tensors, path, metadata=metadata)
    in_it = metadata["sha256"] if noted else "missing"
    with pytest.raises(ValueError, match=rf"not what was written: .*that in it {in_it}; the run has no other; delete"):
        load_checkpoint(path, *trained(1))


def test_before_the_first_step_there_is_no_state(tmp_path):
    model, _ = trained()
    optimiser = torch.optim.AdamW(model.parameters())
    path = save_checkpoint(tmp_path, 0, model, optimiser)
    assert load_checkpoint(path, model, optimiser) == 0


@pytest.mark.parametrize("kind", ["frozen", "without state"])
def test_an_optimiser_need_not_have_a_state_of_every_parameter(tmp_path, kind):
    def made():
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        if kind == "frozen":
            model[0].requires_grad_(False)
            return model, torch.optim.AdamW(model.parameters())
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimiser = made()
    model(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    path = save_checkpoint(tmp_path, 1, model, optimiser)
    other, other_optimiser = made()
    assert load_checkpoint(path, other, other_optimiser) == 1
    assert torch.equal(other[0].weight, model[0].weight)
    assert len(other_optimiser.state) == len(optimiser.state)


def test_nothing_partial_stays(tmp_path):
    model, optimiser = trained()
    save_checkpoint(tmp_path, 3, model, optimiser)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003.safetensors"]


def test_a_checkpoint_that_cannot_be_written_says_where_and_what_to_do(tmp_path):
    model, optimiser = trained()
    folder = tmp_path / "checkpoints"
    folder.write_text("in the way")
    with pytest.raises(OSError, match=r"step-00000003.safetensors cannot be written: .*begins again at step 0"):
        save_checkpoint(tmp_path, 3, model, optimiser)
    folder.unlink()
    good = save_checkpoint(tmp_path, 3, model, optimiser)
    size = good.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))  # as on a full disk: it ends within the file
    try:
        with pytest.raises(OSError, match=r"step-00000006.safetensors cannot be written: .*") as caught:
            save_checkpoint(tmp_path, 6, model, optimiser, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"then `physiofast train --resume {tmp_path}` goes on from step 3" in str(caught.value)
    assert list(folder.iterdir()) == [good]
    assert load_checkpoint(good, model, optimiser) == 3


def test_checkpoints_of_long_runs_are_found(tmp_path):
    model, optimiser = trained()
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, model, optimiser)
    assert latest_checkpoint(tmp_path)[0] == 100_000_000


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint; make one with `physiofast train"):
        latest_checkpoint(tmp_path)


def test_other_shape_and_other_files_are_refused(tmp_path):
    model, optimiser = trained()
    path = save_checkpoint(tmp_path, 3, model, optimiser)
    with pytest.raises(ValueError, match="model of another shape"):
        load_checkpoint(path, torch.nn.Linear(3, 4))
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="expected a checkpoint of format physiofast-checkpoint-1; found None"):
        load_checkpoint(tmp_path / "x.safetensors", model)


def test_a_broken_checkpoint_names_the_other_good_one(tmp_path):
    model, optimiser = trained()
    good, broken = (save_checkpoint(tmp_path, step, model, optimiser) for step in (3, 6))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match="step-00000006.safetensors is not a readable checkpoint") as caught:
        load_checkpoint(broken, model)
    assert f"{good} is readable; delete the broken file" in str(caught.value)
    assert f"physiofast train --resume {tmp_path}" in str(caught.value)
    broken.unlink()
    good.write_bytes(b"")
    with pytest.raises(ValueError, match="the run has no other; delete it.*begins again at step 0"):
        load_checkpoint(good, model)


def test_a_path_may_be_text(tmp_path):
    model, optimiser = trained()
    path = str(save_checkpoint(tmp_path, 3, model, optimiser))
    assert load_checkpoint(path, model) == 3
    with pytest.raises(ValueError, match="0004.safetensors is not a readable checkpoint"):
        load_checkpoint(path.replace("0003", "0004"), model)


def test_a_checkpoint_without_its_step_or_with_tensors_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    model, optimiser = trained()
    good, broken = (save_checkpoint(tmp_path, step, model, optimiser) for step in (3, 6))
    for metadata, found in (({}, "None"), ({"step": "six"}, "'six'")):
        save_file({"x": torch.zeros(1)}, broken, metadata={"format": FORMAT, **metadata})
        reason = rf"is not a readable checkpoint: it does not say after which step it was written \(found {found}\)"
        with pytest.raises(ValueError, match=reason) as caught:
            load_checkpoint(broken, model)
        assert f"{good} is readable; delete the broken file" in str(caught.value)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "load_file", fail)
    with pytest.raises(ValueError, match="step-00000003.safetensors is not a readable checkpoint: .*Input/output"):
        load_checkpoint(good, model)
