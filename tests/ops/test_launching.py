"""Starts of kernels: what Triton compiled is kept by what it specialises on, and started as Triton starts it."""

import contextlib
import os
import subprocess
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from triton import knobs

from benchmarks.mixedbatch import make_batch
from physiofast import ops
from physiofast.ops.triton import launching
from physiofast.ops.triton.launching import Kernel, size_class, written_down
from physiofast.ops.triton.table import Launch
from tests.ops.kernels import MODULES, OPS, Calls

LAUNCH = Launch(blocks={"BLOCK": 32}, num_warps=4, num_stages=2)


class Jitted:
    """In place of a jitted function: compiles at every call of its own, and counts."""

    arg_names = ("x", "out", "size", "WIDTH", "BLOCK")

    def __init__(self, is_interpreted=False):
        self.calls, self.started, self.pre_run_hooks, self.is_interpreted = [], [], [], is_interpreted

    def __getitem__(self, grid):
        def call(*args, **options):
            self.calls.append((grid, args, options))
            number = len(self.calls)
            run = lambda *args: self.started.append((number, args))  # noqa: E731
            compiled = types.SimpleNamespace(run=run, function="function", packed_metadata="packed")
            return None if self.is_interpreted else compiled

        return call


@pytest.fixture
def jitted(monkeypatch):
    active = types.SimpleNamespace(get_current_stream=lambda device: f"stream of {device}")
    monkeypatch.setattr(launching, "driver", types.SimpleNamespace(active=active))
    return Jitted()


def test_the_first_start_is_tritons_and_the_next_ones_are_of_what_it_compiled(jitted):
    kernel, x = Kernel(jitted, LAUNCH, WIDTH=7), torch.zeros(4)
    for size in (100, 1000, 5):
        kernel.start((3,), (x,), (x,), (size,), 0.5)
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
    assert jitted.calls == [((3,), (x, x, 100, 0.5), {"WIDTH": 7, "BLOCK": 32} | options)]
    handles = ("stream of -1", "function", "packed", None, None, None)
    assert jitted.started == [(1, (3, 1, 1, *handles, x, x, size, 0.5, 7, 32)) for size in (1000, 5)]


def tensors():
    """Pairs that Triton compiles one kernel for each of."""
    buffer = torch.zeros(64)
    aligned, beside = buffer[4:20], buffer[5:21]
    assert (aligned.data_ptr() - buffer.data_ptr()) % 16 == 0
    wide, ids = torch.zeros(16, dtype=torch.float64), torch.zeros(16, dtype=torch.int32)
    return [(a, b) for a in (aligned, beside, wide, ids) for b in (aligned, beside)]


def test_what_triton_specialises_on_is_kept_apart(jitted):
    kernel = Kernel(jitted, LAUNCH, WIDTH=7)
    cases = [(pair, size) for pair in tensors() for size in (1, 17, 32, 2**31 + 1, 2**31)]
    for _ in range(3):
        for pair, size in cases:
            kernel.start((1, 2), pair, (), (size,))
    assert len(jitted.calls) == len(cases)
    assert [number for number, _ in jitted.started] == [*range(1, len(cases) + 1)] * 2


def test_constants_and_launches_are_kept_apart(jitted):
    x = torch.zeros(4)
    for width in (7, 8):
        for warps in (4, 8):
            launch = Launch(blocks={"BLOCK": 32}, num_warps=warps, num_stages=2)
            Kernel(jitted, launch, WIDTH=width).start((1,), (x, x), (), (5,))
    assert len(jitted.calls) == 4 and jitted.started == []


sizes = st.one_of(st.integers(0, 70), st.integers(2**31 - 20, 2**31 + 20), st.integers(0, 2**62))


def specialised(value):
    """Triton's own answer."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    return native_specialize_impl(CUDABackend, value, False, True, True)


@given(sizes, sizes)
def test_classes_of_sizes_are_tritons(one, other):
    assert (size_class(one) == size_class(other)) == (specialised(one) == specialised(other))


@given(st.integers(0, 20), st.sampled_from([torch.int8, torch.float16, torch.float32, torch.float64]))
def test_alignment_is_what_triton_takes_it_for(offset, dtype):
    tensor = torch.zeros(32, dtype=dtype)[offset:]
    assert (tensor.data_ptr() % 16 == 0) == ("D" in specialised(tensor))


def test_hooks_are_tritons_to_call(jitted, monkeypatch):
    kernel, x = Kernel(jitted, LAUNCH, WIDTH=7), torch.zeros(4)
    start = lambda: kernel.start((1,), (x, x), (), (5,))  # noqa: E731
    start()
    for name in ("launch_enter_hook", "launch_exit_hook"):
        hook = lambda metadata: None  # noqa: E731
        getattr(knobs.runtime, name).add(hook)
        before = len(jitted.calls)
        start()
        assert len(jitted.calls) == before + 1
        getattr(knobs.runtime, name).remove(hook)
    jitted.pre_run_hooks.append(print)
    start()
    assert len(jitted.calls) == 4 and jitted.started == []
    jitted.pre_run_hooks.clear()
    start()
    assert len(jitted.calls) == 4 and len(jitted.started) == 1


class OnGpu:
    """What a start looks at of a CUDA tensor."""

    dtype = torch.float32

    def __init__(self, device, address):
        self._device, self._address = device, address

    def get_device(self):
        return self._device

    def data_ptr(self):
        return self._address


def test_kernels_are_started_on_the_device_and_the_stream_of_their_tensors(jitted, monkeypatch):
    current, places = [0], []

    @contextlib.contextmanager
    def on(number):
        before, current[0] = current[0], number
        yield
        current[0] = before

    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current[0], raising=False)
    monkeypatch.setattr(torch.cuda, "device", on)
    original = Kernel.start_by_triton
    monkeypatch.setattr(Kernel, "start_by_triton", lambda *args: (places.append(current[0]), original(*args)))
    kernel = Kernel(jitted, LAUNCH, WIDTH=7)
    for _ in range(2):
        for device in (0, 1, 2):
            for address in (256, 260):
                kernel.start((3,), (OnGpu(device, address),), (OnGpu(device, 512),), (5,))
    assert places == [0, 0, 1, 1, 2, 2] and current == [0]  # one compilation each, there
    assert [number for number, _ in jitted.started] == list(range(1, 7))
    assert [args[3] for _, args in jitted.started] == [f"stream of {n}" for n in (0, 0, 1, 1, 2, 2)]


def test_another_triton_starts_its_kernels_itself(jitted, monkeypatch):
    monkeypatch.setattr(launching, "_KEEPS", False)
    kernel, x = Kernel(jitted, LAUNCH, WIDTH=7), torch.zeros(4)
    for _ in range(3):
        kernel.start((1,), (x, x), (), (5,))
    assert len(jitted.calls) == 3 and jitted.started == []


def test_the_interpreter_has_nothing_to_keep(monkeypatch):
    interpreted, x = Jitted(is_interpreted=True), torch.zeros(4)
    kernel = Kernel(interpreted, LAUNCH, WIDTH=7)
    for _ in range(3):
        kernel.start((1,), (x, x), (), (5,))
    assert len(interpreted.calls) == 3


def test_nothing_is_started_without_programs_or_while_starts_are_written_down(jitted):
    kernel, x = Kernel(jitted, LAUNCH, WIDTH=7), torch.zeros(4)
    kernel.start((0, 3), (x, x), (), (5,))
    with written_down() as started:
        kernel.start((2,), (x,), (x,), (5,), 1.5)
    assert jitted.calls == []
    (one,) = started
    assert (one.kernel, one.grid, one.args, one.launch) == (jitted, (2,), (x, x, 5, 1.5), LAUNCH)
    assert one.constants == {"WIDTH": 7, "BLOCK": 32}


def test_starts_of_other_sizes_share_what_was_compiled(jitted):
    kernel, x = Kernel(jitted, LAUNCH, WIDTH=7), torch.zeros(4)
    for size in (5, 7, 100_001):
        start = kernel.prepare((2,), (x,), (size,))
        start((x,), (x,), 0.5)
        start((x,), (x,), 1.5)
    assert len(jitted.calls) == 1
    assert [args[-4:] for _, args in jitted.started] == [
        (size, scalar, 7, 32) for size in (5, 7, 100_001) for scalar in (0.5, 1.5)
    ][1:]
    for rows in range(2 * launching._MOST_KEPT):
        kernel.start((rows + 1,), (x,), (x,), (5,))
    assert len(jitted.calls) == 1
    assert len(kernel._bound) <= launching._MOST_KEPT


def test_a_form_is_prepared_once_for_arguments_that_are_alike():
    made = []

    @launching.prepared
    def scaled(x, lengths, by):
        """Says what it is."""
        made.append(tuple(x.shape))
        rows = x.shape[0]
        return lambda x, lengths, by: (x * by, rows, lengths)

    x = torch.arange(6.0).reshape(2, 3)
    assert scaled.__doc__ == "Says what it is."
    for lengths in ([1, 2], (1, 2)):
        found, rows, given = scaled(x + 1, lengths, 2.0)
        assert torch.equal(found, 2 * x + 2) and rows == 2 and given is lengths
    assert made == [(2, 3)]
    others = (x.double(), x[:1], x.T.contiguous().T, x.to("meta"))
    for number, other in enumerate(others):
        scaled(other, [1, 2], 2.0)
        assert len(made) == number + 2
    scaled(x, [1, 2, 3], 2.0), scaled(x, [1, 2], 3.0)
    precision = torch.get_float32_matmul_precision()
    try:
        for setting in ("highest", "high"):
            torch.set_float32_matmul_precision(setting)
            scaled(x, [1, 2], 2.0)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert len(made) == len(others) + 4
    scaled.cache_clear()
    scaled(x, [1, 2], 2.0)
    assert len(made) == len(others) + 5


def test_outputs_are_what_starts_take_them_for(monkeypatch):
    """Whatever an op is given, memory between other memory: outputs begin at 16 bytes, of dtypes that inputs tell."""
    found, original = {}, launching.BoundLaunch.__call__

    def start(self, inputs, outputs, *scalars):
        assert all(tensor.data_ptr() % 16 == 0 for tensor in outputs)
        key = (id(self._kernel), *(tensor.dtype for tensor in inputs))
        assert found.setdefault(key, [tensor.dtype for tensor in outputs]) == [tensor.dtype for tensor in outputs]
        original(self, inputs, outputs, *scalars)

    monkeypatch.setattr(launching.BoundLaunch, "__call__", start)
    for samples, dtype in ((torch.int16, torch.float16), (torch.float32, torch.float32)):
        with ops.backend("triton"):  # a plan is drawn, too
            drawn = make_batch(rates=(9, 16, 3), patches=3, batch=2, dtype=samples)
        calls = Calls(drawn, 17, dtype)
        for op, module in OPS.items():
            getattr(MODULES[module], op)(*calls.arguments(op))
    assert len(found) > len(OPS)


SCRIPT = """
import types
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

given = []

class Launcher:
    def __init__(self, source, metadata):
        pass

    def __call__(self, *args):
        given.append(args)

utils = types.SimpleNamespace(
    load_binary=lambda *args: (1, 2, 32, 0, 1024),
    get_device_properties=lambda device: {"max_shared_mem": 1 << 20},
    unload_module=lambda module: None,
)
driver.set_active(types.SimpleNamespace(
    utils=utils,
    launcher_cls=Launcher,
    get_current_device=lambda: -1,
    get_current_stream=lambda device: 7,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
))

from physiofast.ops.triton import assemble, attention, launching
from benchmarks.mixedbatch import make_batch

assert launching._KEEPS
packing = make_batch(1).plan.visible
x = torch.randn(*packing.slot.shape, 20)
sides = (packing.cu_seqlens, packing.cu_seqlens, packing.modality, packing.modality, packing.time_s, packing.time_s)
heads = torch.randn(len(packing.ids), 2, 16)
biases = (torch.randn(2, 3, 3), torch.ones(3, 3, dtype=torch.bool), torch.randn(2))
sides += (*biases, 0.25, packing.max_len, packing.max_len)

def are_alike(a, b):
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype
    return type(a) is type(b) and a == b

for run in (
    lambda: assemble.take_tokens(x, packing.ids, packing.slot),
    lambda: attention.modality_attention(heads, heads, heads, *sides),
):
    run(), run()
    theirs, ours = given
    given.clear()
    # Grid, stream, function and metadata; what hooks are given, and the hooks; the kernel's arguments.
    assert ours[6:9] == (None, None, None)
    assert len(theirs) == len(ours) and all(map(are_alike, theirs[:6] + theirs[9:], ours[:6] + ours[9:]))
print("the same")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real launcher is there")
def test_the_launcher_is_given_what_tritons_own_call_gives_it():
    """With this Triton's compiler and a driver that launches nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "the same\n", done.stderr
