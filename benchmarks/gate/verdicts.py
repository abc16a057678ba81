"""What a section says: a line for each thing that has to hold, written down as soon as it is known."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness import device_is_lost

Outcome = Literal["holds", "FAILS", "not measured", "noted"]
TOLD = "told"
"""Key of the rows of a section, as its `rows` have them, that all has been told of."""


class DeviceLostError(Exception):
    """A kernel has ended this process's use of its device: what follows would only say so again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """One line of the gate."""

    section: str
    text: str
    """What has to hold."""
    outcome: Outcome
    found: str = ""

    def line(self) -> str:
        """As the terminal shows it."""
        found = f": {self.found}" if self.found else ""
        return f"{self.outcome:<12}  {self.section:<20}  {self.text}{found}"


class Notebook:
    """Takes down verdicts and data of one section, line by line, in a file that another process reads.

    Args:
        section: name.
        path: of the file; each line is a JSON object.
        measures: False where times mean nothing; what they would tell is then "not measured".
    """

    def __init__(self, section: str, path: Path, measures: bool) -> None:
        self.section, self.path, self.measures = section, path, measures

    def judge(self, text: str, holds: bool, found: str = "") -> bool:
        """Something that has to be so on any device."""
        self._verdict(text, "holds" if holds else "FAILS", found)
        return holds

    def attempt(self, text: str, check: Callable[[], Any]) -> Any:
        """What a check returns; an exception is a red line of this name, and gives None.

        Raises:
            DeviceLostError: the device can do nothing more in this process.
        """
        try:
            return check()
        except DeviceLostError:
            raise
        except Exception as error:
            self.judge(text, False, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
            if device_is_lost(error):
                raise DeviceLostError(text) from error
            return None

    def judge_time(self, text: str, holds: bool, found: str) -> None:
        """Something that only a GPU can tell."""
        if self.measures:
            self.judge(text, holds, found)
        else:
            self._verdict(text, "not measured", "")

    def note(self, text: str, found: str) -> None:
        """A number that nothing is required of."""
        if self.measures:
            self._verdict(text, "noted", found)

    def skip(self, text: str, why: str) -> None:
        """Something that cannot be told here."""
        self._verdict(text, "not measured", why)

    def told(self, row: str) -> None:
        """All of a row stands above: it is not missing where the section is cut off."""
        self.keep(TOLD, [row])

    def keep(self, key: str, value: Any) -> None:
        """JSON values for the document; a list is added to what is there."""
        self._write({"key": key, "value": value})

    def _verdict(self, text: str, outcome: Outcome, found: str) -> None:
        verdict = Verdict(section=self.section, text=text, outcome=outcome, found=found)
        print(verdict.line(), flush=True)
        self._write({"verdict": dataclasses.asdict(verdict)})

    def _write(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record, default=str) + "\n")


def read(path: Path) -> tuple[list[Verdict], dict[str, Any]]:
    """Verdicts and data that a notebook holds so far; a line that was cut off is left out."""
    verdicts: list[Verdict] = []
    data: dict[str, Any] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            print(f"{path.name}: a line was cut off", file=sys.stderr)
            continue
        if "verdict" in record:
            verdicts.append(Verdict(**record["verdict"]))
        elif isinstance(record["value"], list):
            data.setdefault(record["key"], []).extend(record["value"])
        else:
            data[record["key"]] = record["value"]
    return verdicts, data


def status(verdicts: list[Verdict]) -> int:
    """0: all holds; 1: something fails; 3: nothing fails, and something was not measured."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if "FAILS" in outcomes:
        return 1
    return 3 if "not measured" in outcomes or not verdicts else 0
