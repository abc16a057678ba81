"""The command line `physiofast COMMAND`: each function with a command's name runs it and returns the exit status."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import select
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from physiofast.cli_options import (
    DemoOptions,
    DoctorOptions,
    InspectOptions,
    PrepareOptions,
    ProbeOptions,
    PushOptions,
    ReportOptions,
    SynthOptions,
    TrainOptions,
    VerifyOptions,
)
from physiofast.support.interrupts import says_how_to_go_on, terminate_as_interrupt
from physiofast.support.messages import command, first_names

_BAD_INPUT, _INTERRUPTED, _UNREAD = 1, 130, 141


def demo(arguments: Sequence[str]) -> int:
    """Pretrain and probe on a synthetic cohort, and write a report."""
    options = _parse(DemoOptions, "demo", arguments)
    from physiofast.demo import run_demo
    from physiofast.printing import make_console

    report = run_demo(options.out, options.subjects, options.hours, options.steps, options.seed, make_console())
    return _INTERRUPTED if report is None else 0


def synth(arguments: Sequence[str]) -> int:
    """Write a synthetic cohort as WFDB records."""
    options = _parse(SynthOptions, "synth", arguments)
    from physiofast import synthetic

    config = synthetic.CohortConfig(subjects=options.subjects, hours=options.hours, seed=options.seed)
    with _progress().task("synth", options.subjects) as bar:
        synthetic.write_cohort(options.dir, config, lambda *_: bar.advance(1), options.workers)
    print(f"{options.subjects} records of {options.hours:g} h in {options.dir}. Simplifications:")
    for line in synthetic.SIMPLIFICATIONS:
        print(f"  - {line}")
    print(f"Next: {command('prepare', options.dir)} STORE")
    return 0


def inspect(arguments: Sequence[str]) -> int:
    """Show what recordings hold, and what `prepare` would drop."""
    from physiofast.io import find_records
    from physiofast.preparation import PrepareConfig
    from physiofast.preparation import inspect as inspect_records
    from physiofast.printing import make_console, print_inspection
    from physiofast.progress import Progress

    options, config = _parse_with(InspectOptions, PrepareConfig(), "inspect", arguments)
    records, console, as_json, refused = find_records(options.path), make_console(), [], False
    progress = _progress() if len(records) > 1 else Progress()
    with progress.task("inspect", len(records)) as bar:
        for inspection in inspect_records(records, config):
            if options.json:
                as_json.append(inspection.to_dict())
            else:
                print_inspection(inspection, console)
            refused = refused or bool(inspection.errors)
            bar.advance(1)
    if options.json:
        print(json.dumps(as_json, indent=1))
    return _BAD_INPUT if refused else 0


def prepare(arguments: Sequence[str]) -> int:
    """Filter, resample and check recordings into a store."""
    from physiofast.io import find_records
    from physiofast.preparation import PrepareConfig
    from physiofast.preparation import prepare as prepare_records
    from physiofast.printing import make_console, print_prepared

    options, config = _parse_with(PrepareOptions, PrepareConfig(), "prepare", arguments)
    records = find_records(options.source)
    kept = f"stopped; records that are prepared are kept in {options.out}; run the same command again to resume"
    with says_how_to_go_on(lambda: kept), _progress().task("prepare", len(records)) as bar:
        report = prepare_records(
            records,
            options.out,
            config,
            workers=options.workers,
            replace=options.replace,
            progress=lambda _: bar.advance(1),
        )
    print_prepared(report, make_console())
    nothing = not report.processed and not report.skipped
    return _BAD_INPUT if nothing or (report.failed and not options.allow_failures) else 0


def verify(arguments: Sequence[str]) -> int:
    """Read a whole store and report damaged files."""
    options = _parse(VerifyOptions, "verify", arguments)
    from physiofast.printing import make_console, say
    from physiofast.store.verification import verify_store

    verification = verify_store(options.store)
    console, damaged = make_console(), 0
    with _progress().task("verify", verification.total) as bar:
        for record, damage in verification.records:
            if damage:
                say(console, f"{record}: {damage}", "damaged", "red")
                damaged += 1
            bar.advance(1)
    if verification.unlisted:
        say(console, first_names(verification.unlisted), "not listed in manifest.json, and not verified:")
    say(console, f"{verification.total - damaged} of {verification.total} records are as they were written")
    return _BAD_INPUT if damaged else 0


def train(arguments: Sequence[str]) -> int:
    """Pretrain a masked autoencoder: RECIPE [file.toml] [--section.field value]."""
    from physiofast.config import RECIPES, check_draft, get_recipe, read_toml
    from physiofast.runs import resume_run, start_run
    from physiofast.store import Store
    from physiofast.support.bounds import drafting

    named = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    flags = arguments[len(named) :]
    helping = bool({"-h", "--help"} & set(flags))
    given = [word.split("=")[0] for word in flags if word.startswith("-")]
    if "--resume" in given and not helping:
        if named or not set(given) <= {"--resume", "--store"}:
            raise ValueError(
                "--resume continues a run as it was started; leave out all other arguments except --store DIR, "
                "which says where its store is when it has moved"
            )
        options = _parse(TrainOptions, "train", flags)
        return _train(lambda: resume_run(options.resume, options.store), resume=True)
    if not helping:
        _check_order(named, flags, RECIPES)
    recipe = named[0] if named else "base"
    config = get_recipe(recipe)
    if len(named) == 2:
        file = Path(named[1])
        with drafting():
            of_file = read_toml(file, config)
            options, config = _parse_with(TrainOptions, of_file, f"train {recipe}", flags)
        config = check_draft(file, of_file, config)
    else:
        options, config = _parse_with(TrainOptions, config, f"train {recipe}", flags)
    if options.store is None:
        raise ValueError("name the prepared recordings with --store DIR; make them with `physiofast prepare IN DIR`")
    out, store = options.out or Path("runs") / recipe, Store.open(options.store)
    return _train(lambda: start_run(out, store, config, recipe, options.init), resume=False)


def _train(begin: Callable[[], Any], resume: bool) -> int:
    """Train a run in this process, or in all processes that torchrun started, of which the first reports the result.

    Args:
        begin: starts or resumes the run, once the processes are connected.
        resume: whether the run is resumed.
    """
    from physiofast.progress import Progress
    from physiofast.ranks import open_ranks
    from physiofast.runs import train_run

    with open_ranks() as ranks:
        run = begin()
        result = train_run(run, _progress() if ranks.first else Progress(), resume=resume)
        if ranks.first:
            return _finish_training(result, run.path)
        return 0 if result.finished else _INTERRUPTED


def _check_order(named: Sequence[str], flags: Sequence[str], recipes: Collection[str]) -> None:
    """Refuse arguments of `train` other than RECIPE [file.toml] and then flags; the message has the right order."""
    late = _late_words(flags, recipes)
    rest = [word for place, word in enumerate(flags) if place not in late]
    words = [*named, *(flags[place] for place in late)]
    files = [word for word in words if word not in recipes and (word.endswith(".toml") or word in named[1:])]
    others = [word for word in words if word not in files]
    if not others:
        example = f"; such as: physiofast train base {shlex.join([*files, *rest])}" if files else ""
        raise ValueError(f"name a recipe: {', '.join(recipes)}; or go on with a run: --resume RUN{example}")
    if len(others) > 1 or len(files) > 1:
        raise ValueError(f"expected RECIPE [file.toml] and then flags; found {shlex.join(words)}")
    if [*others, *files] != list(named):
        right = shlex.join([*others, *files, *rest])
        raise ValueError(f"the recipe comes first, then a TOML file, then flags: physiofast train {right}")


def _late_words(flags: Sequence[str], recipes: Collection[str]) -> list[int]:
    """Positions of recipes and TOML files after the first flag; a word after --store, --out or --init is a folder."""
    return [
        place
        for place, word in enumerate(flags)
        if (word in recipes or word.endswith(".toml"))
        and not word.startswith("-")
        and flags[place - 1] not in ("--store", "--out", "--init")
    ]


def _finish_training(result: Any, path: Path) -> int:
    if not result.finished:
        print(f"stopped after step {result.step}; go on with: {command('train', '--resume', path)}")
        return _INTERRUPTED
    errors = ", ".join(f"{name} {value:.3f}" for name, value in result.errors.items())
    speed = "" if result.windows_per_s is None else f", {result.windows_per_s:.0f} windows/s"
    print(f"{result.step} steps{speed}; checkpoint in {path}")
    print(f"hidden-patch error over predicting the mean (held-out subjects, below 1 is better): {errors}")
    print(f"Next: {command('probe', path)}")
    return 0


def probe(arguments: Sequence[str]) -> int:
    """Probe a run's frozen encoder for stage, arousal, apnea, age and sex."""
    from physiofast.printing import make_console, print_probes, say
    from physiofast.probing import ProbeConfig
    from physiofast.runfolder.initial import describe_initial
    from physiofast.runs import keep_probe, open_run, probe_run

    options, _ = _parse_with(ProbeOptions, _section("probe", ProbeConfig()), "probe", arguments)
    run = open_run(options.run, options.store)
    # Parsed again with the run's own config, which holds the values of flags that are not given.
    _, section = _parse_with(ProbeOptions, _section("probe", run.config.probe), "probe", arguments)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, probe=section.probe))
    console = make_console()
    again = f"stopped; {run.path} can be probed again with: {command('probe', *arguments)}"
    with says_how_to_go_on(lambda: again):
        report = probe_run(run, _progress(), scored=lambda report: print_probes(report, console))
        keep_probe(run)
    steps = run.config.training.steps
    if began := describe_initial(run.path):
        say(console, began)
    if report.step is not None and report.step < steps:
        print(
            f"This is the encoder after step {report.step} of {steps}; go on with: "
            + command("train", "--resume", run.path)
        )
    print(f"Next: {command('report', options.run)}")
    return 0


def report(arguments: Sequence[str]) -> int:
    """Write a run's report as one HTML file."""
    options = _parse(ReportOptions, "report", arguments)
    from physiofast.runs import report_run

    print(report_run(options.run))
    return 0


def push(arguments: Sequence[str]) -> int:
    """Upload a run to the Hugging Face Hub."""
    options = _parse(PushOptions, "push", arguments)
    from physiofast.sharing import push_run

    pushed = push_run(options.run, options.repository, public=options.public, everything=options.everything)
    print(f"sent: {', '.join(pushed.sent)}")
    if pushed.kept:
        print(f"not sent: {', '.join(pushed.kept)}; --everything sends these too, and all others as they are")
    print(f"{pushed.address} ({'private' if pushed.private else 'public'})")
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """Report what this installation can do, and list problems."""
    options = _parse(DoctorOptions, "doctor", arguments)
    from physiofast.doctor import diagnose, print_diagnosis
    from physiofast.printing import make_console

    diagnosis = diagnose()
    if options.json:
        print(json.dumps(dataclasses.asdict(diagnosis), indent=1))
    else:
        print_diagnosis(diagnosis, make_console())
    return _BAD_INPUT if diagnosis.problems else 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "synth": synth,
    "inspect": inspect,
    "prepare": prepare,
    "verify": verify,
    "train": train,
    "probe": probe,
    "report": report,
    "push": push,
    "doctor": doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. SIGTERM has the effect of SIGINT.

    The status is 0, 1 for bad input, 130 if a signal stopped the command, or 141 if the reader of its output left
    early. Unknown flags and unsuitable values of flags end the process with 2.
    """
    _print_any_name()
    try:
        with terminate_as_interrupt():
            status = _run(list(sys.argv[1:] if arguments is None else arguments))
        _flush()  # here rather than at exit, where a broken pipe would print a traceback
        return status
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            _discard()
            return _UNREAD
        status, said = _BAD_INPUT, str(error) or type(error).__name__
    except KeyboardInterrupt as interrupt:
        status, said = _INTERRUPTED, str(interrupt) or "interrupted"
    print(f"physiofast: {said}", file=sys.stderr)
    try:
        _flush()
    except BrokenPipeError:
        _discard()
    return status


def _print_any_name() -> None:
    """Make printing of file names that the terminal's encoding cannot represent escape them instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _discard() -> None:
    """Redirect standard output, which nobody reads any more, to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: Sequence[str]) -> int:
    from physiofast.montage import nearest

    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        import physiofast

        print(physiofast.__version__)
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        raise ValueError(f"no command is named {words[0]!r}{nearest(words[0], COMMANDS)}")
    return command(words[1:])


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has left, as `head` does."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are always reported
    return bool(poll.poll(0))


def _overview() -> str:
    lines = [f"  {name:<9}{(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: physiofast COMMAND [options]", "", *lines, "", "physiofast COMMAND --help says more; --version."]
    )


def _progress() -> Any:
    from physiofast.progress import make_progress

    return make_progress()


def _parse(options: type[Any], name: str, arguments: Sequence[str]) -> Any:
    return tyro.cli(options, args=arguments, prog=f"physiofast {name}")


def _parse_with(options: type[Any], config: Any, name: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """Parse a command's options, and the fields of a config dataclass as further flags; returns both."""
    both = dataclasses.make_dataclass(
        options.__name__,
        [
            ("options", Annotated[options, tyro.conf.arg(name="")]),
            ("config", Annotated[type(config), tyro.conf.arg(name="")], dataclasses.field(default=config)),
        ],
    )
    both.__doc__ = options.__doc__
    parsed: Any = tyro.cli(both, args=arguments, prog=f"physiofast {name}", registry=_flag_types())
    return parsed.options, parsed.config


def _section(name: str, config: Any) -> Any:
    """Wrap a config so that its flags begin with a name, as `--probe.folds` does."""
    of_name = (name, type(config), dataclasses.field(default=config))
    return dataclasses.make_dataclass("Section", [of_name], frozen=True)()


def _flag_types() -> tyro.constructors.ConstructorRegistry:
    """Parse a field that takes a montage or its name as a name only."""
    from physiofast.montage import Montage

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _montage_name(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type != str | Montage:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="STR",
            instance_from_str=lambda words: words[0],
            is_instance=lambda value: isinstance(value, str),
            str_from_instance=lambda value: [value],
        )

    return registry
