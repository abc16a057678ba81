from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Calibrations = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]

class BoundsError(ValueError): ...
class SampleSource: ...

def array_source(array: npt.NDArray[Any]) -> SampleSource: ...
def planes_source(arrays: tuple[npt.NDArray[Any], ...]) -> SampleSource: ...

class Cascade:
    def __init__(self, sections: npt.NDArray[np.float64], steady: npt.NDArray[np.float64], edge: int) -> None: ...

class Polyphase:
    def __init__(self, up: int, down: int, taps: npt.NDArray[np.float64]) -> None: ...

class ConditionJob:
    def __init__(self, num_samples: int, block: int, run_in: int, extend: bool) -> None: ...
    def add(
        self,
        source: int,
        scale: float,
        shift: float,
        cascade: Cascade,
        resampler: Polyphase | None,
        outputs: int,
        gaps: npt.NDArray[np.int64],
    ) -> None: ...
    def run_float32(
        self,
        source: SampleSource,
        out: npt.NDArray[np.float32],
        length: int,
        window_stride: int,
        num_threads: int,
    ) -> None: ...
    def run_int16(
        self,
        source: SampleSource,
        planes: Sequence[npt.NDArray[np.int16] | None],
        lsb: npt.NDArray[np.float32],
        shift: npt.NDArray[np.float32],
        keep: Sequence[npt.NDArray[np.uint8]],
        patch: npt.NDArray[np.int64],
        num_threads: int,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]: ...

def patch_extremes(
    source: SampleSource,
    channels: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    invalid: npt.NDArray[np.int64],
    out: npt.NDArray[np.int32],
    num_threads: int,
) -> None: ...
def equal_runs(
    source: SampleSource,
    channel: int,
    value: int,
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    min_length: int,
) -> npt.NDArray[np.int64]: ...
def histograms(
    planes: Sequence[npt.NDArray[np.int16]],
    patch: npt.NDArray[np.int64],
    keep: Sequence[npt.NDArray[np.uint8]],
    counts: npt.NDArray[np.int64],
    num_threads: int,
) -> None: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def set_instruction_set(name: str) -> None: ...

class SignalFile(SampleSource):
    def __init__(
        self,
        path: bytes,
        format: int,
        samples_per_frame: Sequence[int],
        num_frames: int,
        byte_offset: int,
        initial_values: Sequence[int],
    ) -> None: ...
    def read_planes(
        self,
        channels: npt.NDArray[np.int64],
        first: int,
        count: int,
        out: npt.NDArray[Any],
        calibrations: Calibrations | None,
        num_threads: int,
    ) -> None: ...
    def read_windows(
        self,
        channels: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        length: int,
        out: npt.NDArray[Any],
        calibrations: Calibrations | None,
        num_threads: int,
    ) -> None: ...
    def read_runs(
        self,
        channels: npt.NDArray[np.int64],
        first: npt.NDArray[np.int64],
        out: Sequence[npt.NDArray[Any]],
        calibrations: Calibrations | None,
        checksums: npt.NDArray[np.uint16] | None,
        num_threads: int,
    ) -> None: ...

def parse_edf_header(text: bytes, file_size: int, path: bytes) -> tuple[Any, ...]: ...
def parse_wfdb_header(text: bytes, path: bytes) -> tuple[Any, ...]: ...

class AttentionSides:
    def __init__(
        self,
        cu_q: npt.NDArray[np.int32],
        cu_k: npt.NDArray[np.int32],
        modality_q: npt.NDArray[np.int32],
        modality_k: npt.NDArray[np.int32],
        time_q: npt.NDArray[np.float32],
        time_k: npt.NDArray[np.float32],
        pair_bias: npt.NDArray[np.float32],
        allowed: npt.NDArray[np.uint8],
        time_decay: npt.NDArray[np.float32],
        scale: float,
    ) -> None: ...

class PatchesOfFloat32:
    def __init__(
        self,
        samples: npt.NDArray[np.float32],
        row_start: npt.NDArray[np.int64],
        row_scale: npt.NDArray[np.float32],
        row_shift: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int32],
        modality: npt.NDArray[np.int32],
        lengths: Sequence[int],
        patches: int,
    ) -> None: ...

class PatchesOfInt16:
    def __init__(
        self,
        samples: npt.NDArray[np.int16],
        row_start: npt.NDArray[np.int64],
        row_scale: npt.NDArray[np.float32],
        row_shift: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int32],
        modality: npt.NDArray[np.int32],
        lengths: Sequence[int],
        patches: int,
    ) -> None: ...

class Workers:
    def __init__(self, count: int, start: int = 0) -> None: ...

def attend(
    q: npt.NDArray[np.float32],
    k: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    sides: AttentionSides,
    out: npt.NDArray[np.float32],
    lse: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...
def attend_backward(
    grad: npt.NDArray[np.float32],
    q: npt.NDArray[np.float32],
    k: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    lse: npt.NDArray[np.float32],
    sides: AttentionSides,
    dq: npt.NDArray[np.float32],
    dk: npt.NDArray[np.float32],
    dv: npt.NDArray[np.float32],
    dbias: npt.NDArray[np.float32],
    ddecay: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...
def pick_rows(
    rows: npt.NDArray[np.float32],
    from_: npt.NDArray[np.int32],
    through: npt.NDArray[np.int32] | None,
    onto: npt.NDArray[np.float32] | None,
    out: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...
def order_gradients(
    grad: npt.NDArray[np.float32],
    slots: npt.NDArray[np.int32],
    by_modality: npt.NDArray[np.int32],
    by_kind: npt.NDArray[np.float32],
    table: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...
def gather_patches(
    patches: PatchesOfFloat32 | PatchesOfInt16,
    by_modality: npt.NDArray[np.int32],
    cu_modality: npt.NDArray[np.int32],
    out: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...
def embed_patches(
    values: npt.NDArray[np.float32],
    cu_modality: npt.NDArray[np.int32],
    lengths: Sequence[int],
    weight: npt.NDArray[np.float32],
    by_modality: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int32],
    table: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...
def weight_gradients(
    values: npt.NDArray[np.float32],
    cu_modality: npt.NDArray[np.int32],
    lengths: Sequence[int],
    grad: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...
def assemble_rows(
    encoded: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int32],
    slot_visible: npt.NDArray[np.int32],
    table_visible: npt.NDArray[np.float32],
    table_hidden: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...
def assemble_gradients(
    grad: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int32],
    slot_visible: npt.NDArray[np.int32],
    slot_present: npt.NDArray[np.int32],
    encoded: npt.NDArray[np.float32],
    visible: npt.NDArray[np.float32],
    hidden: npt.NDArray[np.float32],
    workers: Workers,
) -> None: ...

class PackingArrays:
    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        cu_seqlens: npt.NDArray[np.int32],
        modality: npt.NDArray[np.int32],
        seconds: npt.NDArray[np.float32],
        slot: npt.NDArray[np.int32],
        by_modality: npt.NDArray[np.int32],
        cu_modality: npt.NDArray[np.int32],
    ) -> None: ...

def sample_plan(
    quotas: npt.NDArray[np.int64],
    valid: npt.NDArray[np.bool_],
    window_id: npt.NDArray[np.int64],
    seed: int,
    step: int,
    modality: npt.NDArray[np.int32],
    seconds: npt.NDArray[np.float32],
    visible: PackingArrays,
    hidden: PackingArrays,
    present: PackingArrays,
    workers: Workers,
) -> None: ...
def random_words(
    seed: int,
    step: int,
    window_id: npt.NDArray[np.int64],
    domains: npt.NDArray[np.int64],
    out: npt.NDArray[np.uint32],
) -> None: ...
def squared_errors(
    pred: npt.NDArray[np.float32],
    patches: PatchesOfFloat32 | PatchesOfInt16,
    weight: npt.NDArray[np.float32],
    normalise: npt.NDArray[np.int64],
    grad: npt.NDArray[np.float32],
    total: npt.NDArray[np.float64],
    number: npt.NDArray[np.float64],
    workers: Workers,
) -> None: ...
def linear_errors(
    features: npt.NDArray[np.float32],
    head: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    patches: PatchesOfFloat32 | PatchesOfInt16,
    weight: npt.NDArray[np.float32],
    normalise: npt.NDArray[np.int64],
    grads: Sequence[npt.NDArray[np.float32]] | None,
    total: npt.NDArray[np.float64],
    number: npt.NDArray[np.float64],
    workers: Workers,
) -> None: ...
def empty(size: int) -> npt.NDArray[np.uint8]: ...
def lend(
    address: int, shape: Sequence[int], strides: Sequence[int], dtype: np.dtype[Any], owner: object
) -> npt.NDArray[Any]: ...
def checksum(samples: npt.NDArray[Any]) -> int: ...
def gather_rows(
    planes: Sequence[npt.NDArray[np.int16]],
    plane: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    out_start: npt.NDArray[np.int64],
    num_threads: int,
) -> None: ...
def gather_values(
    planes: Sequence[npt.NDArray[np.int16]],
    plane: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    out_start: npt.NDArray[np.int64],
    scale: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
    num_threads: int,
) -> None: ...
