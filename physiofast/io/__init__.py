"""Reads recordings: finds records in a folder, opens them, and determines their subjects and units.

WFDB records (PhysioNet) and EDF, EDF+ and BDF files without gaps. The Challenge 2018 layout is one folder per record
below a folder that holds `RECORDS` and `age-sex.csv` (https://physionet.org/content/challenge-2018/).
"""

from physiofast.io.finding import RecordPath, find_records
from physiofast.io.opening import open_recording
from physiofast.io.recording import Annotation, Recording, Signal, to_physical
from physiofast.io.units import unit_scale

__all__ = [
    "Annotation",
    "RecordPath",
    "Recording",
    "Signal",
    "find_records",
    "open_recording",
    "to_physical",
    "unit_scale",
]
