"""What kernels share: values and one-hot rows by a small number, such as a token's modality; sums; fences of copies."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from physiofast.ops.triton import version

_FENCES_COPIES = version() >= (3, 7, 1)
"""Whether Triton fences what was copied ahead before products read it from shared memory. Until 3.7.1 it does not
(triton-lang/triton#9610, #10537), and PTX then lets a product read what was there before.
"""


def fence(number: Any, _semantic: Any = None) -> None:
    """That fence on Hopper, where Triton leaves it out: for loops, behind the loads and before the product.

    Args:
        number: any int32, such as the loop's variable: inline assembly needs an operand.
    """
    if _is_unfenced("sm9", _semantic):
        asm, kind = "fence.proxy.async.shared::cta; mov.b32 $0, $1;", {"dtype": tl.int32, "is_pure": False, "pack": 1}
        tl.inline_asm_elementwise(asm, "=r,r", [number], **kind, _semantic=_semantic)


def stages(_semantic: Any = None) -> int | None:
    """Pipeline depth of a loop that contains `fence`: None uses the launch's.

    1 disables pipelining, on Blackwell with a Triton that lacks the fence: 3.6 refuses to pipeline such a loop there.
    """
    return 1 if _is_unfenced("sm1", _semantic) else None


def _is_unfenced(arch: str, semantic: Any) -> bool:
    """Whether this compilation copies ahead without the fence, for such a device; the interpreter compiles nothing."""
    if _FENCES_COPIES or semantic is None:
        return False
    options = semantic.builder.options
    return options.num_stages > 1 and options.arch.startswith(arch)


def _mul_rn(a: Any, b: Any, _semantic: Any = None) -> Any:
    """a * b of float32, rounded, which is never fused with an addition; in the interpreter of other types, too."""
    if _semantic is None:
        return a * b
    return tl.inline_asm_elementwise(
        "mul.rn.f32 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.float32, is_pure=True, pack=1, _semantic=_semantic
    )


fence.__triton_builtin__ = stages.__triton_builtin__ = True  # type: ignore[attr-defined]
_mul_rn.__triton_builtin__ = True  # type: ignore[attr-defined]


@triton.jit
def product(a, b, IS_ALONE: tl.constexpr):
    """a * b, to be summed over an axis; rounded before that where a thread may hold a single element (IS_ALONE).

    Otherwise the compiler fuses the multiplication into the first addition of a shuffled value, and threads of one
    reduction end with different last bits. Triton 3.9 stores all of them to one shared address.
    """
    return _mul_rn(a, b) if IS_ALONE else a * b


@triton.jit
def select(modality, VALUES: tl.constexpr, NUM_MODALITIES: tl.constexpr):
    """VALUES[modality] for a block of modalities; 0 for -1, the tail."""
    selected = modality * 0
    for m in tl.static_range(NUM_MODALITIES):
        selected = tl.where(modality == m, VALUES[m], selected)
    return selected


@triton.jit
def one_hot_rows(number, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """[BLOCK_T, BLOCK] with a one at each token's number, such as its modality."""
    return (number[:, None] == tl.arange(0, BLOCK)[None, :]).to(DTYPE)
