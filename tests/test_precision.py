"""The gate's measure of errors, and what it allows."""

import pytest
import torch

from benchmarks import attention, precision
from benchmarks.gate.sections import SECTIONS
from benchmarks.subjects import SUBJECTS
from physiofast import ops
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
    assert precision.limit(torch.float32, 1.0, tf32x3=True) == 4e-6


def test_slack_is_of_ieee_products_and_of_one_result_alone():
    half, single = torch.float16, torch.float32
    for dtype, tf32x3 in ((half, False), (single, True)):
        assert precision.limit(dtype, 1.0, tf32x3, slack=4.0) == precision.limit(dtype, 1.0, tf32x3)
    for subject in SUBJECTS:
        wider = {}
        if "modality_attention" in subject.covers:  # of biases and decay, the last two results
            wider = {2: 4e-6, 3: 2e-6} if subject.name.endswith("one projection") else {4: 4e-6, 5: 2e-6}
        limits = subject.limits(single, [0.0] * 6)
        assert limits == [wider.get(i, 1e-6) for i in range(6)]


def test_the_gate_says_which_limit_it_applies():
    said = SECTIONS["float32"].rows[0]
    assert "error at most 1e-06; of modality_attention, self, result 4 4e-06, result 5 2e-06; of" in said
    assert said.endswith("; of modality_attention, parts of one projection, result 2 4e-06, result 3 2e-06")
    assert SECTIONS["tf32x3"].rows[0].endswith("error at most 4e-06")


def test_plain_arithmetic_is_that_of_its_precision():
    x = torch.full((1, 300), 1.0)
    packed = (torch.zeros(1, 300).int(), torch.arange(300).int()[:, None])
    values = x.T.expand(300, 1).bfloat16() * 1.01
    with precision.plain_arithmetic(torch.bfloat16):
        assert reference.accumulator(values) == torch.bfloat16
    assert reference.accumulator(values) == torch.float32
    assert reference.sum_by_token(values.float(), packed[1]).item() == pytest.approx(300 * float(values[0, 0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_is_defined_in_plain_arithmetic_too(dtype):
    given = attention.inputs((5, 9), heads=2, width=8, kinds=3)
    run = attention.providers(given)[attention.OURS]
    with ops.backend("reference"):
        exact = run().out
        with precision.plain_arithmetic(dtype):
            plain = run().out
    assert not torch.equal(plain, exact)
    (error,) = precision.errors([plain], [exact])
    assert error < 4 * torch.finfo(dtype).eps
    assert reference.FORBIDDEN == -2e38
