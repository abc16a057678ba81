"""Text of WFDB headers: wfdb's own answers on valid ones, one refusal for each kind of bad one, and the twin."""

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from physiofast import engine
from physiofast.engine import FileError
from physiofast.engine.wfdb_header import HeaderFields, parse_wfdb_header, parse_wfdb_header_reference
from physiofast.io.wfdb_samples import INVALID, call_wfdb

pytestmark = pytest.mark.native
native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))
Parse = Callable[[bytes, str], HeaderFields]
both = pytest.mark.parametrize("parse", [parse_wfdb_header, parse_wfdb_header_reference])

FORMATS = sorted(map(int, INVALID))
MICRO = "\u00b5"


def ascii_only(text: str | None) -> str:
    """What wfdb sees of a text."""
    return (text or "").encode("ascii", "ignore").decode().strip(" \t")


def by_wfdb(path: Path) -> dict[str, Any]:
    """The fields that wfdb reads from a header, where it does, in our words."""
    record = call_wfdb("rdheader", str(path.with_suffix("")))
    time, date = record.base_time, record.base_date
    found: dict[str, Any] = {
        "name": record.record_name,
        "num_signals": record.n_sig,
        "rate_hz": float(record.fs),
        "counter_hz": record.counter_freq,
        "base_counter": record.base_counter,
        "num_frames": record.sig_len,
        "base_time_us": time and ((time.hour * 60 + time.minute) * 60 + time.second) * 10**6 + time.microsecond,
        "base_date": date and (date.day, date.month, date.year),
        "comments": record.comments,
    }
    if hasattr(record, "seg_name"):
        return found | {"segments": list(zip(record.seg_name, map(int, record.seg_len), strict=True)), "signals": []}
    columns = (
        record.file_name or (),
        map(int, record.fmt or ()),
        record.samps_per_frame or (),
        [skew or 0 for skew in record.skew or ()],
        [offset or 0 for offset in record.byte_offset or ()],
        record.adc_gain or (),
        map(float, record.baseline or ()),
        record.units or (),
        record.adc_res or (),
        record.adc_zero or (),
        record.init_value or (),
        record.checksum or (),
        record.block_size or (),
        [(name or "").strip() for name in record.sig_name or ()],
    )
    return found | {"segments": [], "signals": list(zip(*columns, strict=True))}


def ours(fields: HeaderFields) -> dict[str, Any]:
    """The same fields, with wfdb's eyes: without what is not ASCII."""
    found = fields._asdict()
    assert found.pop("has_segments") == bool(fields.segments)
    found["comments"] = [ascii_only(comment).strip(" \t#") for comment in fields.comments]
    found["segments"] = [tuple(segment) for segment in fields.segments]
    found["signals"] = [
        tuple(
            s._replace(
                gain=200.0 if s.gain is None else s.gain,
                unit=ascii_only(s.unit) or "mV",
                description=ascii_only(s.description),
            )
        )
        for s in fields.signals
    ]
    return found


@both
def test_every_real_header_equals_wfdbs(real_data: Path, parse: Parse) -> None:
    headers = sorted(real_data.rglob("*.hea"))
    assert len(headers) > 60
    for path in headers:
        fields = parse(path.read_bytes(), str(path))
        assert ours(fields) == by_wfdb(path), path


_names = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
_decimals = st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,7})?", fullmatch=True)
_rates = st.sampled_from(("250", "62.4725", ".5", "360.0", "0.0166666666667", "100000", "0.001", "200"))
_gains = st.sampled_from(("200", "-1.5", "1.052e+04", "1e-3", "44.9629231183", ".25", "655.35", "7e2", "2."))
_gains |= _decimals.filter(lambda text: float(text) != 0)
_units = st.sampled_from(("mV", "uV", f"{MICRO}V", "%", "l/s", "mmHg", "m/s^2", "NU", "")) | _names
_texts = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=12)
_stored = st.integers(-(2**31), 2**31 - 1).map(str) | st.sampled_from(("0", "-32768", "65135"))
_blanks = st.sampled_from((" ", " ", "  ", "\t", " \t "))
_ends = st.sampled_from(("\n", "\r\n", "\n", "\n \n", "\r", "\v", "\x1c"))


def _optional(draw: st.DrawFn, before: str, values: st.SearchStrategy[Any], after: str = "") -> str:
    return f"{before}{draw(values)}{after}" if draw(st.booleans()) else ""


@st.composite
def clocks(draw: st.DrawFn) -> tuple[str, float]:
    text = draw(_rates)
    rate_hz = float(text)
    if draw(st.booleans()):
        sign = draw(st.sampled_from(("", "-")))
        text += f"/{sign}{draw(_decimals)}" + _optional(draw, "(", _decimals, ")")
    return text, rate_hz


@st.composite
def record_fields(draw: st.DrawFn, frames: int | None = None) -> tuple[list[str], float]:
    """The fields after the number of signals, as many as come, and the rate."""
    clock, rate_hz = draw(clocks())
    time = draw(st.times())
    times = (f"{time:%H:%M:%S}", f"{time.hour}:{time:%M:%S.%f}", f"{time:%M:%S.%f}"[:9], f"{time:%S}")
    date = draw(st.dates(datetime.date(1, 1, 1)))
    length = draw(st.integers(0, 8000)) if frames is None else frames
    fields = [clock, str(length), draw(st.sampled_from(times)), f"{date.day}/{date.month}/{date.year:04}"]
    count = draw(st.integers(0, 4))
    return fields[:count], rate_hz if count else 250.0


@st.composite
def signal_lines(draw: st.DrawFn, rate_hz: float, formats: dict[str, int]) -> str:
    file = draw(st.sampled_from(("~", "rec.dat", "rec.mat", "a_b-c.1", "x")) | _names)
    fmt = str(formats.setdefault(file, draw(st.sampled_from(FORMATS))))
    fmt += _optional(draw, "x", st.integers(1, max(1, min(500, int(1e5 / rate_hz)))))
    fmt += _optional(draw, ":", st.integers(0, 8000)) + _optional(draw, "+", st.integers(0, 2**40))
    gain = draw(_gains) + _optional(draw, "(", st.integers(-40000, 40000), ")") + _optional(draw, "/", _units)
    small = st.integers(0, 24).map(str)
    fields = [file, fmt, gain, draw(small), *(draw(_stored) for _ in range(3)), draw(small)]
    text = draw(_texts).strip()
    fields.append(f"E{text}\tmore" if draw(st.booleans()) else text)  # ends at the tab
    return "".join(field + draw(_blanks) for field in fields[: draw(st.integers(2, 9))])


@st.composite
def header_bytes(draw: st.DrawFn) -> bytes:
    """A valid header, every optional field present or absent."""
    name, count = draw(_names), draw(st.integers(0, 4))
    if draw(st.integers(0, 3)):
        fields, rate_hz = draw(record_fields())
        first = [name, str(count), *fields]
        formats: dict[str, int] = {}
        lines = [draw(signal_lines(rate_hz, formats)) for _ in range(count)]
    else:
        lengths = draw(st.lists(st.integers(0, 2000), min_size=1, max_size=5))
        fields, _ = draw(record_fields(sum(lengths)))
        first = [f"{name}/{len(lengths)}", str(count), *fields]
        names = [draw(st.just("~") | _names) for _ in lengths]
        lines = [f"{segment}{draw(_blanks)}{length}" for segment, length in zip(names, lengths, strict=True)]
    lines.insert(0, "".join(field + draw(_blanks) for field in first))
    out = draw(st.sampled_from(("", "\ufeff")))
    for line in lines:
        comment = draw(st.none() | _texts)
        out += "" if comment is None else f"{draw(st.sampled_from(('#', ' # ', '##')))}{comment}{draw(_ends)}"
        out += draw(st.sampled_from(("", " ", "\t"))) + line + draw(_ends)
    out += _optional(draw, "# ", _texts)
    encoding = draw(st.sampled_from(("utf-8", "utf-8", "latin-1")))
    return out.encode(encoding, "ignore")


@settings(max_examples=400, deadline=None)
@given(header_bytes())
@example(b"r 0")
@example(b"rec 1 250/24000(-1.5) 0 15:08:24 29/02/2000 \r\nrec.mat 16x2:3+24 -200(12)/mV\t16 0 5 -7 0 C3 M2  ")
def test_valid_headers_equal_wfdbs(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rec.hea"
        path.write_bytes(raw)
        expected = by_wfdb(path)
    for parse in (parse_wfdb_header, parse_wfdb_header_reference):
        assert ours(parse(raw, "rec.hea")) == expected


_TOKENS = (
    b"", b" ", b"\t", b"\n", b"#", b"/", b"(", b")", b"x", b":", b"+", b"-", b".", b"e", b"0", b"-1", b"~", b"\xb5",
    b"\xef\xbb\xbf", b"\x85", b"\0", b"'", b'"', b"\\", b"nan", b"inf", b"1e400", b"1e-400", b"1e31", b"99999999999",
    b"9" * 20, b"1" + b"0" * 31, b"2147483648", b"-2147483648", b"9223372036854775807", b"29/02/2001", b"0/0/0",
    b"24:00:00", b"23:59:59.9999999", b"999", b"16", b"16+24", b"r/2 1\ns 1\n~ 2", b"1_0", b"0x10", b"\xff",
)  # fmt: skip


def outcome(parse: Parse, raw: bytes) -> Any:
    try:
        return parse(raw, "r.hea")
    except FileError as error:
        return 0 <= error.byte_offset <= len(raw), error.path, error.byte_offset, error.expected, error.found


@native_only
@settings(max_examples=500, deadline=None)
@given(header_bytes(), st.data())
def test_mutated_headers_are_the_twins(raw: bytes, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        end = min(len(raw), at + data.draw(st.sampled_from((0, 0, 1, 2, 8))))
        raw = raw[:at] + data.draw(st.sampled_from(_TOKENS) | st.binary(max_size=4)) + raw[end:]
    found = outcome(parse_wfdb_header, raw)
    assert found == outcome(parse_wfdb_header_reference, raw)
    assert found[0], "an offset outside the header"


@native_only
@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_the_twins(raw: bytes) -> None:
    zeros = b"0" * 5000
    for text in (
        raw,
        b"r " + zeros + raw,
        b"r/" + zeros + b"1 1 1 " + zeros + b"2" + raw,
        b"r 1 200 10\n" + raw,
        b"r 1\nf 16 " + raw,
        b"r/1 1 200 1\n" + raw,
    ):
        assert outcome(parse_wfdb_header, text) == outcome(parse_wfdb_header_reference, text)


REFUSED = [
    ("", 0, "a record line", "an empty WFDB header"),
    ("# a\n\n", 5, "a record line", "an empty WFDB header"),
    ("a.b/c/d 1", 4, "number of segments: a whole number of 1 to 2147483647", "b'c/d'"),
    ("/1 2", 0, "record name: a name without control characters and folders", "nothing"),
    ("r\0s 2", 0, "record name: a name without control", "b'r\\x00s'"),
    ("r", 1, "number of signals: a whole number of 0 to 2147483647", "nothing"),
    ("r -1", 2, "number of signals: ", "b'-1'"),
    ("r 2147483648", 2, "number of signals: ", "b'2147483648'"),
    ("r 0 1e5.5", 4, "sampling rate: a number", "b'1e5.5'"),
    ("r 0 100000.1", 4, "sampling rate: 0.001 to 100000 Hz", "b'100000.1'"),
    ("r 0 0.000999", 4, "sampling rate: 0.001 to 100000 Hz", "b'0.000999'"),
    ("r 0 nan", 4, "sampling rate: a number", "b'nan'"),
    ("r 0 250/", 8, "counter frequency: a number", "nothing"),
    ("r 0 250/1e400", 8, "counter frequency: a number", "b'1e400'"),
    ("r 0 250/1(2", 9, "base counter value: in parentheses", "b'(2'"),
    ("r 0 250/1(2)3", 12, "the end of the field after the base counter value", "b'3'"),
    ("r 0 250(2)", 4, "sampling rate: a number", "b'250(2)'"),
    ("r 0 1 8640001", 6, "number of samples per signal: a whole number of 0 to 8640000, which is", "b'8640001'"),
    ("r 0 250 5 24:00:00", 10, "base time: HH:MM:SS", "b'24:00:00'"),
    ("r 0 250 5 12:60:00", 10, "base time: ", "b'12:60:00'"),
    ("r 0 250 5 12:00:60", 10, "base time: ", "b'12:00:60'"),
    ("r 0 250 5 1:2:3:4", 10, "base time: ", "b'1:2:3:4'"),
    ("r 0 250 5 12:30.", 10, "base time: ", "b'12:30.'"),
    ("r 0 250 5 0 31/04/2000", 12, "base date: DD/MM/YYYY", "b'31/04/2000'"),
    ("r 0 250 5 0 29/02/1900", 12, "base date: DD/MM/YYYY", "b'29/02/1900'"),
    ("r 0 250 5 0 1/1/99", 12, "base date: DD/MM/YYYY", "b'1/1/99'"),
    ("r 0 250 5 0 0/1/2000", 12, "base date: DD/MM/YYYY", "b'0/1/2000'"),
    ("r 0 250 5 0 1/1/2000 x y", 21, "the end of the record line", "b'x y'"),
    ("r 0\nf 16", 4, "no line after the 0 signal lines", "b'f 16'"),
    ("r 2\nf 16", 2, "2 signal lines, as many as stated here", "1"),
    ("r 1\nf", 5, "format of signal 0: one of 0, 8, 16, 24,", "nothing"),
    ("r 1\n../f 16", 4, "file name of signal 0: a name without control", "b'../f'"),
    ("r 1\n.. 16", 4, "file name of signal 0: a name without control", "b'..'"),
    ("r 1\nf 17 1 1 1 1 1 0 EEG", 6, "format of signal 0 (EEG): one of 0, 8, ", "b'17'"),
    ("r 1\nf 16y2", 6, "format of signal 0: one of ", "b'16y2'"),
    ("r 1\nf 16x", 9, "samples per frame of signal 0: a whole number of 1 to 400, at most 100000 Hz", "nothing"),
    ("r 1\nf 16x401", 9, "samples per frame of signal 0: ", "b'401'"),
    ("r 1\nf 16:-3", 9, "skew of signal 0: a whole number of 0 to 2160000000, which is 8.64e+06 s at 250 Hz", "b'-3'"),
    ("r 1\nf 16+24+1", 9, "byte offset of signal 0: a whole number of 0 to 9223372036854775807", "b'24+1'"),
    ("r 1\nf 16:3x2", 9, "skew of signal 0", "b'3x2'"),
    ("r 2\nf 16\nf 212", 11, "format of signal 1: 16, which the signals before it have in that file", "b'212'"),
    ("r 1\nf 16 1e-31 1 1 1 1 0 EEG", 9, "gain of signal 0 (EEG): the digital steps per unit, a number of", "b'1e-31'"),
    ("r 1\nf 16 ECG", 9, "gain of signal 0: ", "b'ECG'"),
    ("r 1\nf 16 1e30000", 9, "gain of signal 0: ", "b'1e30000'"),
    ("r 1\nf 16 1(2", 10, "baseline of signal 0: in parentheses", "b'(2'"),
    ("r 1\nf 16 1(2.5)", 11, "baseline of signal 0: a whole number of magnitude up to 1e+30", "b'2.5'"),
    ("r 1\nf 16 1(2)mV", 13, "unit of signal 0: a / and a name", "b'mV'"),
    ("r 1\nf 16 1/deg C 12", 15, "ADC resolution of signal 0: a whole number of 0 to 2147483647", "b'C'"),
    ("r 1\nf 16 1 8 2147483648", 13, "ADC zero of signal 0: a whole number of -2147483648 to", "b'2147483648'"),
    ("r 1\nf 16 1 8 0 1.5", 15, "initial value of signal 0: ", "b'1.5'"),
    ("r 1\nf 16 1 8 0 1 x", 17, "checksum of signal 0: ", "b'x'"),
    ("r 1\nf 16 1 8 0 1 2 -1", 19, "block size of signal 0: ", "b'-1'"),
    ("r 1\nf 99 1 8 0 1 2 0 a\u00e9'b", 6, "format of signal 0 (a\\xc3\\xa9'b): ", "b'99'"),
    ("r 1\nf 99 1 8 0 1 2 0 " + "n" * 41, 6, f"format of signal 0 ({'n' * 40}...): ", "b'99'"),
    ("r " + "9" * 41, 2, "number of signals: ", f"b'{'9' * 40}'..."),
    ("r/0 1", 2, "number of segments: a whole number of 1 to ", "b'0'"),
    ("r/2 1\na 1", 2, "2 segment lines, as many as stated here", "1"),
    ("r/1 1\na 1\nb 1", 10, "no line after the 1 segment lines", "b'b 1'"),
    ("r/1 1\na", 7, "length of segment 0: a whole number of 0 to 2160000000, which is", "nothing"),
    ("r/1 1\na 1 b", 10, "the end of the line of segment 0", "b'b'"),
    ("r/1 1\na/b 1", 6, "name of segment 0: a name without control", "b'a/b'"),
    ("r/2 1 1\na 8640000\nb 1", 21, "length of all segments: 0 to 8640000, which is 8.64e+06 s at 1 Hz", "8640001"),
    ("r/2 1 250 4\na 1\nb 2", 10, "number of samples per signal: 3, the sum of the segments' lengths", "b'4'"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("text", "offset", "expected", "found"), REFUSED)
def test_refusals_say_what_and_where(parse: Parse, text: str, offset: int, expected: str, found: str) -> None:
    with pytest.raises(FileError) as caught:
        parse(text.encode(), "dir/r.hea")
    error = caught.value
    assert (error.path, error.byte_offset, error.found) == ("dir/r.hea", offset, found)
    assert error.expected.startswith(expected)


@both
def test_the_least_and_most_that_is_accepted(parse: Parse) -> None:
    fields = parse(b"r 2 0.001 8640\nf 16x100000000:8640 1e-30(-1000000000000000000000000000000)\ng 8 -1e30", "r")
    assert (fields.rate_hz, fields.num_frames) == (0.001, 8640)
    assert [(s.gain, s.baseline, s.samples_per_frame) for s in fields.signals] == [(1e-30, -1e30, 10**8), (-1e30, 0, 1)]
    assert parse(b"r/2 0 1e5 864000000000\na 864000000000\n~ 0", "r").segments[0].num_frames == 864_000_000_000
    for text in (b"r 1 250\nf 16 1.0000000000000002e30", b"r 1 1e5\nf 16x2", b"r 0 1e5 864000000001"):
        with pytest.raises(FileError):
            parse(text, "r")


@both
def test_what_wfdb_reads_otherwise(parse: Parse) -> None:
    """It drops what is not ASCII, takes 1E3 for 1, ends a unit at a dot, and refuses the date that nobody knows."""
    raw = b"\xef\xbb\xbfr 1 1E2 10 0:0:0 0/0/0\nd.x.y 16 1E3(5)/a.u. 12 0 1 2 0 D\xc3\xa9bit nasal\t5\n# \xc2\xb5V #"
    fields = parse(raw, "r")
    signal = fields.signals[0]
    assert (fields.rate_hz, fields.base_date, fields.base_time_us, fields.comments) == (100, None, 0, ("\u00b5V",))
    assert (signal.file, signal.gain, signal.baseline, signal.unit) == ("d.x.y", 1000, 5, "a.u.")
    assert signal.description == "D\u00e9bit nasal"
    latin = raw[3:].replace(b"\xc3\xa9", b"\xe9").replace(b"\xc2\xb5", b"\xb5")
    assert parse(latin, "r") == fields


@both
def test_a_stated_gain_is_known_from_an_absent_one(parse: Parse) -> None:
    for text, gain, baseline, unit in (
        ("", None, 0, ""),
        ("/uV", None, 0, "uV"),
        ("(7)", None, 7, ""),
        ("0", None, 0, ""),
        ("0(5)/uV", None, 5, "uV"),
        ("-0.0/mmHg 16 3", None, 3, "mmHg"),
        ("200/", 200, 0, ""),
        ("5 16 1024", 5, 1024, ""),
        ("5(0) 16 1024", 5, 0, ""),
    ):
        (signal,) = parse(f"r 1\nf 16 {text}".encode(), "r").signals
        assert (signal.gain, signal.baseline, signal.unit) == (gain, baseline, unit)


@both
def test_memory_is_bounded_by_the_bytes(parse: Parse) -> None:
    """Numbers that a header only claims cost nothing; ten thousand real lines are read."""
    with pytest.raises(FileError, match="2147483647 signal lines, .* found 0"):
        parse(b"r 2147483647", "r")
    lines = b"".join(b"f%d 16\n" % i for i in range(10_000))
    assert len(parse(b"r 10000\n" + lines, "r").signals) == 10_000


@native_only
def test_the_path_is_any_path() -> None:
    with pytest.raises(FileError) as caught:
        parse_wfdb_header(b"r", Path("caf\udce9") / "r.hea")
    assert caught.value.path == "caf\udce9/r.hea"
