import copy
import dataclasses

import pytest
import torch

from benchmarks.mixedbatch import make_batch, make_montage
from physiofast import ops
from physiofast.masking import MaskingConfig, Planner, plan_weight
from physiofast.model import ModelConfig, MultimodalMAE, load_by_name, pair_mask
from physiofast.montage import Channel, get_montage
from physiofast.objective import ObjectiveConfig, masked_loss

SMALL = ModelConfig(width=16, depth=2, heads=2, decoder_width=16, decoder_depth=2)


def small(**changes) -> ModelConfig:
    return dataclasses.replace(SMALL, **changes)


def build(config: ModelConfig, seed: int = 0, **geometry):
    batch = make_batch(seed, patches=4, batch=3, rates=(8, 6, 4), **geometry)
    torch.manual_seed(seed)
    return batch, MultimodalMAE(batch.montage, config)


def with_samples(rows: ops.Rows, change) -> ops.Rows:
    samples = rows.samples.clone()
    change(samples)
    return dataclasses.replace(rows, samples=samples)


def token_slices(batch, packing, modality=None):
    """Slices of the flat samples that hold the tokens of a packing."""
    montage = batch.montage
    for token, m in zip(packing.ids.tolist(), packing.modality.tolist(), strict=True):
        if token >= 0 and (modality is None or m == modality):
            window, n = divmod(token, montage.tokens)
            channel, patch = divmod(n, montage.patches_per_window)
            first = int(batch.rows.row_start[window, channel]) + patch * montage.patch_lengths[m]
            yield slice(first, first + montage.patch_lengths[m])


@pytest.mark.parametrize("decoder", ["joint", "cross"])
def test_gradient_reaches_every_parameter(decoder):
    batch, model = build(small(decoder=decoder), absent=0.0, keep=0.5)
    loss, *_ = masked_loss(model, batch.rows, batch.plan, batch.weights, ObjectiveConfig())
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_what_is_no_plan_or_model_is_named():
    batch = make_batch(0, patches=4, batch=3)
    model = MultimodalMAE(batch.montage, ModelConfig(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1))
    said = "^expected a Plan, of visible, hidden and present tokens; found a "
    for plan, kind in ((batch.rows.valid, "Tensor"), (batch.plan.hidden, "Packing")):
        for call in (
            lambda plan: model(batch.rows, plan),
            lambda plan: masked_loss(model, batch.rows, plan),
            lambda plan: masked_loss(model, batch.rows, plan, torch.ones(3)),
            plan_weight,
        ):
            with pytest.raises(TypeError, match=f"{said}{kind}$"):
                call(plan)
    with pytest.raises(TypeError, match="^model must be a MultimodalMAE, or a wrapper around one; found a Rows$"):
        masked_loss(batch.rows, model, batch.plan)


def test_the_loss_of_one_batch_counts_modalities_alike():
    batch, model = build(small())
    loss, total, count = masked_loss(model, batch.rows, batch.plan)
    torch.testing.assert_close(loss, (total / count)[count > 0].mean())


@pytest.mark.parametrize("decoder", ["joint", "cross"])
def test_hidden_samples_do_not_reach_the_prediction(decoder):
    batch, model = build(small(decoder=decoder))
    before = model(batch.rows, batch.plan)

    def poison(samples):
        for where in token_slices(batch, batch.plan.hidden):
            samples[where] = torch.nan

    assert torch.equal(model(with_samples(batch.rows, poison), batch.plan), before)


@pytest.mark.parametrize("decoder", ["joint", "cross"])
def test_noise_in_absent_channels_changes_no_output_bit(decoder):
    """Rows of absent channels may even point at samples: what is not valid is neither input nor target."""
    batch, model = build(small(decoder=decoder))
    absent = batch.rows.row_start < 0
    assert absent.any()
    results = []
    for seed in range(2):
        noise = torch.randn(6000, generator=torch.Generator().manual_seed(seed))
        samples = torch.cat([batch.rows.samples, noise])
        start = torch.where(absent, len(batch.rows.samples), batch.rows.row_start)
        rows = dataclasses.replace(batch.rows, samples=samples, row_start=start)
        loss, total, count = masked_loss(model, rows, batch.plan, batch.weights, ObjectiveConfig())
        results.append((loss, total, count, model(rows, batch.plan)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_dropped_modality_gives_no_token_and_stays_a_target():
    montage = make_montage((2, 1, 1), (8, 8, 8), 5)
    planner = Planner(montage, MaskingConfig(keep=0.5, modality_dropout=0.6), 3)
    valid = torch.ones(40, montage.tokens, dtype=torch.bool)
    capacity = planner.capacity(valid)
    quotas = planner.quotas(0, torch.arange(40), capacity)
    plan = planner.plan(0, torch.arange(40), valid, quotas, capacity)
    dropped = quotas == 0
    assert dropped.any()
    slots = plan.hidden.slot.reshape(40, -1)
    for m in range(3):
        of_m = torch.from_numpy(montage.token_modality == m)
        assert (plan.visible.slot[dropped[:, m]][:, of_m] == -1).all()
        assert (slots[dropped[:, m]][:, of_m] >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_strict_cross_modal_reconstruction(seed):
    """Intra encoder, cross decoder: the samples of a modality change no prediction of that modality, bit for bit."""
    config = small(encoder_pairs="intra", decoder_pairs="cross", decoder="cross")
    batch, model = build(config, seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    before = model(batch.rows, batch.plan)
    for m in range(3):
        visible = list(token_slices(batch, batch.plan.visible, m))
        if not visible:
            continue

        def disturb(samples, places=visible):
            for where in places:
                samples[where] += torch.randn(where.stop - where.start)

        after = model(with_samples(batch.rows, disturb), batch.plan)
        own, others = batch.plan.hidden.modality == m, (batch.plan.hidden.modality != m) & (batch.plan.hidden.ids >= 0)
        assert torch.equal(after[own], before[own])
        assert not torch.equal(after[others], before[others])


def test_last_block_of_a_joint_decoder_serves_the_hidden_tokens_alone():
    batch, model = build(small(decoder="joint"))
    block, plan = model.decoder.blocks[-1], batch.plan
    real, width = plan.hidden.ids >= 0, block.norm1.normalized_shape[0]
    x = torch.randn(len(plan.present.ids), width, requires_grad=True)
    probe = torch.randn(int(real.sum()), width)
    of_all = ops.take_hidden(block(x, plan.present), plan)[real]
    of_hidden = block.hidden(x, plan)[real]
    torch.testing.assert_close(of_hidden, of_all)
    leaves = (x, *block.parameters())
    wanted, found = (torch.autograd.grad(out, leaves, probe) for out in (of_all, of_hidden))
    torch.testing.assert_close(found, wanted)


def test_joint_decoder_of_two_blocks_refuses_cross_pairs():
    with pytest.raises(ValueError, match="after two hops"):
        small(decoder="joint", decoder_pairs="cross", decoder_depth=2)
    small(decoder="joint", decoder_pairs="cross", decoder_depth=1)


@pytest.mark.parametrize("decoder", ["joint", "cross"])
def test_each_modality_is_predicted_from_its_own_position(decoder):
    """A published bug: every decoder reads the first modality's slice. Predictions must differ between tokens."""
    batch, model = build(small(decoder=decoder), absent=0.0)
    pred = model(batch.rows, batch.plan)[batch.plan.hidden.ids >= 0]
    apart = torch.cdist(pred, pred) + torch.eye(len(pred))
    assert apart.min() > 1e-4


def test_parameters_move_between_montages_by_name():
    """From EEG, EOG, EMG to EOG, EMG, ECG: what both know has the same numbers, wherever it stands."""
    source = MultimodalMAE(make_montage((2, 1, 2), (8, 6, 4), 4), SMALL)
    target = MultimodalMAE(make_montage((0, 1, 3, 1), (8, 6, 4, 10), 4), SMALL)
    with torch.no_grad():
        for p in source.parameters():
            p.copy_(torch.randn_like(p))
    kept = load_by_name(target, source.state_dict(), source.montage)
    a, b = source.state_dict(), target.state_dict()
    for name in ("tokeniser.EOG.weight", "positions.channel.EMG1", "positions.time", "encoder.1.attn.qkv.weight"):
        assert torch.equal(a[name], b[name])
    for name in ("encoder.0.attn.pair_bias", "decoder.blocks.1.attn.pair_bias"):
        assert torch.equal(b[name][:, :2, :2], a[name][:, 1:, 1:])
        assert (b[name][:, 2] == 0).all()
    assert torch.equal(b["decoder.head.weight"][:8], a["decoder.head.weight"])
    untouched = {"tokeniser.ECG.weight", "tokeniser.ECG.bias", "positions.channel.EMG2", "positions.channel.ECG0"}
    assert untouched <= set(kept)
    assert not {"tokeniser.EOG.weight", "positions.time", "encoder.0.norm1.weight"} & set(kept)


@pytest.mark.parametrize("change", [{"width": 32}, {"heads": 4}, {"decoder_width": 32}], ids=str)
def test_a_model_of_other_sizes_is_refused_before_anything_is_copied(change):
    source = MultimodalMAE(make_montage((2, 1, 2), (8, 6, 4), 4), small(**change))
    target = MultimodalMAE(make_montage((0, 1, 3, 1), (8, 6, 4, 10), 8), SMALL)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=r"has shape \[.*\] in the state dict and .* need one ModelConfig"):
        load_by_name(target, source.state_dict(), source.montage)
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.state_dict().items())
    same = MultimodalMAE(source.montage, SMALL)  # other rates, patches and channels are no reason
    assert "positions.time" in load_by_name(target, same.state_dict(), same.montage)


def test_channels_may_have_any_name():
    """Of vendors, as `Resp. nasal`; and those that PyTorch's dictionary of parameters has for itself."""
    refused = ("keys", "forward", "training", "of", "reset_parameters", "_drawn")
    names = ("Resp. nasal", "Resp%2E nasal 2", "%values", "values 2", *refused)
    channels = tuple(Channel(name=name, modality="RESP") for name in names)
    montage = dataclasses.replace(get_montage("cinc2018"), channels=channels)
    model, other = (MultimodalMAE(montage, SMALL) for _ in range(2))
    escaped = ("Resp%2E nasal", "Resp%252E nasal 2", "%25values", "values 2", *(f"%{name}" for name in refused))
    assert {f"positions.channel.{name}" for name in escaped} <= set(model.state_dict())
    assert load_by_name(other, model.state_dict(), montage) == []
    for rows in (model.positions.channel, copy.deepcopy(other).positions.channel):
        assert len({rows.of(name).data_ptr() for name in names}) == len(names) == len(list(rows.items()))
        assert all(torch.equal(rows.of(name), model.positions.channel.of(name)) for name in names)


def test_a_model_of_the_same_montage_is_taken_over_whole():
    _, source = build(SMALL)
    target = MultimodalMAE(source.montage, SMALL)
    assert load_by_name(target, source.state_dict(), source.montage) == []
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_dense_samples_give_the_same_as_rows():
    montage = make_montage((2, 1), (8, 8), 4)
    torch.manual_seed(0)
    model, x = MultimodalMAE(montage, SMALL), torch.randn(2, 3, 32)
    rows = ops.Rows.from_dense(x, 4)
    planner = Planner(montage, MaskingConfig(keep=0.5), 0)
    plan = planner.draw_for(torch.arange(2), rows.valid)
    assert torch.equal(model(x, plan), model(rows, plan))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 18, "multiple of 2 \\* heads = 4"),
        ("depth", 0, "model.depth must be at least 1"),
        ("decoder", "conv", "model.decoder must be one of 'joint', 'cross'; found 'conv'"),
        ("encoder_pairs", "some", "model.encoder_pairs must be one of 'any', 'cross', 'intra'; found 'some'"),
        ("mlp_ratio", -1.0, "model.mlp_ratio must be above 0 and at most 1024; found -1.0"),
        ("mlp_ratio", 0.01, "at least one feature; found 0.01 of model.width"),
    ],
)
def test_bad_values_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        small(**{field: value})


def test_pair_masks():
    assert pair_mask("intra", 3).tolist() == torch.eye(3, dtype=torch.bool).tolist()
    assert torch.equal(pair_mask("cross", 3), ~pair_mask("intra", 3))
    assert pair_mask("any", 3).all()


def step(model, batch):
    loss, total, _ = masked_loss(model, batch.rows, batch.plan, batch.weights, ObjectiveConfig())
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return loss.detach(), total, grads


def compare_compiled(backend: str, decoder: str, **changes) -> None:
    torch._dynamo.reset()
    batch, model = build(small(decoder=decoder, **changes))
    want = step(model, batch)
    compiled = torch.compile(
        lambda rows, plan: masked_loss(model, rows, plan, batch.weights, ObjectiveConfig())[0],
        fullgraph=True,
        backend=backend,
    )
    loss = compiled(batch.rows, batch.plan)
    loss.backward()
    torch.testing.assert_close(loss, want[0], rtol=1e-5, atol=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[2][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("decoder", ["joint", "cross"])
def test_compiles_as_one_graph(decoder):
    compare_compiled("aot_eager", decoder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_with_inductor(monkeypatch):
    # PyTorch's caches of graphs would give what an earlier form of the ops compiled to: they do not know their schemas.
    # That of C++ goes by the source and how it is compiled, and stays.
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)
    monkeypatch.setattr(torch._functorch.config, "enable_autograd_cache", False)
    compare_compiled("inductor", "cross", depth=1, decoder_depth=1)  # each layer is some twenty files of C++
