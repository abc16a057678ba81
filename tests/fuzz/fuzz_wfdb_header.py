"""WFDB headers that lie: an input is a header, and after NUL bytes a segment's header and an annotation file."""

import common

from physiofast.engine.wfdb_header import parse_wfdb_header, parse_wfdb_header_reference

WORK = common.folder()
RECORD = WORK / "record"
RECORD.mkdir()
for name, size in (("a.dat", 4096), ("b.dat", 1200), ("empty.dat", 0)):
    (RECORD / name).write_bytes(bytes(size))

_ONE = """r 3 200 400
a.dat 16+24 1/uV 16 0 0 0 0 C3-M2
a.dat 16+24 655.35(-32768)/% 16 0 0 0 0 SaO2
b.dat 212:3 1000(12)/mV 12 0 0 0 0 ECG
# 52 M <age>: 52 <sex>: M
"""
_FRAMES = """r 2 100/10 50 12:30:00 01/02/2003
a.dat 16x2 200/mV 16 0 0 0 0 C4-M1
b.dat 80x4+10 -10/mV
"""
_FIXED = "r/3 1 200 300\ns 100\n~ 100\ns 100\n"
_VARIABLE = "r/3 1 200 200\nl 0\n~ 100\ns 100\n"
_SEGMENT = "s 1 200 100\na.dat 16 1/uV 16 0 0 0 0 C3-M2\n"
_LAYOUT = "l 1 200 0\n~ 0 1/uV 16 0 0 0 0 C3-M2\n"
(RECORD / "l.hea").write_text(_LAYOUT)
_ANNOTATIONS = b"\x01\x04\x05\xfcN2\x14\xec\x00\x00\x00\x01\x01\x04\x00\x00"
SEEDS = [
    _ONE.encode() + b"\0\0" + _ANNOTATIONS,
    _FRAMES.encode(),
    f"{_FIXED}\0{_SEGMENT}".encode(),
    f"{_VARIABLE}\0{_SEGMENT}".encode(),
    *(_SEGMENT.replace("16", fmt, 1).encode() for fmt in ("8", "24", "32", "61", "80", "160", "310", "311", "516")),
]


def test_one_input(data: bytes) -> None:
    """Write the files anew, then look at the record."""
    header, segment, annotations = (*data.split(b"\0", 2), b"", b"")[:3]
    (RECORD / "r.hea").write_bytes(header)
    for name, content in (("s.hea", segment), ("r.st", annotations)):
        if content:
            (RECORD / name).write_bytes(content)
        else:
            (RECORD / name).unlink(missing_ok=True)
    common.compare(parse_wfdb_header, parse_wfdb_header_reference, header)
    common.examine(RECORD / "r.hea")


if __name__ == "__main__":
    common.run(test_one_input, WORK, SEEDS)
