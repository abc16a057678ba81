import dataclasses
import json
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from physiofast import ops
from physiofast.embedding import embed_windows
from physiofast.model import ModelConfig, MultimodalMAE
from physiofast.training import train
from physiofast.training_config import PretrainConfig
from physiofast.windows import (
    WindowReader,
    evenly_spaced,
    index_windows,
    jitter_patches,
    record_key,
    step_windows,
    valid_share,
)
from tests.cohort import MONTAGE, write_store


def test_index_lists_every_window_of_the_chosen_subjects(store):
    index = index_windows(store, {"s01", "s03"}, 0.0)
    assert index.record.tolist() == [1] * 5 + [3] * 5
    assert index.epoch.tolist() == [*range(5)] * 2
    assert len(set(index.window_id.tolist())) == 10


def test_subjects_are_names_that_the_store_has(store):
    with pytest.raises(TypeError, match=re.escape("found the text 's01': write ['s01']")):
        index_windows(store, "s01")
    with pytest.raises(ValueError, match=re.escape("has no subject 's1'; did you mean 's01'? Allowed: s00, s01, s02")):
        index_windows(store, ["s00", "s1"])
    with pytest.raises(ValueError, match="has no subject 10"):
        index_windows(store, [10])


def test_some_windows_of_an_index_are_an_index(store):
    index = index_windows(store, None, 0.0)
    some = index.take(np.array([7, 0, 7]))
    assert some.record.tolist() == [1, 0, 1] and some.epoch.tolist() == [2, 0, 2]
    assert some.window_id.tolist() == index.window_id[[7, 0, 7]].tolist()
    assert [part.tolist() for part in index.take(np.arange(5)).batches(2)] == [[0, 1], [2, 3], [4]]


def test_all_places_take_no_more_memory_than_there_are():
    assert evenly_spaced(5, 10**15).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "most", "places"), [(9, 3, [0, 4, 8]), (5, 5, [0, 1, 2, 3, 4]), (2, 5, [0, 1]), (1, 4, [0]), (7, 1, [0])]
)
def test_evenly_spaced_places_reach_from_first_to_last(count, most, places):
    assert evenly_spaced(count, most).tolist() == places


def test_windows_keep_their_ids_when_records_are_added(tmp_path):
    few, many = (write_store(tmp_path / str(n), subjects=n) for n in (2, 4))
    assert index_windows(few).window_id.tolist() == index_windows(many, {"s00", "s01"}).window_id.tolist()
    assert record_key("r00") != record_key("r01")


def test_windows_with_few_valid_patches_are_left_out(store):
    record = store.records[0]
    share = valid_share(record, MONTAGE)
    patches = MONTAGE.patches_per_window
    assert share[2] == pytest.approx(record.valid[:, 2 * patches : 3 * patches].mean())
    index = index_windows(store, {"s00"}, float(np.median(share)))
    assert index.epoch.tolist() == np.flatnonzero(share >= np.median(share)).tolist()


def test_no_window_left_is_an_error(store):
    with pytest.raises(ValueError, match="no window of 0 records has 50% valid patches"):
        index_windows(store, [])


@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(1, 20))
def test_steps_walk_through_whole_permutations(count, seed, batch):
    steps = -(-3 * count // batch)
    walked = np.concatenate([step_windows(count, seed, step, batch) for step in range(steps)])
    for number in range(3):
        assert sorted(walked[number * count : (number + 1) * count]) == list(range(count))
    assert np.array_equal(step_windows(count, seed, 1, batch), step_windows(count, seed, 1, batch))


def test_passes_and_seeds_differ():
    first, second = (step_windows(50, 1, step, 50) for step in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, step_windows(50, 2, 0, 50))


def test_jitter_covers_half_a_window_each_way_and_ignores_neighbours():
    ids = np.arange(2000)
    shift = jitter_patches(3, 7, ids, 6)
    assert set(shift.tolist()) == set(range(-3, 4))
    assert np.array_equal(jitter_patches(3, 7, ids[5:9], 6), shift[5:9])
    assert not np.array_equal(jitter_patches(3, 8, ids, 6), shift)


def expected_row(store, record, epoch, channel, shift=0):
    entry, length = store.records[record], MONTAGE.patch_lengths[MONTAGE.channel_modality[channel]]
    patches = MONTAGE.patches_per_window
    first = (epoch * patches + shift) * length
    return entry.plane(channel)[first : first + patches * length]


@pytest.mark.parametrize("resident", [False, True])
def test_rows_are_the_stored_samples(store, resident):
    index = index_windows(store, None, 0.0)
    reader = WindowReader(store, resident=resident)
    windows = [7, 0, 19, 5]
    batch = reader.batch(index, windows)
    assert batch.window_id.tolist() == index.window_id[windows].tolist()
    for b, w in enumerate(windows):
        record, epoch = int(index.record[w]), int(index.epoch[w])
        entry, patches = store.records[record], MONTAGE.patches_per_window
        for c, length in enumerate(MONTAGE.row_lengths):
            start = int(batch.rows.row_start[b, c])
            assert (start == -1) == (entry.plane_start[c] == -1)
            if start >= 0:
                got = batch.rows.samples[start : start + length].numpy()
                assert np.array_equal(got, expected_row(store, record, epoch, c))
                assert start % 64 == 0 or resident
        want = entry.valid[:, epoch * patches : (epoch + 1) * patches].reshape(-1)
        assert np.array_equal(batch.valid[b].numpy(), want)
        assert np.array_equal(batch.rows.row_scale[b].numpy(), entry.scale)
        assert np.array_equal(batch.rows.row_shift[b].numpy(), entry.shift)


def test_a_record_that_shrinks_while_it_is_mapped(tmp_path):
    """In a process of its own, which a read behind the end of a mapped file would end."""
    path = write_store(tmp_path, windows=400).records[2].path
    code = f"""
    import os
    from physiofast.store import Store
    from physiofast.windows import WindowReader, index_windows
    store = Store.open({str(tmp_path)!r})
    index = index_windows(store, None, 0.0)
    reader = WindowReader(store)
    everything = range(len(index))
    whole = reader.batch(index, everything).rows.samples.sum()
    size = os.path.getsize({str(path)!r})
    os.truncate({str(path)!r}, 20_000)
    for read in (
        lambda: reader.batch(index, everything),
        lambda: reader.signals(index, everything),
        lambda: store.records[2].physical(4),
        lambda: WindowReader(store, resident=True),
    ):
        try:
            read()
        except ValueError as error:
            print(error)
    others = [i for i in everything if index.record[i] != 2]
    print(len(reader.batch(index, others).rows.row_start), len(others), size)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    *refusals, others = run.stdout.splitlines()
    rows, expected, size = others.split()
    assert rows == expected
    assert len(refusals) == 4
    for line in refusals:
        needed = int(re.match(rf"{path}: byte 20000: expected (\d+) bytes or more, .* found 20000 bytes: ", line)[1])
        assert 20_000 < needed <= int(size)


def test_shifted_windows_stay_inside_the_record(store):
    index = index_windows(store, {"s00"}, 0.0)
    reader = WindowReader(store)
    batch = reader.batch(index, [0, 2, 4], np.asarray([-3, 2, 3]))
    for b, (epoch, shift) in enumerate([(0, 0), (2, 2), (4, 2)]):  # 2 patches follow the last window
        start = int(batch.rows.row_start[b, 0])
        got = batch.rows.samples[start : start + MONTAGE.row_lengths[0]].numpy()
        assert np.array_equal(got, expected_row(store, 0, epoch, 0, shift))
        patches = MONTAGE.patches_per_window
        first = epoch * patches + shift
        assert np.array_equal(batch.valid[b].numpy(), store.records[0].valid[:, first : first + patches].reshape(-1))


def test_a_shift_onto_too_few_valid_patches_is_not_made(tmp_path):
    store = write_store(tmp_path)
    for entry in store.records[:2]:  # the second lacks a channel, which does not count
        entry.valid[entry.plane_start >= 0] = True
        entry.valid[:, 12:20] = False
    index = index_windows(store, {"s00", "s01"}, 0.5)
    assert index.epoch.tolist() == [0, 1, 3, 4] * 2
    windows, shift, starts = [1, 2, 2, 5, 6, 7], np.asarray([3, -3, 2, 3, -3, -3]), [9, 18, 20, 9, 18, 21]
    for resident in (False, True):
        reader = WindowReader(store, resident=resident)
        batch = reader.batch(index, windows, shift, min_valid_share=0.5)
        for b, (window, start) in enumerate(zip(windows, starts, strict=True)):
            record = int(index.record[window])
            assert np.array_equal(batch.valid[b].numpy(), store.records[record].valid[:, start : start + 6].reshape(-1))
            row = int(batch.rows.row_start[b, 0])
            got = batch.rows.samples[row : row + MONTAGE.row_lengths[0]].numpy()
            assert np.array_equal(got, expected_row(store, record, 0, 0, start))
        assert torch.equal(reader.batch(index, windows[1:3], shift[1:3], min_valid_share=0.5).valid, batch.valid[1:3])
        anywhere = reader.batch(index, windows, shift).valid
        assert anywhere[1].sum() == 5 and anywhere[4].sum() == 4


def test_signals_are_robust_scores_with_absent_channels_as_nan(store):
    index = index_windows(store, {"s01"}, 0.0)
    signals = WindowReader(store).signals(index, [3])
    assert np.isnan(signals[1]).all()
    entry = store.records[1]
    want = expected_row(store, 1, 3, 2).astype(np.float32) * entry.scale[2] + entry.shift[2]
    assert np.array_equal(signals[2][0], want)


def test_resident_rows_share_one_tensor(store):
    reader = WindowReader(store, resident=True)
    index = index_windows(store, None, 0.0)
    one, two = reader.batch(index, [0]), reader.batch(index, [3])
    assert one.rows.samples.data_ptr() == two.rows.samples.data_ptr()


def test_batches_are_rows_of_tensors(store):
    batch = WindowReader(store).batch(index_windows(store), [0, 1])
    assert all(
        isinstance(getattr(batch.rows, f.name), torch.Tensor)
        for f in dataclasses.fields(batch.rows)
        if f.name not in ("align", "is_unscaled", "patch_lengths", "channel_lengths")
    )
    assert batch.rows.patch_lengths == MONTAGE.patch_lengths


def test_a_buffer_of_the_caller_is_reused(store):
    index, reader = index_windows(store, None, 0.0), WindowReader(store)
    buffer = torch.full((reader.buffer_size(3) + 5,), 77, dtype=torch.int16)
    for windows in ([1, 4, 2], [9, 0, 3]):
        batch = reader.batch(index, windows, out=buffer)
        assert batch.rows.samples.data_ptr() == buffer.data_ptr()
        fresh = reader.batch(index, windows).rows
        assert torch.equal(batch.rows.row_start, fresh.row_start)
        for c, length in enumerate(MONTAGE.row_lengths):
            for start in batch.rows.row_start[:, c].tolist():
                if start >= 0:
                    assert torch.equal(buffer[start : start + length], fresh.samples[start : start + length])
    assert (buffer[-5:] == 77).all()
    for wrong in (buffer[:-6], buffer.int(), buffer[::2]):
        with pytest.raises(ValueError, match=r"out needs contiguous int16 \[\d+\] or more on the CPU for 3 windows"):
            reader.batch(index, [0, 1, 2], out=wrong)


def test_a_store_of_more_records_than_files_that_may_be_open(tmp_path):
    write_store(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    entry = manifest["records"][0]
    manifest["records"] = []
    for number in range(100):
        os.link(tmp_path / entry["file"], tmp_path / f"r{number}.safetensors")
        manifest["records"].append(entry | {"file": f"r{number}.safetensors", "record": f"r{number}"})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    code = f"""
        import resource
        import numpy as np
        from physiofast.store import Store
        from physiofast.windows import WindowReader, index_windows

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        store = Store.open({str(tmp_path)!r})
        index = index_windows(store, None, 0.0)
        reader = WindowReader(store)
        first = np.flatnonzero(index.epoch == 1)
        assert len(first) == 100
        for values in reader.signals(index, first):
            assert all(np.array_equal(row, values[0], equal_nan=True) for row in values)
        assert len(reader.batch(index, first).window_id) == 100
        WindowReader(store, resident=True)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_rows_of_a_store_with_several_rates_know_their_channels(store):
    rows = WindowReader(store).batch(index_windows(store, None, 0.0), range(2)).rows
    assert rows.channel_lengths == (16, 16, 16, 8, 2) and rows.patch_lengths == (16, 16, 8, 2)


def test_a_batch_is_moved_pinned_and_saved(store, tmp_path, monkeypatch):
    batch = WindowReader(store).batch(index_windows(store, None, 0.0), range(4))
    for moved in (batch.to("meta"), ops.to_device([batch], "meta")[0]):
        assert moved.rows.samples.is_meta and moved.rows.valid.is_meta
        assert moved.valid is batch.valid and moved.window_id is batch.window_id  # they are the host's
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # there may be no memory to pin here
    pinned = batch.pin_memory()
    assert torch.equal(pinned.rows.samples, batch.rows.samples) and pinned.rows.samples is not batch.rows.samples
    assert pinned.valid is batch.valid and pinned.window_id is batch.window_id
    torch.save(batch, tmp_path / "batch.pt")
    again = torch.load(tmp_path / "batch.pt")
    assert torch.equal(again.rows.samples, batch.rows.samples) and torch.equal(again.window_id, batch.window_id)


def test_what_is_no_store_no_model_and_no_batch_is_named(store, tmp_path):
    reader, index = WindowReader(store), index_windows(store)
    model = MultimodalMAE(store.montage, ModelConfig(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1))
    for call, said in (
        (lambda: WindowReader("store"), "store must be a Store; found str: physiofast.Store.open(path) makes one"),
        (lambda: index_windows("store"), "store must be a Store; found str"),
        (lambda: train("store", tmp_path, PretrainConfig()), "store must be a Store; found str"),
        (lambda: train(store, tmp_path, "base"), "config must be a PretrainConfig; found str: physiofast.get_recipe("),
        (lambda: MultimodalMAE("cinc2018", ModelConfig()), "montage must be a Montage; found str: a store has one"),
        (lambda: MultimodalMAE(store.montage, PretrainConfig()), "config must be a ModelConfig; found PretrainConfig"),
        (lambda: embed_windows("run", reader, index), "model must be a MultimodalMAE; found str: physiofast.load_pret"),
        (lambda: embed_windows(model, store, index), "reader must be a WindowReader; found Store"),
        (
            lambda: reader.batch(index, np.int32(3)),
            "windows must be a sequence of positions; found np.int32(3): batch(",
        ),
    ):
        with pytest.raises(TypeError, match=re.escape(said)):
            call()
    with pytest.raises(ValueError, match="windows must name one window or more; found none"):
        reader.batch(index, [])
