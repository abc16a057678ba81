"""Checkpoints, which hold model and optimiser in one safetensors file each and are written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from physiofast.support.atomic import atomic_path
from physiofast.support.messages import command
from physiofast.support.paths import given_path

FORMAT = "physiofast-checkpoint-1"
_INITIAL = "initial.safetensors"
_SUM = "sha256"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


def checkpoint_path(run: Path, step: int) -> Path:
    """The path of the checkpoint after `step` optimiser steps."""
    return run / "checkpoints" / f"step-{step:08d}.safetensors"


def initial_path(run: Path) -> Path:
    """The path of the weights of another run that a run began with; this file is none of the run's checkpoints."""
    return run / "checkpoints" / _INITIAL


def list_checkpoints(run: Path) -> list[tuple[int, Path]]:
    """List (step, file) of every checkpoint of a run, oldest first."""
    matches = [(_NAME.fullmatch(path.name), path) for path in (run / "checkpoints").glob("*.safetensors")]
    return sorted((int(match[1]), path) for match, path in matches if match)


def latest_checkpoint(run: Path) -> tuple[int, Path]:
    """Return (step, file) of the newest checkpoint of a run.

    Raises:
        ValueError: the run has none.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise ValueError(f"{run} has no checkpoint; make one with `{command('train', 'RECIPE', '--out', run)}`")
    return checkpoints[-1]


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    keep: int = 2,
    about: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write the state after `step` steps with its SHA-256, and then remove all but the newest `keep` checkpoints.

    Args:
        run: the run folder.
        step: number of finished optimiser steps.
        model: its parameters and buffers are written.
        optimiser: its states are written.
        keep: number of checkpoints that stay.
        about: metadata of the run that the checkpoint carries.

    Raises:
        OSError: it cannot be written; the message says what to do, and all older checkpoints are still there.
    """
    tensors = _weights(model)
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            tensors[f"optimiser.{names[parameter]}/{key}"] = value
    path = checkpoint_path(run, step)
    try:
        _write(path, step, tensors, about)
    except (SafetensorError, OSError) as error:  # a full disk is a SafetensorError, which is no OSError
        raise OSError(f"the checkpoint {path} cannot be written: {error}; {_way_back(run)}") from error
    for _, old in list_checkpoints(run)[:-keep]:
        old.unlink()
    return path


def save_initial(run: Path, model: nn.Module) -> None:
    """Write the weights that a run begins with; later checkpoints do not remove them.

    Raises:
        OSError: they cannot be written.
    """
    path = initial_path(run)
    try:
        _write(path, 0, _weights(model), {})
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"the weights that the run begins with, {path}, cannot be written: {error}; make room there, or allow "
            "writing, and start it again"
        ) from error


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def _write(path: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a checkpoint whole or not at all, with the SHA-256 of its contents in its metadata."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**about, "format": FORMAT, "step": str(step)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        part.touch()
        mode = part.stat().st_mode
        save_file(contiguous, part, metadata={**metadata, _SUM: _sha256(contiguous, metadata)})
        part.chmod(mode)  # as all other files of the run have it; safetensors makes one for its owner alone


def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimiser: torch.optim.Optimizer | None = None,
    check: Callable[[Mapping[str, str]], None] = lambda about: None,
) -> int:
    """Restore what `save_checkpoint` wrote; returns the number of finished steps.

    Args:
        path: of the checkpoint.
        model: gets the weights.
        optimiser: of the model's parameters; gets their states.
        check: called with the metadata of the run, before anything is restored; it may raise.

    Raises:
        ValueError: the file is damaged (the message names the run's newest checkpoint that is not), is no checkpoint of
            this package, or is that of a model or an optimiser with other parameters.
        PermissionError: the file may not be read.
    """
    path = given_path(path)
    about = _about(path)
    with _readable(path):
        step, tensors = _contents(path, about)
    check(about)
    weights, states = (
        {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}
        for kind in ("model.", "optimiser.")
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} was written by a model of another shape: {error}") from error
    if optimiser is not None:
        _restore_optimiser(states, dict(model.named_parameters()), optimiser)
    return step


def _restore_optimiser(
    states: Mapping[str, Tensor], parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """Put the states, which are named `PARAMETER/KEY`, into an optimiser."""
    for name, tensor in states.items():
        parameter, _, key = name.rpartition("/")
        target = parameters[parameter]
        device = "cpu" if key == "step" and not _fused_on_gpu(target, optimiser) else target.device
        optimiser.state[target][key] = tensor.to(device)


def _fused_on_gpu(parameter: Tensor, optimiser: torch.optim.Optimizer) -> bool:
    return parameter.is_cuda and bool(optimiser.defaults.get("fused"))


def _about(path: Path) -> dict[str, str]:
    """Read the metadata of a file, which must be a checkpoint of this package."""
    if path.is_file():
        try:
            path.open("rb").close()  # of a file that may not be read, safetensors says that there is none
        except PermissionError as error:
            raise PermissionError(
                f"{path} cannot be read: {error.strerror}; allow reading it, as by "
                f"`chmod u+r {shlex.quote(str(path))}`, then run this again"
            ) from error
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of format {FORMAT}; found {metadata.get('format')}")
    return metadata


def _contents(path: Path, about: Mapping[str, str]) -> tuple[int, dict[str, Tensor]]:
    """Read (step, tensors) after a comparison with the SHA-256 that they were written with."""
    step, tensors = _step_of(about), load_file(path)
    wanted, found = about.get(_SUM, "missing"), _sha256(tensors, about)
    if wanted != found:
        raise ValueError(f"its contents are not what was written: their SHA-256 is {found}, that in it {wanted}")
    return step, tensors


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of reading a checkpoint into a ValueError that says what to do."""
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}; {_way_on(path)}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a checkpoint: format, step, and what it says of its run. Its tensors are not read.

    Raises:
        ValueError: it cannot be read.
    """
    with _readable(path):
        return _metadata(path)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _step_of(metadata: Mapping[str, str]) -> int:
    step = metadata.get("step")
    if step is None or not step.isdecimal():
        raise ValueError(f"it does not say after which step it was written (found {step!r})")
    return int(step)


def _sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The SHA-256 of contiguous tensors on the CPU by name, and of the metadata but for this digest."""
    facts = {key: value for key, value in metadata.items() if key != _SUM}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_readable(path: Path) -> bool:
    try:
        metadata = _metadata(path)
        return metadata.get("format") == FORMAT and bool(_contents(path, metadata))
    except (SafetensorError, OSError, ValueError):
        return False


def _way_back(run: Path) -> str:
    """Say what to do when a checkpoint cannot be written."""
    checkpoints = list_checkpoints(run)
    where = f"goes on from step {checkpoints[-1][0]}" if checkpoints else "begins again at step 0"
    return f"make room there, or allow writing, then `{command('train', '--resume', run)}` {where}"


def _way_on(path: Path) -> str:
    """Say what to do about a checkpoint that cannot be read; another one is never taken silently."""
    if path.name == _INITIAL:
        return "start the run again with --init, in another folder"
    newest_first = reversed(list_checkpoints(path.parent.parent))
    good = next((other for _, other in newest_first if other != path and _is_readable(other)), None)
    again = command("train", "--resume", path.parent.parent)
    if good is None:
        return f"the run has no other; delete it, then `{again}` begins again at step 0"
    return f"{good} is readable; delete the broken file, then `{again}` goes on from there"
