"""Text of EDF and BDF headers: edfio's own answers on valid ones, one refusal for each kind of bad one, the twin."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physiofast import engine
from physiofast.engine import FileError
from physiofast.engine.edf_header import (
    FIELD_WIDTHS,
    EdfFields,
    edf_header_bytes,
    parse_edf_header,
    parse_edf_header_reference,
)
from tests import signalfiles

pytestmark = pytest.mark.native
native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))
Parse = Callable[[bytes, int, str], EdfFields]
both = pytest.mark.parametrize("parse", [parse_edf_header, parse_edf_header_reference])


def outcome(parse: Parse, raw: bytes, file_size: int) -> Any:
    try:
        return parse(raw, file_size, "x.edf")
    except FileError as error:
        return 0 <= error.byte_offset <= file_size, error.path, error.byte_offset, error.expected, error.found


def file_bytes(**options: Any) -> bytes:
    """A file of 3 data records of two signals at 4 and 1 samples."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.edf"
        signalfiles.write_edf(path, [np.arange(12), np.arange(3)], (4, 1), **options)
        return path.read_bytes()


@both
def test_every_real_header_equals_edfios(real_data: Path, parse: Parse) -> None:
    files = sorted({*real_data.rglob("*.edf"), *real_data.rglob("*.bdf")} - {real_data / "edf/discontinuous.edf"})
    assert len(files) > 15
    for path in files:
        raw = path.read_bytes()
        fields = parse(raw[: edf_header_bytes(raw)], len(raw), str(path))
        assert fields == parse(raw, len(raw), str(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = (edfio.read_bdf if path.suffix == ".bdf" else edfio.read_edf)(path)
        assert (fields.is_bdf, fields.record_duration_s) == (path.suffix == ".bdf", expected.data_record_duration)
        assert (fields.data_offset, fields.num_records) == (256 * (1 + len(fields.members)), expected.num_data_records)
        signals = [member for member in fields.members if not member.is_annotation]
        assert [(m.label, m.unit, m.samples_per_record) for m in signals] == [
            (s.label, s.physical_dimension, s.samples_per_data_record) for s in expected.signals
        ]
        for member, signal in zip(signals, expected.signals, strict=True):
            ends = (np.array([signal.digital_min, signal.digital_max]) - member.baseline) / member.gain
            np.testing.assert_allclose(ends, (signal.physical_min, signal.physical_max), rtol=1e-12, atol=1e-9)
            assert (member.digital_min, member.digital_max) == (signal.digital_min, signal.digital_max)


@native_only
def test_every_real_header_is_the_twins(real_data: Path) -> None:
    for path in (*real_data.rglob("*.edf"), *real_data.rglob("*.bdf")):
        raw = path.read_bytes()
        for size in (len(raw), len(raw) - 1, 300):
            assert outcome(parse_edf_header, raw[:5000], size) == outcome(parse_edf_header_reference, raw[:5000], size)


_FIELDS = tuple(
    text.ljust(8).encode("latin-1")[:8]
    for text in (
        "0", "-1", "1", "2", "-0", "99999999", "-9999999", "1e9", "1e-9", "1e308", "1e-400", "-1e308", "nan", "inf",
        "+3", "0.5", ".", "1e", "0x10", "1_0", "\xa05\x85", "\t7\x1f", "\x005", "'\"", "EDF+D", "BDF+D", "EDF Anno",
        "8640000", "8640001", "100000", "0.001", " ", "0,5", ",5", "1,2,3", "1.2,3",
    )
)  # fmt: skip
_PLACES = (0, 184, 192, 236, 244, 252, 256, 256 + 16 * 2, 256 + 104 * 2, 256 + 216 * 2)


@native_only
@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutated_headers_are_the_twins(data: st.DataObject) -> None:
    raw = bytearray(file_bytes(bdf=data.draw(st.booleans()), annotations_at=data.draw(st.sampled_from((None, 0, 2)))))
    end = edf_header_bytes(bytes(raw))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(
            st.integers(0, end // 8 - 1).map(lambda i: 8 * i) | st.sampled_from(_PLACES) | st.integers(0, end)
        )
        new = data.draw(st.sampled_from(_FIELDS) | st.binary(min_size=1, max_size=8))
        raw[at : at + len(new)] = new
    text = bytes(raw[: data.draw(st.just(end) | st.integers(0, len(raw)))])
    size = data.draw(st.just(len(raw)) | st.integers(len(text), 2**62))
    found = outcome(parse_edf_header, text, size)
    assert found == outcome(parse_edf_header_reference, text, size)
    assert isinstance(found, EdfFields) or found[0], "an offset outside the file"


REFUSED = [
    (0, "1", "an EDF or BDF file", 0, "one that begins with b'1       '"),
    (252, "-1", "a whole number of 0 or more", 252, "b'-1  '"),
    (252, "3", "3 signal headers, which end at byte 1024", 768, "the end of the file at byte 768"),
    (688, "0", "a whole number of 1 or more", 688, "b'0       '"),
    (464, "1e999", "a number", 464, "b'1e999   '"),
    (480, "\xb5", "a number", 480, "b'\\xb5       '"),
    (496, "1.0", "a whole number", 496, "b'1.0     '"),
    (520, "'", "a whole number", 520, "b\"'       \""),
    (244, "0", "the seconds that a data record lasts, more than 0", 244, "b'0       '"),
    (244, "x", "a number", 244, "b'x       '"),
    (184, "x", "a whole number", 184, "b'x       '"),
    (184, "767", "768, the bytes of the header: 256", 184, "b'767     '. The size of the file fits 768, so"),
    (236, "-2", "a whole number of -1 or more", 236, "b'-2      '"),
    (236, "4", "808 bytes (4 data records of 10 bytes from byte 768), as the", 798, "798 bytes: truncated"),
    (244, "2880001", "0 to 2.88e+06 seconds for each of 3 data records, 8.64e+06 in all", 244, "b'2880001 '"),
    (244, "1e-5", "0.001 to 100000 samples per second of signal 0 (ch 0)", 688, "4 in 1e-05 s"),
    (244, "2000", "0.001 to 100000 samples per second of signal 1 (ch 1)", 696, "1 in 2000 s"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("place", "text", "expected", "offset", "found"), REFUSED)
def test_refusals_say_what_and_where(
    parse: Parse, place: int, text: str, expected: str, offset: int, found: str
) -> None:
    raw = bytearray(file_bytes())
    width = 4 if place == 252 else 8
    raw[place : place + width] = text.ljust(width).encode("latin-1")
    with pytest.raises(FileError) as caught:
        parse(bytes(raw[:768]), len(raw), "dir/x.edf")
    error = caught.value
    assert (error.path, error.byte_offset) == ("dir/x.edf", offset)
    assert error.expected.startswith(expected)
    assert error.found.startswith(found)


@both
def test_an_empty_file_is_called_so(parse: Parse) -> None:
    with pytest.raises(FileError, match="expected an EDF or BDF file, found an empty file"):
        parse(b"", 0, "x.edf")


@both
def test_a_comma_is_a_decimal_point(parse: Parse) -> None:
    raw = bytearray(file_bytes())
    raw[244:252] = b"0,5".ljust(8)
    raw[464:472], raw[480:488] = b"-500,25 ", b"500,25".ljust(8)
    pointed = bytes(raw).replace(b",", b".")
    found = parse(bytes(raw[:768]), len(raw), "x.edf")
    assert found == parse(pointed[:768], len(raw), "x.edf")
    assert found.record_duration_s == 0.5
    for wrong in (b"1,2,3", b"1.2,3", b","):
        raw[464:472] = wrong.ljust(8)
        with pytest.raises(FileError, match="a number"):
            parse(bytes(raw[:768]), len(raw), "x.edf")


UNUSABLE = [
    ({464: "100"}, 0, (-32768, 32767), "physical range 100 to 100, digital range -32768 to 32767"),
    ({504: "-32768", 520: "-32768"}, 1, (-32768, -32768), "physical range -100 to 100, digital range -32768 to -32768"),
    ({464: "-2e35"}, 0, (-32768, 32767), "physical range -2e35 to 100, digital range -32768 to 32767"),
]


@both
@pytest.mark.parametrize(("fields", "signal", "digital", "ranges"), UNUSABLE)
def test_ranges_that_span_nothing_concern_their_signal(
    parse: Parse, fields: dict[int, str], signal: int, digital: tuple[int, int], ranges: str
) -> None:
    raw = bytearray(file_bytes())
    usable = parse(bytes(raw), len(raw), "x.edf").members
    for place, text in fields.items():
        raw[place : place + 8] = text.ljust(8).encode()
    members = parse(bytes(raw), len(raw), "x.edf").members
    assert members[signal] == (f"ch {signal}", "uV", 1.0, 0.0, *digital, (4, 1)[signal], False, ranges)
    assert members[1 - signal] == usable[1 - signal]


@both
def test_fields_may_end_with_nul(parse: Parse) -> None:
    raw = file_bytes(annotations_at=2)
    spaced = parse(raw, len(raw), "x.edf")
    widths = [8, 80, 80, 8, 8, 8, 44, 8, 8, 4, *(width for width in FIELD_WIDTHS for _ in range(3))]
    ends = np.cumsum(widths).tolist()
    fields = [raw[end - width : end] for width, end in zip(widths, ends, strict=True)]
    padded = b"".join(field.rstrip(b" ").ljust(len(field), b"\0") for field in fields) + raw[ends[-1] :]
    assert ends[-1] == edf_header_bytes(padded) == 256 * 4
    assert b" " not in padded[184 : 256 * 4].replace(b"ch ", b"").replace(b"EDF ", b"")
    assert parse(padded, len(raw), "x.edf") == spaced
    assert spaced.members[2].is_annotation


@both
@pytest.mark.parametrize("kind", ["EDF+D", "BDF+D"])
def test_discontinuous_files_are_told(parse: Parse, kind: str) -> None:
    raw = file_bytes()
    assert not parse(raw, len(raw), "x.edf").is_discontinuous
    raw = raw[:192] + kind.encode() + raw[197:]
    assert parse(raw, len(raw), "x.edf").is_discontinuous
    with pytest.raises(
        FileError, match=r"byte 244: .* more than 0, found b'0       ' in a discontinuous file; convert"
    ):
        parse(raw[:244] + b"0       " + raw[252:], len(raw), "x.edf")


@both
def test_the_least_and_most_that_is_accepted(parse: Parse) -> None:
    raw = file_bytes()
    most = raw[:244] + b"2880000 " + raw[252:688] + b"99999999" + b"99999999" + raw[704:768]
    fields = parse(most, 768 + 3 * 4 * 99_999_999, "x")
    assert (fields.num_records, fields.rest_bytes) == (3, 0)
    slow = raw[:236] + b"-1      1000    " + raw[252:768]
    assert parse(slow, 769, "x").rest_bytes == 1
    none = raw[:184] + b"256     " + raw[192:236] + b"-1      1       0   "
    assert parse(none, 256 + 30, "x") == parse(none + raw[256:], 256 + 30, "x")
    assert parse(none, 256 + 30, "x")[6:] == (-1, 0, 30, 256, ())


@both
@pytest.mark.parametrize(("records", "extra", "fits"), [
    ("3", 0, True), ("-1", 0, True), ("2", 0, True), ("3", 16, False), ("-1", 9, False), ("4", 0, False)
])  # fmt: skip
@pytest.mark.parametrize("stated", ["784", "512", "256", "0", "-768", "99999999"])
def test_another_size_of_the_header_is_refused(parse: Parse, stated: str, records: str, extra: int, fits: bool) -> None:
    """Data records that begin elsewhere would have every sample at another time, or in another signal."""
    raw = bytearray(file_bytes())
    raw[184:192], raw[236:244] = stated.ljust(8).encode(), records.ljust(8).encode()
    with pytest.raises(FileError) as caught:
        parse(bytes(raw), len(raw) + extra, "x.edf")
    assert caught.value.byte_offset == 184
    assert caught.value.expected == "768, the bytes of the header: 256 * (1 + the number of signals, 2)"
    advice = ". The size of the file fits 768, so only this field is damaged: write 768 into it, in a copy of the file"
    damaged = ": the header is damaged. Fetch or export the file again"
    assert caught.value.found == f"{stated.ljust(8).encode()!r}" + (advice if fits else damaged)


@both
def test_sizes_beyond_64_bits_are_refused(parse: Parse) -> None:
    """9,999 members of 99,999,999 samples in 99,999,999 records."""
    raw = file_bytes(bdf=True)
    raw = raw[:688] + b"99999999" + raw[696:]
    columns = b"".join(raw[256 + at : 256 + at + width] * 9999 for at, width in _columns())
    head = raw[:184] + b"2560000 " + raw[192:236] + b"99999999" + b"1       9999" + columns
    with pytest.raises(FileError, match=r"expected 9223372036854775807 bytes \(99999999 data records of 2999699970003"):
        parse(head, 2**62, "x")


def _columns() -> list[tuple[int, int]]:
    """Where the first signal's fields lie, and their widths."""
    starts = np.cumsum((0, 16, 80, 8, 8, 8, 8, 8, 80, 8))
    return list(zip((2 * starts).tolist(), (16, 80, 8, 8, 8, 8, 8, 80, 8, 32), strict=True))


def test_bytes_of_a_header() -> None:
    raw = file_bytes()
    assert edf_header_bytes(raw[:256]) == 768
    for text in (b"-5  ", b"many", b"", b"0"):
        assert edf_header_bytes(raw[:252] + text) == 256
