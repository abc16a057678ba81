"""The C++ engine equals its NumPy twins, refuses what they refuse, and lets other threads run."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine


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
    for gather in (engine.gather_rows, engine.gather_rows_reference):
        out = np.full(size, 77, np.int16)
        gather(planes, plane, start, length, out, out_start)
        np.testing.assert_array_equal(out, expected)


HUGE = 2**63 - 1


@pytest.mark.parametrize("gather", [engine.gather_rows, engine.gather_rows_reference])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": [0, 6]}, "start of row 1: expected a start from 0 to 5 for 5 samples of 10, found 6"),
        ({"start": [0, HUGE]}, f"start of row 1: .* found {HUGE}"),
        ({"length": [5, HUGE]}, "out_start of row 1: "),
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


@pytest.mark.parametrize("gather", [engine.gather_rows, engine.gather_rows_reference])
def test_gather_refuses_wrong_types(gather):
    one, out = np.zeros(1, np.int64), np.zeros(4, np.int16)
    with pytest.raises(ValueError, match=r"planes 0: needs C-contiguous int16 \[n\], found int32"):
        gather([np.zeros(4, np.int32)], one, one, one, out, one)
    with pytest.raises(ValueError, match="planes 0: .*contiguous False"):
        gather([np.zeros(8, np.int16)[::2]], one, one, one, out, one)
    read_only = np.zeros(4, np.int16)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writeable False"):
        gather([out], one, one, one, read_only, one)


def test_gather_refuses_indices_of_another_type():
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"start needs int64 \[R\], found int32"):
        engine.gather_rows([np.zeros(4, np.int16)], one, one.astype(np.int32), one, np.zeros(4, np.int16), one)


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_switch(value):
    code = (
        "import numpy as np; from physiofast import engine; "
        "print(engine.native, engine.unavailable_reason, engine.checksum(np.array([1, -3], np.int16)))"
    )
    environment = os.environ | {"PHYSIOFAST_NATIVE": value}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert value == "1" or run.stdout.startswith("False PHYSIOFAST_NATIVE=0")
    assert run.stdout.rstrip().endswith(" 65534")
    assert value == "0" or not engine.native or run.stdout.startswith("True None")


def test_a_missing_extension_gives_the_twins_and_its_reason():
    code = (
        "import sys; sys.modules['physiofast._native'] = None\n"
        "from physiofast import engine; print(engine.native, engine.unavailable_reason)"
    )
    environment = os.environ | {"PHYSIOFAST_NATIVE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("False physiofast._native does not import")
    assert "pip install ." in run.stdout
