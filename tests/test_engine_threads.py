"""How many threads the engine uses, and that forks, many Python threads, Ctrl-C and the end of the process are safe.

What may hang or end a process runs in a child with a time limit.
"""

import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from physiofast import engine

pytestmark = pytest.mark.native
native_only = pytest.mark.skipif(not engine.native, reason=str(engine.unavailable_reason))

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
from physiofast import engine

def check(threads, rows=400, length=5000):
    samples = np.arange(rows * length, dtype=np.int64).astype(np.int16)
    start = np.random.default_rng(0).permutation(rows) * length
    out = np.empty(rows * length, np.float32)
    ones = np.ones(rows, np.float32)
    engine.set_threads(threads)
    columns = np.zeros(rows, np.int64), start, np.full(rows, length)
    engine.gather_rows([samples], *columns, out, np.arange(rows) * length, ones, ones)
    expected = samples.reshape(rows, length)[start // length].reshape(-1).astype(np.float32) + 1
    assert (out == expected).all()

def helpers():
    names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
    return names.count("physiofast")
"""


def run_script(code, **environment):
    """Run Python code in a process of its own and return what it printed."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PRELUDE + textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.fixture
def default_threads(monkeypatch):
    monkeypatch.delenv("PHYSIOFAST_THREADS", raising=False)
    yield
    engine.set_threads(None)


def test_the_default_is_the_affinity_of_the_process(default_threads):
    assert engine.threads() == len(os.sched_getaffinity(0))
    one = next(iter(os.sched_getaffinity(0)))
    assert run_script(f"os.sched_setaffinity(0, [{one}]); print(engine.threads())", PHYSIOFAST_THREADS="") == ["1"]


def test_the_variable_and_the_choice(default_threads, monkeypatch):
    monkeypatch.setenv("PHYSIOFAST_THREADS", "7")
    assert engine.threads() == 7
    engine.set_threads(3)
    assert engine.threads() == 3
    engine.set_threads(None)
    assert engine.threads() == 7


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025"])
def test_bad_numbers_are_refused(default_threads, monkeypatch, value):
    monkeypatch.setenv("PHYSIOFAST_THREADS", value)
    with pytest.raises(ValueError, match=f"PHYSIOFAST_THREADS needs a whole number from 1 to 1024; found '{value}'"):
        engine.threads()
    with pytest.raises(ValueError, match="threads needs a whole number from 1 to 1024; found"):
        engine.set_threads(float(value) if value == "1.5" else value)
    assert engine.set_threads(2) is None and engine.threads() == 2


def test_a_data_loader_worker_uses_one_thread():
    code = """
    import torch
    class Threads(torch.utils.data.Dataset):
        def __len__(self):
            return 2
        def __getitem__(self, i):
            check(None)
            before = helpers()
            default = engine.threads()
            engine.set_threads(3)
            return default, before, engine.threads()
    if __name__ == "__main__":
        engine.set_threads(4)
        print(engine.threads(), *[tuple(map(int, x)) for x in torch.utils.data.DataLoader(Threads(), num_workers=2)])
    """
    assert "".join(run_script(code)) == "4(1,0,3)(1,0,3)"


@native_only
def test_threads_are_made_on_first_need():
    code = "print(helpers()); check(1); print(helpers()); check(3); check(2); print(helpers())"
    assert run_script(code) == ["0", "0", "2"]


@native_only
def test_a_fork_after_use_and_during_use():
    code = """
    check(3)
    busy = True
    def work():
        while busy:
            check(2, rows=60)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            check(1)
            check(3)
            os._exit(0 if helpers() == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
    busy = False
    for thread in threads:
        thread.join()
    check(3)
    print("done")
    """
    assert run_script(code) == ["done"]


def test_a_fork_while_a_thread_opens_a_record(tmp_path):
    """The thread holds the lock of `io.handles` for sure: the file that it opens waits."""
    samples = np.arange(3000, dtype=np.int16).reshape(-1, 3)
    samples.tofile(tmp_path / "a.dat")
    lines = ["a 3 200 1000", *[f"a.dat 16 200 16 0 {i} {int(samples[:, i].sum()) & 0xFFFF} 0 c{i}" for i in range(3)]]
    (tmp_path / "a.hea").write_text("\n".join(lines) + "\n")
    code = f"""
    from physiofast.io import handles, open_recording
    known, other = (open_recording({str(tmp_path / "a")!r}) for _ in range(2))
    known.digital([0], 0, 1)
    opening, forked = threading.Event(), threading.Event()
    class Slow(engine.SignalFile):
        def __init__(self, *arguments, **options):
            opening.set()
            forked.wait()
            super().__init__(*arguments, **options)
    handles.SignalFile, fast = Slow, engine.SignalFile
    thread = threading.Thread(target=other.physical, args=([0, 1, 2],))
    thread.start()
    opening.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        handles.SignalFile = fast
        expected = np.arange(2997, -1, -3)[::-1]
        os._exit(not all((record.digital([0])[0] == expected).all() for record in (known, other)))
    status = os.waitpid(child, 0)[1]
    forked.set()
    thread.join()
    print(status)
    """
    assert run_script(code) == ["0"]


@native_only
def test_a_pool_of_forked_processes():
    code = """
    import multiprocessing
    check(3)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(check, [1, 2, 3, 2])
    check(2)
    print("done")
    """
    assert run_script(code) == ["done"]


def test_many_threads_call_at_once(default_threads):
    errors = []

    def work(seed):
        rng = np.random.default_rng(seed)
        planes = [rng.integers(-32768, 32768, 50_000).astype(np.int16) for _ in range(3)]
        for _ in range(20):
            rows = int(rng.integers(1, 200))
            plane, length = rng.integers(0, 3, rows), rng.integers(0, 3000, rows)
            start, stop = rng.integers(0, 47_000, rows), np.cumsum(length)
            found, expected = np.zeros(stop[-1], np.int16), np.zeros(stop[-1], np.int16)
            engine.gather_rows(planes, plane, start, length, found, stop - length)
            engine.gather_rows_reference(planes, plane, start, length, expected, stop - length)
            if not np.array_equal(found, expected):
                errors.append(seed)

    engine.set_threads(3)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# Rows that overlap in `out` follow one another on one thread; 200 GB of copies take many seconds.
LONG_CALL = """
rows, length = 100_000, 1_000_000
samples, out = np.zeros(length, np.int16), np.empty(length, np.int16)
zeros = np.zeros(rows, np.int64)
def long_call():
    engine.gather_rows([samples], zeros, zeros, np.full(rows, length), out, zeros)
"""


@native_only
def test_ctrl_c_ends_a_long_call_within_a_second():
    code = """
    sent = []
    def interrupt():
        time.sleep(0.5)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        long_call()
    except KeyboardInterrupt:
        assert time.perf_counter() - sent[0] < 1, time.perf_counter() - sent[0]
        check(2)
        print("interrupted")
    """
    assert run_script(LONG_CALL + textwrap.dedent(code)) == ["interrupted"]


@native_only
@pytest.mark.parametrize("job", ["resample", "format 8"])
def test_ctrl_c_ends_a_call_with_few_long_tasks(job, tmp_path):
    night = tmp_path / "night.dat"
    night.touch()
    os.truncate(night, 4_000_000_000)  # without a block on the disk
    code = f"""
    if {job!r} == "resample":  # some tenths of a second for each channel
        filter = engine.Resampler(15, 16, np.ones(400_001) / 400_001)
        channels = np.ones((16, 60_000), np.float32)
        job = lambda: engine.resample(channels, filter)
    else:
        file = engine.SignalFile({str(night)!r}, 8, [1], 4_000_000_000, initial_values=[0])
        job = lambda: file.decode([0], 3_999_999_990)
    def interrupt():
        time.sleep(0.3)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    sent = []
    engine.set_threads(1)
    threading.Thread(target=interrupt).start()
    try:
        job()
    except KeyboardInterrupt:
        late = time.perf_counter() - sent[0]
        print("interrupted" if late < 1.5 else late)
    """
    assert run_script(code) == ["interrupted"]


@native_only
def test_a_handler_that_returns_does_not_end_a_call_and_may_use_the_engine():
    code = """
    calls = []
    def handler(*_):
        check(2)
        calls.append(time.perf_counter())
        if len(calls) == 3:
            raise RuntimeError("third")
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # on a slow machine a handler takes longer than that itself
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        long_call()
    except RuntimeError as error:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the end of Python brings the default handler back, which kills
        print(error, len(calls))
    """
    assert run_script(LONG_CALL + textwrap.dedent(code)) == ["third", "3"]


@native_only
@pytest.mark.parametrize("filtered", [False, True], ids=["resampled", "filtered"])
def test_a_handler_that_uses_the_engine_changes_nothing_of_the_call_that_it_interrupts(filtered):
    """Both calls take working memory of the same thread; a filter flushes subnormal numbers, a handler must not."""
    code = f"""
    from physiofast.conditioning import design_resampler, filter_sos
    engine.set_threads(1)
    random = np.random.default_rng(0)
    samples = random.integers(-1000, 1000, (13, 3_000_000)).astype(np.int16)
    sos, resampler = filter_sos(200, 0.3, 35) if {filtered} else None, design_resampler(200, 128, pass_hz=35)
    filters = [engine.ChannelFilter(channel=c, resampler=resampler, sos=sos) for c in range(13)]
    others = random.integers(-1000, 1000, (16, 60_000)).astype(np.int16)
    want, want_of_others = engine.condition(samples, filters), engine.resample(others, resampler)
    found, halves = [], set()
    def handler(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        halves.add(np.float64(5e-310) * np.float64(0.5) > 0)
        found.append(np.array_equal(engine.resample(others, resampler), want_of_others))
        signal.setitimer(signal.ITIMER_REAL, 0.055)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.055)
    end, same = time.perf_counter() + 30, []
    while len(found) < 20 and time.perf_counter() < end:
        same.append(np.array_equal(engine.condition(samples, filters), want))
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(len(found) >= 20, all(found), all(same), halves)
    """
    assert run_script(code) == ["True", "True", "True", "{np.True_}"]


@native_only
@pytest.mark.parametrize(
    "call", ["long_call()", "check(2, rows=60)", "record()", "record().decode(range(2))", "native.checksum(samples)"]
)
def test_the_process_ends_while_a_daemon_thread_is_in_a_call(call, tmp_path):
    (tmp_path / "night.dat").write_bytes(bytes(400_000))
    code = f"""
    from physiofast import _native as native
    def record():
        return engine.SignalFile({str(tmp_path / "night.dat")!r}, 16, [1, 1], 100_000)
    def work():
        while True:
            {call}
    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.3)
    print("end")
    """
    for _ in range(3):
        assert run_script(LONG_CALL + textwrap.dedent(code)) == ["end"]
