"""What the fuzz targets share: a folder in memory, limits, and what a reader may raise."""

import inspect
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

MEMORY_BYTES = 3 << 30
"""Address space of the process; what a lying header makes us ask beyond it is a MemoryError, a finding."""
OPTIONS = ("-timeout=5", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1")

# physiofast imports it late; here it is imported so that it is instrumented too.
with atheris.instrument_imports(include=["wfdb.io"]):
    import wfdb  # noqa: F401

from physiofast.engine import FileError  # noqa: E402
from physiofast.io import open_recording  # noqa: E402
from physiofast.preparation.inspection import PrepareConfig, inspect_recording  # noqa: E402

_CONFIG = PrepareConfig()


def _instrument(package: str) -> None:
    """Count branches in what is already imported: an editable install's own loader is not instrumented at import."""
    for name, module in list(sys.modules.items()):
        if name.startswith(package):
            for function in _functions(vars(module).values(), name):
                function.__code__ = atheris.instrument_func(function).__code__


def _functions(values, module: str):
    for value in list(values):
        value = getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value)))
        if inspect.isfunction(value) and value.__module__ == module:
            yield value
        elif inspect.isclass(value) and value.__module__ == module:
            yield from _functions(vars(value).values(), module)


def folder() -> Path:
    """An empty folder, which `run` puts into memory and removes: libFuzzer ends the process without any clean-up."""
    return Path(tempfile.mkdtemp())


def examine(path: Path) -> None:
    """Open a record, read a few samples of each signal, and inspect it: ValueError and OSError are answers."""
    try:
        recording = open_recording(path)
        for index, signal in enumerate(recording.signals[:8]):
            some = min(signal.num_samples, 64)
            for start in (0, signal.num_samples - some):
                values = recording.physical(index, start, start + some)
                assert values.size == some
        inspect_recording(recording, _CONFIG)
    except (ValueError, OSError):
        pass


def compare(parse, reference, *arguments) -> None:
    """A parser of headers and its twin, whose branches guide the fuzzer: the same fields or the same refusal."""
    outcomes = []
    for function in (parse, reference):
        try:
            outcomes.append(function(*arguments, "x"))
        except FileError as error:
            outcomes.append((error.byte_offset, error.expected, error.found))
    assert outcomes[0] == outcomes[1], outcomes


def run(target, work: Path, seeds: list[bytes]) -> None:
    """Hand over to libFuzzer, which takes the process's arguments: SECONDS and its own options."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    corpus = work / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    seconds, *options = sys.argv[1:] or ["30"]
    arguments = [sys.argv[0], f"-max_total_time={seconds}", *OPTIONS, f"-artifact_prefix={Path.cwd()}/", *options]
    parsers = ("physiofast.engine.header_text", "physiofast.engine.wfdb_header", "physiofast.engine.edf_header")
    for package in ("physiofast.io", "physiofast.labels", "physiofast.preparation.inspection", *parsers):
        _instrument(package)
    atheris.Setup([*arguments, str(corpus)], target)
    atheris.Fuzz()
