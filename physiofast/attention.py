"""The attention module of the encoder and the decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from physiofast import ops
from physiofast.attention_forms import FORMS, AttentionForm, Options
from physiofast.ops import AttentionStats, Packing, arguments, checks
from physiofast.ops.projection import cut

_has_any_global_hook: Callable[[], bool] = getattr(nn.modules.module, "_has_any_global_hook", lambda: False)
"""Tells whether there are hooks on all modules; the function is private to PyTorch."""
SLOPES_PER_S = (1.0, 1 / 4, 1 / 16, 0.0)
"""Initial decay of attention with distance, over the heads in turn."""


class ModalityAttention(nn.Module):
    """Attention between tokens of the same window, with a bias for each pair of modalities and a decay with time.

    Parameters are named as in the usual vision transformer (`qkv`, `proj`, `q_norm`, `k_norm`), whose state dicts
    load with `strict=False`; `pair_bias`, zero at first, and `time_decay` are added here. With `decay=False`, and with
    the biases and the `norm_eps` of that transformer (1e-6 in timm), the loaded module computes what the transformer
    did. Hooks on `qkv`, or on all modules, see its whole output: where there is a context, first for x and then for
    the context.

    Args:
        width: D, a multiple of `heads`.
        heads: H.
        num_modalities: M.
        allowed: bool [M, M], which query modality (row) may attend to which key modality (column); all when left out.
            It is no parameter and in no state dict: pass it again to a module that loads one.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: normalise queries and keys over the features of a head.
        proj_bias: whether the output has a bias.
        norm_eps: added to the variances of `qk_norm`.
        decay: learn a decay with distance in time.
        attention: the form that computes attention; all give the same numbers. `varlen` needs CUDA tensors of 16 bits
            and has no decay.

    Raises:
        ValueError: the form is unknown, `varlen` has a decay, `heads` does not divide the width, there is no modality,
            or `allowed` has another shape or dtype or is on the meta device (also a module that is built there needs
            its values).
        TypeError: `allowed` is no tensor.
    """

    allowed: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        num_modalities: int,
        allowed: Tensor | None = None,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        norm_eps: float = 1e-5,
        decay: bool = True,
        attention: AttentionForm = "packed",
    ) -> None:
        super().__init__()
        if attention not in FORMS:
            raise ValueError(f"attention must be one of {', '.join(FORMS)}; found {attention!r}")
        if attention == "varlen" and decay:
            raise ValueError("attention = 'varlen' has no room for a decay with distance in time; use decay=False")
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        if num_modalities < 1:
            raise ValueError(f"num_modalities must be 1 or more; found {num_modalities}")
        if allowed is not None:
            checks.check_shape("allowed", allowed, (num_modalities, num_modalities))
            checks.check_dtype("allowed", allowed, torch.bool)
        self.width, self.heads, self.attention = width, heads, attention
        self.qkv = _fused(nn.Linear(width, width, qkv_bias), nn.Linear(width, 2 * width, qkv_bias))
        self.q_norm = nn.LayerNorm(width // heads, norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width, proj_bias)
        self.pair_bias = nn.Parameter(torch.zeros(heads, num_modalities, num_modalities))
        self.time_decay = nn.Parameter(_slopes(heads)) if decay else None
        if allowed is None:
            allowed = torch.ones(num_modalities, num_modalities, dtype=torch.bool, device="cpu")
        elif allowed.is_meta:
            raise ValueError('allowed has no values on the meta device; make it with device="cpu"')
        self._known_allowed = allowed
        self.register_buffer("allowed", allowed.to(self.pair_bias.device), persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the initial values of all parameters, which a module from the meta device lacks after `to_empty`."""
        for layer in self.children():
            if isinstance(layer, (nn.Linear, nn.LayerNorm)):
                layer.reset_parameters()
        self.pair_bias.zero_()
        if self.time_decay is not None:
            set_values(self.time_decay, _slopes(self.heads))

    def extra_repr(self) -> str:
        """Describe the module's own settings, which its layers do not show."""
        allowed = self._known_allowed
        pairs = "" if allowed.is_meta or bool(allowed.all()) else f", allowed={allowed.int().tolist()}"
        decay = "" if self.time_decay is not None else ", decay=False"
        return f"heads={self.heads}, num_modalities={len(allowed)}, attention={self.attention!r}{decay}{pairs}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Restore the values of `allowed` after a move: `to_empty` loses them, and no state dict has them."""
        if not self.allowed.is_meta:
            self._known_allowed = self.allowed
        super()._apply(fn, recurse)
        if not self.allowed.is_meta and self.allowed is not self._known_allowed:
            self.allowed = self._known_allowed.to(self.allowed.device)
        return self

    def _load_from_state_dict(self, *given: Any) -> None:
        """Restore `allowed` where a state dict replaces parameters on the meta device (`assign=True`)."""
        super()._load_from_state_dict(*given)
        if self.allowed.is_meta:
            self.allowed = self._known_allowed.to(self.pair_bias.device)

    def forward(
        self, x: Tensor, packing: Packing, context: Tensor | None = None, packing_context: Packing | None = None
    ) -> Tensor:
        """Attend from the tokens x [T, D] of a packing to themselves, or to those of a context: [T, D].

        Raises:
            ValueError: only one of `context` and `packing_context` is given, or tokens are not [T, D] or, without
                autocast, of another dtype than the weights.
            TypeError: a packing is no Packing.
        """
        if (context is None) != (packing_context is None):
            given, missing = ("packing_context", "context")[:: 1 if context is None else -1]
            raise ValueError(f"{given} without {missing}: keys and values come from both, or from x by neither")
        self._check_tokens("x", x, packing)
        if context is not None and packing_context is not None:
            self._check_tokens("context", context, packing_context)
        if context is None or packing_context is None:
            q, k, v = self._split(self.qkv(x), 3)
            packing_context = packing
        else:
            (q,) = self._split(self._project(x, slice(None, x.shape[-1])), 1)
            k, v = self._split(self._project(context, slice(x.shape[-1], None)), 2)
        q, k = self._normalised(q, k, v)
        return self.proj(FORMS[self.attention](q, k, v, packing, packing_context, self._options()).flatten(-2))

    @torch.no_grad()
    def statistics(self, x: Tensor, packing: Packing, tau_s: Sequence[float] = ()) -> AttentionStats:
        """Sum up what the tokens x [T, D] of a packing attend to among themselves: `ops.modality_attention_stats`."""
        self._check_tokens("x", x, packing)
        q, k = self._normalised(*self._split(self.qkv(x), 3))
        return ops.modality_attention_stats(q, k, packing, packing, **self._options()._asdict(), tau_s=tau_s)

    def _check_tokens(self, name: str, tokens: Tensor, packing: Packing) -> None:
        """Require the tokens [T, D] of a packing, which a projection would refuse without their name."""
        arguments.require_packing(packing)
        wanted, layer = (packing.ids.shape[0], self.width), self.qkv
        if tokens.shape != wanted:
            raise ValueError(
                f"{name} must be packed tokens [T, D] = {list(wanted)}, as of ops.take_tokens; found shape "
                f"{list(tokens.shape)}"
            )
        is_other = type(layer) is nn.Linear and tokens.dtype != layer.weight.dtype
        if is_other and not arguments.autocasts(tokens):
            raise ValueError(f"{name} is {tokens.dtype}, but the weights are {layer.weight.dtype}; cast one of them")

    def _normalised(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise queries and keys [T, H, Dh], and cast them to the dtype of the values."""
        return self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)

    def _options(self) -> Options:
        return Options(self.pair_bias, self.allowed, self.time_decay)

    def _project(self, x: Tensor, features: slice) -> Tensor:
        """Compute some output features of `qkv`; where another module replaces the plain layer, compute all and cut."""
        layer = self.qkv
        hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
        is_plain = type(layer) is nn.Linear and "forward" not in vars(layer)  # some put a `forward` of their own there
        if not is_plain or any(hooks) or _has_any_global_hook():
            return layer(x)[..., features]
        return nn.functional.linear(x, layer.weight[features], None if layer.bias is None else layer.bias[features])

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Cut projected features into parts [T, H, Dh], without a copy."""
        return cut(projected.unflatten(-1, (parts, self.heads, -1)))


@torch.no_grad()
def set_values(parameter: nn.Parameter, values: Tensor) -> None:
    """Copy values into a parameter of the same shape, which may be sharded (a DTensor)."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        values = distribute_tensor(values.to(mesh.device_type), mesh, parameter.placements)
    parameter.copy_(values)


def needed_autocast(model: nn.Module) -> AbstractContextManager[object]:
    """Return autocast to bf16 for a model whose attention takes only 16 bits, as its training has it.

    The context does nothing for other models, within an autocast of the caller, and for weights of 16 bits.
    """
    for module in model.modules():
        if isinstance(module, ModalityAttention) and module.attention == "varlen":
            device = module.pair_bias.device.type
            if module.pair_bias.dtype.itemsize > 2 and not torch.is_autocast_enabled(device):
                return torch.autocast(device, torch.bfloat16)
    return nullcontext()


def _slopes(heads: int) -> Tensor:
    """The initial decay of each head, [H]."""
    return torch.tensor(SLOPES_PER_S).repeat(-(-heads // 4))[:heads].clone()


def _fused(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Make one layer of two: it gives the features of both and has their initial weights."""
    has_bias = first.bias is not None
    features = first.out_features + second.out_features
    both = nn.Linear(first.in_features, features, has_bias, device="meta")  # where no random number is drawn
    with torch.no_grad():
        both.weight = nn.Parameter(torch.cat([first.weight, second.weight]))
        if has_bias:
            both.bias = nn.Parameter(torch.cat([first.bias, second.bias]))
    return both
