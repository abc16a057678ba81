"""Which threads run when: a program's instructions, in an order that a GPU may choose."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np

from benchmarks.emulator import accesses, groups, scalars, warps
from benchmarks.emulator.machine import Machine
from benchmarks.emulator.memory import Array, FaultError
from benchmarks.emulator.parsing import Instruction, Literal, Program, Register, registers_in
from benchmarks.emulator.scalars import KINDS, Run, Who, reader

_MAKERS = (scalars.compiled, warps.compiled, groups.compiled, accesses.compiled)


class Step:
    """An instruction, made ready.

    Attributes:
        kind: `run`, `group` (of all threads of a warp group), `branch`, `barrier` or `end`.
        run: what it does.
        uses: registers of products that it reads or writes without being one.
        target: where a branch goes.

    Raises:
        ValueError: nobody here knows it.
    """

    def __init__(self, instruction: Instruction, labels: Mapping[str, int], of_products: Set[Register]) -> None:
        self.instruction, self.target = instruction, -1
        self.run: Run | None = None
        self._guard = None if instruction.guard is None else reader(instruction.guard, KINDS["pred"])
        name = instruction.name
        named = [] if name.startswith("wgmma") else registers_in(instruction.operands)
        self.uses = [register for register in named if register in of_products]
        if name == "bra" or (name == "bra.uni" and self._guard is None):
            (label,) = instruction.operands
            assert isinstance(label, str)
            self.kind, self.target = "branch", labels[label]
        elif name in ("ret", "exit"):
            self.kind = "end"
        elif name == "bar.sync" and instruction.operands == (Literal("0"),):  # of all threads
            self.kind = "barrier"
            self.run = lambda machine, who: machine.shared.meet(machine.everybody[who])
        else:
            self.kind = "group" if name.startswith("wgmma") else "run"
            self.run = next(filter(None, (make(instruction) for make in _MAKERS)), None)
            if self.run is None:
                raise ValueError(f"not known: {instruction.text}")

    def allowed(self, machine: Machine, who: Who) -> Who:
        """Those of the threads whose guard lets them; the same object where it lets all."""
        if self._guard is None:
            return who
        allowed = self._guard(machine, who) ^ self.instruction.is_negated
        return who if allowed.all() else machine.everybody[who][allowed]


def ready(program: Program) -> list[Step]:
    """Its instructions, for `run`."""
    of_products = groups.registers(program)
    return [Step(instruction, program.labels, of_products) for instruction in program.instructions]


Watch = Callable[[Instruction, Machine, Who], None]


def run(machine: Machine, code: Sequence[Step], order: random.Random | None = None, watch: Watch | None = None) -> None:
    """All threads, to their end.

    Args:
        machine: their registers and memory.
        code: what `ready` makes of its program.
        order: without, all threads go together, those first that are furthest behind; with, warps go one after the
            other, in this order, each as far as it can without the others.
        watch: is told of each instruction before it is run.

    Raises:
        FaultError: an access or a synchronisation that a GPU would not take, or may answer with anything.
    """
    _Schedule(machine, code, order, watch).run()


class _Schedule:
    """Which threads are where. A unit is of threads that go together: a dict from instruction to threads."""

    def __init__(
        self, machine: Machine, code: Sequence[Step], order: random.Random | None, watch: Watch | None
    ) -> None:
        self._machine, self._code, self._order, self._watch = machine, code, order, watch
        warp = machine.thread // warps.WARP
        self._unit = warp if order is not None else np.zeros_like(warp)
        numbers = range(int(self._unit.max()) + 1)
        self._units = [{0: machine.everybody[self._unit == number]} for number in numbers]
        self._waiting: dict[int, Array] = {}
        """Instruction -> threads that are at it and wait for others."""
        self._alive = np.full(len(machine.blocks), machine.program.threads)

    def run(self) -> None:
        """To the end."""
        while runnable := [unit for unit in self._units if unit]:
            unit = runnable[0] if self._order is None else self._order.choice(runnable)
            while unit:
                self._advance(unit)
        if self._waiting:
            texts = [self._code[place].instruction.text for place in self._waiting]
            raise FaultError(f"threads wait for others that have ended, at {' and '.join(texts)}")

    def _advance(self, unit: dict[int, Array]) -> None:
        """The threads furthest behind, until others of the unit are met."""
        machine, place = self._machine, min(unit)
        threads = unit.pop(place)
        others = min(unit, default=len(self._code) + 1)
        who: Who = slice(None) if len(threads) == len(machine.everybody) else threads
        while place < others:
            step = self._code[place]
            allowed = step.allowed(machine, who)
            if step.kind == "run":
                if isinstance(allowed, slice) or len(allowed):
                    self._do(step, allowed)
            elif step.kind == "branch":
                if allowed is who:
                    place = step.target
                    continue
                if len(allowed):
                    self._part(unit, threads, allowed, step.target, place + 1)
                    return
            elif step.kind == "end":
                ended = machine.everybody[allowed]
                self._alive -= np.bincount(machine.block[ended], minlength=len(self._alive))
                self._open_barriers()
                if allowed is not who:
                    unit[place + 1] = np.setdiff1d(threads, ended, assume_unique=True)
                return
            else:
                if allowed is not who:
                    raise FaultError(f"threads part at {step.instruction.text}")
                if not self._is_together(step, threads):
                    self._wait(step, place, threads)
                    return
                if step.run is not None:
                    self._do(step, who)
            place += 1
        _join(unit, place, threads)

    def _part(self, unit: dict[int, Array], threads: Array, chosen: Array, target: int, following: int) -> None:
        _join(unit, target, chosen)
        _join(unit, following, np.setdiff1d(threads, chosen, assume_unique=True))

    def _do(self, step: Step, who: Who) -> None:
        assert step.run is not None
        if self._watch is not None:
            self._watch(step.instruction, self._machine, who)
        try:
            step.run(self._machine, who)
        except FaultError as fault:
            raise FaultError(f"{fault}: {step.instruction.text}") from None
        if step.uses:
            self._machine.products.use(step.uses, who)

    def _is_together(self, step: Step, threads: Array) -> bool:
        """Whether nobody has to be waited for."""
        if step.kind == "group":
            return bool(self._in_whole_groups(threads).all())
        return len(threads) == int(self._alive.sum())

    def _in_whole_groups(self, threads: Array) -> Array:
        group = threads // groups.GROUP
        return np.bincount(group)[group] == groups.GROUP  # type: ignore[no-any-return]

    def _wait(self, step: Step, place: int, threads: Array) -> None:
        """At an instruction, until the others of a warp group or of a block are there."""
        _join(self._waiting, place, threads)
        if step.kind == "group":
            here = self._waiting[place]
            if (full := self._in_whole_groups(here)).any():
                self._do(step, here[full])
                self._go_on(place, full)
        else:
            self._open_barriers()

    def _open_barriers(self) -> None:
        """Of blocks whose living threads are all at one."""
        block = self._machine.block
        for place in [place for place in self._waiting if self._code[place].kind == "barrier"]:
            here = block[self._waiting[place]]
            full = (np.bincount(here, minlength=len(self._alive)) == self._alive)[here]
            if full.any():
                self._do(self._code[place], self._waiting[place][full])
                self._go_on(place, full)

    def _go_on(self, place: int, chosen: Array) -> None:
        """Those of the threads that waited at an instruction, each in its unit."""
        here = self._waiting.pop(place)
        if not chosen.all():
            self._waiting[place] = here[~chosen]
        threads = here[chosen]
        for number in np.unique(self._unit[threads]):
            _join(self._units[number], place + 1, threads[self._unit[threads] == number])


def _join(unit: dict[int, Array], place: int, threads: Array) -> None:
    unit[place] = np.union1d(unit[place], threads) if place in unit else threads
