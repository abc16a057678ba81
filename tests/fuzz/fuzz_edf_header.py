"""EDF and BDF headers that lie: an input is a file, whose data records repeat its last bytes."""

import common

from physiofast.engine.edf_header import parse_edf_header, parse_edf_header_reference

WORK = common.folder()
_WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
_REPEATED = 64


def _file(
    columns: list[list[str]], *, bdf: bool = False, plus: str = "", duration: str = "1", records: str = "2"
) -> bytes:
    """A header of these signals (the ten fields of each), and a record of text that is an annotation too."""
    end = str(256 * (1 + len(columns)))
    values = ["X F 02-MAR-1951 Female_33yr", "Startdate 02-MAR-2002 X X X", "02.03.02", "22.15.00", end, plus]
    fixed = b"\xffBIOSEMI" if bdf else b"0       "
    fixed += b"".join(v.ljust(w).encode() for v, w in zip(values, (80, 80, 8, 8, 8, 44), strict=True))
    fixed += b"".join(
        v.ljust(w).encode() for v, w in zip((records, duration, str(len(columns))), (8, 8, 4), strict=True)
    )
    rows = zip(*columns, strict=True)
    fields = (value.ljust(width).encode() for width, row in zip(_WIDTHS, rows, strict=True) for value in row)
    return fixed + b"".join(fields) + b"+0\x14\x14\x00+0\x1530\x14Sleep stage 2\x14\x00".ljust(_REPEATED, b"\x00")


def _signal(name: str, samples: int, unit: str = "uV") -> list[str]:
    return [name, "", unit, "-100", "100", "-2048", "2047", "", str(samples), ""]


_NOTES = ["EDF Annotations", "", "", "-1", "1", "-32768", "32767", "", str(_REPEATED // 2), ""]
SEEDS = [
    _file([_signal("EEG C3-M2", 200), _signal("SaO2", 4, "%")]),
    _file([_signal("EEG Fpz-Cz", 3008), _NOTES], plus="EDF+C", duration="30", records="-1"),
    _file([_NOTES], plus="EDF+C", duration="0"),
    _file([_signal("ECG", 256), _signal("CHEST", 32)], bdf=True, plus="24BIT"),
]


def test_one_input(data: bytes) -> None:
    """Write the file anew, then look at it."""
    content = bytes(data)
    tail = content[-_REPEATED:]
    path = WORK / ("night.bdf" if content[:1] == b"\xff" else "night.edf")
    path.write_bytes(content + tail * 400)
    common.compare(parse_edf_header, parse_edf_header_reference, content, len(content) + 400 * len(tail))
    common.examine(path)


if __name__ == "__main__":
    common.run(test_one_input, WORK, SEEDS)
