import dataclasses

import numpy as np
import pytest
import torch

from physiofast import ops
from physiofast.masking import MaskingConfig, Planner, hidden_weight
from physiofast.model import ModelConfig, MultimodalMAE
from physiofast.objective import ObjectiveConfig, hidden_errors, masked_loss, rebuild
from physiofast.windows import WindowReader, index_windows
from tests.cohort import MONTAGE

SMALL = ModelConfig(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1)


class Constant(torch.nn.Module):
    """Stands in for a model: predicts one number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.montage, self.value = MONTAGE, value

    def forward(self, rows, plan):
        return torch.full((len(plan.hidden.ids), max(MONTAGE.patch_lengths)), self.value)


def parts(store, keep=0.4):
    return WindowReader(store), index_windows(store, None, 0.0), Planner(MONTAGE, MaskingConfig(keep=keep), 0)


def hidden_samples(store, reader, index, planner):
    """{channel: all hidden samples of the evaluation}, window by window."""
    found = {c: [] for c in range(len(MONTAGE.channels))}
    for w in range(len(index)):
        batch = reader.batch(index, [w])
        plan = planner.draw(batch)
        patches = ops.take_patches(batch.rows, plan.hidden)
        for t, n in enumerate(plan.hidden.ids.tolist()):
            if n >= 0:
                channel = n // MONTAGE.patches_per_window
                length = MONTAGE.patch_lengths[MONTAGE.channel_modality[channel]]
                found[channel].append(patches[t, :length].double().numpy())
    return {c: np.concatenate(values) for c, values in found.items() if values}


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_hidden_error_of_a_constant_is_the_ratio_of_moments(store, value):
    reader, index, planner = parts(store)
    got = hidden_errors(Constant(value), reader, index, planner, ObjectiveConfig(), batch_size=7)
    samples = hidden_samples(store, reader, index, planner)
    for m, name in enumerate(MONTAGE.modalities):
        mine = [samples[c] for c, of in enumerate(MONTAGE.channel_modality) if of == m]
        error = sum(np.square(x - value).sum() for x in mine)
        spread = sum(np.square(x - x.mean()).sum() for x in mine)
        assert got[name] == pytest.approx(error / spread, rel=1e-5)


def test_batch_size_does_not_change_the_error(store):
    reader, index, planner = parts(store)
    torch.manual_seed(0)
    model = MultimodalMAE(MONTAGE, SMALL)
    one, other = (hidden_errors(model, reader, index, planner, ObjectiveConfig(), batch_size=b) for b in (3, 20))
    assert one == pytest.approx(other, rel=1e-4)


def test_normalised_targets_are_compared_with_zero(store):
    reader, index, planner = parts(store)
    errors = hidden_errors(Constant(0.0), reader, index, planner, ObjectiveConfig(normalise=("EEG",)))
    assert errors["EEG"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("normalise", [(), ("EEG", "EOG")])
def test_loss_and_gradient_of_micro_batches_add_up(store, normalise):
    """The same global step as one batch, and as micro-batches with the weights of the global quotas."""
    reader, index, planner = parts(store)
    torch.manual_seed(1)
    model = MultimodalMAE(MONTAGE, SMALL).double()
    config = ObjectiveConfig(normalise=normalise)

    def run(groups):
        model.zero_grad()
        loaded = [reader.batch(index, group) for group in groups]
        capacity = [planner.capacity(batch.valid) for batch in loaded]
        quotas = [planner.quotas(4, b.window_id, c) for b, c in zip(loaded, capacity, strict=True)]
        hidden = sum((c - q).sum(0) for c, q in zip(capacity, quotas, strict=True))
        weight, total = torch.from_numpy(hidden_weight(hidden)), 0.0
        for batch, c, q in zip(loaded, capacity, quotas, strict=True):
            plan = planner.plan(4, batch.window_id, batch.rows.valid, q, c)
            rows = dataclasses.replace(batch.rows, samples=batch.rows.samples.double())
            loss, *_ = masked_loss(model, rows, plan, weight, config)
            loss.backward()
            total += loss.item()
        return total, [p.grad.clone() for p in model.parameters()]

    whole, grads = run([range(12)])
    for split in ([range(6), range(6, 12)], [range(1), range(1, 5), range(5, 12)]):
        loss, part_grads = run(split)
        assert loss == pytest.approx(whole, rel=1e-12)
        for a, b in zip(grads, part_grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_model_may_be_wrapped(store):
    reader, index, planner = parts(store)
    model = MultimodalMAE(MONTAGE, SMALL)
    batch = reader.batch(index, range(3))
    plan = planner.draw(batch)
    wrapped = torch.nn.DataParallel(torch.optim.swa_utils.AveragedModel(model))
    assert torch.equal(masked_loss(wrapped, batch.rows, plan)[0], masked_loss(model, batch.rows, plan)[0])
    found, want = (hidden_errors(each, reader, index, planner, ObjectiveConfig()) for each in (wrapped, model))
    assert found == want


def test_rebuilt_patches_are_the_prediction_in_their_places(store):
    reader, index, planner = parts(store)
    rebuilt, hidden = rebuild(Constant(0.25), reader, index, np.asarray([0, 3]), planner, ObjectiveConfig())
    for c, values in enumerate(rebuilt):
        length = MONTAGE.patch_lengths[MONTAGE.channel_modality[c]]
        inside = np.repeat(hidden[:, c], length, axis=1)
        assert (values[inside] == 0.25).all()
        assert np.isnan(values[~inside]).all()


def test_rebuilt_normalised_patches_get_the_true_mean_and_deviation(store):
    reader, index, planner = parts(store)
    rebuilt, hidden = rebuild(
        Constant(1.0), reader, index, np.asarray([2]), planner, ObjectiveConfig(normalise=("EEG",))
    )
    true = reader.signals(index, [2])
    patch = int(np.flatnonzero(hidden[0, 0])[0])
    where = slice(16 * patch, 16 * patch + 16)
    want = true[0][0, where].mean() + true[0][0, where].std()
    assert rebuilt[0][0, where] == pytest.approx(want, rel=1e-5)


def test_unknown_modality_is_named():
    with pytest.raises(ValueError, match="no modality 'EEGG'; did you mean 'EEG'"):
        ObjectiveConfig(normalise=("EEGG",))
