"""The multimodal masked autoencoder: tokenise, encode, decode.

After He et al., "Masked autoencoders are scalable vision learners", CVPR 2022, and the multimodal objective of
Fang et al., arXiv 2410.16424. Every size is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from physiofast import ops
from physiofast.attention import ModalityAttention, set_values
from physiofast.attention_forms import AttentionForm
from physiofast.montage import Montage, require_montage
from physiofast.ops import Packing, Plan
from physiofast.support.bounds import Bounds, check_fields, refuse_misfit, require_instance

Pairs = Literal["any", "cross", "intra"]
_BOUNDS = {
    "width": Bounds(least=1, most=2**20),
    "depth": Bounds(least=1),
    "heads": Bounds(least=1),
    "mlp_ratio": Bounds(above=0, most=1024),
    "decoder_width": Bounds(least=1, most=2**20),
    "decoder_depth": Bounds(least=1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and wiring of the model."""

    width: int = 256
    """Features of an encoder token; a multiple of twice `heads`."""
    depth: int = 6
    """Encoder blocks."""
    heads: int = 4
    """Attention heads of encoder and decoder."""
    mlp_ratio: float = 4.0
    """Ratio of the width of a block's hidden layer to the width of its tokens."""
    decoder: Literal["joint", "cross"] = "cross"
    """joint: self-attention over all tokens; cross: hidden tokens attend to visible ones."""
    decoder_width: int = 128
    """Features of a decoder token; a multiple of twice `heads`."""
    decoder_depth: int = 2
    """Decoder blocks."""
    encoder_pairs: Pairs = "any"
    """Which modalities may attend to which in the encoder: any, only others (cross), only itself (intra)."""
    decoder_pairs: Pairs = "any"
    """Which modalities may attend to which in the decoder: any, cross or intra, as in the encoder. With an intra
    encoder and a cross decoder reconstruction is strictly cross-modal."""
    attention: AttentionForm = "packed"
    """What computes attention: packed, the op of this package; or for comparison sdpa, varlen (16 bits on CUDA) or
    flex."""
    time_decay: bool = True
    """Learn a decay of attention with distance in time; varlen has no room for one."""
    qk_norm: bool = False
    """Normalise queries and keys over the features of a head."""

    def __post_init__(self) -> None:
        check_fields(self, "model", _BOUNDS)
        for name in ("width", "decoder_width"):
            if getattr(self, name) % (2 * self.heads):
                refuse_misfit(f"model.{name} {getattr(self, name)} must be a multiple of 2 * heads = {2 * self.heads}")
            if round(getattr(self, name) * self.mlp_ratio) < 1:
                refuse_misfit(
                    f"model.mlp_ratio must leave a block's hidden layer at least one feature; found {self.mlp_ratio} "
                    f"of model.{name} {getattr(self, name)}"
                )
        if self.attention == "varlen" and self.time_decay:
            refuse_misfit("model.attention = 'varlen' has no room for a decay; set model.time_decay = false")
        if self.decoder == "joint" and self.decoder_pairs == "cross" and self.decoder_depth > 1:
            refuse_misfit(
                "decoder_pairs = 'cross' with a joint decoder of more than one block lets a modality see itself "
                "after two hops; use decoder = 'cross', or decoder_depth = 1"
            )


class PatchProjection(nn.Module):
    """One modality's linear map from a patch of P samples to D features."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, width))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial values, which a module from the meta device lacks after `to_empty`."""
        self.weight.normal_().mul_(self.weight.shape[0] ** -0.5)
        self.bias.zero_()


class NamedEmbeddings(nn.ParameterDict):
    """A learned vector of D features for each of some names, which are also those of the parameters.

    Names that PyTorch refuses for parameters are escaped there: `Resp. nasal` is the parameter `Resp%2E nasal`.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__({_as_parameter(name): nn.Parameter(torch.empty(width)) for name in names})
        self._drawn = tuple(names)  # the dictionary itself is sorted
        self.reset_parameters()

    def of(self, name: str) -> Tensor:
        """The vector [D] of a name."""
        vector: Tensor = self[_as_parameter(name)]
        return vector

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial values, which a module from the meta device lacks after `to_empty`."""
        for name in self._drawn:
            self.of(name).normal_().mul_(0.02)


def _as_parameter(name: str) -> str:
    """A name as a parameter's, unlike any other's: without dots, and not an attribute of the module itself."""
    if hasattr(_EMPTY, name):
        return f"%{name}"
    return name.replace("%", "%25").replace(".", "%2E")


_EMPTY = NamedEmbeddings((), 0)


class PositionEmbedding(nn.Module):
    """Position embedding of tokens: the sum of a learned vector of the channel and one of the patch's time."""

    def __init__(self, montage: Montage, width: int) -> None:
        super().__init__()
        self.names = montage.names
        self.channel = NamedEmbeddings(montage.names, width)
        self.time = nn.Parameter(torch.empty(montage.patches_per_window, width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the initial values of `time`, which a module from the meta device lacks after `to_empty`."""
        set_values(self.time, sinusoids(*self.time.shape))

    def forward(self) -> Tensor:
        """Compute the embedding of each token: [C, S, D], channel plus time."""
        return torch.stack([self.channel.of(name) for name in self.names])[:, None] + self.time


class Block(nn.Module):
    """A pre-norm transformer block; its queries attend to their own packing, or to a context."""

    def __init__(self, width: int, config: ModelConfig, pairs: Pairs, num_modalities: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        options = {"qk_norm": config.qk_norm, "decay": config.time_decay}
        self.attn = ModalityAttention(
            width, config.heads, num_modalities, pair_mask(pairs, num_modalities), attention=config.attention, **options
        )
        hidden = round(width * config.mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self, x: Tensor, packing: Packing, context: Tensor | None = None, packing_context: Packing | None = None
    ) -> Tensor:
        """Apply attention and MLP once to the tokens x [T, D] of a packing: [T, D]."""
        x = x + self.attn(self.norm1(x), packing, context, packing_context)
        return x + self.mlp(self.norm2(x))

    def hidden(self, x: Tensor, plan: Plan) -> Tensor:
        """Apply the block to all present tokens x [T_present, D], but compute only the hidden ones: [T_hidden, D]."""
        x, of_hidden = ops.with_hidden(x, plan)
        context, queries = ops.with_hidden(self.norm1(x), plan)
        x = of_hidden + self.attn(queries, plan.hidden, context, plan.present)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Predicts hidden patches: from all tokens together (joint), or by attending to the visible ones (cross)."""

    def __init__(self, montage: Montage, config: ModelConfig) -> None:
        super().__init__()
        width, num_modalities = config.decoder_width, len(montage.modalities)
        self.kind = config.decoder
        self.embed = nn.Linear(config.width, width)
        self.positions = PositionEmbedding(montage, width)
        self.mask = NamedEmbeddings(montage.modalities, width)
        self.blocks = nn.ModuleList(
            Block(width, config, config.decoder_pairs, num_modalities) for _ in range(config.decoder_depth)
        )
        self.head = nn.Linear(width, max(montage.patch_lengths))
        self.modality_of_channel = [montage.modalities[m] for m in montage.channel_modality]

    def forward(self, encoded: Tensor, plan: Plan) -> Tensor:
        """Predict the hidden patches: [T_hidden, P_max], where columns from a token's P_m on mean nothing."""
        positions = self.positions()
        mask = torch.stack([self.mask.of(m) for m in self.modality_of_channel])[:, None]
        table_visible, table_hidden = positions.flatten(0, 1), (positions + mask).flatten(0, 1)
        encoded = self.embed(encoded)
        if self.kind == "joint":
            x = ops.assemble_tokens(encoded, plan, table_visible, table_hidden)
            for block in self.blocks[:-1]:
                x = block(x, plan.present)
            x = cast(Block, self.blocks[-1]).hidden(x, plan)
        else:
            context = encoded + take(table_visible, plan.visible.ids % len(table_visible))
            x = take(table_hidden, plan.hidden.ids % len(table_hidden))
            for block in self.blocks:
                x = block(x, plan.hidden, context, plan.visible)
        return self.head(x)


class MultimodalMAE(nn.Module):
    """A masked autoencoder over many physiological signals of one sleeper.

    Unlike in images, amplitude has to be reconstructed: it spans decades, and a norm would hide it. So neither the
    encoder nor the decoder ends with a norm, and a linear path leads from a visible patch to a prediction.

    Args:
        montage: the channels that the model knows; parameters are named by modality and channel, so that a state dict
            moves between montages by name.
        config: sizes and wiring.

    Raises:
        TypeError: `montage` is a name or a store, or `config` that of a run.
    """

    def __init__(self, montage: Montage, config: ModelConfig) -> None:
        super().__init__()
        require_montage(montage)
        require_instance(
            ModelConfig, "config", config, "physiofast.ModelConfig(...) makes one, and config.model of a run is one"
        )
        self.montage, self.config = montage, config
        num_modalities = len(montage.modalities)
        self.tokeniser = nn.ModuleDict(
            {
                name: PatchProjection(length, config.width)
                for name, length in zip(montage.modalities, montage.patch_lengths, strict=True)
            }
        )
        self.positions = PositionEmbedding(montage, config.width)
        self.encoder = nn.ModuleList(
            Block(config.width, config, config.encoder_pairs, num_modalities) for _ in range(config.depth)
        )
        self.decoder = Decoder(montage, config)

    def tokenise(self, rows: ops.Samples, visible: Packing) -> Tensor:
        """Embed the visible patches: [T_visible, D]. No other samples are read."""
        parameters = [dict(self.tokeniser[name].named_parameters()) for name in self.montage.modalities]
        bias = torch.stack([parameters[m]["bias"] for m in self.montage.channel_modality])[:, None]
        table = (self.positions() + bias).flatten(0, 1)
        weight = torch.cat([of_modality["weight"] for of_modality in parameters])
        return ops.embed_patches(rows, visible, weight, table, patch_lengths=self.montage.patch_lengths)

    def encode(self, rows: ops.Samples, visible: Packing) -> Tensor:
        """Compute the representation of the visible tokens: [T_visible, D]."""
        x = self.tokenise(rows, visible)
        for block in self.encoder:
            x = block(x, visible)
        return x

    def forward(self, rows: ops.Samples, plan: Plan) -> Tensor:
        """Predict every hidden patch from the visible ones: [T_hidden, P_max].

        Raises:
            TypeError: `plan` is no Plan.
        """
        ops.arguments.require_plan(plan)
        return self.decoder(self.encode(rows, plan.visible), plan)


@torch.no_grad()
def load_by_name(model: MultimodalMAE, state: Mapping[str, Tensor], montage: Montage) -> list[str]:
    """Copy the parameters of a model for another montage into this one.

    Modalities and channels are matched by name, also within the attention biases, and the rows of the decoder's head
    by sample position.

    Args:
        model: is changed in place.
        state: state dict of the other model, which has the same `ModelConfig`.
        montage: of the other model.

    Returns:
        Names of the parameters that keep an initial value, whole or in part, as the other montage does not know them.

    Raises:
        ValueError: a parameter has another size for another reason than the montage; nothing is changed then.
    """
    for name, target in model.state_dict().items():
        if name in state and _size(name, state[name]) != _size(name, target):
            raise ValueError(
                f"{name} has shape {list(state[name].shape)} in the state dict and {list(target.shape)} in this model, "
                "which its montage does not explain: both models need one ModelConfig"
            )
    shared = [m for m in model.montage.modalities if m in montage.modalities]
    here, there = ([known.modalities.index(m) for m in shared] for known in (model.montage, montage))
    kept = []
    for name, target in model.state_dict().items():
        source = state.get(name)
        if source is not None and name.endswith("pair_bias"):
            target[:, torch.tensor(here)[:, None], here] = source[:, torch.tensor(there)[:, None], there]
            kept += [name] if len(shared) < len(model.montage.modalities) else []
        elif source is not None and name.startswith("decoder.head."):
            rows = min(len(source), len(target))
            target[:rows] = source[:rows]
            kept += [name] if rows < len(target) else []
        elif source is not None and source.shape == target.shape:
            target.copy_(source)
        else:
            kept.append(name)
    return kept


def _size(name: str, parameter: Tensor) -> tuple[int, ...]:
    """The part of a parameter's shape that follows from `ModelConfig`, and not from modalities, rates and patches."""
    if name.endswith("pair_bias"):
        return (parameter.ndim, parameter.shape[0])
    of_samples = name.startswith(("tokeniser.", "decoder.head.")) and parameter.ndim > 1
    if of_samples or name.endswith("positions.time") or name == "decoder.head.bias":
        return (parameter.ndim, *parameter.shape[1:])
    return (parameter.ndim, *parameter.shape)


def take(table: Tensor, index: Tensor) -> Tensor:
    """Take rows of a table, row 0 for the negative indices of a tail. Gradients are summed in a fixed order."""
    return nn.functional.embedding(index.clamp(min=0), table)


def pair_mask(pairs: Pairs, num_modalities: int) -> Tensor:
    """The mask of attention between modalities: bool [M, M], query modality (row) by key modality (column)."""
    same = torch.eye(num_modalities, dtype=torch.bool, device="cpu")  # has values also for a model on the meta device
    return {"any": torch.ones_like(same), "cross": ~same, "intra": same}[pairs]


def sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines [length, width], after Vaswani et al., "Attention is all you need", NeurIPS 2017."""
    frequency = 10000 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(length)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def unwrapped(model: Any) -> MultimodalMAE:
    """Unwrap a model that a wrapper holds in its `module`, as `DistributedDataParallel` and `AveragedModel` do."""
    while not hasattr(model, "montage") and hasattr(model, "module"):
        model = model.module
    return cast(MultimodalMAE, model)
