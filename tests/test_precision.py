"""The gate's measure of errors, and what it allows."""

import pytest
import torch

from benchmarks import precision
from physiofast.ops import reference


def test_an_error_is_relative_to_the_largest_value():
    exact = [torch.tensor([1.0, -100.0]), torch.tensor([1e-12, 0.0]), torch.zeros(0)]
    found = [torch.tensor([1.5, -100.0]), torch.tensor([0.0, 1e-3]), torch.zeros(0)]
    assert precision.errors(found, exact) == pytest.approx([0.005, 1e-5, 0])
    assert precision.errors([torch.tensor([torch.nan, 1.0])], exact[:1]) == [torch.inf]
    assert precision.errors([torch.zeros(3)], exact[:1]) == [torch.inf]


def test_limits_of_16_bits_follow_plain_arithmetic():
    unit = 2.0**-7
    assert precision.limit(torch.bfloat16, 0.0) == unit / 2
    assert precision.limit(torch.bfloat16, unit) == 2 * unit
    assert precision.limit(torch.bfloat16, 1.0) == 4 * unit
    assert precision.limit(torch.float32, 1.0) == 1e-6


def test_plain_arithmetic_is_that_of_its_precision():
    x = torch.full((1, 300), 1.0)
    packed = (torch.zeros(1, 300).int(), torch.arange(300).int()[:, None])
    values = x.T.expand(300, 1).bfloat16() * 1.01
    with precision.plain_arithmetic(torch.bfloat16):
        assert reference.accumulator(values) == torch.bfloat16
    assert reference.accumulator(values) == torch.float32
    assert reference.sum_by_token(values.float(), packed[1]).item() == pytest.approx(300 * float(values[0, 0]))
