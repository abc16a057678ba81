"""A whole training step against that of facebook/mae, on a CPU: mask, forward, backward, clipping, fused AdamW.

The peer is He et al., "Masked autoencoders are scalable vision learners", CVPR 2022, as facebook/mae writes it, in
plain PyTorch: one linear map embeds every patch, two argsorts shuffle, blocks with `scaled_dot_product_attention`, mask
tokens and a second gather before a joint decoder, a prediction of every token, the error of those that were hidden.
Both sides have the same widths, depths, heads, number of visible tokens, float32 samples [B, C, T], target, clipping
and optimiser. What ours adds (a projection per modality, attention that knows modalities and seconds) costs ours alone;
the norms after encoder and decoder of facebook/mae, which ours has not, are left out of the peer. Our step is
`training.model_step`, with quotas drawn as `training.share_step` does; quotas and plan are made anew each step.

Where modalities are dropped, windows see different numbers of tokens: the peer pads them to the longest and masks keys.
Beside it stands what one would write by hand, who gathers before embedding, puts nothing back in order, and computes
and predicts hidden tokens alone from the last block's queries on; plain and by torch.compile. Every side's next step is
compared, loss and gradients, with `definitions`, and has to change every parameter. All run in one process that keeps
freed memory (`allocation`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import allocation, alternatives, definitions, traffic
from benchmarks.harness import Case, Provider
from benchmarks.opjobs import copy_on_cpu, on_threads
from benchmarks.tokens import seen_by_plan
from benchmarks.workspace import Workspace
from physiofast import ops, training, training_config
from physiofast.masking import MaskingConfig, Planner
from physiofast.model import ModelConfig, MultimodalMAE, sinusoids
from physiofast.montage import MONTAGES
from physiofast.windows import Batch

WINDOWS, KEEP = 32, 0.25
SIZES = ModelConfig(width=256, depth=4, heads=4, decoder="joint", decoder_width=128, decoder_depth=2)
_MONTAGE = MONTAGES["cinc2018"]


class Side(Protocol):
    """One side's training: called, it makes a step and gives its loss. `check` asks for the parts of the next one."""

    model: nn.Module
    patches: Tensor
    """[B, N, P], of the samples."""
    error: Callable[[Any, Tensor, Tensor], Tensor]
    """The model by its definition, as `definitions.step` takes it."""

    def passes(self) -> tuple[Tensor, Callable[[], Tensor], Tensor]:
        """Forward and backward: (loss, visible tokens bool [B, N] when asked for, how many those are [B])."""

    def update(self) -> None:
        """Clipping and optimiser."""


@dataclasses.dataclass
class Step:
    """A step that was made."""

    loss: Tensor
    of: Side


def samples() -> Tensor:
    """[B, C, T] float32."""
    length = _MONTAGE.patches_per_window * _MONTAGE.patch_lengths[0]
    return torch.randn(WINDOWS, len(_MONTAGE.channels), length, generator=torch.Generator().manual_seed(0))


# ---- ours ------------------------------------------------------------------------------------------------------


class Ours:
    """Our training step; the loss is the mean over all hidden tokens, as the peer's."""

    error = staticmethod(definitions.error_of_ours)

    def __init__(self, decoder: str, dropout: float) -> None:
        sizes = dataclasses.replace(SIZES, decoder=decoder)
        masking = MaskingConfig(keep=KEEP, modality_dropout=dropout)
        self.config = training_config.PretrainConfig(model=sizes, masking=masking)
        torch.manual_seed(0)
        self.model = MultimodalMAE(_MONTAGE, sizes)
        self.planner = Planner(_MONTAGE, masking, seed=0)
        self.optimiser = training.make_optimiser(self.model, self.config.training)
        self.samples, self.step = samples(), 0
        self.patches = self.samples.reshape(WINDOWS, _MONTAGE.tokens, -1)

    def __call__(self) -> Step:
        loss, _, _ = self.passes()
        self.update()
        self.step += 1
        return Step(loss, self)

    def passes(self) -> tuple[Tensor, Callable[[], Tensor], Tensor]:
        batch, quotas, weight = self.prepare()
        step = self.step
        self.optimiser.zero_grad(set_to_none=True)
        total, _, _ = training.model_step(self.model, [batch], weight, quotas, self.planner, self.config, step)

        def visible() -> Tensor:
            capacity = self.planner.capacity(batch.valid)
            plan = self.planner.plan(step, batch.window_id, batch.valid, quotas, capacity)
            return seen_by_plan(plan, WINDOWS, _MONTAGE.tokens)

        return (total * weight).sum(), visible, torch.from_numpy(quotas.sum(1))

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_norm)
        self.optimiser.step()

    def prepare(self) -> tuple[Batch, np.ndarray, Tensor]:
        """Rows of the samples, quotas, and the weight of each modality's tokens in the loss."""
        rows = ops.Rows.from_dense(self.samples, _MONTAGE.patches_per_window)
        batch = Batch(rows, torch.arange(WINDOWS) + WINDOWS * self.step, rows.valid)
        capacity = self.planner.capacity(batch.valid)
        quotas = self.planner.quotas(self.step, batch.window_id, capacity)
        return batch, quotas, torch.full((capacity.shape[1],), 1 / float((capacity - quotas).sum()))


# ---- facebook/mae ----------------------------------------------------------------------------------------------


class MaeBlock(nn.Module):
    """A pre-norm block as timm has it."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = round(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """[B, L, D]; `keys` bool [B, 1, 1, L] says which may be attended to."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def of_last(self, x: Tensor, count: int, chosen: Tensor | None = None) -> Tensor:
        """[T, D], the block applied to x [B, L, D], of which only the last `count` tokens are computed.

        Of these, where `chosen` bool [B, count] is given, those that it names.
        """
        width, normed = x.shape[2], self.norm1(x)
        weight, bias = (part.split((width, 2 * width)) for part in (self.qkv.weight, self.qkv.bias))
        q = functional.linear(normed[:, -count:], weight[0], bias[0]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = functional.linear(normed, weight[1], bias[1]).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x, attended = (part.flatten(0, 1) for part in (x[:, -count:], attended))
        if chosen is not None:
            place = chosen.flatten().nonzero()[:, 0]
            x, attended = x.index_select(0, place), attended.index_select(0, place)
        x = x + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class Mae(nn.Module):
    """facebook/mae over the patches of all channels."""

    def __init__(self) -> None:
        super().__init__()
        c, tokens, length = SIZES, _MONTAGE.tokens, _MONTAGE.patch_lengths[0]
        self.embed, self.decoder_embed = nn.Linear(length, c.width), nn.Linear(c.width, c.decoder_width)
        self.position = nn.Parameter(sinusoids(tokens, c.width))
        self.decoder_position = nn.Parameter(sinusoids(tokens, c.decoder_width))
        self.mask_token = nn.Parameter(torch.randn(c.decoder_width) * 0.02)
        self.encoder = nn.ModuleList(MaeBlock(c.width, c.heads, c.mlp_ratio) for _ in range(c.depth))
        self.decoder = nn.ModuleList(MaeBlock(c.decoder_width, c.heads, c.mlp_ratio) for _ in range(c.decoder_depth))
        self.head = nn.Linear(c.decoder_width, length)

    def forward(self, patches: Tensor, noise: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """(loss, which are hidden [B, N]).

        Args:
            patches: [B, N, P].
            noise: [B, N], least of the tokens that are visible.
            kept: int64 [B], how many of each window are visible; all the same when left out.
        """
        spread = alternatives.expanded
        longest = round(KEEP * patches.shape[1]) if kept is None else int(kept.max())
        real = None if kept is None else torch.arange(longest) < kept[:, None]
        ids_keep, ids_restore, hidden = alternatives.mae_masking(noise, longest, real)
        x = alternatives.mae_take(self.embed(patches) + self.position, ids_keep, spread)
        for block in self.encoder:
            x = block(x, None if real is None else real[:, None, None])
        x = self.decoder_embed(x)
        if real is not None:
            x = torch.where(real[:, :, None], x, self.mask_token)
        x = alternatives.mae_assemble(x, self.mask_token, self.decoder_position, ids_restore, spread)
        for block in self.decoder:
            x = block(x)
        return alternatives.mae_loss(self.head(x), patches, hidden, normalise=False), hidden


class GatherFirst(Mae):
    """What one would write by hand: visible patches are gathered and then embedded, hidden tokens alone predicted.

    The decoder's tokens stay in the order of the noise, visible ones first: attention asks for no order, so nothing is
    put back. Its last block computes hidden tokens alone, as ours does.
    """

    def forward(self, patches: Tensor, noise: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, tokens, _ = patches.shape
        longest = round(KEEP * tokens) if kept is None else int(kept.max())
        shortest = longest if kept is None else int(kept.min())
        real = None if kept is None else torch.arange(longest) < kept[:, None]
        order = noise.argsort(dim=1)
        place = order + torch.arange(batch)[:, None] * tokens
        patches = patches.flatten(0, 1)
        x = self.embed(patches[place[:, :longest]]) + functional.embedding(order[:, :longest], self.position)
        for block in self.encoder:
            x = block(x, None if real is None else real[:, None, None])
        x = self.decoder_embed(x)
        if real is not None:
            x = torch.where(real[:, :, None], x, self.mask_token)
        x = torch.cat([x, self.mask_token.expand(batch, tokens - longest, -1)], 1)
        x = x + functional.embedding(order, self.decoder_position)
        *blocks, last = self.decoder
        for block in blocks:
            x = block(x)
        unseen = None if kept is None else torch.arange(shortest, tokens) >= kept[:, None]
        of_hidden = place[:, shortest:].flatten() if unseen is None else place[:, shortest:][unseen]
        error = self.head(last.of_last(x, tokens - shortest, unseen)) - patches.index_select(0, of_hidden)
        hidden = torch.zeros(batch * tokens).index_fill(0, of_hidden, 1)
        return error.square().mean(), hidden.view(batch, tokens)


def compiled() -> nn.Module:
    """The same by torch.compile."""
    model = GatherFirst()
    model.compile()
    return model


class MaeStyle:
    """The training step of facebook/mae, with our optimiser and clipping."""

    error = staticmethod(definitions.error_of_mae)

    def __init__(self, dropout: float, model: Callable[[], nn.Module] = Mae) -> None:
        self.config = training_config.TrainingConfig()
        torch.manual_seed(0)
        self.model = model()
        self.optimiser = training.make_optimiser(self.model, self.config)
        self.patches = samples().reshape(WINDOWS, _MONTAGE.tokens, -1)
        self.dropout = dropout
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> Step:
        loss, _, _ = self.passes()
        self.update()
        return Step(loss, self)

    def passes(self) -> tuple[Tensor, Callable[[], Tensor], Tensor]:
        noise, kept = self.draw()
        self.optimiser.zero_grad(set_to_none=True)
        loss, hidden = self.model(self.patches, noise, kept)
        loss.backward()
        every = torch.full((WINDOWS,), round(KEEP * _MONTAGE.tokens)) if kept is None else kept
        return loss.detach(), lambda: hidden == 0, every

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Noise of each window's tokens, at least 1 for dropped modalities, and how many tokens are visible."""
        noise = torch.rand(WINDOWS, _MONTAGE.tokens, generator=self.generator)
        if not self.dropout:
            return noise, None
        draw = torch.rand(WINDOWS, len(_MONTAGE.modalities), generator=self.generator)
        dropped = (draw < self.dropout) & (draw < draw.amax(1, keepdim=True))  # one is always kept
        noise += dropped[:, torch.from_numpy(_MONTAGE.token_modality).long()]
        return noise, ((noise < 1).sum(1) * KEEP).round().long()


def check(step: Any) -> str | None:
    """What is wrong with a step: its loss, or the next one's number of tokens, loss, a gradient or the update."""
    if not bool(step.loss.isfinite()):
        return f"loss {float(step.loss)}"
    side: Side = step.of
    loss, seen, kept = side.passes()
    visible = seen()
    one_group = torch.zeros(visible.shape[1], dtype=torch.int64)
    wrong = definitions.check_choice(visible, one_group, kept[:, None])
    if wrong:
        return wrong
    parameters = dict(side.model.named_parameters())
    wanted = definitions.step(copy.deepcopy(side.model).double(), side.error, side.patches, visible)
    wrong = definitions.compare(loss, {name: parameter.grad for name, parameter in parameters.items()}, wanted)
    if wrong:
        return wrong
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    side.update()
    still = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    return f"the update left {still[0]} as it was" if still else None


# ---- what a step cannot do without -----------------------------------------------------------------------------


def least(ours: Ours) -> tuple[dict[str, int | str], traffic.Traffic]:
    """Sizes, bytes and operations of the first step of ours; later ones differ where modalities are dropped.

    Bytes are those of what is there before and after: samples, and of every parameter itself, both moments and the
    gradient, which clipping needs whole. What a step makes and uses up is left out. Operations are those of products,
    three times the forward ones, once less for patches, which have no gradient.
    """
    batch, quotas, _ = ours.prepare()
    present = ours.planner.capacity(batch.valid).sum(1)
    tokens = {"visible": quotas.sum(1), "hidden": present - quotas.sum(1), "present": present}
    count = {name: int(lengths.sum()) for name, lengths in tokens.items()}
    sizes, patch = ours.config.model, _MONTAGE.patch_lengths[0]
    parameters = sum(parameter.numel() for parameter in ours.model.parameters())
    blocks = [("visible", "visible", sizes.width)] * sizes.depth
    if sizes.decoder == "joint":
        blocks += [("present", "present", sizes.decoder_width)] * (sizes.decoder_depth - 1)
        blocks += [("hidden", "present", sizes.decoder_width)]
    else:
        blocks += [("hidden", "visible", sizes.decoder_width)] * sizes.decoder_depth
    flops = 2 * 2 * count["visible"] * patch * sizes.width
    flops += 3 * 2 * count["visible"] * sizes.width * sizes.decoder_width
    flops += 3 * 2 * count["hidden"] * sizes.decoder_width * patch
    flops += sum(_block_flops(tokens[queries], tokens[keys], width, sizes) for queries, keys, width in blocks)
    moved = traffic.Traffic(
        bytes_read=4 * (ours.samples.numel() + 4 * parameters), bytes_written=4 * 4 * parameters, flops=flops
    )
    shape: dict[str, int | str] = {"windows": WINDOWS, "tokens": _MONTAGE.tokens, "patch": patch, **count}
    shape |= {"width": sizes.width, "depth": sizes.depth, "decoder_width": sizes.decoder_width}
    return shape | {"decoder_depth": sizes.decoder_depth, "parameters": parameters, "dtype": "float32"}, moved


def _block_flops(queries: np.ndarray, keys: np.ndarray, width: int, sizes: ModelConfig) -> int:
    """Both passes of a block whose queries attend to these keys of the same windows."""
    attended = traffic.AttentionShape(
        lengths=tuple(queries.tolist()),
        key_lengths=tuple(keys.tolist()),
        heads=sizes.heads,
        width=width // sizes.heads,
        kinds=len(_MONTAGE.modalities),
        value_bytes=4,
    )
    of_query, of_key = 2 * width + 2 * round(width * sizes.mlp_ratio), 2 * width
    maps = 3 * 2 * width * int(queries.sum() * of_query + keys.sum() * of_key)
    return maps + sum(f(attended).flops for f in (traffic.modality_attention, traffic.modality_attention_backward))


# ---- cases -----------------------------------------------------------------------------------------------------


def step(decoder: str, dropout: float, required: float | None) -> Callable[[Workspace], Case]:
    """The case of one decoder and chance of modality dropout."""

    def case(space: Workspace) -> Case:
        allocation.keep_freed_memory()
        most = max(space.threads)
        name = f"step_{decoder}" + ("_dropout" if dropout else "")
        of_peer = "" if decoder == "joint" else " (the peer's is joint)"
        mix = f"modality dropout {dropout:g}" if dropout else "equal lengths"
        peer = "facebook/mae style" + (", padded" if dropout else "")
        ours = Ours(decoder, dropout)
        shape, moved = least(ours)
        by_hand = {"gather first": GatherFirst} | ({} if dropout else {"gather first, torch.compile": compiled})
        return Case(
            name=name,
            title=f"training step, {decoder} decoder{of_peer}, {mix}: B {WINDOWS}, 13 x 30 tokens, "
            f"encoder {SIZES.width} x {SIZES.depth}, decoder {SIZES.decoder_width} x {SIZES.decoder_depth}",
            providers=[
                Provider(name="physiofast", run=on_threads(ours, most), role="ours", threads=most),
                Provider(name=peer, run=on_threads(MaeStyle(dropout), most), threads=most),
                *(
                    Provider(name=name, run=on_threads(MaeStyle(dropout, model), most), role="also", threads=most)
                    for name, model in by_hand.items()
                ),
                copy_on_cpu(moved.moved, most),
            ],
            check=check,
            required={} if required is None else {most: required},
            windows=WINDOWS,
            moved_bytes=moved.moved,
            flops=moved.flops,
            shape=shape,
        )

    return case


step_joint = step("joint", 0.0, 1.1)
step_cross = step("cross", 0.0, 1.3)
step_joint_dropout = step("joint", 0.2, None)
step_cross_dropout = step("cross", 0.2, None)
