"""The functional API: every op of the package, its shapes, units and errors.

Each op is registered with `torch.library` as `physiofast::<name>` (see `registration.py`), so it traces under
`torch.compile` as one node, and its value and gradient are defined by the function of the same name in
`reference.py`. On a GPU Triton kernels serve an op that has some, on a CPU the faster form that `cpu.py` lists, if any;
`backend` chooses, `explain` says what was chosen and why. Dtypes: sums run in float32 (float64 when features or samples
are float64); a result has the dtype of the floating argument that it stands for. Only first derivatives in reverse mode
exist: second ones, forward mode and `torch.func.grad` are refused.

An argument of another type than documented, such as a Plan for a Packing, is a TypeError; a value that is not allowed,
such as a tensor of another shape or dtype, is a ValueError.

B windows, C channels, S patches per channel, N = C * S token ids, M modalities, P_m samples per patch of
modality m, T places in a packing, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import physiofast.ops.registration  # noqa: F401  defines torch.ops.physiofast
from physiofast.ops import arguments, checks
from physiofast.ops.backends import runs_kernels_on_cpu
from physiofast.ops.calling import call, call_unrecorded
from physiofast.ops.constants import filled
from physiofast.ops.contracts import AttentionStats, Packing, Plan, PlanSizes, Rows, Samples, need_tensor, packing_of_op
from physiofast.ops.registration import WithHidden
from physiofast.ops.watching import is_watched

# ---- take_patches --------------------------------------------------------------------------------------------


def take_patches(rows: Samples, packing: Packing, *, patch_lengths: Sequence[int] | None = None) -> Tensor:
    """Take the dequantised samples of each token of a packing, such as the targets of hidden tokens. No gradient.

    Args:
        rows: the batch's samples; a plain [B, C, T] tensor, or one for each modality, is accepted.
        packing: T tokens.
        patch_lengths: P_m for each of the M modalities. Rows that have patch lengths need none, and refuse others.

    Returns:
        [T, P_max] float32 (float64 for float64 samples); columns from P_m on, and the tail, are zero.

    Raises:
        ValueError: shapes, dtypes or patch lengths do not fit together, or a patch length is not whole.
        TypeError: an argument is of another type, or `patch_lengths` is missing.
    """
    rows, lengths = arguments.as_rows(rows, packing, patch_lengths)
    tensors = (*arguments.of_rows(rows), *arguments.of_packing(packing))
    check = lambda: checks.check_rows(rows, "packing", packing, lengths)  # noqa: E731
    return call_unrecorded("take_patches", tensors, (lengths,), check, (*tensors, rows.valid, packing.cu_modality))


# ---- embed_patches -------------------------------------------------------------------------------------------


def embed_patches(
    rows: Samples, visible: Packing, weight: Tensor, table: Tensor, *, patch_lengths: Sequence[int] | None = None
) -> Tensor:
    """Dequantise, cut into patches, gather, project per modality and add the token's table row, in one pass.

    Only the samples of the packing's tokens are read. `out[t] = patch(t) @ weight[m] + table[n]`.

    Args:
        rows: the batch's samples; or a plain [B, C, T] tensor, or one for each modality, which may require gradients.
        visible: the T tokens to embed. All tokens of a channel must be of one modality, the same in all windows, and
            their rows must be present; where a hand-made packing breaks this, kernels give NaN, for the channel's other
            tokens too.
        weight: [sum P_m, D], the rows of modality m from `row_offsets(patch_lengths)[m]` on.
        table: [N, D] in weight's dtype, the sum of bias, time and channel embedding of each token id.
        patch_lengths: P_m for each of the M modalities. Rows that have patch lengths need none, and refuse others.

    Returns:
        [T, D] in weight's dtype; the tail is zero. Gradients reach weight, table and dense samples.

    Raises:
        ValueError: shapes, dtypes or patch lengths do not fit together, tokens of a channel are of several modalities,
            a patch length is not whole, or the samples of Rows require a gradient.
        TypeError: an argument is of another type, or `patch_lengths` is missing.
    """
    if isinstance(rows, Rows) and rows.samples.requires_grad:
        raise ValueError("rows of a flat buffer may overlap and get no gradient; pass the [B, C, T] tensor itself")
    rows, lengths = arguments.as_rows(rows, visible, patch_lengths)

    def check() -> None:
        checks.check_rows(rows, "visible", visible, lengths)
        checks.check_by_modality("visible", visible, lengths)
        checks.check_weight(weight, sum(lengths))
        checks.check_shape("table", table, (visible.slot.shape[1], weight.shape[1]))
        checks.check_same_dtype("table", table, "weight", weight)

    weight, table = arguments.agreed(weight, table)
    order = (visible.by_modality, visible.cu_modality)
    tensors = (*arguments.of_rows(rows), *arguments.of_packing(visible), *order, weight, table)
    return call("embed_patches", tensors, (lengths, rows.align, rows.is_unscaled), check, (*tensors, rows.valid))


# ---- take_tokens ---------------------------------------------------------------------------------------------


def take_tokens(x: Tensor, packing: Packing) -> Tensor:
    """Take the features of a packing's tokens, for models that embed every patch themselves.

    Args:
        x: [B, N, D], features of every token.
        packing: T tokens.

    Returns:
        [T, D] in x's dtype; the tail is zero. The gradient of tokens that are not in the packing is zero.

    Raises:
        ValueError: shapes or dtypes do not fit together.
        TypeError: `x` is no tensor, or `packing` no Packing.
    """

    def check() -> None:
        checks.check_shape("x", x, packing.slot.shape, free=1)
        checks.check_packing("packing", packing)

    ids, modality, slot = arguments.of_packing(packing)
    return call("take_tokens", (x, ids, slot), check=check, guarded=(x, ids, modality, slot))


def take_hidden(x: Tensor, plan: Plan) -> Tensor:
    """Take the features of the hidden tokens from those of all present tokens, as a joint decoder's head needs them.

    This is indexing whose value and gradient are both plain copies of rows: nothing is summed, sorted or masked. Where
    x itself is used too, `with_hidden` saves a pass over memory.

    Args:
        x: [T_present, D], features of the tokens of `plan.present`.
        plan: of this batch.

    Returns:
        [T_hidden, D] in x's dtype; the tail is zero. The gradient of visible tokens is zero.

    Raises:
        ValueError: shapes or dtypes do not fit together.
        TypeError: `x` is no tensor, or `plan` no Plan.
    """
    packed, guarded = arguments.of_hidden(plan)
    return call("take_hidden", (x, *packed), check=lambda: checks.check_present(x, plan), guarded=(x, *guarded))


def with_hidden(x: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the features of all present tokens and of the hidden ones among them, for a model that uses both.

    The results are those of `x, take_hidden(x, plan)`, but the two gradients are added in one pass over memory, where
    autograd would scatter one into zeros and then add. The first result is x or a view of it and must not be changed in
    place.

    Args:
        x: [T_present, D], features of the tokens of `plan.present`.
        plan: of this batch.

    Returns:
        (x, [T_hidden, D] in x's dtype, its tail zero).

    Raises:
        ValueError: shapes or dtypes do not fit together.
        TypeError: `x` is no tensor, or `plan` no Plan.
    """
    need_tensor("x", x)
    if torch.compiler.is_compiling() or is_watched() or not (x.requires_grad and torch.is_grad_enabled()):
        return x, take_hidden(x, plan)
    return WithHidden.apply(x, *arguments.of_hidden(plan), lambda: checks.check_present(x, plan))


# ---- assemble_tokens -----------------------------------------------------------------------------------------


def assemble_tokens(encoded: Tensor, plan: Plan, table_visible: Tensor, table_hidden: Tensor) -> Tensor:
    """Put encoded visible tokens back among the embeddings of hidden ones: the unshuffle of an MAE's decoder.

    `out[t] = encoded[plan.visible.slot] + table_visible[n]` for a visible token, `table_hidden[n]` for a hidden one.

    Args:
        encoded: [T_visible, D].
        plan: of this batch.
        table_visible: [N, D], position embedding of each token id, for visible tokens.
        table_hidden: [N, D] in table_visible's dtype, mask embedding plus position embedding, for hidden tokens.

    Returns:
        [T_present, D] in encoded's dtype; the tail is zero.

    Raises:
        ValueError: shapes or dtypes do not fit together.
        TypeError: `plan` is no Plan, or another argument no tensor.
    """
    arguments.require_plan(plan)
    visible, present = plan.visible, plan.present

    def check() -> None:
        checks.check_packing("plan.visible", visible)
        checks.check_packing("plan.present", present)
        checks.check_shape("plan.visible.slot", visible.slot, present.slot.shape)
        checks.check_features("encoded", encoded, (visible.ids.shape[0],), free=1)
        of_tables = (present.slot.shape[1], encoded.shape[1])
        checks.check_features("table_visible", table_visible, of_tables)
        checks.check_shape("table_hidden", table_hidden, of_tables)
        checks.check_same_dtype("table_hidden", table_hidden, "table_visible", table_visible)

    table_visible, table_hidden = arguments.agreed(table_visible, table_hidden)
    tensors = (encoded, visible.ids, present.ids, visible.slot, present.slot, table_visible, table_hidden)
    return call("assemble_tokens", tensors, check=check, guarded=(*tensors, visible.modality, present.modality))


# ---- modality_attention --------------------------------------------------------------------------------------


def modality_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing_q: Packing,
    packing_k: Packing,
    *,
    pair_bias: Tensor | None = None,
    allowed: Tensor | None = None,
    time_decay: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute softmax attention within each window over packed tokens, biased by pairs of modalities and by time apart.

    The logit of query i and key j of a window is
    `scale * q_i . k_j + pair_bias[h, m_i, m_j] - time_decay[h] * |t_i - t_j|`, and -inf unless
    `allowed[m_i, m_j]`. A query without an allowed key gives zeros.

    NaN spreads to every result that reads it: from a query to its own row; from a key or value to the queries of its
    window that may attend to it, and possibly to others of that window; from a bias or decay to its head, from the
    scale to all. From a token it never reaches another window. A bias below -1e38, such as -inf, forbids its pair as
    `allowed` does.

    Args:
        q: [T_q, H, Dh].
        k: [T_k, H, Dh].
        v: [T_k, H, Dh].
        packing_q: the queries' tokens.
        packing_k: the keys' tokens; `packing_q` itself for self-attention.
        pair_bias: [H, M, M], query modality by key modality; zero when left out.
        allowed: bool [M, M]; all True when left out.
        time_decay: [H] per second; zero when left out.
        scale: Dh ** -0.5 when left out. A constant of compiled graphs: a scale that varies recompiles.

    Returns:
        [T_q, H, Dh] in q's dtype; the tail is zero. Gradients reach q, k, v, pair_bias and time_decay.

    Raises:
        ValueError: shapes or dtypes do not fit together, or `scale` is a tensor that requires a gradient.
        TypeError: a packing is no Packing, or another argument no tensor.
    """
    arguments.require_packing(packing_q, packing_k)
    q, k, v = arguments.lowered(q, k, v)
    sides = arguments.sides(q, packing_q, packing_k, 1, pair_bias, allowed, time_decay, scale)

    def check() -> None:
        checks.check_attention(q, (("k", k), ("v", v)), sides)
        if pair_bias is not None or allowed is not None:
            checks.check_pairs(sides.num_modalities, packing_q, packing_k)

    guarded = (q, k, v, *arguments.guarded_by_attention(sides, packing_q, packing_k))
    out, _ = call("modality_attention", (q, k, v, *sides.tensors), sides.constants, check, guarded)
    return out


def modality_attention_stats(
    q: Tensor,
    k: Tensor,
    packing_q: Packing,
    packing_k: Packing,
    *,
    pair_bias: Tensor | None = None,
    allowed: Tensor | None = None,
    time_decay: Tensor | None = None,
    scale: float | None = None,
    tau_s: Sequence[float] = (),
) -> AttentionStats:
    """Sum the weights of `modality_attention` with the same arguments by modality and by time apart. No gradient.

    Args:
        q: [T_q, H, Dh].
        k: [T_k, H, Dh].
        packing_q: the queries' tokens.
        packing_k: the keys' tokens.
        pair_bias: [H, M, M]; zero when left out.
        allowed: bool [M, M]; all True when left out.
        time_decay: [H] per second; zero when left out.
        scale: Dh ** -0.5 when left out.
        tau_s: up to 8 distances in seconds, zero or more. As tokens' times are float32, each is extended by a
            thousandth, at most a millisecond: with patches of 0.2 s a distance of 0.2 includes all neighbours, in
            windows of up to 4,096 patches and seconds.

    Returns:
        Sums in float32 (float64 for float64 queries).

    Raises:
        ValueError: shapes or dtypes do not fit together, or `tau_s` has more than 8 distances or a negative one.
        TypeError: a packing is no Packing, `tau_s` no sequence of numbers, or another argument no tensor.
    """
    taus = arguments.distances(tau_s)
    arguments.require_packing(packing_q, packing_k)
    q, k = arguments.lowered(q, k)
    num_modalities = packing_q.cu_modality.shape[0] - 1
    sides = arguments.sides(q, packing_q, packing_k, num_modalities, pair_bias, allowed, time_decay, scale)

    def check() -> None:
        checks.check_attention(q, (("k", k),), sides)
        checks.check_pairs(sides.num_modalities, packing_q, packing_k)

    tensors, constants = (q, k, *sides.tensors), (*sides.constants, taus)
    guarded = (q, k, *arguments.guarded_by_attention(sides, packing_q, packing_k))
    sums, queries = call_unrecorded("modality_attention_stats", tensors, constants, check, guarded)
    heads, near_by, num_modalities = q.shape[1], len(taus), sums.shape[1]
    parts = (heads, heads, near_by * heads, 1, 1, near_by)
    # Not `split`, whose views autograd would track.
    mass, dt_sum, near, uniform_mass, uniform_dt, uniform_near = sums.unsafe_split_with_sizes(parts)
    near = near.view(near_by, heads, num_modalities, num_modalities)
    return AttentionStats(mass, near, dt_sum, queries, uniform_mass[0], uniform_near, uniform_dt[0])


# ---- masked_mse ----------------------------------------------------------------------------------------------


def masked_mse(
    pred: Tensor,
    rows: Samples,
    hidden: Packing,
    weight: Tensor,
    normalise: Sequence[bool] | None = None,
    *,
    patch_lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the squared error of hidden patches against the samples themselves, and its gradient, in one pass.

    A token's error is the mean over its P_m samples; `loss = sum_m weight[m] * sum[m]`. With weight[m] =
    1 / (hidden tokens of m in the global step * modalities that have any) losses and gradients of ranks and
    micro-batches add up to those of the whole step.

    Args:
        pred: [T_hidden, P_max]; columns from P_m on are ignored and get gradient zero.
        rows: the batch's samples, the detached target; a plain [B, C, T] tensor, or one for each modality, is accepted.
        hidden: the T_hidden tokens to reconstruct.
        weight: [M], floating, a constant: one that requires a gradient is refused.
        normalise: for each modality, whether its target patches are scaled to zero mean and unit (biased)
            variance, eps 1e-6; He et al., "Masked autoencoders are scalable vision learners", CVPR 2022,
            doi:10.1109/CVPR52688.2022.01553. All False when left out. (facebook/mae's own code divides by the unbiased
            variance, which is P_m / (P_m - 1) times the biased one.)
        patch_lengths: P_m for each of the M modalities. Rows that have patch lengths need none, and refuse others.

    Returns:
        (loss, sum [M] of token errors, count [M] of tokens); only the loss carries a gradient.

    Raises:
        ValueError: shapes, dtypes or patch lengths do not fit together, a patch length is not whole, a flag of
            `normalise` is a number other than 0 and 1, or one is set for a modality with P_m < 16.
        TypeError: an argument is of another type, or `patch_lengths` is missing.
    """
    rows, lengths = arguments.as_rows(rows, hidden, patch_lengths)
    flags = arguments.as_flags(normalise, lengths)

    def check() -> None:
        checks.check_rows(rows, "hidden", hidden, lengths)
        checks.check_features("pred", pred, (hidden.ids.shape[0], max(lengths)))
        checks.check_features("weight", weight, (len(lengths),))
        checks.check_normalised(flags, lengths)

    weight = arguments.as_constant(weight)
    unit = arguments.gradient_unit(pred, weight, min(lengths))
    weight = weight if unit is None else weight * unit
    tensors = (pred, *arguments.of_rows(rows), *arguments.of_packing(hidden), weight)
    guarded = (*tensors, rows.valid, hidden.cu_modality)
    loss, total, count, _ = call("masked_mse", tensors, (lengths, flags, rows.align), check, guarded)
    return loss if unit is None else loss / unit, total, count


def linear_masked_mse(
    x: Tensor,
    head: Tensor,
    bias: Tensor | None,
    rows: Samples,
    hidden: Packing,
    weight: Tensor,
    normalise: Sequence[bool] | None = None,
    *,
    patch_lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `masked_mse` of the predictions of a linear head, in one pass that stores no prediction.

    The results are those of `masked_mse(torch.nn.functional.linear(x, head, bias), ...)`, which is what runs on a GPU,
    within autocast and in 16 bits. On a CPU predictions and their gradients stay in its caches: three matrix products
    read and write little more than `x` and its gradient.

    Args:
        x: [T_hidden, D], features of the hidden tokens; zero or anything finite in the tail, as ops leave them.
        head: [P_max, D], as the weight of `torch.nn.Linear(D, P_max)`.
        bias: [P_max] or None.
        rows: the batch's samples, as for `masked_mse`.
        hidden: the T_hidden tokens to reconstruct.
        weight: [M], as for `masked_mse`.
        normalise: for each modality, as for `masked_mse`.
        patch_lengths: P_m for each of the M modalities. Rows that have patch lengths need none, and refuse others.

    Returns:
        (loss, sum [M] of token errors, count [M] of tokens); only the loss carries a gradient, to x, head and bias.

    Raises:
        ValueError: as of `masked_mse`.
        TypeError: as of `masked_mse`.
    """
    rows, lengths = arguments.as_rows(rows, hidden, patch_lengths)
    flags = arguments.as_flags(normalise, lengths)
    packed = arguments.of_packing(hidden)
    need_tensor("x", x)
    need_tensor("head", head)
    casts, is_narrow = arguments.autocasts(x), x.dtype not in (torch.float32, torch.float64)
    has_kernels = not torch.compiler.is_compiling() and runs_kernels_on_cpu("masked_mse")
    if x.device.type != "cpu" or casts or is_narrow or has_kernels:
        checks.check_linear(x, head, bias, hidden.ids.shape[0], max(lengths), casts)
        if x.device.type == "meta":  # beside which PyTorch's own linear takes a head that has values
            checks.check_values(("x", "head", "bias", "rows.samples"), (x, head, bias, rows.samples))
        pred = torch.nn.functional.linear(x, head, bias)
        return masked_mse(pred, rows, hidden, weight, normalise, patch_lengths=lengths)

    def check() -> None:
        checks.check_rows(rows, "hidden", hidden, lengths)
        checks.check_linear(x, head, bias, hidden.ids.shape[0], max(lengths), casts)
        checks.check_features("weight", weight, (len(lengths),))
        checks.check_normalised(flags, lengths)

    bias = filled(0.0, tuple(head.shape[:1]), x.dtype, x.device) if bias is None else bias
    need_gradient = torch.is_grad_enabled() and (x.requires_grad or head.requires_grad or bias.requires_grad)
    tensors = (x, head, bias, *arguments.of_rows(rows), *packed, arguments.as_constant(weight))
    guarded, constants = (*tensors, rows.valid, hidden.cu_modality), (lengths, flags, rows.align, need_gradient)
    loss, total, count, *_ = call("linear_masked_mse", tensors, constants, check, guarded)
    return loss, total, count


# ---- sample_plan ---------------------------------------------------------------------------------------------


def sample_plan(
    quotas: Tensor,
    valid: Tensor,
    window_id: Tensor,
    seed_step: Tensor,
    token_modality: Tensor,
    token_time_s: Tensor,
    sizes: PlanSizes,
) -> Plan:
    """Choose each window's visible tokens uniformly within its modality quotas, and pack the three sets of tokens.

    The plan is a pure function of (seed, step, window id): no window's plan depends on its neighbours. Each token gets
    a Philox-4x32-10 word as its key; of each modality the tokens with the smallest keys are visible, as many as its
    quota says.

    Args:
        quotas: int [B, M], visible tokens of each modality: all where it has fewer, none where this is negative.
        valid: bool [B, N]; tokens outside it are in no packing.
        window_id: int64 [B].
        seed_step: int64 [2], (seed, step).
        token_modality: int32 [N], ascending.
        token_time_s: float32 [N].
        sizes: static sizes of the packings, at least what quotas and `valid` need: places, and tokens of the longest
            window. Sizes shared by all batches let graphs be compiled or captured once; `Planner.sizes` gives one of a
            few. Exact ones (B * K visible tokens where each of B windows sees K) work too.

    Returns:
        The plan.

    Raises:
        ValueError: shapes or dtypes do not fit together, or a batch has 2**31 tokens or more. On a CPU also: sizes are
            too small, or modalities do not ascend. The host does not wait for a GPU, which leaves a packing empty if
            its size is too small.
        TypeError: `sizes` is no PlanSizes, or another argument no tensor.
    """
    arguments.require_sizes(sizes)
    tensors = (quotas, valid, window_id, seed_step, token_modality, token_time_s)
    check = lambda: checks.check_plan_inputs(*tensors)  # noqa: E731
    parts: list[Tensor] = call("sample_plan", tensors, (tuple(sizes.totals),), check, may_share=True)
    has_values = not (torch.compiler.is_compiling() or is_watched() or runs_kernels_on_cpu("sample_plan"))
    if valid.device.type == "cpu" and has_values:
        for name, cu_seqlens, max_len in zip(
            ("visible", "hidden", "present"), parts[1::7], sizes.max_lens, strict=True
        ):
            checks.check_max_len(name, cu_seqlens, max_len)
    of_visible, of_hidden, of_present = sizes.max_lens
    return Plan(
        visible=packing_of_op(parts[:7], of_visible),
        hidden=packing_of_op(parts[7:14], of_hidden),
        present=packing_of_op(parts[14:], of_present),
    )
