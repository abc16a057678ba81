"""Stages of a run: start or open its folder, pretrain into it, probe the encoder, write the report."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from physiofast.analysis import attention_shares
from physiofast.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from physiofast.cohort import Cohort, open_cohort
from physiofast.config import Config
from physiofast.embedding import embed_windows, window_labels
from physiofast.masking import Planner
from physiofast.model import MultimodalMAE
from physiofast.probing import ProbeReport, compare_probes, hypnogram_arrays
from physiofast.probing.bandpower import band_power
from physiofast.progress import Progress
from physiofast.ranks import open_ranks
from physiofast.reconstruction import reconstruction_arrays
from physiofast.runfolder.identity import OF_A_PROBE, check_same
from physiofast.runfolder.initial import initial_of, keep_initial, new_model, read_note
from physiofast.runfolder.pretrained import need_run, read_config
from physiofast.runfolder.provenance import (
    NAMED_STORE,
    SENT_STORE,
    check_same_store,
    refuse_sent,
    way_to_resume,
    write_provenance,
)
from physiofast.runfolder.summary import load_summary, timed, update_summary
from physiofast.store import Store
from physiofast.support.atomic import atomic_path
from physiofast.support.interrupts import says_how_to_go_on
from physiofast.support.locks import hold_run
from physiofast.support.messages import command
from physiofast.support.paths import given_path
from physiofast.support.strictjson import write_json
from physiofast.training import TrainResult, held_by_first, make_optimiser, train_held
from physiofast.training_config import check_fit, pick_device
from physiofast.windows import WindowIndex, WindowReader, evenly_spaced, index_windows

SHOWN_WINDOWS = 24
"""Number of held-out windows that a report is about: it shows their reconstruction, and their mean attention."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has been started."""

    path: Path
    """The run folder."""
    store: Store
    config: Config
    note: Mapping[str, Any] | None = None
    """The note on the run whose weights this one began with; None where it began with random weights."""

    def load_newest(self) -> tuple[MultimodalMAE, int]:
        """Load the newest checkpoint; returns (model on the run's device, number of steps it was trained for).

        Raises:
            ValueError: there is no checkpoint, it cannot be read, or it was computed from another store or with other
                settings than the run's (those of `training` are not compared).
        """
        model, newest = new_model(self.store, self.config).to(self.device), latest_checkpoint(self.path)[1]
        check = functools.partial(check_same, newest, self.store, self.config, keys=OF_A_PROBE)
        return model, load_checkpoint(newest, model, check=check)

    @property
    def device(self) -> torch.device:
        """The device on which the run computes."""
        return pick_device(self.config.training.device)


def start_run(
    path: str | os.PathLike[str],
    store: Store,
    config: Config,
    recipe: str,
    init: str | os.PathLike[str] | None = None,
) -> Run:
    """Make a run folder with the resolved config, the environment and the store's manifest.

    Nothing is written before the model and its optimiser could be built. A run that was started in this folder but
    never took a step is replaced.

    Args:
        path: the run folder.
        store: prepared recordings.
        config: of the run.
        recipe: name of the recipe that the config was made from.
        init: folder of another run, whose newest weights this one begins with instead of random ones.

    Raises:
        ValueError: the folder already holds a run, or another process trains in it; the config does not fit the store,
            or no model can be built with it; or `init` is no run whose weights fit.
        OSError: the folder cannot be made or written to.
    """
    folder, other = given_path(path), None if init is None else given_path(init)
    with open_ranks() as ranks:
        check_fit(store, config, ranks.size)
        started = ranks.by_first(lambda: _start(folder, store, config, recipe, other))
        return started or Run(folder, store, config, read_note(folder))


def _start(path: Path, store: Store, config: Config, recipe: str, init: Path | None) -> Run:
    _check_free(path)
    check_build(store, config)
    initial = None if init is None else initial_of(store, config, init)
    with hold_run(path):
        _check_free(path)  # once more: another process may have been quicker
        keep_initial(path, initial)
        write_provenance(path, store, config, recipe)
    return Run(path, store, config, None if initial is None else initial.note)


def _check_free(path: Path) -> None:
    if (path / "manifest.json").exists():
        raise ValueError(f"{path} is a store; choose another folder as --out")
    metrics = path / "metrics.jsonl"
    has_steps = list_checkpoints(path) or (metrics.exists() and metrics.stat().st_size)
    if has_steps:
        raise ValueError(f"{path} already holds a run; {way_to_resume(path)}, or choose another --out")


def check_build(store: Store, config: Config) -> None:
    """Refuse a config with which no model or optimiser can be built, by building them.

    Raises:
        ValueError: with PyTorch's message.
    """
    try:
        make_optimiser(new_model(store, config), config.training)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"no model can be built of this configuration: {error}") from error


def open_run(path: str | os.PathLike[str], store: str | os.PathLike[str] | None = None) -> Run:
    """Open a run that was started earlier.

    Args:
        path: the run folder.
        store: the folder of the run's store, if it has moved, or for a run that `physiofast push` sent without that
            path; it is written into config.json.

    Raises:
        ValueError: this is no run folder, its config or manifest is damaged or of another version, the store has
            changed, or no store is given for a run that `physiofast push` sent.
        OSError: the store is missing.
    """
    path = given_path(path)
    saved, config = read_config(path)
    if store is None and saved["store"] == SENT_STORE:
        refuse_sent(path)
    folder = Path(saved["store"]) if store is None else given_path(store)
    if store is None and not folder.is_dir():
        raise FileNotFoundError(
            f"{path} was started on the store {folder}, which is gone; put it back there, or say with "
            f"{NAMED_STORE} where it is now"
        )
    check_same_store(path, folder)
    opened = Store.open(folder)
    if store is not None:
        write_json(path / "config.json", saved | {"store": str(folder.resolve())})
    return Run(path, opened, config, read_note(path))


def keep_probe(run: Run) -> None:
    """Write the settings of a run's probes into config.json, if they differ from those in it.

    Raises:
        ValueError: config.json is damaged.
        OSError: it cannot be written.
    """
    saved, before = read_config(run.path)
    if before.probe != run.config.probe:
        write_json(run.path / "config.json", saved | {"config": dataclasses.asdict(run.config)})


def resume_run(path: str | os.PathLike[str], store: str | os.PathLike[str] | None = None) -> Run:
    """Open a run to continue it, as `open_run` does; of several processes only the first writes the store's path."""
    with open_ranks() as ranks:
        return ranks.by_first(lambda: open_run(path, store)) or open_run(path)


def train_run(run: Run, progress: Progress, *, resume: bool = False) -> TrainResult:
    """Pretrain, or with `resume` continue; hidden-patch errors and speed are written into summary.json.

    Raises:
        ValueError: another process trains in this folder, or has started another run in it meanwhile.
        KeyboardInterrupt: a signal came before the first step or after the last one; it says what is kept.
    """

    def begin() -> None:
        if (read_config(run.path)[1], read_note(run.path)) != (run.config, run.note):
            raise ValueError(f"another process has started another run in {run.path}; choose another folder with --out")

    with (
        says_how_to_go_on(lambda: _kept_of(run.path)),
        held_by_first(run.store, run.path, run.config, begin) as ranks,
    ):
        return train_held(run.store, run.path, run.config, ranks, resume=resume, progress=progress)


def _kept_of(path: Path) -> str:
    checkpoints = list_checkpoints(path)
    kept = f"its checkpoint of step {checkpoints[-1][0]} is kept" if checkpoints else "it has no checkpoint yet"
    return f"{path} was stopped, {kept}; go on with: {command('train', '--resume', path)}"


def probe_run(
    run: Run | str | os.PathLike[str],
    progress: Progress | None = None,
    scored: Callable[[ProbeReport], None] | None = None,
) -> ProbeReport:
    """Probe the embeddings of the pretrained encoder, those of an untrained one, and band powers.

    This writes probe.json, predictions.npz, attention.json (what the encoder attends to) and reconstruction.npz.

    Args:
        run: the run folder, or what `open_run` made of it; `dataclasses.replace` gives that another `config.probe`,
            for other probes.
        progress: where progress is shown; nowhere when left out.
        scored: called with the result before anything is written, so that a full disk does not hide it.

    Raises:
        ValueError: this is no run folder, there is no checkpoint, it cannot be read, or it was computed from another
            store or with other settings.
        OSError: a file of the run folder cannot be written; the message says what is kept and how to go on.
    """
    run = run if isinstance(run, Run) else open_run(run)
    progress = progress or Progress()
    _need_writable(run.path, "the results go", "probe")
    with _says_how_to_repeat("probe", run.path), timed(run.path, "probe"):
        cohort = open_cohort(run.store, run.config.windows)
        every = probe_windows(run, cohort)
        reader = WindowReader(run.store, run.device)
        trained, step = run.load_newest()
        features, batch_size = {}, run.config.training.batch
        with progress.task("embed", 3) as bar:
            for name, model in (("pretrained", trained), ("untrained", new_model(run.store, run.config))):
                features[name] = embed_windows(model.to(run.device), reader, every, batch_size=batch_size)
                bar.advance(1)
            features["band_power"] = band_powers(reader, every)
            bar.advance(1)
        subject = np.asarray([record.subject for record in run.store.records])[every.record]
        is_train = np.isin(subject, cohort.train_subjects)
        labels = window_labels(run.store, every)
        with progress.task("probe", 1) as bar:
            probed = compare_probes(features, labels, subject, is_train, ~is_train, run.config.probe)
            report = dataclasses.replace(probed, step=step)
            bar.advance(1)
        if scored is not None:
            scored(report)
        write_json(run.path / "probe.json", report.to_dict())
        shown = evenly_spaced(len(cohort.test), SHOWN_WINDOWS)
        attention = attention_shares(trained, reader, cohort.test.take(shown), batch_size=batch_size)
        write_json(run.path / "attention.json", attention.to_dict() | {"step": step})
        if "pretrained" in report.predictions.get("stage", {}):
            names = np.asarray([record.record for record in run.store.records])[every.record]
            predicted = report.predictions["stage"]["pretrained"]
            arrays = hypnogram_arrays(names, every.epoch, labels["stage"], predicted, ~is_train)
            arrays |= {"epoch_s": np.asarray(run.store.montage.window_s), "step": np.asarray(step)}
            _write_npz(run.path / "predictions.npz", arrays)
        planner = Planner(run.store.montage, run.config.masking, run.config.seed).without_dropout()
        arrays = reconstruction_arrays(trained, reader, cohort.test, shown, planner, run.config.objective)
        _write_npz(run.path / "reconstruction.npz", arrays | {"step": np.asarray(step)})
        update_summary(run.path, {"probes": report.to_dict()})
    return report


def probe_windows(run: Run, cohort: Cohort) -> WindowIndex:
    """Choose the windows to probe: all held-out ones, and `probe.max_train_windows` random others, labelled first."""
    every = index_windows(run.store, None, run.config.windows.min_valid_share)
    is_train = np.isin(every.record, np.unique(cohort.train.record))
    labels = window_labels(run.store, every)
    is_scored = np.any([labels[name] >= 0 for name in ("stage", "arousal", "apnea")], axis=0)
    train = np.random.default_rng(run.config.probe.seed).permutation(np.flatnonzero(is_train))
    train = train[np.argsort(~is_scored[train], kind="stable")][: run.config.probe.max_train_windows]
    return every.take(np.sort(np.concatenate([train, np.flatnonzero(~is_train)])))


def band_powers(reader: WindowReader, index: WindowIndex, *, batch_size: int = 256) -> np.ndarray:
    """Compute log band powers of every window's valid patches: float32 [n, F], NaN where there are too few."""
    montage = reader.montage
    rates = [montage.channel_rate_hz(c) for c in range(len(montage.channels))]
    parts = index.batches(batch_size)
    return np.concatenate([band_power(reader.signals(index, p), rates, reader.valid(index, p)) for p in parts])


def report_run(path: str | os.PathLike[str]) -> Path:
    """Write report.html of a run, without its store, and add the time to summary.json; returns the page's path.

    For a file that is missing or damaged, only its own section of the page is left out. A damaged summary stays as it
    is.

    Raises:
        ValueError: this is no run folder.
        OSError: the page or the summary cannot be written; the message says what is kept and how to go on.
    """
    from physiofast.report import write_report  # Matplotlib takes a second to import

    path = given_path(path)
    need_run(path)
    _need_writable(path, "report.html goes", "report")
    with _says_how_to_repeat("report", path):
        try:
            load_summary(path)
        except ValueError:
            return write_report(path)
        with timed(path, "report"):
            return write_report(path)


def _need_writable(run: Path, what_goes: str, command: str) -> None:
    if not os.access(run, os.W_OK):
        raise PermissionError(f"{run} may not be written to, where {what_goes}; {command} a copy of that folder")


@contextmanager
def _says_how_to_repeat(stage: str, run: Path) -> Iterator[None]:
    """Give an OSError of writing a file of a run folder, as on a full disk, a message: what is kept, and how to go on.

    Args:
        stage: the command that writes, such as `probe`.
        run: the run folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or Path(str(error.filename)).parent != run:
            raise
        raise OSError(
            f"{error.filename} cannot be written: {error.strerror}; the run's other files are whole, and its "
            f"checkpoints are kept. Make room there, or allow writing, then run `{command(stage, run)}` again"
        ) from error


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
