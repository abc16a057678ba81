"""What people do without the ops, in plain PyTorch.

The way of facebook/mae (He et al., "Masked autoencoders are scalable vision learners", CVPR 2022) as its model does it:
every token embedded by one linear map, kept ones gathered by an index that is repeated over the features, the full
sequence put together by concatenation and a second gather, a loss on all tokens that is masked at the end. Beside it
plain formulas for torch.compile: kept patches are gathered before anything is computed. And the
sampler of MultiMAE (Bachmann et al., "MultiMAE: multi-modal multi-task masked autoencoders", ECCV 2022), written
from its description. None waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Dirichlet

# ---- facebook/mae --------------------------------------------------------------------------------------------


def repeated(index: Tensor, width: int) -> Tensor:
    """[B, T, D] of an index [B, T] for `gather`, as facebook/mae writes it: eight bytes for each feature."""
    return index[..., None].repeat(1, 1, width)


def expanded(index: Tensor, width: int) -> Tensor:
    """The same without a copy, as whoever looks for speed writes it."""
    return index[..., None].expand(-1, -1, width)


Spread = Callable[[Tensor, int], Tensor]
"""`repeated` or `expanded`."""


def mae_embed(patches: Tensor, weight: Tensor, table: Tensor, ids_keep: Tensor, spread: Spread = repeated) -> Tensor:
    """[B, K, D]: every patch [B, N, P] embedded, then those that are kept."""
    return mae_take(patches @ weight + table, ids_keep, spread)


def mae_take(x: Tensor, ids_keep: Tensor, spread: Spread = repeated) -> Tensor:
    """[B, K, D] of x [B, N, D]."""
    return x.gather(1, spread(ids_keep, x.shape[2]))


def mae_assemble(
    encoded: Tensor, mask_token: Tensor, table: Tensor, ids_restore: Tensor, spread: Spread = repeated
) -> Tensor:
    """[B, N, D]: encodings [B, K, D] and mask tokens back in their places; the masks are spread as the index is."""
    batch, tokens = ids_restore.shape
    missing = tokens - encoded.shape[1]
    masks = mask_token.repeat(batch, missing, 1) if spread is repeated else mask_token.expand(batch, missing, -1)
    return torch.cat([encoded, masks], 1).gather(1, spread(ids_restore, encoded.shape[2])) + table


def mae_loss(pred: Tensor, patches: Tensor, mask: Tensor, normalise: bool) -> Tensor:
    """Mean squared error of the tokens whose mask [B, N] is 1."""
    if normalise:
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True, correction=0)
        patches = (patches - mean) / (variance + 1e-6) ** 0.5
    loss = ((pred - patches) ** 2).mean(-1)
    return (loss * mask).sum() / mask.sum()


def mae_masking(noise: Tensor, kept: int, real: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(ids_keep, ids_restore, mask [B, N]) by two argsorts: the tokens of least noise [B, N] are kept.

    Where windows keep different numbers, `kept` is the largest, and `real` [B, K] says which places are no padding.
    """
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    mask = torch.ones_like(noise)
    mask[:, :kept] = 0 if real is None else ~real
    return shuffle[:, :kept], restore, mask.gather(1, restore)


def mae_sample(batch: int, tokens: int, kept: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a uniformly random choice."""
    return mae_masking(torch.rand(batch, tokens, device=device), kept)


# ---- MultiMAE ------------------------------------------------------------------------------------------------


def multimae_quotas(batch: int, kinds: int, kept: int, alpha: float, device: str) -> Tensor:
    """int64 [B, M]: a symmetric Dirichlet divides the kept tokens among the modalities, and the shares are rounded."""
    # Without validation, which would wait for the device.
    shares = Dirichlet(torch.full((kinds,), alpha, device=device), validate_args=False).sample((batch,))
    return (shares * kept).round().long()


def multimae_sample(quotas: Tensor, per_kind: Sequence[int], kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids_keep, ids_restore, mask [B, N]) of quotas [B, M].

    Each modality's tokens are shuffled and its first ones marked; of the marked tokens, in random order and followed by
    the others in random order, the first K are kept.
    """
    batch, device = len(quotas), quotas.device
    marks = []
    for m, count in enumerate(per_kind):
        shuffle = torch.rand(batch, count, device=device).argsort(dim=1)
        rank = torch.arange(count, device=device).expand(batch, -1).gather(1, shuffle)
        marks.append((rank >= quotas[:, m, None]).float())
    marked = torch.cat(marks, 1)
    return mae_masking(marked + torch.rand_like(marked), kept)


# ---- plain formulas to be compiled ---------------------------------------------------------------------------


def gather_embed(patches: Tensor, weight: Tensor, table: Tensor, flat: Tensor) -> Tensor:
    """[T, D]: kept patches gathered, then embedded; `flat` [T] counts through all tokens of [B, N, P]."""
    return patches.flatten(0, 1)[flat] @ weight + table[flat % patches.shape[1]]


def gather_take(x: Tensor, flat: Tensor) -> Tensor:
    """[T, D] of x [B, N, D]."""
    return x.flatten(0, 1)[flat]


def gather_hidden(x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """(x, its hidden tokens) of x [T, D]; `place` says where these are.

    x is a view: a copy of it would be no part of the job. The compiler gives views back outside of what it compiles, so
    the sum of both gradients is a pass of its own.
    """
    return x.view_as(x), x.index_select(0, place)


def gather_hidden_copied(x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a copy of x, by which the compiler sees both gradients and may add them where it writes them."""
    return x * 1, x.index_select(0, place)


def gather_assemble(encoded: Tensor, table_visible: Tensor, table_hidden: Tensor, slot: Tensor) -> Tensor:
    """[B, N, D] of encodings [T, D]; `slot` [B, N] says where each token's encoding is, or -1."""
    seen = encoded[slot.clamp(min=0)] + table_visible
    return torch.where((slot >= 0)[..., None], seen, table_hidden)


def gather_loss(pred: Tensor, patches: Tensor, flat: Tensor, normalise: bool) -> Tensor:
    """Mean squared error of predictions [T, P] for the tokens `flat` [T], computed in float32."""
    target = patches.flatten(0, 1)[flat].float()
    if normalise:
        variance, mean = torch.var_mean(target, -1, keepdim=True, correction=0)
        target = (target - mean) * (variance + 1e-6).rsqrt()
    return (pred.float() - target).square().mean()
