"""Prepares recordings into a store: one file per record, in parallel, resumable.

`jobs.prepare` prepares every record of a folder. Before it reads samples, `precheck` refuses the records whose headers
or annotations rule them out. `record` prepares one recording. `inspection` decides which channels are kept; `prepare`
and `inspect` share that decision. It takes channels from the recording, or derives them from two electrodes
(`rereferencing`), and judges each one by its faults (`faults`), which `scanning` finds in the raw samples. `config`
holds every setting.
"""

from physiofast.preparation.config import ModalitySettings, PrepareConfig
from physiofast.preparation.inspection import ChannelInspection, Inspection, inspect_recording
from physiofast.preparation.jobs import PrepareReport, RecordDone, prepare
from physiofast.preparation.precheck import inspect, refusals
from physiofast.preparation.record import prepare_record

__all__ = [
    "ChannelInspection",
    "Inspection",
    "ModalitySettings",
    "PrepareConfig",
    "PrepareReport",
    "RecordDone",
    "inspect",
    "inspect_recording",
    "prepare",
    "prepare_record",
    "refusals",
]
