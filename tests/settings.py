"""Settings of the process that a test changes for a while: threads and instruction sets."""

import contextlib

import torch

from physiofast import engine


@contextlib.contextmanager
def on_engine_threads(number):
    """Of the C++ engine's own pool."""
    engine.set_threads(number)
    try:
        yield
    finally:
        engine.set_threads(None)


@contextlib.contextmanager
def _changed(get, change, value):
    """What `get` tells is `value` within, and afterwards what it was."""
    before = get()
    change(value)
    try:
        yield
    finally:
        change(before)


def on_torch_threads(count):
    """Of PyTorch, on whose team the C++ forms of ops work."""
    return _changed(torch.get_num_threads, torch.set_num_threads, count)


def with_instructions(name):
    """Of one of `instruction_sets`."""
    from physiofast import _native

    return _changed(_native.instruction_set, _native.set_instruction_set, name)


def instruction_sets():
    """Those of this machine that the engine was compiled for; none without the engine."""
    if not engine.native:
        return []
    from physiofast import _native

    return _native.instruction_sets()


INSTRUCTIONS = instruction_sets()
