"""Plans: which tokens of a batch the encoder sees, as a pure function of (seed, step, window id)."""

from __future__ import annotations

import bisect
import dataclasses
import functools

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from physiofast import ops
from physiofast.montage import Montage
from physiofast.ops.randomness import DIRICHLET, DROPOUT, random_words
from physiofast.support.bounds import Bounds, check_fields

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
        """int64, `keep` of so many tokens, rounded half up."""
        return np.floor(self.keep * np.asarray(tokens) + 0.5).astype(np.int64)


def draw_quotas(config: MaskingConfig, seed: int, step: int, window_id: Tensor, capacity: np.ndarray) -> np.ndarray:
    """Visible tokens of each modality in each window.

    Modality dropout chooses the kept modalities; K = round(keep * their tokens), clipped to [1, capacity]; a
    symmetric Dirichlet divides K among them, water-filled so that none gets more than it has.

    Args:
        config: shares and chances.
        seed: of the run.
        step: optimiser step.
        window_id: int64 [B].
        capacity: int [B, M], valid tokens of each modality.

    Returns:
        int64 [B, M]; row sums are K, and 0 only for windows without any valid token.
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
    """Of the gamma distribution of shape alpha and scale 1, which for alpha 1 is the exponential one."""
    return -np.log1p(-uniform) if alpha == 1 else gammaincinv(alpha, uniform)


def keep_modalities(uniform: np.ndarray, present: np.ndarray, dropout: float) -> np.ndarray:
    """bool [B, M]: present modalities whose draw is not a drop; where all would drop, the highest draw stays."""
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
    """float32 [M]: 1 / (hidden tokens of m in the global step * modalities that have any), 0 where it has none.

    Args:
        hidden: int [M], hidden tokens of each modality over all windows of the global step.
    """
    return (1.0 / np.maximum(hidden, 1) / max(int((hidden > 0).sum()), 1) * (hidden > 0)).astype(np.float32)


def plan_weight(plan: ops.Plan) -> Tensor:
    """float32 [M], `hidden_weight` of the windows of one plan, where they are all of a global step.

    In PyTorch, as it stays on the plan's device, which is not waited for.
    """
    hidden = plan.hidden.cu_modality.diff().double()
    some = hidden > 0
    return (1 / hidden.clamp(min=1) / some.sum().clamp(min=1) * some).float()


class Planner:
    """Draws the plans of one montage. Quotas come from the host, so no size needs a device sync.

    `draw` gives a plan in one call. Training asks for its parts: the quotas of a whole step say what each modality
    weighs in its loss, and each micro-batch is planned with its share of them.

    Args:
        montage: gives the token grid.
        config: shares and chances.
        seed: of the run.
    """

    def __init__(self, montage: Montage, config: MaskingConfig, seed: int) -> None:
        self.montage, self.config, self.seed = montage, config, seed
        self._modality = torch.from_numpy(montage.token_modality)
        self._time_s = torch.from_numpy(montage.token_time_s)
        self._of_tokens: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def without_dropout(self) -> Planner:
        """The planner of evaluations: the same shares and seed, and every modality kept."""
        return Planner(self.montage, dataclasses.replace(self.config, modality_dropout=0.0), self.seed)

    def draw(self, step: int, window_id: Tensor, valid: Tensor, device: torch.device | str | None = None) -> ops.Plan:
        """The plan of some windows: which of their valid tokens are visible in this step, and which hidden.

        Args:
            step: optimiser step.
            window_id: int64 [B] on the host; `torch.arange(B)` does for samples of your own.
            valid: bool [B, N], of `WindowReader.batch` or of `Rows`; best on the host, for it is read there.
            device: where the plan is wanted; that of `valid` when None.

        Raises:
            ValueError: `valid` or `window_id` is of another shape or dtype.
        """
        capacity = self.capacity(valid.cpu())
        if not isinstance(window_id, Tensor) or window_id.dtype != torch.int64 or window_id.shape != (len(valid),):
            found = f"{window_id.dtype} {list(window_id.shape)}" if isinstance(window_id, Tensor) else type(window_id)
            raise ValueError(f"window_id must be a tensor int64 [{len(valid)}], one of each window; found {found}")
        quotas = self.quotas(step, window_id, capacity)
        return self.plan(step, window_id, valid if device is None else valid.to(device), quotas, capacity)

    def capacity(self, valid: Tensor) -> np.ndarray:
        """int64 [B, M], valid tokens of each modality of host-resident valid bits [B, N]."""
        if valid.dtype != torch.bool or valid.ndim != 2 or valid.shape[1] != self.montage.tokens:
            expected = f"bool [B, {self.montage.tokens}], of {len(self.montage.channels)} channels"
            raise ValueError(f"valid must be {expected}; found {valid.dtype} {list(valid.shape)}")
        grid = (len(valid), len(self.montage.channels), self.montage.patches_per_window)
        channels = valid.reshape(grid).sum(2).numpy()
        member = np.asarray(self.montage.channel_modality)[:, None] == np.arange(len(self.montage.modalities))
        return channels @ member.astype(np.int64)

    def quotas(self, step: int, window_id: Tensor, capacity: np.ndarray) -> np.ndarray:
        """int64 [B, M], visible tokens per modality; see `draw_quotas`."""
        return draw_quotas(self.config, self.seed, step, window_id, capacity)

    def hidden_weight(self, quotas: np.ndarray, capacity: np.ndarray) -> np.ndarray:
        """float32 [M], the loss weights of a global step from the quotas of all its windows."""
        return hidden_weight((capacity - quotas).sum(0))

    def sizes(self, quotas: np.ndarray, capacity: np.ndarray) -> ops.PlanSizes:
        """The fixed sizes that hold these quotas."""
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
        """The plan of one (micro-)batch, on the device of `valid`.

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
    """Multiples of 8 in so many steps up to `most` or a little more."""
    return tuple(-(-most * i // steps // 8) * 8 for i in range(1, steps + 1))
