"""The attention module: every form of its function gives the numbers of the op, values and gradients."""

import copy
import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from benchmarks.mixedbatch import make_batch, make_montage
from physiofast import attention_forms
from physiofast.attention import ModalityAttention, needed_autocast
from physiofast.attention_forms import FORMS, Options
from physiofast.model import ModelConfig, MultimodalMAE
from physiofast.ops import Packing, Plan
from tests.ops.attention import make_case
from tests.varlen import pretend_varlen

LENGTHS = [([5, 1, 0, 7], None), ([3, 4, 2, 6], [6, 0, 5, 1])]


@pytest.fixture
def pretended_varlen(monkeypatch):
    monkeypatch.setattr(attention_forms, "varlen_refusal", lambda q: None)
    pretend_varlen(monkeypatch)


@pytest.mark.parametrize("form", [name for name in FORMS if name != "packed"])
@pytest.mark.parametrize("pairs", ["any", "cross"])
@pytest.mark.parametrize(("lengths_q", "lengths_k"), LENGTHS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_every_form_equals_the_op(form, pairs, lengths_q, lengths_k, pretended_varlen):
    case = make_case(lengths_q, lengths_k, heads=2, width=16, pairs=pairs, tail=3)
    for tensor in (case.q, case.k, case.v):
        tensor.data.nan_to_num_(0)  # what PyTorch's own functions make of poison in the tail is theirs
    leaves = case.leaves()[: 4 if form == "varlen" else 5]
    if form == "flex":  # has no backward on a CPU
        leaves = [leaf.detach() for leaf in leaves]
    q, k, v, pair_bias, *time_decay = leaves
    options = Options(pair_bias, case.options["allowed"], *time_decay)
    found, want = (FORMS[name](q, k, v, *case.packings, options) for name in (form, "packed"))
    torch.testing.assert_close(found, want, atol=1e-10, rtol=1e-10)
    if form != "flex":
        probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(0), dtype=want.dtype)
        got, wanted = (torch.autograd.grad((out * probe).sum(), leaves) for out in (found, want))
        for name, a, b in zip(("q", "k", "v", "pair_bias", "time_decay"), got, wanted, strict=False):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_varlen_says_what_it_needs():
    case = make_case([4], None, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="takes CUDA tensors of float16 or bfloat16; found cpu and torch.float32"):
        attention_forms.varlen(case.q, case.k, case.v, *case.packings, Options(*list(case.options.values())[:2]))
    with pytest.raises(ValueError, match="no room for a decay with distance in time; use decay=False"):
        ModalityAttention(8, 2, 3, attention="varlen")
    with pytest.raises(ValueError, match=r"model.attention = 'varlen' has no room for a decay; set model.time_decay"):
        ModelConfig(attention="varlen")
    with pytest.raises(ValueError, match="attention must be one of packed, sdpa, varlen, flex; found 'dense'"):
        ModalityAttention(8, 2, 3, attention="dense")


def test_wiring_that_cannot_be_is_refused_when_the_module_is_made():
    with pytest.raises(ValueError, match=r"^allowed must have shape \[3, 3\]; found \[2, 2\]$"):
        ModalityAttention(8, 2, 3, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^allowed must be bool; found float32$"):
        ModalityAttention(8, 2, 3, torch.ones(3, 3))
    with pytest.raises(TypeError, match=r"^allowed must be a tensor; found list: torch.as_tensor makes tensors$"):
        ModalityAttention(8, 2, 3, [[True] * 3] * 3)
    for count in (0, -1):
        with pytest.raises(ValueError, match=rf"^num_modalities must be 1 or more; found {count}$"):
            ModalityAttention(8, 2, count)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_is_added_for_varlen_alone_and_never_over_another(form):
    def seen(model):
        with needed_autocast(torch.nn.Sequential(model)):
            return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    model = ModalityAttention(8, 2, 3, decay=False, attention=form)
    assert seen(model) == (torch.bfloat16 if form == "varlen" else None)
    with torch.autocast("cpu", torch.float16):
        assert seen(model) == torch.float16
    assert seen(model.half()) is None


def packing_of(lengths) -> Packing:
    return make_case(lengths, None, tail=0).packings[0]


class PlainAttention(torch.nn.Module):
    """Attention of the usual vision transformer (timm), for one image."""

    def __init__(self, width, heads, eps=1e-5):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.q_norm = torch.nn.LayerNorm(width // heads, eps)
        self.k_norm = torch.nn.LayerNorm(width // heads, eps)
        self.proj = torch.nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        out = torch.nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(0, 1).flatten(1))


def test_the_state_dict_of_a_vision_transformer_loads():
    torch.manual_seed(0)
    plain, ours = PlainAttention(16, 2), ModalityAttention(16, 2, 3, qk_norm=True, decay=False)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    found = ours.load_state_dict(plain.state_dict(), strict=False)
    assert found.missing_keys == ["pair_bias"]
    assert found.unexpected_keys == []
    x = torch.randn(12, 16)
    want = torch.cat([plain(part) for part in x.split([5, 7])])
    torch.testing.assert_close(ours(x, packing_of([5, 7])), want, atol=1e-6, rtol=1e-6)


def test_a_context_is_projected_by_the_same_layer():
    torch.manual_seed(0)
    module, x = ModalityAttention(16, 2, 3), torch.randn(12, 16)
    packing = packing_of([5, 7])
    torch.testing.assert_close(module(x, packing, x, packing), module(x, packing))
    context = torch.randn(12, 16)
    assert not torch.allclose(module(x, packing, context, packing), module(x, packing))


def test_a_state_dict_without_biases_loads():
    """Of small queries and keys, by whose normalisation another eps shows."""
    plain = PlainAttention(16, 2, eps=1e-3)
    plain.qkv, plain.proj = torch.nn.Linear(16, 48, bias=False), torch.nn.Linear(16, 16, bias=False)
    without = {"qkv_bias": False, "proj_bias": False, "decay": False}
    ours = ModalityAttention(16, 2, 3, qk_norm=True, norm_eps=1e-3, **without)
    found = ours.load_state_dict(plain.state_dict(), strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["pair_bias"], [])
    x, packing = torch.randn(12, 16) * 0.1, packing_of([5, 7])
    torch.testing.assert_close(
        ours(x, packing), torch.cat([plain(part) for part in x.split([5, 7])]), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(ours(x, packing, x, packing), ours(x, packing))


class LowRank(torch.nn.Module):
    """An adapter around a layer, with what others read of it (as PEFT's have)."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.down = layer, torch.nn.Linear(layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, layer.out_features, bias=False)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def test_a_layer_in_the_place_of_the_projection_serves_a_context_too():
    torch.manual_seed(0)
    module, x, packing = ModalityAttention(16, 2, 3), torch.randn(12, 16), packing_of([5, 7])
    before = module(x, packing)
    module.qkv = LowRank(module.qkv)
    assert not torch.allclose(module(x, packing), before)
    torch.testing.assert_close(module(x, packing, x, packing), module(x, packing))


def test_a_forward_that_was_put_into_the_projection_serves_a_context_too():
    """As accelerate does, to bring weights from where they are kept."""
    module, x, packing = ModalityAttention(16, 2, 3), torch.randn(12, 16), packing_of([5, 7])
    before, plain = module(x, packing), module.qkv.forward
    module.qkv.forward = lambda x: 2 * plain(x)
    assert not torch.allclose(module(x, packing), before)
    torch.testing.assert_close(module(x, packing, x, packing), module(x, packing))


def test_hooks_of_the_projection_see_a_context_too():
    module, x, packing, seen = ModalityAttention(16, 2, 3), torch.randn(12, 16), packing_of([5, 7]), []
    handle = module.qkv.register_forward_hook(lambda layer, given, out: seen.append(out.shape))
    module(x, packing, x, packing)
    assert seen == [(12, 48)] * 2
    handle.remove()
    grads = []
    handle = module.qkv.register_full_backward_pre_hook(lambda layer, grad: grads.append(grad))
    x.requires_grad_()
    module(x, packing, x, packing).sum().backward()
    assert len(grads) == 2
    handle.remove()
    module(x, packing, x, packing)
    assert len(seen) == 2


def test_hooks_of_all_modules_see_a_context_too():
    module, x, packing, seen = ModalityAttention(16, 2, 3), torch.randn(12, 16), packing_of([5, 7]), []
    want = module(x, packing, x, packing)
    register = torch.nn.modules.module.register_module_forward_hook
    with register(lambda layer, given, out: seen.append(out.shape) if layer is module.qkv else None):
        torch.testing.assert_close(module(x, packing, x, packing), want)
    assert seen == [(12, 48)] * 2


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet:UserWarning")
def test_modules_are_stacked():
    """An ensemble in one call, as `torch.func.stack_module_state` has it."""
    torch.manual_seed(0)
    modules, x, packing = [ModalityAttention(16, 2, 3) for _ in range(3)], torch.randn(12, 16), packing_of([5, 7])
    state = torch.func.stack_module_state(modules)

    def run(parameters, buffers):
        return torch.func.functional_call(modules[0], (parameters, buffers), (x, packing))

    got = torch.func.vmap(run)(*state)
    torch.testing.assert_close(got, torch.stack([module(x, packing) for module in modules]))


def test_a_device_of_a_context_is_that_of_every_parameter():
    with torch.device("meta"):
        module = ModalityAttention(8, 2, 3)
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}


CROSS = ~torch.eye(3, dtype=torch.bool)


def built_on_meta(allowed=CROSS) -> ModalityAttention:
    with torch.device("meta"):
        return ModalityAttention(16, 2, 3, allowed, qk_norm=True)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("is_assigned", [False, True])
@pytest.mark.parametrize("allowed", [CROSS, None])
def test_a_state_dict_makes_of_a_module_without_values_the_one_that_it_is_of(allowed, is_assigned):
    direct, x, packing = ModalityAttention(16, 2, 3, allowed, qk_norm=True), torch.randn(12, 16), packing_of([5, 7])
    later = built_on_meta(allowed)
    if not is_assigned:
        later.to_empty(device="cpu")
    assert later.load_state_dict(direct.state_dict(), assign=is_assigned) == ([], [])
    assert torch.equal(later.allowed, direct.allowed)
    assert torch.equal(later(x, packing), direct(x, packing))


@pytest.mark.usefixtures("poisoned_memory")
def test_a_module_of_fake_tensors_has_the_shapes_of_a_real_one():
    with FakeTensorMode():
        fake = ModalityAttention(16, 4, 3, qk_norm=True)
    real = ModalityAttention(16, 4, 3, qk_norm=True)
    shapes = [{name: (p.shape, p.dtype, p.device) for name, p in m.named_parameters()} for m in (fake, real)]
    assert shapes[0] == shapes[1]
    assert all(isinstance(parameter, FakeTensor) for parameter in fake.parameters())


def test_parameters_are_reset_to_those_of_a_new_module():
    torch.manual_seed(0)
    direct, later = ModalityAttention(16, 2, 3, CROSS, qk_norm=True), built_on_meta().to_empty(device="cpu")
    later.reset_parameters()
    for (name, got), want in zip(later.state_dict().items(), direct.state_dict().values(), strict=True):
        if name.split(".")[0] in ("qkv", "proj"):
            assert got.abs().max() <= 16**-0.5
            torch.testing.assert_close(got.std(), want.std(), rtol=0.5, atol=0)
        else:
            assert torch.equal(got, want), name
    assert torch.equal(later.allowed, CROSS)


@pytest.mark.filterwarnings("ignore:DTensor random operators may not have complete support:UserWarning")
def test_parameters_that_are_sharded_are_reset_as_others(tmp_path):
    """As trainers of large models do: built on the meta device, sharded, and then given values."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        with torch.device("meta"):
            model = MultimodalMAE(make_montage((2, 1), (8, 8), 4), ModelConfig(width=16, depth=1, heads=2))
        dist.fsdp.fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        found = {name: parameter.full_tensor() for name, parameter in model.named_parameters()}
    finally:
        dist.destroy_process_group()
    wanted = dict(MultimodalMAE(model.montage, model.config).named_parameters())
    for name in ("encoder.0.attn.time_decay", "encoder.0.attn.pair_bias", "positions.time", "decoder.positions.time"):
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_every_form_refuses_what_the_op_does(form, pretended_varlen):
    case = make_case([5, 3], [4, 2], heads=2, width=16)
    q, k, v, pair_bias = case.q, case.k, case.v, case.options["pair_bias"]
    options, few = Options(pair_bias, case.options["allowed"]), Options(pair_bias[:, :2, :2], torch.ones(2, 2) > 0)
    valid = torch.ones(2, 4, dtype=torch.bool)
    packing = Plan.from_mask(valid, valid, torch.tensor([0, 1, 2, 2]), torch.arange(4.0)).visible
    x = torch.zeros(8, 2, 16, dtype=torch.float64)
    wrong = {
        "pair_bias and allowed are of 2 modalities, but a packing has tokens of 3": (x, x, x, packing, packing, few),
        "q must have shape": (torch.cat([q, q]), k, v, *case.packings, options),
        "k must have shape": (q, k[:-1], v, *case.packings, options),
        "v is torch.float32 but q is torch.float64": (q, k, v.float(), *case.packings, options),
        "allowed": (q, k, v, *case.packings, options._replace(allowed=options.allowed.float())),
    }
    for said, arguments in wrong.items():
        with pytest.raises(ValueError, match=said):
            FORMS[form](*arguments)
    with pytest.raises(TypeError, match="expected a Packing, such as plan.visible; found a int"):
        FORMS[form](q, k, v, 3, 3, options)


def test_what_layers_do_not_show_is_told():
    assert "(\n  heads=2, num_modalities=3, attention='packed', allowed=[[0, 1, 1], [1, 0, 1], [1, 1, 0]]\n" in repr(
        ModalityAttention(16, 2, 3, CROSS)
    )
    told = ModalityAttention(16, 2, 3, decay=False, attention="sdpa").extra_repr()
    assert told == "heads=2, num_modalities=3, attention='sdpa', decay=False"
    assert "heads=2" in repr(built_on_meta())


@pytest.mark.usefixtures("poisoned_memory")
def test_what_may_attend_stays_wherever_a_module_goes():
    module = ModalityAttention(16, 2, 3)
    module.allowed = CROSS.clone()
    for move in (
        lambda: module.to_empty(device="cpu"),
        lambda: module.to("meta").to_empty(device="cpu"),
        lambda: copy.deepcopy(module).to("meta").to_empty(device="cpu"),
        lambda: module.double(),
    ):
        assert torch.equal(move().allowed, CROSS)
    held = module.allowed
    module.share_memory()
    assert module.allowed is held
    with torch.device("meta"), pytest.raises(ValueError, match=r"allowed has no values on the meta device; make it"):
        ModalityAttention(16, 2, 3, torch.ones(3, 3, dtype=torch.bool))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("pairs", ["any", "cross", "intra"])
def test_a_model_without_values_becomes_the_one_of_a_state_dict(pairs):
    batch = make_batch(0, patches=4, batch=3, rates=(8, 6, 4))
    config = ModelConfig(width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, encoder_pairs=pairs)
    direct = MultimodalMAE(batch.montage, config)
    with torch.device("meta"):
        later = MultimodalMAE(batch.montage, config)
    assert {tensor.device.type for tensor in (*later.parameters(), *later.buffers())} == {"meta"}
    later.to_empty(device="cpu").load_state_dict(direct.state_dict())
    assert torch.equal(later(batch.rows, batch.plan), direct(batch.rows, batch.plan))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("decoder", ["joint", "cross"])
def test_every_parameter_of_a_model_without_values_is_reset(decoder):
    """As FSDP does it: module by module, those that hold parameters themselves."""
    montage = make_montage((2, 1, 2), (8, 6, 4), 5)
    config = ModelConfig(width=64, depth=1, heads=2, decoder=decoder, decoder_width=64, decoder_depth=1, qk_norm=True)
    torch.manual_seed(0)
    direct = MultimodalMAE(montage, config)
    with torch.device("meta"):
        later = MultimodalMAE(montage, config)
    later.to_empty(device="cpu")
    assert all(parameter.isnan().all() for parameter in later.parameters())
    for module in later.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.reset_parameters()
    for (name, got), want in zip(later.state_dict().items(), direct.state_dict().values(), strict=True):
        if want.numel() < 2 or not want.std():
            assert torch.equal(got, want), name
        else:  # of a few numbers, in some
            torch.testing.assert_close(got.square().mean().sqrt(), want.square().mean().sqrt(), rtol=0.6, atol=0)


def test_width_is_a_multiple_of_heads():
    for heads in (4, 0, -5):
        with pytest.raises(ValueError, match=f"width 10 must be a multiple of heads {heads}"):
            ModalityAttention(10, heads, 2)


def test_padded_tokens_are_refused():
    case = make_case([3, 4], [5, 6])
    attention = ModalityAttention(16, 4, 3)
    padded, (of_queries, of_keys) = torch.zeros(2, 7, 16), case.packings
    places, of_context = len(of_queries.ids), len(of_keys.ids)
    x = torch.zeros(places, 16)
    for wrong in (padded, x[:, :8], x[1:]):
        said = rf"^x must be packed tokens \[T, D\] = \[{places}, 16\], as of .*; found shape \[{len(wrong)}, "
        for call in (attention, attention.statistics):
            with pytest.raises(ValueError, match=said):
                call(wrong, of_queries)
    with pytest.raises(ValueError, match=rf"^context must be packed tokens \[T, D\] = \[{of_context}, 16\]"):
        attention(x, of_queries, padded, of_keys)
    with pytest.raises(TypeError, match="^expected a Packing"):
        attention(x, of_queries.ids)


def test_tokens_of_another_dtype_than_the_weights_are_named():
    case = make_case([3, 4], [3, 4])
    attention, packing = ModalityAttention(16, 4, 3), case.packings[0]
    x = torch.zeros(len(packing.ids), 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="^x is torch.bfloat16, but the weights are torch.float32; cast one of them$"):
        attention(x, packing)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(x, packing).shape == x.shape


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_says_that_it_has_no_gradients_on_a_cpu():
    case = make_case([3, 4], [3, 4])
    attention, packing = ModalityAttention(16, 4, 3, attention="flex"), case.packings[0]
    x = torch.zeros(len(packing.ids), 16)
    with pytest.raises(RuntimeError, match="^attention = 'flex': .* no gradients on a CPU; use 'packed' or 'sdpa'"):
        attention(x, packing)
    with torch.no_grad():
        assert attention(x, packing).shape == x.shape


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("form", ["sdpa", "flex"])
def test_a_model_gives_the_same_with_every_form(form):
    batch = make_batch(0, patches=4, batch=3, rates=(8, 6, 4))
    config = ModelConfig(width=16, depth=2, heads=2, decoder_width=16, decoder_depth=1, qk_norm=True)
    outputs = []
    for attends in ("packed", form):
        torch.manual_seed(0)
        model = MultimodalMAE(batch.montage, dataclasses.replace(config, attention=attends))
        with torch.set_grad_enabled(form != "flex"):
            outputs.append(model(batch.rows, batch.plan)[batch.plan.hidden.ids >= 0])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
