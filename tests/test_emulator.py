"""The emulator of PTX: instructions against NumPy, what it refuses, and every kernel of the package in it."""

import contextlib
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import codegen
from benchmarks.emulator import launching
from benchmarks.emulator.counting import Counts
from benchmarks.emulator.machine import Machine
from benchmarks.emulator.memory import FaultError, Global
from benchmarks.emulator.parsing import Register, parse
from benchmarks.emulator.schedule import ready, run

MODULE = """
.version 8.7
.target sm_90a
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(.param .u64 .ptr .global .align 1 kernel_param_0, .param .u32 kernel_param_1)
.reqntid {threads}
{{
  .reg .pred %p<8>;
  .reg .b16 %rs<16>;
  .reg .b32 %r<300>;
  .reg .b64 %rd<16>;
  ld.param.b64 %rd0, [kernel_param_0]; // where the tensor begins
  ld.param.b32 %r0, [kernel_param_1];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd1, %r1, 4;
  add.s64 %rd1, %rd0, %rd1; // this thread's word
  shl.b32 %r2, %r1, 2; // and in shared memory
{body}
  ret;
}}
"""


def execute(body, tensor, *, threads=32, blocks=1, number=7, shared=4096, order=None, watch=None):
    """Run statements on a tensor, and give it back."""
    program = parse(MODULE.format(body=body, threads=threads))
    memory = Global([tensor])
    parameters = {"kernel_param_0": np.uint64(memory.pointer(tensor)), "kernel_param_1": np.uint32(number)}
    places = np.stack([np.arange(blocks), *np.zeros((2, blocks), int)], axis=1)
    machine = Machine(program, (blocks, 1, 1), places, shared, memory, parameters)
    with np.errstate(all="ignore"):
        run(machine, ready(program), None if order is None else random.Random(order), watch)
    memory.copy_back()
    return tensor


def words(values, kind=np.uint32):
    """A tensor of 32-bit words with the bits of these values."""
    return torch.from_numpy(np.array(values, kind).ravel().view(np.int32)).clone()  # which begins with a sector


def result_of(instruction, a, b=0, c=0, kind=np.uint32):
    """What 32 threads get of one instruction with %r10, %r11 and %r12 as operands and %r13 as result."""
    given = np.zeros((4, 32), np.uint32)
    for row, values in enumerate((a, b, c)):
        given[row] = np.broadcast_to(np.asarray(values), 32).astype(kind).view(np.uint32)
    load = "\n".join(f"ld.global.b32 {{ %r{10 + i} }}, [ %rd1 + {128 * i} ];" for i in range(3))
    tensor = execute(f"{load}\n{instruction}\nst.global.b32 [ %rd1 + 384 ], {{ %r13 }};", words(given))
    return tensor.numpy()[96:].view(kind)


INTS = np.array([0, 1, 2, 31, 32, 33, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1] + [12345678] * 20, np.uint32)
FLOATS = np.array([0.0, -0.0, 1.5, -2.25, np.inf, -np.inf, np.nan, 1e-40, 3e38] + [0.1] * 23, np.float32)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("add.s32 %r13, %r10, %r11;", lambda a, b: a + b),
        ("sub.s32 %r13, %r10, %r11;", lambda a, b: a - b),
        ("mul.lo.s32 %r13, %r10, %r11;", lambda a, b: a * b),
        ("mul.hi.u32 %r13, %r10, %r11;", lambda a, b: (a.astype(np.uint64) * b >> np.uint64(32)).astype(np.uint32)),
        ("and.b32 %r13, %r10, %r11;", lambda a, b: a & b),
        ("xor.b32 %r13, %r10, %r11;", lambda a, b: a ^ b),
        ("shl.b32 %r13, %r10, %r11;", lambda a, b: np.where(b > 31, 0, a << (b & 31)).astype(np.uint32)),
        ("shr.u32 %r13, %r10, %r11;", lambda a, b: np.where(b > 31, 0, a >> (b & 31)).astype(np.uint32)),
        (
            "shr.s32 %r13, %r10, %r11;",
            lambda a, b: (a.view(np.int32) >> np.minimum(b, 31).astype(np.int32)).view(np.uint32),
        ),
        ("min.s32 %r13, %r10, %r11;", lambda a, b: np.minimum(a.view(np.int32), b.view(np.int32)).view(np.uint32)),
        ("max.u32 %r13, %r10, %r11;", np.maximum),
        ("popc.b32 %r13, %r10;", lambda a, b: np.array([bin(x).count("1") for x in a.tolist()], np.uint32)),
        ("bfe.u32 %r13, %r10, 3, 6;", lambda a, b: a >> np.uint32(3) & np.uint32(63)),
        ("bfe.s32 %r13, %r10, 2, 1;", lambda a, b: np.where(a >> np.uint32(2) & 1, 0xFFFFFFFF, 0).astype(np.uint32)),
        (
            "prmt.b32 %r13, %r10, %r11, 0x5410U;",
            lambda a, b: (a & np.uint32(0xFFFF)) | (b & np.uint32(0xFFFF)) << np.uint32(16),
        ),
        ("shfl.sync.bfly.b32 %r13, %r10, 8, 31, -1;", lambda a, b: a[np.arange(32) ^ 8]),
        ("shfl.sync.up.b32 %r13, %r10, 4, 0, -1;", lambda a, b: np.concatenate([a[:4], a[:-4]])),
        ("shfl.sync.idx.b32 %r13, %r10, 5, 31, -1;", lambda a, b: np.full(32, a[5])),
        ("mov.b32 %r14, -1; redux.sync.add.s32 %r13, %r10, %r14;", lambda a, b: np.full(32, a.sum(dtype=np.uint32))),
    ],
)
def test_integers(instruction, expected):
    other = np.random.default_rng(0).permutation(INTS)
    np.testing.assert_array_equal(result_of(instruction, INTS, other), expected(INTS, other))


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("add.f32 %r13, %r10, %r11;", lambda a, b: a + b),
        ("mul.f32 %r13, %r10, %r11;", lambda a, b: a * b),
        ("fma.rn.f32 %r13, %r10, %r11, %r10;", lambda a, b: (a.astype(float) * b + a).astype(np.float32)),
        ("max.f32 %r13, %r10, %r11;", np.fmax),
        ("max.NaN.f32 %r13, %r10, %r11;", np.maximum),
        ("neg.f32 %r13, %r10;", lambda a, b: -a),
        ("abs.f32 %r13, %r10;", lambda a, b: abs(a)),
        ("ex2.approx.f32 %r13, %r10;", lambda a, b: np.exp2(a)),
        ("add.ftz.f32 %r13, %r10, 0f00000000;", lambda a, b: np.where(abs(a) < 1.2e-38, 0, a)),
        ("setp.lt.f32 %p1, %r10, %r11; selp.f32 %r13, 0f3F800000, 0f00000000, %p1;", lambda a, b: a < b),
        ("setp.geu.f32 %p1, %r10, %r11; selp.f32 %r13, 0f3F800000, 0f00000000, %p1;", lambda a, b: ~(a < b)),
        ("setp.ne.f32 %p1, %r10, %r11; selp.f32 %r13, 0f3F800000, 0f00000000, %p1;", lambda a, b: (a < b) | (a > b)),
        ("cvt.rn.f32.s32 %r13, -3;", lambda a, b: np.full(32, -3)),
        (
            "cvt.rn.bf16.f32 %rs1, %r10; cvt.f32.bf16 %r13, %rs1;",
            lambda a, b: torch.from_numpy(a).bfloat16().float().numpy(),
        ),
        (
            "cvt.rn.f16x2.f32 %r14, %r11, %r10; mov.b32 {%rs1, %rs2}, %r14; cvt.f32.f16 %r13, %rs2;",
            lambda a, b: b.astype(np.float16).astype(np.float32),
        ),
    ],
)
def test_floats(instruction, expected):
    with np.errstate(all="ignore"):
        other = np.random.default_rng(0).permutation(FLOATS)
        np.testing.assert_array_equal(
            result_of(instruction, FLOATS, other, kind=np.float32), np.float32(expected(FLOATS, other))
        )


def test_a_number_rounded_to_tf32_is_the_nearest():
    values = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    found = result_of("cvt.rna.tf32.f32 %r13, %r10;", values, kind=np.float32)
    assert not (found.view(np.uint32) & 0x1FFF).any()
    assert (abs(found - values) <= abs(values) * 2**-11).all()


def test_sixty_four_bits():
    body = """
    shl.b64 %rd2, %rd0, 8; shr.u64 %rd3, %rd2, 8; setp.eq.s64 %p1, %rd3, %rd0;
    cvt.s64.s32 %rd4, -2; shr.s64 %rd5, %rd4, 63; mov.b64 {_, %r20}, %rd5;
    cvt.u64.u32 %rd6, %r1; mad.lo.s64 %rd7, %rd6, 3, %rd6; cvt.u32.u64 %r21, %rd7;
    add.s32 %r22, %r21, %r20; selp.b32 %r23, %r22, 99, %p1;
    st.global.b32 [ %rd1 + 0 ], { %r23 };
    """
    assert execute(body, words(np.zeros(32))).tolist() == [4 * i - 1 for i in range(32)]


def test_threads_part_and_meet_again():
    body = """
    mov.b32 %r10, 0;
    $L__again:
    add.s32 %r10, %r10, 1;
    setp.lt.s32 %p1, %r10, %r1;
    @%p1 bra $L__again;
    setp.gt.s32 %p2, %r1, 20;
    @!%p2 add.s32 %r10, %r10, 100;
    shfl.sync.idx.b32 %r11, %r10, 31, 31, -1;
    add.s32 %r12, %r10, %r11;
    st.global.b32 [ %rd1 + 0 ], { %r12 };
    """
    assert execute(body, words(np.zeros(32))).tolist() == [max(i, 1) + 100 * (i <= 20) + 31 for i in range(32)]


@pytest.mark.parametrize("order", [None, 0, 1])
def test_a_barrier_is_waited_at_by_all_warps_of_a_block(order):
    body = """
    mov.u32 %r3, %ctaid.x; mul.lo.s32 %r4, %r3, 1000; add.s32 %r5, %r4, %r1;
    st.shared.b32 [ %r2 + 0 ], %r5;
    bar.sync 0;
    xor.b32 %r6, %r2, 384;
    ld.shared.b32 %r7, [%r6];
    mul.wide.u32 %rd2, %r3, 512; add.s64 %rd3, %rd1, %rd2;
    st.global.b32 [ %rd3 + 0 ], { %r7 };
    """
    found = execute(body, words(np.zeros(384)), threads=128, blocks=3, order=order)
    assert found.tolist() == [1000 * block + (thread ^ 96) for block in range(3) for thread in range(128)]


def assert_fault(body, fault, **options):
    """An emulator says this against statements, or nothing where it is None."""
    with contextlib.nullcontext() if fault is None else pytest.raises(FaultError, match=re.escape(fault)):
        execute(body, words(np.zeros(256)), **options)


MEET_IN_WARPS, MEET = "bar.warp.sync -1;", "bar.sync 0;"
OWN = "st.shared.b32 [ %r2 + 0 ], %r1;"
NEAR, FAR = "xor.b32 %r6, %r2, 4;", "xor.b32 %r6, %r2, 128;"  # words of other threads, of this warp and of another
READ, WRITE = "ld.shared.b32 %r7, [%r6];", "st.shared.b32 [ %r6 + 0 ], %r1;"
OF_WARP, OF_ALL = "and.b32 %r6, %r2, 128;", "mov.b32 %r6, 0;"  # a word that several read
LAST_WRITES = "and.b32 %r8, %r1, {}; setp.eq.s32 %p1, %r8, {}; @%p1 st.shared.b32 [%r6], %r1;"
ROWS = "and.b32 %r6, %r2, 384; and.b32 %r7, %r1, 7; shl.b32 %r7, %r7, 4; add.s32 %r6, %r6, %r7;"  # of a warp's words
READ_ROWS = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r8}, [%r6];"
WRITE_ROWS = "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r6], {%r1};"
UNWRITTEN, UNREAD, TWICE = (
    f"another thread may {what}" for what in ("not have written", "not have read", "write with")
)
ANY = "another thread may"


@pytest.mark.parametrize("order", [None, 0, 1])
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (f"{OWN} ld.shared.b32 %r7, [%r2]; {OWN}", None),
        (f"{OWN} {NEAR} {READ}", UNWRITTEN),
        (f"{OWN} {NEAR} shfl.sync.idx.b32 %r7, %r1, 0, 31, -1; {READ}", UNWRITTEN),
        (f"{OWN} {NEAR} {MEET_IN_WARPS} {READ}", None),
        (f"{OWN} {NEAR} {MEET} {READ}", None),
        (f"{OWN} {FAR} {MEET_IN_WARPS} {READ}", ANY),
        (f"{OWN} {FAR} {MEET} {READ}", None),
        (f"{NEAR} {READ} {OWN}", UNREAD),
        (f"{NEAR} {READ} {MEET_IN_WARPS} {OWN}", None),
        (f"{FAR} {READ} {MEET_IN_WARPS} {OWN}", ANY),
        (f"{FAR} {READ} {MEET} {OWN}", None),
        (f"{OWN} {NEAR} {WRITE}", TWICE),
        (f"{OWN} {NEAR} {MEET_IN_WARPS} {WRITE}", None),
        (f"{OWN} {FAR} {MEET_IN_WARPS} {WRITE}", ANY),
        (f"{OWN} {FAR} {MEET} {WRITE}", None),
        ("mov.b32 %r6, 0; mov.b32 %r7, 5; st.shared.b32 [%r6], %r7; st.shared.b32 [%r6], %r7;", None),
        (f"{NEAR} {READ} {MEET_IN_WARPS} ld.shared.b32 %r7, [%r2]; {OWN}", None),
        (f"{OF_WARP} {READ} {LAST_WRITES.format(31, 31)}", UNREAD),
        (f"{OF_WARP} {READ} {MEET_IN_WARPS} {LAST_WRITES.format(31, 31)}", None),
        (f"{OF_ALL} {READ} {MEET_IN_WARPS} {LAST_WRITES.format(63, 63)}", ANY),
        (f"{OF_ALL} {READ} {MEET} {LAST_WRITES.format(63, 63)}", None),
        # Bytes of one word that are of two threads.
        ("shl.b32 %r6, %r1, 1; mov.b32 {%rs1, _}, %r1; st.shared.b16 [%r6], %rs1; ld.shared.b16 %rs2, [%r6];", None),
        # Rows of a matrix are of the whole warp.
        (f"{OWN} {ROWS} {READ_ROWS}", UNWRITTEN),
        (f"{OWN} {ROWS} {MEET_IN_WARPS} {READ_ROWS}", None),
        (f"{ROWS} {READ_ROWS} {OWN}", UNREAD),
        (f"{ROWS} {READ_ROWS} {MEET_IN_WARPS} {OWN}", None),
        (f"{ROWS} {WRITE_ROWS} {READ_ROWS}", UNWRITTEN),
        (f"{ROWS} {WRITE_ROWS} ld.shared.b32 %r7, [%r2];", UNWRITTEN),
        (f"{ROWS} {WRITE_ROWS} {MEET_IN_WARPS} {READ_ROWS}", None),
    ],
)
def test_threads_that_share_memory_have_to_be_in_order(body, fault, order):
    assert_fault(body, fault, threads=64, order=order)


def test_a_copy_has_not_arrived_before_it_is_waited_for():
    start = "cp.async.cg.shared.global [ %r3 + 0 ], [ %rd2 + 0 ], 0x10, %r4; cp.async.commit_group;"
    begin = "shl.b32 %r3, %r1, 4; mul.wide.u32 %rd2, %r1, 16; add.s64 %rd2, %rd0, %rd2; mov.b32 %r4, 16;"
    end = "ld.shared.b32 %r7, [%r3+4]; st.global.b32 [ %rd1 + 0 ], { %r7 };"
    given = np.arange(128)
    waits = f"{begin} {start} cp.async.wait_group 0; {end}"
    assert execute(waits, words(given))[:32].tolist() == [4 * i + 1 for i in range(32)]
    too_soon = execute(f"{begin} {start} {end} cp.async.wait_group 0;", words(given))
    assert too_soon[:32].tolist() == [-1] * 32
    other = start.replace("[ %r3 + 0 ]", "[ %r3 + 2048 ]")
    first = f"{begin} {start} {other} cp.async.wait_group 1; {end}"
    assert execute(first, words(given))[:32].tolist() == [4 * i + 1 for i in range(32)]
    assert execute(first.replace("[%r3+4]", "[%r3+2052]"), words(given))[:32].tolist() == [-1] * 32
    zeros = f"{begin} {start} cp.async.wait_group 0; {end}".replace("mov.b32 %r4, 16", "mov.b32 %r4, 0")
    assert execute(zeros, words(given))[:32].tolist() == [0] * 32


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("ld.global.b32 { %r3 }, [ %rd1 + 128 ];", "where no tensor is: ld.global.b32"),
        ("st.global.b32 [ %rd0 + -4 ], { %r1 };", "where no tensor is"),
        ("ld.global.v2.b32 { %r3, %r4 }, [ %rd1 + 0 ];", "no multiple of 8"),
        ("st.global.b32 [ %rd0 + 0 ], { %r1 };", "different values in one place of global memory"),
        ("st.shared.b32 [ %r2 + 8192 ], %r1;", "shared memory at 0x2000, of 0x1000"),
        ("st.shared.b32 [ %r1 + 0 ], %r1;", "no multiple of 4"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%r2];", "at 0x4, which is no multiple of 16"),
        ("setp.gt.s32 %p1, %r1, 3; @%p1 bra $L__x; shfl.sync.idx.b32 %r3, %r1, 0, 31, -1; $L__x:", "not all of 32"),
        (
            "setp.gt.s32 %p1, %r1, 3; @%p1 bra $L__x; bar.sync 0; ret; $L__x:\nbar.sync 0; bar.sync 0;",
            "wait for others",
        ),
    ],
)
def test_what_a_gpu_would_not_take_is_refused(body, text):
    body = body.replace("$L__x:", "\n$L__x:\n")
    with pytest.raises(FaultError, match=text.replace(".", "[.]")):
        execute(body, words(np.zeros(32)))


@pytest.mark.parametrize(("at", "shared"), [("%r2 + -4", 4096), ("%r2 + 128", 140)])
def test_a_block_has_no_bytes_of_others(at, shared):
    with pytest.raises(FaultError, match=f"of {shared:#x}"):
        execute(f"st.shared.b32 [ {at} ], %r1;", words(np.zeros(32)), blocks=2, shared=shared)


def test_tensors_that_share_memory_in_secret_are_refused():
    whole = np.zeros(64, np.int32)
    with pytest.raises(ValueError, match="share memory"):
        Global([torch.from_numpy(whole), torch.from_numpy(whole[32:])])
    Global([torch.from_numpy(whole), torch.from_numpy(whole)[32:], torch.zeros(0), torch.zeros(0)])


FOUR = "{%r3, %r4, %r5, %r6}"
PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r10,%r11,%r12,%r13}, %rd5, %rd6, %p2, 1, 1, 0, 0"


@pytest.mark.parametrize(
    "statement",
    [
        "tanh.approx.f32 %r3, %r1",
        "add.sat.f32 %r3, %r1, %r1",
        "mad.hi.s32 %r3, %r1, %r1, %r1",
        "fma.rn.f64 %rd3, %rd1, %rd1, %rd1",
        "max.s16x2 %r3, %r1, %r1",
        "fma.rn.ftz.f16x2 %r3, %r1, %r1, %r1",
        "setp.lt.ftz.f32 %p1, %r1, %r1",
        "setp.lt.and.s32 %p1, %r1, %r1, %p2",
        "setp.lt.s32 %p1|%p2, %r1, %r1",
        "setp.lt.f16 %p1, %rs1, %rs1",
        "movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r1",
        "cvt.rzi.s32.f32 %r3, %r1",
        "cvt.rz.bf16.f32 %rs1, %r1",
        "cvt.rn.relu.bf16.f32 %rs1, %r1",
        "cvt.rz.bf16x2.f32 %r3, %r1, %r1",
        "cvt.sat.u8.s32 %rs1, %r1",
        "cvt.rn.tf32.f32 %r3, %r1",
        "ld.global.nc.b32 %r3, [%rd1]",
        "ld.global.L1::evict_last.b32 %r3, [%rd1]",
        "ld.relaxed.gpu.global.b32 %r3, [%rd1]",
        "ld.volatile.shared.b32 %r3, [%r2]",
        "ld.local.b32 %r3, [%rd1]",
        "ld.param.b32 %r3, [kernel_param_0+4]",
        "st.release.gpu.global.b32 [%rd1], %r1",
        "ld.shared.b32 %r3, [other]",
        "atom.global.add.u32 %r3, [%rd1], %r1",
        "cp.async.ca.shared.global.L2::128B [%r2], [%rd1], 4",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 16, [%r3]",
        "cp.async.wait_all",
        "bar.sync 1",
        "bar.sync 0, 64",
        "bar.warp.sync 15",
        "barrier.sync 0",
        "@%p1 bra.uni $L__end",
        "shfl.sync.idx.b32 %r3|%p1, %r1, 0, 31, -1",
        "shfl.sync.idx.b32 %r3, %r1, 0, 31, 15",
        "shfl.sync.bfly.b32 %r3, %r1, 1, 7199, -1",
        "redux.sync.add.abs.s32 %r3, %r1, %r2",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b4x16_p64 {%r3}, [%r2]",
        f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32 {FOUR}, {FOUR}, {{%r3, %r4}}, {FOUR}",
        f"mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {FOUR}, {FOUR}, {{%r3, %r4}}, {FOUR}",
        PRODUCT.replace("1, 1,", "-1, 1,"),
        PRODUCT.replace(", 0, 0", ", 0"),
        PRODUCT.replace("bf16.bf16", "bf16.f16"),
        PRODUCT.replace("k16.f32.bf16.bf16", "k32.f32.e4m3.e4m3"),
        PRODUCT.replace("mma_async", "mma_async.sp"),
        "fence.proxy.tensormap::generic.release.gpu",
    ],
)
def test_what_is_not_known_is_refused_before_anything_runs(statement):
    program = parse(MODULE.format(body=f"{statement};\n$L__end:\n", threads=128))
    with pytest.raises(ValueError, match="not known"):
        ready(program)


@pytest.mark.parametrize("text", ["[%r3-4]", "[%r3+0x10]", "[%r3+%r4]", "[16]"])
def test_addresses_of_other_forms_are_refused(text):
    with pytest.raises(ValueError, match="not an address"):
        parse(MODULE.format(body=f"ld.shared.b32 %r3, {text};", threads=32))


def test_registers_of_an_inner_scope_are_refused():
    with pytest.raises(ValueError, match="declared twice"):
        parse(MODULE.format(body="{ .reg .b32 %r<4>; mov.b32 %r1, 0; }", threads=32))


def test_symbols_that_a_thread_does_not_have_are_refused():
    with pytest.raises(ValueError, match="%laneid is not known"):
        execute("mov.u32 %r3, %laneid;", words(np.zeros(32)))


def bits_of(matrix, kind):
    """Words of a matrix' elements, two 16-bit ones in each."""
    tensor = torch.from_numpy(np.ascontiguousarray(matrix, np.float32))
    return (
        (tensor if kind == "tf32" else tensor.to({"bf16": torch.bfloat16, "f16": torch.float16}[kind]))
        .view(torch.int32)
        .numpy()
    )


def rounded(matrix, kind):
    """What of a matrix tensor cores see."""
    tensor = torch.from_numpy(np.ascontiguousarray(matrix, np.float32))
    if kind == "tf32":
        return (tensor.view(torch.int32) & -8192).view(torch.float32).double().numpy()
    return tensor.to({"bf16": torch.bfloat16, "f16": torch.float16}[kind]).double().numpy()


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_a_product_of_matrices_that_a_warp_loads(kind):
    """Both from shared memory as kernels do, 16 rows and 8 columns."""
    random_numbers = np.random.default_rng(1)
    depth = 8 if kind == "tf32" else 16
    a, b = random_numbers.standard_normal((16, depth)), random_numbers.standard_normal((8, depth))
    c = random_numbers.standard_normal((16, 8)).astype(np.float32)
    given = np.concatenate([bits_of(a, kind).ravel(), bits_of(b, kind).ravel(), c.view(np.int32).ravel()])
    copy = "\n".join(
        f"ld.global.b32 {{ %r5 }}, [ %rd1 + {128 * i} ]; st.shared.b32 [ %r2 + {128 * i} ], %r5;" for i in range(10)
    )
    shape = "m16n8k8.row.col.f32.tf32.tf32.f32" if kind == "tf32" else f"m16n8k16.row.col.f32.{kind}.{kind}.f32"
    body = f"""
    {copy}
    bar.sync 0;
    and.b32 %r20, %r1, 15; shl.b32 %r21, %r20, 5; shr.u32 %r22, %r1, 4; shl.b32 %r23, %r22, 4; add.s32 %r24, %r21, %r23;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r30, %r31, %r32, %r33}}, [%r24];
    and.b32 %r20, %r1, 7; shl.b32 %r21, %r20, 5; shl.b32 %r22, %r1, 1; and.b32 %r23, %r22, 16; add.s32 %r24, %r21, %r23;
    ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r34, %r35}}, [%r24+512];
    shr.u32 %r20, %r1, 2; shl.b32 %r21, %r20, 5; and.b32 %r22, %r1, 3; shl.b32 %r23, %r22, 3; add.s32 %r24, %r21, %r23;
    ld.shared.v2.b32 {{%r36, %r37}}, [%r24+768];
    ld.shared.v2.b32 {{%r38, %r39}}, [%r24+1024];
    mma.sync.aligned.{shape} {{ %r40, %r41, %r42, %r43 }}, {{ %r30, %r31, %r32, %r33 }}, {{ %r34, %r35 }}, {{ %r36, %r37, %r38, %r39 }};
    cvt.u64.u32 %rd3, %r24; add.s64 %rd4, %rd0, %rd3;
    st.global.v2.b32 [ %rd4 + 0 ], {{ %r40, %r41 }};
    st.global.v2.b32 [ %rd4 + 256 ], {{ %r42, %r43 }};
    """  # noqa: E501
    found = execute(body, words(given, np.int32)).numpy()[:128].view(np.float32).reshape(16, 8)
    np.testing.assert_allclose(found, rounded(a, kind) @ rounded(b, kind).T + c, rtol=2e-6, atol=2e-6)


def test_matrices_are_stored_as_they_are_loaded_and_transposed():
    given = np.arange(32, dtype=np.int32)  # of 16 bits twice as many: the thread's number, and 0
    body = """
    and.b32 %r20, %r1, 7; shl.b32 %r21, %r20, 4;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r21], {%r1};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r5}, [%r21];
    st.global.b32 [ %rd1 + 0 ], { %r5 };
    """
    found = execute(body, words(given, np.int32)).numpy().view(np.uint16).reshape(8, 8)
    stored = given.view(np.uint16).copy().reshape(8, 8)
    np.testing.assert_array_equal(found, stored.T)


SWIZZLES = {128: 1, 64: 2, 32: 3}


def in_shared(matrix, row_bytes, kind):
    """Bytes of [rows, depth], depth of at most a row of the pattern, as `wgmma` reads it with this swizzle."""
    words_of = bits_of(matrix, kind).view(np.uint8).reshape(len(matrix), -1)
    memory = np.zeros(len(matrix) * row_bytes, np.uint8)
    for row, line in enumerate(words_of):
        for byte, value in enumerate(line):
            place = row * row_bytes + byte
            memory[place ^ (place >> 7 & row_bytes // 16 - 1) << 4] = value
    return memory


def group_body(columns, row_bytes, kind, wait="wgmma.wait_group.sync.aligned 0;", transposed=False):
    """64 rows at 0 and `columns` at 8192 of shared memory; their product goes into the tensor."""
    depth = 8 if kind == "tf32" else 16
    count = columns // 2
    registers = ",".join(f"%r{100 + i}" for i in range(count))
    stride, transposes = row_bytes * 8 >> 4, "" if kind == "tf32" else f", 0, {int(transposed)}"
    descriptor = SWIZZLES[row_bytes] << 62 | stride << 32
    pairs = {4 * (8 * (i // 4) + 8 * columns * (i // 2 % 2)): (100 + i, 101 + i) for i in range(0, count, 2)}
    stores = "\n".join(f"st.global.v2.b32 [ %rd9 + {at} ], {{ %r{a}, %r{b} }};" for at, (a, b) in pairs.items())
    zeros = "\n".join(f"mov.b32 %r{100 + i}, 0f40000000;" for i in range(count))
    return f"""
    mov.b32 %r10, 0;
    $L__copy:
    mul.wide.u32 %rd2, %r10, 512; add.s64 %rd3, %rd1, %rd2; ld.global.b32 {{ %r11 }}, [ %rd3 + 0 ];
    shl.b32 %r12, %r10, 9; add.s32 %r13, %r12, %r2; st.shared.b32 [ %r13 + 0 ], %r11;
    add.s32 %r10, %r10, 1; setp.lt.s32 %p1, %r10, 48;
    @%p1 bra $L__copy;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    {zeros}
    mov.b64 %rd5, {descriptor}; or.b64 %rd6, %rd5, 512;
    mov.pred %p2, -1;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{kind}.{kind} {{{registers}}}, %rd5, %rd6, %p2, 1, 1{transposes};
    wgmma.commit_group.sync.aligned;
    {wait}
    shr.u32 %r20, %r1, 5; shl.b32 %r21, %r20, 4; and.b32 %r22, %r1, 31; shr.u32 %r23, %r22, 2; add.s32 %r24, %r21, %r23;
    mul.lo.s32 %r25, %r24, {columns}; and.b32 %r26, %r1, 3; shl.b32 %r27, %r26, 1; add.s32 %r28, %r25, %r27;
    mul.wide.u32 %rd8, %r28, 4; add.s64 %rd9, %rd0, %rd8;
    {stores}
    """  # noqa: E501


def group_product(columns, row_bytes, kind, **options):
    """(what four warps get, what is right) of a product whose registers began with 2."""
    numbers = np.random.default_rng(columns)
    depth = 8 if kind == "tf32" else 16
    a, b = numbers.standard_normal((64, depth)), numbers.standard_normal((columns, depth))
    memory = np.zeros(48 * 512, np.uint8)
    memory[: 64 * row_bytes] = in_shared(a, row_bytes, kind)
    if options.get("transposed"):  # columns lie side by side, in rows of the pattern
        rows = in_shared(np.ascontiguousarray(b.T), row_bytes, kind)
        memory[8192 : 8192 + len(rows)] = rows
    else:
        memory[8192 : 8192 + columns * row_bytes] = in_shared(b, row_bytes, kind)
    tensor = words(memory.view(np.int32), np.int32)
    found = execute(group_body(columns, row_bytes, kind, **options), tensor, threads=128, shared=48 * 512)
    right = rounded(a, kind) @ rounded(b, kind).T + 2
    return found.numpy()[: 64 * columns].view(np.float32).reshape(64, columns), right


@pytest.mark.parametrize("row_bytes", SWIZZLES)
@pytest.mark.parametrize(("columns", "kind"), [(32, "bf16"), (64, "f16"), (16, "tf32")])
def test_a_product_of_four_warps(columns, kind, row_bytes):
    found, right = group_product(columns, row_bytes, kind)
    np.testing.assert_allclose(found, right, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("columns", "row_bytes"), [(16, 32), (32, 64), (64, 128)])
def test_a_product_with_columns_side_by_side(columns, row_bytes):
    found, right = group_product(columns, row_bytes, "bf16", transposed=True)
    np.testing.assert_allclose(found, right, rtol=2e-6, atol=2e-6)


def test_a_product_is_not_there_before_it_is_waited_for():
    found, _ = group_product(32, 128, "bf16", wait="")
    assert np.isnan(found).all()
    found, right = group_product(32, 128, "bf16", wait="wgmma.wait_group.sync.aligned 1;")
    assert np.isnan(found).all()
    overwrite = "mov.b32 %r99, 0; st.shared.b32 [ %r2 + 0 ], %r99;"
    overwritten = f"bar.sync 0; {overwrite} bar.sync 0; wgmma.wait_group.sync.aligned 0;"
    found, right = group_product(32, 128, "bf16", wait=overwritten)
    assert abs(found - right).max() > 0.1  # it reads shared memory as late as it may


@pytest.mark.parametrize("transposed", [False, True])
def test_what_a_product_reads_is_written_after_all_warps_waited_for_it(transposed):
    wait = "wgmma.wait_group.sync.aligned 0;"
    write = "mov.b32 %r99, 0; mov.b32 %r98, {}; st.shared.b32 [%r98], %r99;"
    end = 8192 + 128 * (16 if transposed else 64)  # of the right matrix
    inside, behind = write.format(end - 16), write.format(end)
    for rest in (f"{inside} {wait}", f"{wait} {inside}", f"bar.sync 0; {wait} {inside}"):
        with pytest.raises(FaultError, match=UNREAD):
            group_product(64, 128, "bf16", wait=rest, transposed=transposed)
    for rest in (f"{wait} bar.sync 0; {inside}", f"{behind} {wait}"):
        found, right = group_product(64, 128, "bf16", wait=rest, transposed=transposed)
        np.testing.assert_allclose(found, right, rtol=2e-6, atol=2e-6)


def test_registers_of_a_left_matrix_are_read_as_late_as_they_may():
    body = """
    mov.b32 %r10, 0; mov.b32 %r20, 0; mov.b64 %rd5, 0; {fills}
    st.shared.b32 [ %r2 + 0 ], %r20; fence.proxy.async.shared::cta; bar.sync 0; mov.pred %p2, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%r30,%r31,%r32,%r33}}, {{%r10,%r10,%r10,%r10}}, %rd5, %p2, 1, 1, 0;
    wgmma.commit_group.sync.aligned;
    {between} wgmma.wait_group.sync.aligned 0;
    st.global.b32 [ %rd1 + 0 ], {{ %r30 }};
    """  # noqa: E501

    def found(fills, between):
        given = body.format(fills=fills, between=between)
        return execute(given, words(np.zeros(128)), threads=128).numpy().view(np.float32)

    assert (found("mov.b32 %r20, 0x3F803F80; mov.b32 %r10, 0x3F803F80;", "") == 16).all()
    assert (found("mov.b32 %r20, 0x3F803F80; mov.b32 %r10, 0x3F803F80;", "mov.b32 %r10, 0;") == 0).all()
    with pytest.raises(FaultError, match="do not agree whether"):
        execute(
            body.replace("mov.pred %p2, 0", "setp.gt.s32 %p2, %r1, 3").format(fills="", between=""),
            words(np.zeros(128)),
            threads=128,
        )


PROXY_FENCE, FENCE = "fence.proxy.async.shared::cta;", "wgmma.fence.sync.aligned;"
SUM = "{%r30, %r31, %r32, %r33}"
START = f"wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {SUM}, %rd5, %rd5, 0, 1, 1, 0, 0;"
FROM_REGISTERS = f"wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {SUM}, {{LEFT}}, %rd5, 0, 1, 1, 0;"
OTHER_SHAPE = f"wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {SUM}, %rd5, %rd5, 0, 1, 1;"
END = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"
UNFENCED = "registers that were used since the last wgmma.fence, or there was none"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (f"{START} {END}", UNFENCED),
        (f"{FENCE} {START} {START} {END} {START} {END}", None),  # sums of one shape are in order
        (f"{FENCE} mov.b32 %r31, 0; {START} {END}", UNFENCED),
        (f"mov.b32 %r31, 0; {FENCE} {START} {END}", None),
        (f"{FENCE} setp.eq.s32 %p1, %r1, 70; @%p1 mov.b32 %r31, 0; {START} {END}", UNFENCED),  # by one thread
        (f"{FENCE} {START} {END} add.s32 %r5, %r31, 1; {START} {END}", UNFENCED),  # they are read, too
        (f"{FENCE} {START} {END} st.shared.b32 [ %r2 + 0 ], %r31; {START} {END}", UNFENCED),
        (f"{FENCE} {START} {END} add.s32 %r5, %r31, 1; {FENCE} {START} {END}", None),
        (f"{FENCE} {START} {END} {OTHER_SHAPE} {END}", UNFENCED),
        (f"{FENCE} {START} {END} {FENCE} {OTHER_SHAPE} {END}", None),
        (f"{FENCE} mov.b32 %r20, 0; {FROM_REGISTERS} {END}", UNFENCED),
        (f"mov.b32 %r20, 0; {FENCE} {FROM_REGISTERS} {FROM_REGISTERS} {END}", None),
        (f"{FENCE} {FROM_REGISTERS} {END}".replace("%r20", "%r30"), None),
        (f"{FENCE} {START.replace(SUM, '{%r20, %r21, %r22, %r23}')} {END} {FROM_REGISTERS} {END}", UNFENCED),
        (f"{FENCE} {START.replace(SUM, '{%r20, %r21, %r22, %r23}')} {END} {FENCE} {FROM_REGISTERS} {END}", None),
        (
            f"{FENCE} {START.replace(SUM, '{%r20, %r21, %r22, %r23}')} {FENCE} {FROM_REGISTERS} {END}",
            "registers that another one, which is not done, adds to",
        ),
    ],
)
def test_registers_of_products_have_to_be_fenced(body, fault):
    body = body.replace("{LEFT}", "{%r20, %r21, %r22, %r23}")
    assert_fault(f"mov.b64 %rd5, 1024; {body}", fault, threads=128, shared=1 << 15)


COPY = "cp.async.ca.shared.global [ %r2 + 0 ], [ %rd1 + 0 ], 0x4; cp.async.commit_group;"
ARRIVES = "cp.async.wait_group 0;"
UNSEEN = "written with no fence.proxy.async since"
# The second group of four warps writes what the first one has a product of.
SECOND, BEHIND = "setp.gt.s32 %p1, %r1, 127;", "xor.b32 %r3, %r2, 512;"
OF_SECOND = "@%p1 st.shared.b32 [ %r3 + 0 ], %r1;"
FIRST_STARTS = f"@%p1 bra $L__behind; {FENCE} {START} {END}\n$L__behind:\n"


@pytest.mark.parametrize("order", [None, 0])
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (f"{OWN} {MEET} {FENCE} {START} {END}", UNSEEN),
        (f"{PROXY_FENCE} {OWN} {MEET} {FENCE} {START} {END}", UNSEEN),
        (f"{OWN} {PROXY_FENCE} {FENCE} {START} {END}", UNWRITTEN),
        (f"{OWN} {PROXY_FENCE} {MEET} {FENCE} {START} {END}", None),
        (f"{OWN} {PROXY_FENCE} {MEET} {PROXY_FENCE} {FENCE} {START} {END} {START} {END}", None),
        (f"{OWN} {MEET} {PROXY_FENCE} {FENCE} {START} {END}", None),
        (f"{OWN} {PROXY_FENCE} {MEET} {OWN} {MEET} {FENCE} {START} {END}", UNSEEN),
        (f"setp.lt.s32 %p1, %r1, 96; {OWN} {MEET} @%p1 {PROXY_FENCE} {FENCE} {START} {END}", UNSEEN),  # not all warps
        (f"setp.ne.s32 %p1, %r1, 70; {OWN} {MEET} @%p1 {PROXY_FENCE} {FENCE} {START} {END}", UNSEEN),  # nor all of one
        (f"{COPY} {ARRIVES} {MEET} {FENCE} {START} {END}", UNSEEN),
        (f"{COPY} {PROXY_FENCE} {ARRIVES} {MEET} {FENCE} {START} {END}", UNSEEN),
        (f"{COPY} {ARRIVES} {PROXY_FENCE} {MEET} {FENCE} {START} {END}", None),
        (f"{COPY} {ARRIVES} {MEET} {PROXY_FENCE} {FENCE} {START} {END}", None),
        (f"{ROWS} {WRITE_ROWS} {MEET} {FENCE} {START} {END}", UNSEEN),
        (f"{ROWS} {WRITE_ROWS} {PROXY_FENCE} {MEET} {FENCE} {START} {END}", None),
    ],
)
def test_what_products_read_has_to_be_fenced(body, fault, order):
    assert_fault(f"mov.b64 %rd5, 0; {body}", fault, threads=128, order=order)


@pytest.mark.parametrize("order", [None, 0, 1])
@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (f"{OF_SECOND} @%p1 {PROXY_FENCE} {MEET} {FIRST_STARTS}", None),
        (f"{OF_SECOND} {MEET} @!%p1 {PROXY_FENCE} {FIRST_STARTS}", None),
        (f"{OF_SECOND} @!%p1 {PROXY_FENCE} {MEET} {FIRST_STARTS}", UNSEEN),
        (f"{OF_SECOND} {MEET} @%p1 {PROXY_FENCE} {FIRST_STARTS}", UNSEEN),
        (f"{OF_SECOND} @%p1 {PROXY_FENCE} {MEET} @%p1 {PROXY_FENCE} {FIRST_STARTS}", None),
    ],
)
def test_a_fence_is_of_those_who_write_or_later_of_those_who_read(body, fault, order):
    assert_fault(f"mov.b64 %rd5, 0; {SECOND} {BEHIND} {body}", fault, threads=256, order=order)


def test_ints_and_floats_of_a_kernel_are_compiled_as_triton_does():
    class Function:
        arg_names = ("one", "small", "round", "wide", "scale")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codegen, "ASTSource", lambda **given: given)
        made = codegen.source(Function, (1, 7, 32, 1 << 31, 1.0), {}, lambda tensor: True)
    assert made["signature"] == {"one": "constexpr", "small": "i32", "round": "i32", "wide": "i64", "scale": "fp32"}
    assert made["constexprs"] == {"one": 1}
    assert list(made["attrs"]) == [(2,), (3,)]


def test_blocks_come_in_any_order():
    in_turn = launching.blocks_of((2, 3, 1), None).tolist()
    assert in_turn == [[0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 0, 0], [1, 1, 0], [1, 2, 0]]
    mixed = launching.blocks_of((2, 3, 1), random.Random(0)).tolist()
    assert mixed != in_turn and sorted(mixed) == in_turn


def test_arguments_that_are_not_the_parameters_are_refused():
    program, tensor = parse(MODULE.format(body="", threads=32)), torch.zeros(4)
    with pytest.raises(ValueError, match="2 parameters, for 2 arguments"):
        launching._parameters(program, (tensor, 7), Global([tensor]))


def test_what_a_warp_asks_for_is_counted():
    counts = Counts()
    body = """
    ld.global.b32 { %r3 }, [ %rd1 + 0 ];
    mul.wide.u32 %rd2, %r1, 128; add.s64 %rd3, %rd0, %rd2;
    ld.global.b32 { %r4 }, [ %rd3 + 0 ];
    st.shared.b32 [ %r2 + 0 ], %r3;
    shl.b32 %r5, %r1, 7;
    st.shared.b32 [ %r5 + 0 ], %r3;
    """
    execute(body, words(np.zeros(1024)), watch=counts.add)
    assert (counts.sectors, counts.least_sectors) == (4 + 32, 4 + 4)
    assert (counts.cycles, counts.least_cycles) == (1 + 32, 1 + 1)
    assert counts.instructions == 6 + 7  # the first ones are of every kernel here


def test_programs_are_read():
    program = parse(MODULE.format(body="@!%p1 bra.uni $L__end;\n$L__end:\n", threads=64))
    assert (program.name, program.threads, program.labels) == ("kernel", 64, {"$L__end": 7})
    branch = program.instructions[6]
    assert (branch.guard, branch.is_negated, branch.operands) == (Register("pred", 1), True, ("$L__end",))
    assert program.parameters == {"kernel_param_0": 8, "kernel_param_1": 4}


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes on a machine that does other work too
def test_every_kernel_as_compiled_for_hopper_gives_what_its_definition_gives():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.emulator", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "FAILS" not in done.stdout
    assert "23 kernels" in done.stdout
