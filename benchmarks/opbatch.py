"""What the per-op cases are about: sizes, and one batch of samples, plans and parameters that all providers share."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import traffic
from benchmarks.devices import Device
from physiofast import ops
from physiofast.masking import MaskingConfig, Planner
from physiofast.montage import MONTAGES, Montage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes, and where the ops run."""

    device: Device
    montage: Montage
    dtype: torch.dtype = torch.float32
    windows: int = 64
    width: int = 256
    keep: float = 0.25
    plan_montage: Montage = MONTAGES["cinc2018"]
    """Of the `sample_plan` case."""
    plan_windows: int = 64
    compiler: str = "inductor"
    """Backend of torch.compile."""
    compile_mode: str | None = None
    """Its mode, where it is not the default."""
    threads: int = 1
    large_copy: float = 0.0
    """Bytes per second of a large copy on the device."""
    demanding: bool = False
    """Whether the figures that are required of a GPU are asked for."""


TEN_CHANNELS = (
    "C3-M2",
    "C4-M1",
    "O1-M2",
    "O2-M1",
    "E1-M2",
    "Chin1-Chin2",
    "ECG",
    "ABD",
    "AIRFLOW",
    "SaO2",
)
"""300 tokens of the six modalities."""


def on_cpu(device: Device, threads: int, large_copy: float) -> Setting:
    """B 64, 13 x 30 tokens, P 128, D 256, float32."""
    return Setting(device=device, montage=MONTAGES["cinc2018"], threads=threads, large_copy=large_copy)


def on_gpu(device: Device, large_copy: float, patch: int = 128) -> Setting:
    """B 512, 300 tokens, a quarter visible, D 512, bfloat16; P 128, for which figures are required, or 100."""
    name = {128: "cinc2018", 100: "cinc2018-100hz"}[patch]
    return Setting(
        device=device,
        montage=MONTAGES[name].select(TEN_CHANNELS),
        plan_montage=MONTAGES[name],
        dtype=torch.bfloat16,
        windows=512,
        width=512,
        plan_windows=1024,
        large_copy=large_copy,
        demanding=patch == 128,
    )


def tiny(device: Device, dtype: torch.dtype = torch.float32, patch: int = 128) -> Setting:
    """Sizes at which Triton's interpreter takes milliseconds; compiled providers run uncompiled."""
    whole = MONTAGES[{128: "cinc2018", 100: "cinc2018-100hz"}[patch]]
    montage = dataclasses.replace(whole.select(("C3-M2", "C4-M1", "E1-M2", "ECG")), window_s=4.0)
    return Setting(
        device=device,
        montage=montage,
        plan_montage=montage,
        dtype=dtype,
        windows=2,
        width=16,
        plan_windows=3,
        compiler="eager",
    )


class Batch:
    """Samples, a plan and parameters. Each modality has the same weights: alternatives have one for all.

    Args:
        setting: sizes and device.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.montage = montage = setting.montage
        self.length, self.tokens, self.kinds = montage.patch_lengths[0], montage.tokens, len(montage.modalities)
        self._generator = torch.Generator().manual_seed(0)
        channels, patches = len(montage.channels), montage.patches_per_window
        samples = self.draw(setting.windows, channels, patches * self.length)
        self.patches = samples.view(setting.windows, self.tokens, self.length)  # how a dense batch is cut
        self.rows = ops.Rows.from_dense(samples, patches)
        self.plan = self._plan()
        self.weight = (self.draw(self.length, setting.width) * self.length**-0.5).requires_grad_()
        self.weights = self.weight.detach().repeat(self.kinds, 1).requires_grad_()
        self.table, self.decoder_table = (self.draw(self.tokens, setting.width).requires_grad_() for _ in range(2))
        self.mask_token = self.draw(setting.width).requires_grad_()

    def draw(self, *size: int) -> Tensor:
        """Normal numbers on the device."""
        drawn = torch.randn(size, generator=self._generator)
        return drawn.to(self.setting.device.type, self.setting.dtype)

    def _plan(self) -> ops.Plan:
        """Of equal shares of each window, as alternatives need it; drawn by the definition."""
        setting = self.setting
        planner = Planner(self.montage, MaskingConfig(keep=setting.keep, modality_dropout=0.0), seed=0)
        window_id, valid = torch.arange(setting.windows), torch.ones(setting.windows, self.tokens, dtype=torch.bool)
        capacity = planner.capacity(valid)
        with ops.backend("reference"):
            plan = planner.plan(0, window_id, valid, planner.quotas(0, window_id, capacity), capacity)
        return ops.to_device(plan, setting.device.type)

    @cached_property
    def stored(self) -> ops.Rows:
        """The samples in int16, as those of a store, which kernels scale while they read."""
        steps = (self.rows.samples.float() * 2**12).round().clamp(-(2**15), 2**15 - 1)
        scale = torch.full_like(self.rows.row_scale, 2**-12)
        return dataclasses.replace(self.rows, samples=steps.to(torch.int16), row_scale=scale, is_unscaled=False)

    @property
    def stored_patches(self) -> Tensor:
        """float64 [B, N, P], what `stored` stands for."""
        return (self.stored.samples.double() * 2**-12).view(self.patches.shape)

    @cached_property
    def kept(self) -> int:
        """Visible tokens of a window."""
        return int((self.plan.visible.ids >= 0).sum()) // self.setting.windows

    @cached_property
    def ids_keep(self) -> Tensor:
        """int64 [B, K], the visible tokens of each window."""
        visible = self.plan.visible.ids
        return visible[visible >= 0].long().view(self.setting.windows, -1) % self.tokens

    @cached_property
    def ids_restore(self) -> Tensor:
        """int64 [B, N], where each token stands when visible ones come first."""
        seen = self.plan.visible.slot >= 0
        return (~seen).int().argsort(dim=1, stable=True).argsort(dim=1)

    @cached_property
    def flat_visible(self) -> Tensor:
        """int64 [B * K] among all tokens."""
        return self.plan.visible.ids[self.plan.visible.ids >= 0].long()

    @cached_property
    def flat_hidden(self) -> Tensor:
        """int64 [B * (N - K)] among all tokens."""
        return self.plan.hidden.ids[self.plan.hidden.ids >= 0].long()

    @cached_property
    def loss_weight(self) -> Tensor:
        """float32 [M], the same for every modality: the mean over hidden tokens, as alternatives have it."""
        return torch.full((self.kinds,), 1.0 / len(self.flat_hidden), device=self.setting.device.type)

    @cached_property
    def pred_all(self) -> Tensor:
        """[B, N, P], a prediction for every token."""
        return self.draw(self.setting.windows, self.tokens, self.length).requires_grad_()

    @cached_property
    def pred_hidden(self) -> Tensor:
        """[T_hidden, P], the same for hidden tokens."""
        pred = self.pred_all.detach().new_zeros(len(self.plan.hidden.ids), self.length)
        pred[: len(self.flat_hidden)] = self.pred_all.detach().view(-1, self.length)[self.flat_hidden]
        return pred.requires_grad_()

    def shape(self) -> traffic.Shape:
        """Sizes for the traffic of each op."""
        setting, size = self.setting, self.setting.dtype.itemsize
        present = setting.windows * self.tokens
        return traffic.Shape(
            windows=setting.windows,
            channels=len(self.montage.channels),
            tokens=self.tokens,
            kinds=self.kinds,
            visible=len(self.flat_visible),
            hidden=len(self.flat_hidden),
            present=present,
            patch=self.length,
            width=setting.width,
            sample_bytes=size,
            value_bytes=size,
        )


class PlanBatch:
    """What `sample_plan` takes, all of it on the device.

    Args:
        setting: sizes and device.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        montage, windows, device = setting.plan_montage, setting.plan_windows, setting.device.type
        self.windows, self.tokens, self.kinds = windows, montage.tokens, len(montage.modalities)
        self.per_kind = np.bincount(montage.token_modality, minlength=self.kinds).tolist()
        self.planner = Planner(montage, MaskingConfig(keep=setting.keep, modality_dropout=0.0), seed=0)
        window_id, valid = torch.arange(windows), torch.ones(windows, self.tokens, dtype=torch.bool)
        capacity = self.planner.capacity(valid)
        quotas = self.planner.quotas(0, window_id, capacity)
        self.kept = int(quotas[0].sum())
        self.sizes = self.planner.sizes(quotas, capacity)
        host = (torch.from_numpy(quotas), valid, window_id, torch.tensor([0, 0]))
        grid = (torch.from_numpy(montage.token_modality), torch.from_numpy(montage.token_time_s))
        self.arguments: tuple[Any, ...] = tuple(t.to(device) for t in (*host, *grid))

    def shape(self) -> traffic.Shape:
        """Sizes for the traffic of the op."""
        visible, present = self.windows * self.kept, self.windows * self.tokens
        return traffic.Shape(
            windows=self.windows,
            channels=len(self.planner.montage.channels),
            tokens=self.tokens,
            kinds=self.kinds,
            visible=visible,
            hidden=present - visible,
            present=present,
            patch=1,
            width=1,
            sample_bytes=0,
            value_bytes=0,
        )
