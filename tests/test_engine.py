"""The C++ engine equals its NumPy twins, refuses what they refuse, and lets other threads run."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine

pytestmark = pytest.mark.native
native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))


GATHERS = [engine.gather_rows, engine.gather_rows_reference]


@st.composite
def gather_cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=6))
    planes = [rng.integers(-32768, 32768, size).astype(np.int16) for size in sizes]
    rows = draw(st.integers(0, 30))
    plane = rng.integers(0, len(planes), rows)
    length = np.array([rng.integers(0, sizes[p] + 1) for p in plane], np.int64)
    start = np.array([rng.integers(0, sizes[p] - k + 1) for p, k in zip(plane, length, strict=True)], np.int64)
    absent = rng.random(rows) < 0.3
    start[absent], plane[absent] = -1 - rng.integers(0, 5, absent.sum()), 99
    gap = rng.integers(0, 4, rows)
    stop = np.cumsum(length + gap)
    out_start = (stop - length).astype(np.int64)
    return planes, plane.astype(np.int64), start, length, out_start, int(stop[-1] if rows else 0) + 3


@settings(max_examples=150, deadline=None)
@given(gather_cases())
def test_gather_equals_definition_and_leaves_the_rest(case):
    planes, plane, start, length, out_start, size = case
    expected = np.full(size, 77, np.int16)
    for p, s, k, o in zip(plane, start, length, out_start, strict=True):
        expected[o : o + k] = planes[p][s : s + k] if s >= 0 else 0
    for gather in GATHERS:
        out = np.full(size, 77, np.int16)
        gather(planes, plane, start, length, out, out_start)
        np.testing.assert_array_equal(out, expected)


@settings(max_examples=150, deadline=None)
@given(gather_cases(), st.sampled_from([np.float32, np.float16]), st.integers(-30, 20), st.integers(0, 2**31))
def test_gather_dequantises_as_defined(case, dtype, exponent, seed):
    planes, plane, start, length, out_start, size = case
    rng = np.random.default_rng(seed)
    scale = (rng.normal(size=len(plane)) * 2.0**exponent).astype(np.float32)
    shift = (rng.normal(size=len(plane)) * 2.0 ** rng.integers(-30, 20)).astype(np.float32)
    expected = np.full(size, 77, dtype)
    with np.errstate(over="ignore", under="ignore"):
        for p, s, k, o, a, b in zip(plane, start, length, out_start, scale, shift, strict=True):
            values = planes[p][s : s + k].astype(np.float32) * a + b if s >= 0 else np.zeros(k, np.float32)
            expected[o : o + k] = values.astype(dtype)
    for gather in GATHERS:
        out = np.full(size, 77, dtype)
        gather(planes, plane, start, length, out, out_start, scale, shift)
        np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8))


def large_case(rows=700, seed=0):
    """Output of 10 MB and more: written past the caches, in many tasks, at odd places."""
    rng = np.random.default_rng(seed)
    planes = [rng.integers(-32768, 32768, n).astype(np.int16) for n in (400_001, 70_000, 9_001)]
    plane = rng.integers(0, 3, rows)
    length = np.array([rng.integers(0, min(len(planes[p]), 20_000) + 1) for p in plane])
    length[rows // 2], plane[rows // 2] = 400_001, 0  # more than one task
    start = np.array([rng.integers(0, len(planes[p]) - k + 1) for p, k in zip(plane, length, strict=True)])
    start[rng.random(rows) < 0.1] = -1
    stop = np.cumsum(length + rng.integers(0, 3, rows))
    return planes, plane, start, length, stop - length, int(stop[-1]) + 1


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float16])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("offset", [0, 1, 13])
def test_a_large_gather_on_threads_equals_the_twin(dtype, threads, offset):
    planes, plane, start, length, out_start, size = large_case(seed=offset)
    factors = () if dtype == np.int16 else (np.full(len(plane), 0.01, np.float32), np.ones(len(plane), np.float32))
    results = []
    engine.set_threads(threads)
    try:
        for gather in GATHERS:
            out = np.full(size + offset, 77, dtype)[offset:]
            gather(planes, plane, start, length, out, out_start, *factors)
            results.append(out)
    finally:
        engine.set_threads(None)
    assert results[0].nbytes > 8 << 20
    np.testing.assert_array_equal(*results)


@native_only
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float16])
def test_every_instruction_set_gathers_the_same_bits(dtype):
    from physiofast import _native

    planes, plane, start, length, out_start, size = large_case()
    planes = [np.frombuffer(b"\1" + samples.tobytes(), np.int16, offset=1) for samples in planes]
    rng = np.random.default_rng(5)
    scale = np.exp2(rng.uniform(-24, 8, len(plane))).astype(np.float32)  # float16 is subnormal, normal and infinite
    factors = () if dtype == np.int16 else (scale, rng.normal(size=len(plane)).astype(np.float32))
    expected = np.full(size, 77, dtype)
    engine.gather_rows_reference(planes, plane, start, length, expected, out_start, *factors)
    before = _native.instruction_set()
    try:
        for name in _native.instruction_sets():
            _native.set_instruction_set(name)
            for offset in (0, 3):
                out = np.full(size + offset, 77, dtype)[offset:]
                engine.gather_rows(planes, plane, start, length, out, out_start, *factors)
                np.testing.assert_array_equal(out.view(np.uint8), expected.view(np.uint8), err_msg=name)
    finally:
        _native.set_instruction_set(before)


@pytest.mark.parametrize("gather", GATHERS)
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float16])
def test_gather_from_planes_at_odd_bytes(gather, dtype):
    samples = np.arange(-50, 50, dtype=np.int16)
    odd = np.frombuffer(b"\1" + samples.tobytes(), np.int16, offset=1)
    one, factor = np.array([1]), np.ones(1, np.float32)
    out = np.zeros(98, dtype)
    gather([odd], one - 1, one, one + 97, out, one - 1, *([] if dtype == np.int16 else [factor, factor - 1]))
    np.testing.assert_array_equal(out, samples[1:99])


@pytest.mark.parametrize("gather", GATHERS)
@pytest.mark.parametrize("rows", [4000, 12_000])  # the second would be written past the caches
def test_where_rows_overlap_the_later_one_stays(gather, rows):
    plane, length = np.zeros(rows, np.int64), np.full(rows, 500)
    samples = np.arange(4000, dtype=np.int16).repeat(8)
    start = np.random.default_rng(0).integers(0, 3900, rows // 2).repeat(2)
    out_start = np.random.default_rng(1).integers(0, 20_000, rows)
    out, expected = np.zeros(20_500, np.int16), np.zeros(20_500, np.int16)
    for s, o in zip(start, out_start, strict=True):
        expected[o : o + 500] = samples[s : s + 500]
    engine.set_threads(4)
    try:
        gather([samples], plane, start, length, out, out_start)
    finally:
        engine.set_threads(None)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("gather", GATHERS)
def test_gather_into_torch_memory(gather):
    torch = pytest.importorskip("torch")
    buffer = torch.full((6,), 9.0, dtype=torch.float16)
    one, factor = np.array([0]), np.array([0.5], np.float32)
    gather([np.arange(8, dtype=np.int16)], one, one + 2, one + 4, buffer.numpy(), one + 1, factor, factor)
    assert buffer.tolist() == [9.0, 1.5, 2.0, 2.5, 3.0, 9.0]


@pytest.mark.parametrize("gather", GATHERS)
def test_gather_refuses_factors_that_do_not_fit(gather):
    one, plane = np.array([1]), np.zeros(8, np.int16)
    factor = np.ones(1, np.float32)
    cases = [
        (np.int16, (factor, factor), "scale and shift need a float32 or float16 out, found int16"),
        (np.float32, (), "a float32 out needs scale and shift"),
        (np.float16, (factor, None), "a float16 out needs scale and shift"),
        (np.float64, (factor, factor), r"int16, float32 or float16 \[n\], found float64"),
        (np.float32, (factor.astype(np.float64), factor), r"scale needs float32 \[R\], found float64"),
        (np.float32, (factor, np.ones(2, np.float32)), r"shift needs shape \[1\] like plane, found size 2"),
    ]
    for dtype, factors, message in cases:
        out = np.full(8, 77, dtype)
        with pytest.raises(ValueError, match=message):
            gather([plane], one - 1, one, one, out, one, *factors)
        assert (out == 77).all()
    with pytest.raises(ValueError, match="planes 1: shares memory with out"):
        gather([plane.copy(), plane[:4]], one, one, one, plane[2:], one)


HUGE = 2**63 - 1


@pytest.mark.parametrize("gather", GATHERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": [0, 6]}, "start of row 1: expected a start from 0 to 5 for 5 samples of 10, found 6"),
        ({"start": [0, HUGE]}, f"start of row 1: .* found {HUGE}"),
        ({"length": [5, HUGE]}, f"length of row 1: expected 0 to 12, found {HUGE}"),
        ({"length": [5, 11], "out_start": [0, 0]}, "length of row 1: expected 0 to 10, found 11"),
        ({"length": [5, -1]}, "length of row 1: expected 0 or more, found -1"),
        ({"plane": [0, 2]}, "plane of row 1: expected 0 to 1, found 2"),
        ({"plane": [0, -1]}, "plane of row 1: expected 0 to 1, found -1"),
        (
            {"out_start": [0, 8]},
            "out_start of row 1: expected a start from 0 to 7 for 5 samples of 12, found 8",
        ),
        ({"out_start": [0, -1]}, "out_start of row 1: .* found -1"),
        ({"start": [0]}, r"start needs shape \[2\] like plane, found size 1"),
    ],
)
def test_gather_refuses_before_it_writes(gather, change, message):
    table = {"plane": [0, 1], "start": [0, 5], "length": [5, 5], "out_start": [0, 5]} | change
    columns = {name: np.array(values, np.int64) for name, values in table.items()}
    out = np.full(12, 77, np.int16)
    planes = [np.ones(10, np.int16), np.ones(10, np.int16)]
    with pytest.raises(ValueError, match=message):
        gather(planes, columns["plane"], columns["start"], columns["length"], out, columns["out_start"])
    assert (out == 77).all()


@pytest.mark.parametrize("gather", GATHERS)
def test_gather_refuses_wrong_types(gather):
    one, out = np.zeros(1, np.int64), np.zeros(4, np.int16)
    with pytest.raises(ValueError, match=r"planes 0: needs C-contiguous int16 \[n\], found int32"):
        gather([np.zeros(4, np.int32)], one, one, one, out, one)
    with pytest.raises(ValueError, match="planes 0: .*contiguous False"):
        gather([np.zeros(8, np.int16)[::2]], one, one, one, out, one)
    with pytest.raises(ValueError, match="aligned False"):
        gather([out], one, one, one, np.zeros(9, np.uint8)[1:].view(np.int16), one)
    read_only = np.zeros(4, np.int16)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writeable False"):
        gather([out], one, one, one, read_only, one)


def test_gather_refuses_indices_of_another_type():
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"start needs int64 \[R\], found int32"):
        engine.gather_rows([np.zeros(4, np.int16)], one, one.astype(np.int32), one, np.zeros(4, np.int16), one)


@pytest.mark.parametrize("value", ["0", "1", "No", "false", "off"])
def test_the_switch(value):
    code = (
        "import numpy as np; from physiofast import engine; "
        "print(engine.native, engine.unavailable_reason, engine.checksum(np.array([1, -3], np.int16)))"
    )
    environment = os.environ | {"PHYSIOFAST_NATIVE": value}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert value == "1" or run.stdout.startswith(f"False PHYSIOFAST_NATIVE={value} chooses the twins")
    assert run.stdout.rstrip().endswith(" 65534")
    assert value != "1" or not engine.native or run.stdout.startswith("True None")


def test_a_switch_that_says_neither_is_refused():
    environment = os.environ | {"PHYSIOFAST_NATIVE": "of"}
    command = [sys.executable, "-c", "import physiofast.engine"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "PHYSIOFAST_NATIVE needs 1 (also true, yes, on) for the C++ engine, 0 (false" in run.stderr
    assert "found 'of'" in run.stderr


def test_a_missing_extension_gives_the_twins_and_its_reason():
    code = (
        "import sys; sys.modules['physiofast._native'] = None\n"
        "from physiofast import engine; print(engine.native, engine.unavailable_reason)"
    )
    environment = os.environ | {"PHYSIOFAST_NATIVE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("False physiofast._native does not import")
    assert "pip install ." in run.stdout
