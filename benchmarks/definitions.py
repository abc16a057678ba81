"""What token ops and training steps have to give, from samples, parameters and a choice of tokens.

It is plain PyTorch in float64, a window at a time where tokens attend to each other: nothing is packed, padded or
shuffled, and no op of ours takes part. So whatever a provider drops, mixes up or makes up shows in its loss or in a
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from physiofast.model import MultimodalMAE

LOSS, GRADIENT = 1e-5, 1e-5
"""Largest relative errors of float32: of a loss, and of a gradient by its norm."""


def compare(
    loss: Tensor, gradients: Mapping[str, Tensor | None], wanted: tuple[Tensor, Mapping[str, Tensor]]
) -> str | None:
    """What is wrong with a loss and gradients, given both by definition under the same names; None if nothing is."""
    by_definition, wanted_gradients = wanted
    if not abs(float(loss) - float(by_definition)) <= LOSS * float(by_definition):  # NaN is refused as well
        return f"loss {float(loss)}, by definition {float(by_definition)}"
    for name, want in wanted_gradients.items():
        found = gradients[name]
        if found is None:
            return f"the gradient of {name} is missing"
        error, norm = float((found.double() - want).norm()), float(want.norm())
        if not error <= GRADIENT * norm:
            return f"the gradient of {name}: error {error:.3g}, allowed {GRADIENT:g} of {norm:.3g}"
    return None


def check_choice(visible: Tensor, groups: Tensor, quotas: Tensor) -> str | None:
    """What is wrong with a choice of tokens: each window keeps so many of each group, and not all keep the same ones.

    Args:
        visible: bool [B, N].
        groups: int64 [N], of each token.
        quotas: int64 [B, G].
    """
    kept = torch.zeros_like(quotas).index_add(1, groups, visible.to(quotas.dtype))
    if not torch.equal(kept, quotas):
        return "a window sees more or fewer tokens than it should"
    if bool((visible == visible[:1]).all()):
        return "all windows see the same tokens"
    return None


# ---- token ops -------------------------------------------------------------------------------------------------


def token_ops(
    patches: Tensor, visible: Tensor, modality: Tensor, parameters: Mapping[str, Tensor], upstream: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients) of embedding, assembly, head and masked loss.

    Args:
        patches: [B, N, P].
        visible: bool [B, N].
        modality: int64 [N], which of K embeddings a token takes.
        parameters: weight [K * P, D], table [N, D], mask_token [D], decoder_table [N, D], head [P, D].
        upstream: [B, N, D], the gradient that a decoder would give the full sequence.
    """
    leaves = {name: value.detach().double().requires_grad_() for name, value in parameters.items()}
    weight, table, mask_token, decoder_table, head = leaves.values()
    patches = patches.double()
    by_token = weight.unflatten(0, (-1, patches.shape[2]))[modality]
    seen = torch.einsum("bnp,npd->bnd", patches, by_token) + table
    full = torch.where(visible[..., None], seen, mask_token) + decoder_table
    loss = (full @ head.T - patches)[~visible].square().mean()
    gradients = torch.autograd.grad((loss, full), [*leaves.values()], (torch.ones_like(loss), upstream.double()))
    return loss.detach(), dict(zip(leaves, gradients, strict=True))


# ---- a training step -------------------------------------------------------------------------------------------


def step(
    model: nn.Module, error: Callable[[nn.Module, Tensor, Tensor], Tensor], patches: Tensor, visible: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients by name) of the mean squared error over all hidden tokens.

    Args:
        model: of float64, whose gradients are replaced.
        error: gives the errors [n, P] of one window's hidden tokens from the model, patches [N, P] and visible [N].
        patches: [B, N, P].
        visible: bool [B, N].
    """
    model.zero_grad()
    count = (~visible).sum() * patches.shape[2]
    loss = patches.new_zeros((), dtype=torch.float64)
    for window, seen in zip(patches.double(), visible, strict=True):
        part = error(model, window, seen).square().sum() / count
        part.backward()
        loss += part.detach()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def error_of_ours(model: MultimodalMAE, patches: Tensor, visible: Tensor) -> Tensor:
    """[n, P], the errors of one window's hidden tokens; see `step`."""
    montage, decoder = model.montage, model.decoder
    of_channel = [montage.modalities[m] for m in montage.channel_modality]
    by_channel = zip(patches.split(montage.patches_per_window), of_channel, strict=True)
    tokens = torch.cat([of_one @ model.tokeniser[m].weight + model.tokeniser[m].bias for of_one, m in by_channel])
    x = (tokens + model.positions().flatten(0, 1))[visible]
    modality, time_s = torch.from_numpy(montage.token_modality).long(), torch.from_numpy(montage.token_time_s).double()
    everything = torch.ones_like(visible)

    def through(block: nn.Module, x: Tensor, queries: Tensor, context: Tensor | None, keys: Tensor) -> Tensor:
        attn = block.attn
        apart = (time_s[queries, None] - time_s[keys]).abs()
        bias = attn.pair_bias[:, modality[queries, None], modality[keys]]
        if attn.time_decay is not None:
            bias = bias - attn.time_decay[:, None, None] * apart
        bias = bias.masked_fill(~attn.allowed[modality[queries, None], modality[keys]], -torch.inf)
        return _through(block, attn, x, context, bias)

    for block in model.encoder:
        x = through(block, x, visible, None, visible)
    places = decoder.positions().flatten(0, 1)
    masks = places + torch.stack([decoder.mask[m] for m in of_channel]).repeat_interleave(montage.patches_per_window, 0)
    x = decoder.embed(x) + places[visible]
    if decoder.kind == "joint":
        full = masks.index_put((visible,), x)
        for block in decoder.blocks:
            full = through(block, full, everything, None, everything)
        of_hidden = full[~visible]
    else:
        of_hidden = masks[~visible]
        for block in decoder.blocks:
            of_hidden = through(block, of_hidden, ~visible, x, visible)
    return decoder.head(of_hidden) - patches[~visible]


def error_of_mae(model: nn.Module, patches: Tensor, visible: Tensor) -> Tensor:
    """The same of `steps.Mae`."""
    x = (model.embed(patches) + model.position)[visible]
    for block in model.encoder:
        x = _through(block, block, x, None, 0)
    full = (model.mask_token + model.decoder_position).index_put(
        (visible,), model.decoder_embed(x) + model.decoder_position[visible]
    )
    for block in model.decoder:
        full = _through(block, block, full, None, 0)
    return (model.head(full) - patches)[~visible]


def _through(block: nn.Module, attn: nn.Module, x: Tensor, context: Tensor | None, bias: Tensor | int) -> Tensor:
    """[L, D], one window's tokens after a block; they attend to themselves, or to a context as it is.

    Args:
        block: has `norm1`, `norm2` and `mlp`.
        attn: has `qkv`, `proj` and `heads`.
        x: [L, D].
        context: [K, D].
        bias: [H, L, K], added to the logits.
    """
    queries = block.norm1(x)
    keys = queries if context is None else context
    width = x.shape[1]
    q = attn.qkv(queries)[:, :width]
    k, v = attn.qkv(keys)[:, width:].chunk(2, -1)
    q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(0, 1) for t in (q, k, v))
    weights = (q @ k.mT / q.shape[2] ** 0.5 + bias).softmax(-1)
    x = x + attn.proj((weights @ v).transpose(0, 1).flatten(1))
    return x + block.mlp(block.norm2(x))
