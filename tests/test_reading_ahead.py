"""Steps that are read in a thread are those that are read in turn, errors too."""

import contextlib
import threading
import time

import pytest
import torch

from physiofast import training
from physiofast.reading_ahead import ReadAhead
from physiofast.training import train
from tests.cohort import write_store
from tests.test_training import changed, final_weights

BOTH = pytest.mark.parametrize("ahead", [False, True])


@BOTH
def test_every_step_is_read_once_and_in_turn(ahead):
    asked, threads = [], set()

    def read(step):
        asked.append(step)
        threads.add(threading.current_thread())
        return step * step

    with ReadAhead(read, 7, ahead=ahead) as steps:
        assert [steps.take(step) for step in range(2, 7)] == [4, 9, 16, 25, 36]
    assert asked == [2, 3, 4, 5, 6]
    assert (threads == {threading.current_thread()}) is not ahead
    assert len(threads) == 1


def test_the_next_step_is_read_meanwhile():
    began = threading.Event()

    def read(step):
        if step == 1:
            began.set()
        return step

    with ReadAhead(read, 3, ahead=True) as steps:
        assert steps.take(0) == 0
        assert began.wait(60)
        assert steps.take(1) == 1


@BOTH
def test_other_steps_than_the_next(ahead):
    with ReadAhead(lambda step: -step, 100, ahead=ahead) as steps:
        assert [steps.take(step) for step in (5, 5, 0, 99, 7)] == [-5, -5, 0, -99, -7]


@BOTH
def test_an_error_is_that_of_its_step(ahead):
    def read(step):
        if step == 2:
            raise OSError("no file")
        return step

    with ReadAhead(read, 9, ahead=ahead) as steps:
        assert [steps.take(step) for step in (0, 1)] == [0, 1]
        with pytest.raises(OSError, match="no file"):
            steps.take(2)
        assert steps.take(3) == 3


def test_its_thread_ends_with_it():
    def read(step):
        time.sleep(0.2 * step)
        return step

    with ReadAhead(read, 9, ahead=True) as steps:
        steps.take(0)
        assert _threads()
    assert not _threads()


def _threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("physiofast-read")]


def test_a_thread_reads_on_the_stream_that_steps_are_computed_on(monkeypatch):
    current = threading.local()
    current.stream = "a stream of the caller's"

    @contextlib.contextmanager
    def on(stream):
        current.stream = stream
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: (current.stream, device))
    monkeypatch.setattr(torch.cuda, "stream", on)
    read = training._on_stream_of(torch.device("cuda", 1), lambda step: (step, current.stream))
    with ReadAhead(read, 2, ahead=True) as steps:
        assert steps.take(1) == (1, ("a stream of the caller's", torch.device("cuda", 1)))


def test_training_that_reads_ahead_has_the_same_bits(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store")
    config = changed(batch=4, accumulate=2)
    plain = train(store, tmp_path / "plain", config)
    threads = []

    def always(read, stop, *, ahead):
        assert not ahead
        return ReadAhead(lambda step: threads.append(threading.current_thread()) or read(step), stop, ahead=True)

    monkeypatch.setattr(training, "ReadAhead", always)
    found = train(store, tmp_path / "ahead", config)
    assert found.errors == plain.errors
    assert len(threads) == config.training.steps
    assert threading.current_thread() not in threads
    for one, other in zip(
        final_weights(tmp_path / "ahead", store), final_weights(tmp_path / "plain", store), strict=True
    ):
        assert one.equal(other)
