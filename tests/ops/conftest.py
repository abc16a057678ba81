import pytest


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory):
    """Every op test runs with poisoned memory."""


def pytest_configure(config):
    """Poisoning goes through PyTorch's deterministic mode, which also warns of ops that are not."""
    config.addinivalue_line("filterwarnings", "ignore:.*does not have a deterministic implementation:UserWarning")
