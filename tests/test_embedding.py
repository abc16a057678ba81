import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.mixedbatch import make_batch
from physiofast.cohort import open_cohort
from physiofast.embedding import embed_windows, pool_modalities, window_labels
from physiofast.masking import MaskingConfig, Planner
from physiofast.model import ModelConfig, MultimodalMAE
from physiofast.windows import WindowReader, WindowsConfig, index_windows
from tests.cohort import MONTAGE, write_store


def test_pooling_is_the_mean_over_each_modalitys_tokens():
    batch = make_batch(2, batch=5, absent=0.4)
    packing = batch.plan.present
    encoded = torch.randn(len(packing.ids), 7)
    pooled = pool_modalities(encoded, packing)
    for b in range(5):
        for m in range(3):
            mine = [
                encoded[t]
                for t, (n, of) in enumerate(zip(packing.ids.tolist(), packing.modality.tolist(), strict=True))
                if n >= 0 and n // batch.montage.tokens == b and of == m
            ]
            if mine:
                torch.testing.assert_close(pooled[b, m], torch.stack(mine).mean(0), atol=1e-6, rtol=1e-6)
            else:
                assert pooled[b, m].isnan().all()


def test_pooling_says_what_does_not_fit():
    plan = make_batch(2, batch=5).plan
    encoded = torch.randn(len(plan.visible.ids), 7)
    with pytest.raises(TypeError, match="^packing must be a Packing; found Plan: .*such as plan.visible"):
        pool_modalities(encoded, plan)
    with pytest.raises(ValueError, match=r"^encoded must have shape \[\d+, any\]; found \[3, 7\]"):
        pool_modalities(encoded[:3], plan.visible)


def test_embedding_sees_every_valid_token_and_no_batch_mate(store):
    torch.manual_seed(0)
    model = MultimodalMAE(MONTAGE, ModelConfig(width=16, depth=1, heads=2, decoder_width=16))
    reader, index = WindowReader(store), index_windows(store)
    all_at_once, one_by_one = (embed_windows(model, reader, index, batch_size=b) for b in (len(index), 1))
    assert all_at_once.shape == (len(index), 16 * len(MONTAGE.modalities))
    np.testing.assert_allclose(all_at_once, one_by_one, atol=2e-5)
    batch = reader.batch(index, [0])
    planner = Planner(MONTAGE, MaskingConfig(keep=1.0, modality_dropout=0.0), 0)
    capacity = planner.capacity(batch.valid)
    plan = planner.plan(0, batch.window_id, batch.rows.valid, capacity, capacity)
    with torch.no_grad():
        encoded = model.encode(batch.rows, plan.visible)
        want = pool_modalities(encoded, plan.visible).flatten(1)
    np.testing.assert_allclose(all_at_once[:1], want.numpy(), atol=2e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit_and_are_given_back(store, threads):
    torch.manual_seed(0)
    model = MultimodalMAE(MONTAGE, ModelConfig(width=16, depth=1, heads=2, decoder_width=16))
    reader, index = WindowReader(store), index_windows(store)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    want = embed_windows(model, reader, index, batch_size=4)
    torch.set_num_threads(threads)
    try:
        np.testing.assert_array_equal(embed_windows(model, reader, index, batch_size=4), want)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_labels_belong_to_their_windows(store):
    index = index_windows(store, {"s01", "s02"})
    labels = window_labels(store, index)
    for i, (r, e) in enumerate(zip(index.record, index.epoch, strict=True)):
        record = store.records[r]
        assert labels["stage"][i] == record.stage[e]
        assert labels["arousal"][i] == record.arousal[e]
        assert labels["apnea"][i] == record.apnea[e]
        assert labels["age"][i] == record.age_years
        assert labels["sex"][i] == {"F": 0, "M": 1}[record.sex]


def test_a_wrapped_model_embeds_and_what_does_not_fit_is_refused(store, tmp_path):
    model = MultimodalMAE(MONTAGE, ModelConfig(width=16, depth=1, heads=2, decoder_width=16))
    reader, index = WindowReader(store), index_windows(store)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    np.testing.assert_array_equal(embed_windows(averaged, reader, index), embed_windows(model, reader, index))
    with pytest.raises(ValueError, match="the index has no windows"):
        embed_windows(model, reader, index.take(np.arange(0)))
    turned = dataclasses.replace(MONTAGE, channels=(MONTAGE.channels[1], MONTAGE.channels[0], *MONTAGE.channels[2:]))
    other = write_store(tmp_path / "other", montage=turned)
    with pytest.raises(ValueError, match=r"the model is for C3-M2 \(EEG\), .*other holds C4-M1 \(EEG\), C3-M2"):
        embed_windows(model, WindowReader(other), index_windows(other))
    twice = {modality: 2 * rate for modality, rate in MONTAGE.rate_hz.items()}
    short = MultimodalMAE(dataclasses.replace(MONTAGE, rate_hz=twice, patch_s=0.5, window_s=3.0), model.config)
    with pytest.raises(ValueError, match=r"6 patches of 0\.5 s and 16, 16, .* 6 patches of 1 s and 16, 16"):
        embed_windows(short, reader, index)


def test_a_path_in_place_of_a_store_and_an_empty_batch_say_what_to_give(store):
    reader, index = WindowReader(store), index_windows(store)
    for use in (lambda: window_labels("store", index), lambda: open_cohort("store", WindowsConfig())):
        with pytest.raises(TypeError, match=r"^store must be a Store; found str: physiofast.Store.open\(path\)"):
            use()
    with pytest.raises(TypeError, match=r"^config must be a WindowsConfig; found float: physiofast.WindowsConfig\("):
        open_cohort(store, 0.5)
    model = MultimodalMAE(MONTAGE, ModelConfig(width=16, depth=1, heads=2, decoder_width=16))
    with pytest.raises(ValueError, match="^batch_size must be at least 1; found 0"):
        embed_windows(model, reader, index, batch_size=0)
