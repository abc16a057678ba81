"""What the benchmarks ask of CUDA, with stand-ins that write down who is asked for what."""

import stat
import types

import pytest
import torch

from benchmarks import devices
from benchmarks.devices import Cuda, GraphTimer


class Spy:
    """Any object of torch.cuda: methods are written down, as context managers too."""

    def __init__(self, name, log, **known):
        self.name, self.log = name, log
        self.__dict__.update(known)

    def __getattr__(self, method):
        if method.startswith("__"):
            raise AttributeError(method)
        return lambda *args, **kwargs: self.log.append(f"{self.name}.{method}")

    def __enter__(self):
        self.log.append(f"enter {self.name}")
        return self

    def __exit__(self, *error):
        self.log.append(f"leave {self.name}")


@pytest.fixture
def log(monkeypatch):
    """torch.cuda replaced; what happens to it, in order."""
    log, names = [], iter(("began", "ended"))
    found = types.SimpleNamespace(
        name="a GPU", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, L2_cache_size=50 << 20
    )
    fakes = {
        "Stream": lambda: Spy("side", log),
        "Event": lambda enable_timing: Spy(next(names), log, elapsed_time=lambda other: 2000.0),
        "CUDAGraph": lambda: Spy("graph", log),
        "current_stream": lambda: Spy("main", log),
        "stream": lambda stream: Spy(f"on {stream.name}", log),
        "graph": lambda graph, stream: Spy(f"capture on {stream.name}", log),
        "synchronize": lambda: log.append("synchronize"),
        "get_device_properties": lambda: found,
        "is_available": lambda: True,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return log


def test_a_job_is_warmed_up_and_captured_on_a_stream_of_its_own(log):
    device = devices.find("cuda")
    replay = device.capture(lambda: log.append("job") or 42)
    assert log[:2] == ["side.wait_stream", "enter on side"]
    assert log.count("job") == Cuda.WARM_UPS + 1
    assert log[-3:] == ["enter capture on side", "job", "leave capture on side"]
    assert log.index("synchronize") < log.index("enter capture on side")
    log.clear()
    assert replay() == 42
    assert log == ["graph.replay"]


def test_events_stand_around_the_job_and_are_waited_for(log):
    device = devices.find("cuda")
    assert device.elapsed(lambda: log.append("job")) == 2.0
    assert log == [
        "side.wait_stream",
        "enter on side",
        "began.record",
        "job",
        "ended.record",
        "leave on side",
        "ended.synchronize",
    ]


def test_the_cache_that_is_cleared_is_twice_the_largest_one(log, monkeypatch):
    device = devices.find("cuda")
    monkeypatch.setattr(Cuda, "type", "cpu")  # where the buffer lies
    assert GraphTimer(device)._cache.numel() == 100 << 20


def test_memory_is_counted_from_what_was_there_while_results_are_kept(log, monkeypatch):
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1750)
    assert devices.find("cuda").peak_bytes(lambda: log.append("job")) == 750
    assert log == ["synchronize", "reset", "job", "synchronize"]
    assert devices.find("cpu").peak_bytes(lambda: None) is None


def test_large_copies_go_in_slices(monkeypatch):
    monkeypatch.setattr(devices, "_SLICE", 100)
    copy = devices.copying(250, "cpu")
    cells = dict(zip(copy.__code__.co_freevars, (cell.cell_contents for cell in copy.__closure__), strict=True))
    assert [len(part) for part, _ in cells["pairs"]] == [100, 100, 50]
    for _, original in cells["pairs"]:
        original.fill_(7)
    assert copy().tolist() == [7] * 250


def test_clocks_and_driver_come_from_nvidia_smi(log, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$1" in *driver*) echo 580.1;; *) echo "1980, 3201, 45, 120.5, 0x0";; esac\n')
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    device = devices.find("cuda")
    assert device.clocks()["clocks.sm"] == "1980"
    assert device.clocks()["power.draw"] == "120.5"
    about = device.about()
    assert (about["name"], about["driver"], about["capability"], about["l2_mb"]) == ("a GPU", "580.1", "9.0", 50.0)


def test_without_nvidia_smi_nothing_is_said_of_clocks(log, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert devices.find("cuda").clocks() == {}


def test_no_gpu_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="PyTorch sees no CUDA device"):
        devices.find("cuda")
