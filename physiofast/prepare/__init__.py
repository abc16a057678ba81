"""Recordings into a store: one file per record, made in parallel, resumed where it stopped.

From the outside in: `jobs` prepares a folder, after `admission` has told which records cannot be; `recording`
prepares one, with the differences of electrodes that `rereferencing` adds to it. What is kept of it is settled by
`examination`, for `inspect` too, which asks `faults` about each channel; those are found in raw samples by `scanning`,
and by the rules of `treatment`, which has every setting.
"""

from physiofast.prepare.admission import BAD_RECORD, reason_of, refusals
from physiofast.prepare.examination import Survey, survey
from physiofast.prepare.jobs import PrepareReport, RecordDone, prepare
from physiofast.prepare.recording import prepare_record
from physiofast.prepare.treatment import PrepareConfig, Treatment

__all__ = [
    "BAD_RECORD",
    "PrepareConfig",
    "PrepareReport",
    "RecordDone",
    "Survey",
    "Treatment",
    "prepare",
    "prepare_record",
    "reason_of",
    "refusals",
    "survey",
]
