"""What every registered op promises, checked for all of them alike, through the calls that users make."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from benchmarks import precision, subjects
from benchmarks.mixedbatch import make_batch
from benchmarks.subjects import DENSE, SUBJECTS, Inputs
from physiofast import ops
from physiofast.ops import backends, registration

pytestmark = pytest.mark.usefixtures("each_backend")
RAGGED = {"rates": (33, 16, 4), "patches": 4, "batch": 3}
DENSE_ROWS = {"channels": (2, 1), "rates": (16, 16), "patches": 3, "absent": 0, "invalid": 0, "empty_window": False}


def inputs(seed=1, dtype=torch.float32, width=17, **geometry):
    return Inputs.of(make_batch(seed, dtype=dtype, **(geometry or RAGGED)), "cpu", width)


@pytest.fixture(scope="module")
def calls():
    """Arguments of every op that the subjects lead to."""
    with ops.backend("reference"):
        return subjects.registered_calls(inputs(patches=2, batch=2), torch.float32)


def names(suffix):
    return [name for name in registration.OPS if name.endswith(suffix)]


def test_every_differentiable_op_is_a_subject(calls):
    assert set(registration.OPS) - set(calls) == {"take_patches", "sample_plan"}


@pytest.mark.parametrize("name", names("_backward"))
def test_opcheck_of_backward_ops(calls, name):
    op, arguments = calls[name]
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_strides_are_those_of_tracing_however_arguments_lie(dtype, each_backend):
    """inductor builds a graph on the strides that tracing gave, and its graph dies where a result has others."""
    with ops.backend("reference"):
        found = subjects.registered_calls(inputs(patches=2, batch=2, dtype=dtype), dtype)

    def turned(tensor):
        turns = tensor.is_floating_point() and tensor.ndim > 1
        return tensor.detach().transpose(0, -1).contiguous().transpose(0, -1) if turns else tensor.detach()

    def strides(results):
        return [result.stride() for result in (results if isinstance(results, (tuple, list)) else [results])]

    for op, arguments in found.values():
        arguments = [turned(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        mode = FakeTensorMode()
        with mode:
            traced = op(*[mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments])
        for backend in (each_backend, "reference"):
            with ops.backend(backend):
                assert strides(op(*arguments)) == strides(traced), (op, backend)


@pytest.mark.parametrize("name", sorted(set(registration.OPS) - {"take_patches", "sample_plan"}))
def test_tracing_pins_no_size(calls, name):
    """A size that the shapes for tracing made a Python int would be one graph for each packing size."""
    op, arguments = calls[name]
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)

    def symbolic(tensor):
        context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * tensor.ndim)
        return mode.from_tensor(tensor.detach(), symbolic_context=context)

    traced = [symbolic(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    with mode, torch.no_grad():
        op(*traced)
    pinned = [f"{symbol} == {size}" for symbol, size in shapes.replacements.items() if size.is_number]
    assert not pinned


@pytest.mark.parametrize("subject", [*SUBJECTS, DENSE], ids=lambda subject: subject.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_errors_against_float64_are_within_their_limit(subject, dtype, each_backend):
    if dtype == torch.bfloat16 and each_backend == "triton":
        pytest.skip("bfloat16 is wrong in Triton's interpreter")
    batch = inputs(dtype=dtype, **(DENSE_ROWS if subject is DENSE else RAGGED))
    drawn = subjects.draw(subject, batch, dtype)
    exact = subjects.definition(subject, batch, drawn)
    plain = [0.0] * len(exact)
    if dtype in (torch.float16, torch.bfloat16):
        with precision.plain_arithmetic(dtype), ops.backend("reference"):
            plain = precision.errors(subjects.run(subject, batch, drawn), exact)
    found = precision.errors(subjects.run(subject, batch, drawn), exact)
    for error, most in zip(found, subject.limits(dtype, plain), strict=True):
        assert error <= most


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_the_same_bits_in_every_run(subject):
    batch = inputs(3)
    drawn = subjects.draw(subject, batch, torch.float32)
    first = [tensor.clone() for tensor in subjects.run(subject, batch, drawn)]
    for _ in range(3):
        assert all(map(torch.equal, first, subjects.run(subject, batch, drawn)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_patches_that_are_not_finite_are_not_valid(value):
    x = torch.randn(2, 3, 20)
    x[1, 2, 7] = value
    x[0, 1, 5:10] = 3e38  # finite, but not their sum
    valid = ops.Rows.from_dense(x, 4).valid
    assert valid.shape == (2, 12)
    assert valid.logical_not().nonzero().tolist() == [[1, 9]]


def test_any_float64_argument_chooses_a_form(calls):
    for name, (_, arguments) in calls.items():
        assert not backends._form_of(name, arguments)[2]
        for i, argument in enumerate(arguments):
            if isinstance(argument, torch.Tensor) and argument.is_floating_point():
                assert backends._form_of(name, (*arguments[:i], argument.double(), *arguments[i + 1 :]))[2]
