"""metrics.jsonl of a run folder: one JSON object per line, each with a `step`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from physiofast.support.atomic import atomic_path
from physiofast.support.messages import command
from physiofast.support.strictjson import strict


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of metrics.jsonl, without a last line that a kill cut off.

    Raises:
        OSError: there is no such file.
        ValueError: another line than the last is no JSON object with a step.
    """
    texts = path.read_text(errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if type(line["step"]) is not int or not isinstance(line.get("eval", {}), dict):
                raise TypeError(f"found {text[:80]!r}")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts):
                break
            raise ValueError(
                f"{path}, line {number}: not a JSON object with a step ({error}); delete that line, which costs a "
                "point of the curves and nothing else"
            ) from error
        lines.append(line)
    return lines


class MetricsLog:
    """Appends to metrics.jsonl, after it has dropped the lines of steps that a resumed run computes again.

    Args:
        path: the file.
        keep_before: number of finished steps from which the run continues; lines of later steps are dropped.
        track: is also called with every new line.
    """

    def __init__(self, path: Path, keep_before: int, track: Callable[[Mapping[str, Any]], None]) -> None:
        self.path, self._track = path, track
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [line for line in read_lines(path) if line["step"] <= keep_before] if path.exists() else []
        evaluations = [line for line in lines if "eval" in line]
        last: Mapping[str, Any] = evaluations[-1] if evaluations else {"step": 0, "eval": {}}
        errors = {k.removeprefix("error."): v for k, v in last["eval"].items() if v is not None}
        self.last_evaluation: tuple[int, dict[str, float]] = last["step"], errors
        """Step of the last evaluation that was kept, 0 without one, and its hidden-patch error of each modality."""
        with atomic_path(path) as part:
            part.write_text("".join(_to_json(line) for line in lines))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one object; numbers that are not finite become null, as JSON has none.

        Raises:
            OSError: it cannot be written; half a line may remain, which a resumed run drops.
        """
        line = strict(line)
        try:
            with self.path.open("a") as file:
                file.write(_to_json(line))
        except OSError as error:
            run = self.path.parent
            raise OSError(
                f"{self.path} cannot be written: {error}; make room there, or allow writing, "
                f"then go on with `{command('train', '--resume', run)}`"
            ) from error
        self._track(line)


class NoLog:
    """The log of a process that leaves it to another one: nothing is written, and no earlier line is known."""

    def __init__(self) -> None:
        self.last_evaluation: tuple[int, dict[str, float]] = 0, {}

    def write(self, line: Mapping[str, Any]) -> None:
        """Discard the line."""


def _to_json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
