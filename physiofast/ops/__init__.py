"""The ops of the package, and the one place to import them from; `functional` defines each, with shapes and errors."""

from physiofast.ops.backends import backend, explain
from physiofast.ops.contracts import AttentionStats, Packing, Plan, PlanSizes, Rows, row_offsets
from physiofast.ops.contracts import Samples as Samples
from physiofast.ops.functional import (
    assemble_tokens,
    embed_patches,
    linear_masked_mse,
    masked_mse,
    modality_attention,
    modality_attention_stats,
    sample_plan,
    take_hidden,
    take_patches,
    take_tokens,
    with_hidden,
)
from physiofast.ops.moving import to_device

__all__ = [
    "AttentionStats",
    "Packing",
    "Plan",
    "PlanSizes",
    "Rows",
    "assemble_tokens",
    "backend",
    "embed_patches",
    "explain",
    "linear_masked_mse",
    "masked_mse",
    "modality_attention",
    "modality_attention_stats",
    "row_offsets",
    "sample_plan",
    "take_hidden",
    "take_patches",
    "take_tokens",
    "to_device",
    "with_hidden",
]
