"""Linear probes on frozen features: how much a representation knows about held-out subjects.

Feature sets (the pretrained encoder, the untrained one, band powers) go through one code path: the same
windows, subjects, solver, choice of regularisation and bootstrap draws. So the difference between two of
them is a paired one.
"""

from physiofast.probing.bandpower import band_power, band_power_names
from physiofast.probing.comparison import ProbeConfig, compare_probes
from physiofast.probing.results import TASKS, ModelResult, ProbeReport, Task, TaskResult, hypnogram_arrays
from physiofast.splits import subject_split

__all__ = [
    "TASKS",
    "ModelResult",
    "ProbeConfig",
    "ProbeReport",
    "Task",
    "TaskResult",
    "band_power",
    "band_power_names",
    "compare_probes",
    "hypnogram_arrays",
    "subject_split",
]
