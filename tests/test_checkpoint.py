import pytest
import torch
from safetensors.torch import save_file

from physiofast.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint


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


def test_nothing_partial_stays(tmp_path):
    model, optimiser = trained()
    save_checkpoint(tmp_path, 3, model, optimiser)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003.safetensors"]


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
