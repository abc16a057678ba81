"""A whole training step: the model, its loss and the optimiser, with kernels and with the definitions."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any, Literal

import torch

from benchmarks.gate.context import Context
from benchmarks.gate.verdicts import Notebook
from benchmarks.opbatch import Batch
from physiofast import ops
from physiofast.model import ModelConfig, MultimodalMAE

Decoder = Literal["joint", "cross"]
MOST_OF_STATISTICS = 0.03
"""Of a training step, when one layer's attention is looked at in each."""


class Training:
    """A model that is trained on one batch.

    Args:
        context: device and sizes.
        decoder: of the model.
    """

    def __init__(self, context: Context, decoder: Decoder) -> None:
        self.context, self.batch = context, Batch(context.setting(128))
        sizes: dict[str, int] = {"width": 512, "depth": 4, "heads": 8, "decoder_width": 256, "decoder_depth": 2}
        if context.rehearses:
            sizes = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1}
        torch.manual_seed(0)
        config = ModelConfig(decoder=decoder, **sizes)  # type: ignore[arg-type]
        self.model = MultimodalMAE(self.batch.montage, config).to(context.device.type)
        fused = context.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=fused)
        self._looked_at: Callable[[], Any] | None = None

    def step(self) -> torch.Tensor:
        """One step; the loss stays on the device."""
        batch = self.batch
        with torch.autocast(self.context.device.type, torch.bfloat16):
            pred = self.model(batch.rows, batch.plan)
        loss, _, _ = ops.masked_mse(pred, batch.rows, batch.plan.hidden, batch.loss_weight)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def statistics(self) -> Any:
        """What one layer of the encoder looks at."""
        if self._looked_at is None:
            seen, heads = self.batch.plan.visible, self.model.config.heads
            shape = (len(seen.ids), heads, self.model.config.width // heads)
            q, k = (torch.randn(shape, device=seen.ids.device).bfloat16() for _ in range(2))
            kinds = len(self.batch.montage.modalities)
            biases, decay = (torch.zeros(size, device=seen.ids.device) for size in ((heads, kinds, kinds), (heads,)))
            options = {"pair_bias": biases, "time_decay": decay, "tau_s": (1.0, 4.0, 10.0)}
            self._looked_at = functools.partial(ops.modality_attention_stats, q, k, seen, seen, **options)
            self._looked_at()
        return self._looked_at()


def step(context: Context, notebook: Notebook) -> None:
    """Losses of both forms agree and fall; milliseconds and windows per second beside them; what statistics add."""
    decoders: tuple[Decoder, ...] = ("joint", "cross")
    for decoder in decoders:
        notebook.attempt(f"{decoder} decoder", functools.partial(_compare, decoder, context, notebook))


def _compare(decoder: Decoder, context: Context, notebook: Notebook) -> None:
    found: dict[str, Any] = {"decoder": decoder}
    losses = {}
    for name in ("kernels", "definitions"):
        with context.kernels(torch.bfloat16) if name == "kernels" else ops.backend("reference"):
            training = Training(context, decoder)
            losses[name] = torch.stack([training.step() for _ in range(3 if context.rehearses else 10)]).tolist()
            seconds = _median(training.step, context)
            if name == "kernels":
                found["statistics_seconds"] = _median(training.statistics, context)
        found[name] = {"losses": losses[name], "seconds": seconds}
        windows = training.batch.setting.windows / seconds
        notebook.note(f"{decoder} decoder, {name}", f"{seconds * 1e3:.1f} ms, {windows:,.0f} windows/s")
        del training
    ours, theirs = losses["kernels"], losses["definitions"]
    apart = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    notebook.judge(
        f"{decoder} decoder: losses of kernels and definitions agree within 2 %", apart <= 0.02, f"{apart:.2%}"
    )
    notebook.judge(f"{decoder} decoder: the loss falls", ours[-1] < ours[0], f"{ours[0]:.4f} to {ours[-1]:.4f}")
    share = found["statistics_seconds"] / found["kernels"]["seconds"]
    notebook.judge_time(
        f"{decoder} decoder: statistics of one layer's attention take at most {MOST_OF_STATISTICS:.0%} of a step",
        share <= MOST_OF_STATISTICS,
        f"{share:.2%}, {found['statistics_seconds'] * 1e6:.0f} us",
    )
    notebook.keep("steps", [found])


def _median(job: Callable[[], Any], context: Context) -> float:
    return statistics.median(context.device.elapsed(job) for _ in range(1 if context.rehearses else 5))
