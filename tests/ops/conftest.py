import pytest

from physiofast import ops


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory):
    """Every op test runs with poisoned memory."""


def pytest_configure(config):
    """Poisoning goes through PyTorch's deterministic mode, which also warns of ops that are not."""
    config.addinivalue_line("filterwarnings", "ignore:.*does not have a deterministic implementation:UserWarning")


@pytest.fixture(params=["auto", "triton"])
def each_backend(request):
    """The test runs twice: with the forms that serve by default, and with Triton kernels wherever an op has some."""
    with ops.backend(request.param):
        yield request.param
