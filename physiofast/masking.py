"""Plans, which say what tokens of a batch the encoder sees: a pure function of (seed, step, window id)."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import operator
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from physiofast import ops
from physiofast.montage import Montage, require_montage
from physiofast.ops.contracts import need_tensor
from physiofast.ops.randomness import DIRICHLET, DROPOUT, random_words
from physiofast.support.bounds import Bounds, check_fields, require_instance

if TYPE_CHECKING:
    from physiofast.windows import Batch

_BOUNDS = {
    "keep": Bounds(above=0, most=1),
    "modality_dropout": Bounds(least=0, below=1),
    "alpha": Bounds(least=0.01, most=1_000_000),  # below, shares underflow; above, all are alike anyway
    "sizes": Bounds(least=1, most=8),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How much of a window the encoder sees. Every default is ours."""

    keep: float = 0.25
    """Share of the kept modalities' tokens that is visible."""
    modality_dropout: float = 0.2
    """Chance that a modality gives the encoder no token; it stays a target, and at least one is kept."""
    alpha: float = 1.0
    """Concentration of the symmetric Dirichlet that divides the visible tokens among modalities; 0.01 to 1,000,000."""
    sizes: int = 8
    """Packings are padded to one of this many fixed sizes, 1 to 8."""

    def __post_init__(self) -> None:
        check_fields(self, "masking", _BOUNDS)

    def num_visible(self, tokens: int | np.ndarray) -> np.ndarray:
        """How many of so many tokens are visible: int64, `keep * tokens` rounded half up."""
        return np.floor(self.keep * np.asarray(tokens) + 0.5).astype(np.int64)


def draw_quotas(config: MaskingConfig, seed: int, step: int, window_id: Tensor, capacity: np.ndarray) -> np.ndarray:
    """Draw how many tokens of each modality are visible in each window.

    Modality dropout chooses the kept modalities. Of their tokens K = round(keep * tokens), clipped to [1, tokens], are
    visible. A symmetric Dirichlet divides K among the modalities, water-filled so that none gets more than it has.

    Args:
        config: shares and chances.
        seed: of the run.
        step: optimiser step.
        window_id: int64 [B].
        capacity: int [B, M], valid tokens of each modality.

    Returns:
        int64 [B, M]; the sum of a row is K, which is 0 only for windows without any valid token.
    """
    kinds = capacity.shape[1]
    words = random_words(seed, step, window_id.numpy(), kinds, (DIRICHLET, DROPOUT))
    of_dirichlet, of_dropout = (words + 0.5) / 2.0**32
    kept = keep_modalities(of_dropout, capacity > 0, config.modality_dropout)
    usable = np.where(kept, capacity, 0)
    total = usable.sum(1)
    visible = np.minimum(np.maximum(config.num_visible(total), 1), total)
    share = np.where(usable > 0, gamma_quantile(config.alpha, of_dirichlet), 0)
    return water_fill(share, usable, visible)


def gamma_quantile(alpha: float, uniform: np.ndarray) -> np.ndarray:
    """Quantiles of the gamma distribution of shape alpha and scale 1, which for alpha 1 is the exponential one."""
    return -np.log1p(-uniform) if alpha == 1 else gammaincinv(alpha, uniform)


def keep_modalities(uniform: np.ndarray, present: np.ndarray, dropout: float) -> np.ndarray:
    """Choose the modalities that are not dropped: bool [B, M].

    A present modality is dropped where its uniform number is below `dropout`; where all would be, the one with the
    highest number is kept.
    """
    kept = present & (uniform >= dropout)
    highest = np.where(present, uniform, -1).argmax(1)
    rescued = np.arange(uniform.shape[1]) == highest[:, None]
    return np.where(kept.any(1, keepdims=True), kept, rescued & present)


def water_fill(share: np.ndarray, capacity: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Divide `total` [B] in proportion to `share` [B, M] without passing `capacity` [B, M], in whole tokens.

    What a full modality cannot take flows to the others in proportion; remainders go to the largest fractions.
    """
    share = np.where(capacity > 0, np.maximum(share, 1e-300), 0)
    full = capacity == 0
    level = np.zeros(share.shape)
    for _ in range(share.shape[1]):
        rest = total - np.where(full, capacity, 0).sum(1)
        open_share = np.where(full, 0, share)
        scale = rest / np.maximum(open_share.sum(1), 1e-300)
        level = np.where(full, capacity, open_share * scale[:, None])
        before, full = full, full | (level >= capacity)
        if np.array_equal(before, full):  # and so would be all further levels
            break
    level = np.minimum(level, capacity)
    whole = np.floor(level).astype(np.int64)
    order = np.argsort(-np.where(whole < capacity, level - whole, -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    return whole + ((rank < (total - whole.sum(1))[:, None]) & (whole < capacity))


def hidden_weight(hidden: np.ndarray) -> np.ndarray:
    """The weight of a token's error in the loss, by modality: float32 [M].

    It is 1 / (hidden tokens of m in the global step * modalities that have any), and 0 for a modality without any.

    Args:
        hidden: int [M], hidden tokens of each modality over all windows of the global step.
    """
    return (1.0 / np.maximum(hidden, 1) / max(int((hidden > 0).sum()), 1) * (hidden > 0)).astype(np.float32)


def plan_weight(plan: ops.Plan) -> Tensor:
    """The weight of a token's error in the loss, by modality, where one plan has all windows of the global step.

    The numbers are those of `hidden_weight`; they are computed on the plan's device, which the host does not wait for.

    Returns:
        float32 [M].

    Raises:
        TypeError: `plan` is no Plan.
    """
    ops.arguments.require_plan(plan)
    hidden = plan.hidden.cu_modality.diff().double()
    some = hidden > 0
    return (1 / hidden.clamp(min=1) / some.sum().clamp(min=1) * some).float()


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number; found {value!r}") from None


class Planner:
    """Draws the plans of one montage. Quotas are drawn on the host, so that no size needs a device sync.

    `draw` gives the plan of a batch in one call. Training calls what it consists of: the quotas of a whole step say
    what each modality weighs in the loss, and each micro-batch is planned with its share of them.

    Args:
        montage: says which channel and time each token is of.
        config: shares and chances.
        seed: of the run, from 0 on.

    Raises:
        TypeError: `montage` is a name or a store, `config` no MaskingConfig, or `seed` no whole number.
    """

    def __init__(self, montage: Montage, config: MaskingConfig, seed: int) -> None:
        require_montage(montage)
        require_instance(MaskingConfig, "config", config, "such as MaskingConfig(keep=0.25)")
        self.montage, self.config, self.seed = montage, config, _whole("seed", seed)
        self._modality = torch.from_numpy(montage.token_modality)
        self._time_s = torch.from_numpy(montage.token_time_s)
        self._of_tokens: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def without_dropout(self) -> Planner:
        """A planner with the same shares and seed that keeps every modality, as evaluations need it."""
        return Planner(self.montage, dataclasses.replace(self.config, modality_dropout=0.0), self.seed)

    def draw(self, batch: Batch, step: int = 0) -> ops.Plan:
        """Draw the plan of a batch: which of its valid tokens are visible in a step, and which are hidden.

        Args:
            batch: of `WindowReader.batch`; the plan is on the device of its rows.
            step: optimiser step.

        Raises:
            ValueError: the batch has another number of tokens than the planner's montage.
            TypeError: `batch` is no Batch, or `step` no whole number.
        """
        from physiofast.windows import Batch  # reads files by packages that plans do without

        require_instance(
            Batch, "batch", batch, "planner.draw_for(window_id, valid) takes the tensors of windows of your own"
        )
        return self._draw(step, batch.window_id, batch.valid, batch.rows.valid)

    def draw_for(self, window_id: Tensor, valid: Tensor, step: int = 0) -> ops.Plan:
        """Draw the plan of windows that no `WindowReader` has read.

        Args:
            window_id: int64 [B] on the host, such as `torch.arange(B)`.
            valid: bool [B, N], such as `Rows.valid`. The plan is on its device, which the host waits for.
            step: optimiser step.

        Raises:
            ValueError: `valid` or `window_id` has another shape or dtype.
            TypeError: one of them is no tensor, or `step` no whole number.
        """
        need_tensor("window_id", window_id)
        need_tensor("valid", valid)
        return self._draw(step, window_id, valid.cpu(), valid)

    def _draw(self, step: int, window_id: Tensor, on_host: Tensor, valid: Tensor) -> ops.Plan:
        """The plan on the device of `valid`, of which `on_host` is the host's copy."""
        step, capacity = _whole("step", step), self.capacity(on_host)
        if window_id.dtype != torch.int64 or window_id.shape != (len(valid),):
            found = f"{window_id.dtype} {list(window_id.shape)}"
            raise ValueError(f"window_id must be int64 [{len(valid)}], one of each window; found {found}")
        return self.plan(step, window_id, valid, self.quotas(step, window_id, capacity), capacity)

    def capacity(self, valid: Tensor) -> np.ndarray:
        """Count the valid tokens of each modality: int64 [B, M], from valid bits [B, N] on the host."""
        if valid.dtype != torch.bool or valid.ndim != 2 or valid.shape[1] != self.montage.tokens:
            expected = f"bool [B, {self.montage.tokens}], of {len(self.montage.channels)} channels"
            raise ValueError(f"valid must be {expected}; found {valid.dtype} {list(valid.shape)}")
        grid = (len(valid), len(self.montage.channels), self.montage.patches_per_window)
        channels = valid.reshape(grid).sum(2).numpy()
        member = np.asarray(self.montage.channel_modality)[:, None] == np.arange(len(self.montage.modalities))
        return channels @ member.astype(np.int64)

    def quotas(self, step: int, window_id: Tensor, capacity: np.ndarray) -> np.ndarray:
        """Draw how many tokens of each modality are visible: int64 [B, M], by `draw_quotas`."""
        return draw_quotas(self.config, self.seed, step, window_id, capacity)

    def hidden_weight(self, quotas: np.ndarray, capacity: np.ndarray) -> np.ndarray:
        """The loss weights of a global step, from the quotas and capacity of all its windows: float32 [M]."""
        return hidden_weight((capacity - quotas).sum(0))

    def sizes(self, quotas: np.ndarray, capacity: np.ndarray) -> ops.PlanSizes:
        """The smallest of the fixed sizes whose packings hold the tokens of these quotas [B, M]."""
        batch, tokens = len(quotas), self.montage.tokens
        visible, present = quotas.sum(1), capacity.sum(1)
        most = (max(1, int(self.config.num_visible(tokens))), tokens, tokens)
        used = (visible, present - visible, present)
        totals = [self._next_size(int(u.sum()), batch * m) for u, m in zip(used, most, strict=True)]
        max_lens = [self._next_size(int(u.max(initial=0)), m) for u, m in zip(used, most, strict=True)]
        return ops.PlanSizes((totals[0], totals[1], totals[2]), (max_lens[0], max_lens[1], max_lens[2]))

    def padding_share(self, quotas: np.ndarray, capacity: np.ndarray) -> float:
        """Share of the places in a plan's packings that no token fills."""
        used = 2 * int(capacity.sum())  # each token is visible or hidden, and present
        return 1 - used / max(sum(self.sizes(quotas, capacity).totals), 1)

    def plan(self, step: int, window_id: Tensor, valid: Tensor, quotas: np.ndarray, capacity: np.ndarray) -> ops.Plan:
        """Draw the plan of one (micro-)batch from its quotas, on the device of `valid`.

        Args:
            step: optimiser step.
            window_id: int64 [B] on the host.
            valid: bool [B, N].
            quotas: int [B, M], these windows' rows of `quotas`.
            capacity: int [B, M], these windows' rows of `capacity`.
        """
        device = valid.device
        if device not in self._of_tokens:
            self._of_tokens[device] = self._modality.to(device), self._time_s.to(device)
        # One copy that nothing waits for: several short ones would each wait for all that a GPU has begun.
        numbers = torch.cat([torch.from_numpy(quotas).flatten(), window_id, torch.tensor([self.seed, step])])
        numbers = numbers.pin_memory() if device.type == "cuda" else numbers
        quota, windows, key = numbers.to(device, non_blocking=True).split([quotas.size, len(window_id), 2])
        sizes = self.sizes(quotas, capacity)
        return ops.sample_plan(quota.view(quotas.shape), valid, windows, key, *self._of_tokens[device], sizes)

    def _next_size(self, used: int, most: int) -> int:
        """The smallest of the fixed sizes that holds `used` tokens."""
        sizes = fixed_sizes(most, self.config.sizes)
        return sizes[bisect.bisect_left(sizes, used)]


@functools.cache
def fixed_sizes(most: int, steps: int) -> tuple[int, ...]:
    """The sizes that packings may have: `steps` multiples of 8, about evenly spaced, of which the last holds `most`."""
    return tuple(-(-most * i // steps // 8) * 8 for i in range(1, steps + 1))
