"""Every op's kernels compiled and started by Triton's own launcher for Hopper, where a stub of the driver runs nothing.

What a GPU would refuse, the stub does: grids, arguments and shared memory that no launch may have.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a real driver is there"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler for the stub"),
    pytest.mark.slow,
]

STUB = r"""
#include <cuda.h>
#include <stdio.h>
#include <string.h>

enum { SHARED = 227 * 1024 };

CUresult cuGetErrorString(CUresult error, const char **text) { *text = "the stub refuses it"; return 0; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return 0; }
CUresult cuDeviceGet(CUdevice *device, int number) { *device = 0; return 0; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
  *value = which == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? SHARED : 65536;
  return 0;
}
CUresult cuCtxGetCurrent(CUcontext *context) { *context = (CUcontext)1; return 0; }
CUresult cuCtxSetCurrent(CUcontext context) { return 0; }
CUresult cuCtxGetDevice(CUdevice *device) { *device = 0; return 0; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) { *status = 0; return 0; }
CUresult cuCtxGetLimit(size_t *value, CUlimit which) { *value = 1024; return 0; }
CUresult cuCtxSetLimit(CUlimit which, size_t value) { return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (CUcontext)1; return 0; }
CUresult cuModuleLoadData(CUmodule *module, const void *image) { *module = (CUmodule)1; return 0; }
CUresult cuModuleUnload(CUmodule module) { return 0; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)strdup(name);
  return 0;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return 0;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) { return 0; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return 0; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
  *(CUdeviceptr *)value = pointer;
  return 0;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
  int fits = config->gridDimX >= 1 && config->gridDimX <= 2147483647u && config->gridDimY >= 1 &&
             config->gridDimY <= 65535 && config->gridDimZ == 1 && config->sharedMemBytes <= SHARED;
  fprintf(stderr, "%s %s\n", fits ? "started" : "refused", (const char *)function);
  return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
"""

SCRIPT = """
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

active = CudaDriver()
active.get_current_device = lambda: -1  # as a CPU tensor has it
active.get_current_stream = lambda device: 7
active.get_current_target = lambda: GPUTarget("cuda", 90, 32)
driver.set_active(active)

from physiofast.ops import triton as kernels

kernels.refusal = lambda device: None

from benchmarks import subjects
from benchmarks.mixedbatch import make_batch
from benchmarks.opbatch import PlanBatch, tiny
from benchmarks.devices import Cpu
from benchmarks.subjects import DENSE, SUBJECTS, Inputs
from physiofast import ops
from physiofast.ops.triton.launching import Kernel

by_triton, original = [], Kernel.start_by_triton

def start_by_triton(self, *given):
    by_triton.append(self.function.__name__)
    original(self, *given)

Kernel.start_by_triton = start_by_triton
batch = make_batch(1, channels=(1, 1), rates=(16, 16), patches=90, batch=2, absent=0, invalid=0, empty_window=False)
inputs, plans = Inputs.of(batch, "cpu", 32), PlanBatch(tiny(Cpu()))
with ops.backend("triton"):
    for again in (False, True):
        for subject in (*SUBJECTS, DENSE):
            subjects.run(subject, inputs, subjects.draw(subject, inputs, torch.bfloat16))
        ops.sample_plan(*plans.arguments, plans.sizes)
        if again:
            assert not by_triton, by_triton
        by_triton.clear()
"""


def test_kernels_of_every_op_are_started(tmp_path):
    from triton import backends

    (tmp_path / "stub.c").write_text(STUB)
    headers = Path(next(iter(backends.__path__))) / "nvidia" / "include"
    command = ["cc", "-shared", "-fPIC", "-w", f"-I{headers}", "-o", "libcuda.so.1", "stub.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_LIBCUDA_PATH": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    started = {line.split()[1] for line in done.stderr.splitlines() if line.startswith("started ")}
    assert started == {
        *("_embed", "_list_tokens", "_sums", "_sum_groups", "_dsamples", "_take_rows", "_take_slots", "_assemble"),
        *("_assemble_backward", "_attend_short", "_attend_sorted", "_backward_short", "_backward_sorted"),
        *("backward_queries", "backward_keys", "_sum_places", "_stats", "_masked_mse", "_sum_partials"),
        *("_scale_gradient", "_choose", "_count_before", "_pack"),
    }
