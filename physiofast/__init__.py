"""physiofast: masked-autoencoder pretraining on many physiological signals at once."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("physiofast")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
