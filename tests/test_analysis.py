"""What an encoder attends to, against its attention matrices."""

import json

import numpy as np
import pytest
import torch

from physiofast import cli
from physiofast.analysis import AttentionShares, attention_shares
from physiofast.embedding import all_visible, embed_windows
from physiofast.progress import Progress
from physiofast.report import render_report
from physiofast.runfolder.files import load_attention
from physiofast.runfolder.initial import new_model
from physiofast.runs import start_run, train_run
from physiofast.windows import WindowReader, index_windows
from tests.cohort import MONTAGE, write_store
from tests.test_identity import with_keys
from tests.test_runs import CONFIG as RUN_CONFIG
from tests.test_training import CONFIG

WIRED = with_keys(CONFIG, model__depth=2, model__qk_norm=True)


def trained_like(store, config):
    """A model whose biases and decays say something."""
    model = new_model(store, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.encoder:
            block.attn.pair_bias.normal_(generator=generator)
            block.attn.time_decay.uniform_(generator=generator)
    return model


def by_matrices(model, reader, index):
    """(share, seconds) of every block and head, from the matrices of one window at a time, in float64."""
    count = len(model.montage.modalities)
    heads = model.config.heads
    mass, far = (np.zeros((model.config.depth, heads, count, count)) for _ in range(2))
    queries = np.zeros(count)
    for i in range(len(index)):
        batch = reader.batch(index, [i])
        packing = all_visible(model, batch).visible
        x, real = model.tokenise(batch.rows, packing), packing.ids >= 0
        kind, at = packing.modality[real].numpy(), packing.time_s[real].double().numpy()
        hot, apart = np.eye(count)[kind], np.abs(at[:, None] - at[None])
        queries += hot.sum(0)
        for b, block in enumerate(model.encoder):
            attn = block.attn
            q, k, _ = attn.qkv(block.norm1(x)).view(len(x), 3, heads, -1).unbind(1)
            q, k = attn.q_norm(q)[real].double(), attn.k_norm(k)[real].double()
            logits = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
            logits += attn.pair_bias.double()[:, kind][:, :, kind]
            logits -= attn.time_decay.double()[:, None, None] * torch.from_numpy(apart)
            allowed = attn.allowed[kind][:, kind]
            weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1).numpy()
            mass[b] += np.einsum("qm,hqk,kn->hmn", hot, weights, hot)
            far[b] += np.einsum("qm,hqk,qk,kn->hmn", hot, weights, apart, hot)
            x = block(x, packing)
    return mass / queries[:, None], far.sum(-1) / queries


@pytest.mark.parametrize("pairs", ["any", "cross"])
@torch.no_grad()
def test_shares_are_those_of_the_matrices(store, pairs):
    config = with_keys(WIRED, model__encoder_pairs=pairs)
    model, reader, index = trained_like(store, config), WindowReader(store), index_windows(store, None, 0.0)
    found = attention_shares(model, reader, index, batch_size=7)
    share, seconds = by_matrices(model, reader, index)
    np.testing.assert_allclose(found.share, share, atol=1e-5)
    np.testing.assert_allclose(found.seconds, seconds, rtol=1e-4)
    np.testing.assert_allclose(found.share.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found.uniform_share.sum(-1), 1, atol=1e-5)
    assert found.windows == len(index) and found.modalities == store.montage.modalities
    if pairs == "cross":
        assert np.diagonal(found.share, axis1=2, axis2=3).max() == np.diagonal(found.uniform_share).max() == 0


@torch.no_grad()
def test_equal_weights_give_what_is_called_uniform(store):
    model = new_model(store, WIRED)
    for block in model.encoder:
        block.attn.qkv.weight.zero_()
        block.attn.qkv.bias.zero_()
        block.attn.time_decay.zero_()
    found = attention_shares(model, WindowReader(store), index_windows(store, None, 0.0))
    np.testing.assert_allclose(found.share, np.broadcast_to(found.uniform_share, found.share.shape), atol=1e-6)
    np.testing.assert_allclose(found.seconds, np.broadcast_to(found.uniform_seconds, found.seconds.shape), rtol=1e-5)


def test_every_module_keeps_its_mode_whatever_happens(store, monkeypatch):
    model, reader, index = new_model(store, WIRED), WindowReader(store), index_windows(store, None, 0.0)
    model.encoder.eval()  # as of a frozen encoder under a head that is trained
    before = {name: module.training for name, module in model.named_modules()}
    seen = []
    batch = WindowReader.batch
    monkeypatch.setattr(WindowReader, "batch", lambda *given: (seen.append(model.decoder.training), batch(*given))[1])
    for look in (attention_shares, embed_windows):
        look(model, reader, index)
        assert {name: module.training for name, module in model.named_modules()} == before
    monkeypatch.setattr(WindowReader, "batch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for look in (attention_shares, embed_windows):
        with pytest.raises(KeyboardInterrupt):
            look(model, reader, index)
        assert {name: module.training for name, module in model.named_modules()} == before
    assert seen and not any(seen)


def test_a_modality_that_no_window_has_is_nan_and_the_rest_is_not(tmp_path):
    store = write_store(tmp_path, montage=MONTAGE.select(("C3-M2", "E1-M2", "SaO2")))  # record 1 lacks E1-M2
    index = index_windows(store, {"s01"}, 0.0)
    found = attention_shares(new_model(store, WIRED), WindowReader(store), index)
    assert np.isnan(found.share[:, :, 1]).all() and np.isnan(found.seconds[..., 1]).all()
    assert np.isfinite(found.share[:, :, [0, 2]]).all() and (found.share[:, :, [0, 2], 1] == 0).all()
    again = AttentionShares.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    for name in ("share", "uniform_share", "seconds", "uniform_seconds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    with pytest.raises(ValueError, match="the index has no windows"):
        attention_shares(new_model(store, WIRED), WindowReader(store), index.take(np.arange(0)))


def test_a_probe_keeps_it_and_the_report_shows_it(store, tmp_path):
    run = tmp_path / "run"
    train_run(start_run(run, store, RUN_CONFIG, "base"), Progress())
    assert "attention.json is not in this run folder" in render_report(run)
    assert cli.main(["probe", str(run)]) == 0
    found, step = load_attention(run / "attention.json")
    assert step == 12 and found.share.shape == (1, 2, 4, 4)
    page = render_report(run)
    assert "What the encoder attends to" in page and 'data-attention="EEG/SPO2"' in page
    for content, said in (("{}", "no entry 'share'"), (json.dumps(found.to_dict() | {"share": [[1]]}), "expected")):
        (run / "attention.json").write_text(content)
        with pytest.raises(ValueError, match=said):
            load_attention(run / "attention.json")
        assert "attention.json could not be shown" in render_report(run)
