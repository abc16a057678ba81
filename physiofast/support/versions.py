"""Versions of what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """Version of a package; None where it is not installed, as of a source tree that never was."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
