"""Checks of configs and arguments; an error names the key or argument, what is allowed and what was found."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

_drafting = ContextVar("drafting", default=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """The interval that a number must lie in. `str` of it completes a sentence: "must be at least 0 and below 1"."""

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )

    def __str__(self) -> str:
        words = {"above": self.above, "at least": self.least, "below": self.below, "at most": self.most}
        return " and ".join(f"{word} {edge}" for word, edge in words.items() if edge is not None)


def check_fields(config: Any, section: str, bounds: Mapping[str, Bounds]) -> None:
    """Check that every field of a config dataclass has its type, is finite, and lies within its bounds.

    Fields are converted in place where their annotation asks for it: lists to tuples, NumPy numbers to Python's.

    Args:
        config: the config; its annotations are the types.
        section: prefix of field names in messages, such as "training"; "" for none.
        bounds: bounds by field name, for a number or for each number of a tuple; other fields have none.

    Raises:
        ValueError: a field fails; the message has its key, what is allowed and what was found.
    """
    for name, hint in field_types(type(config)).items():
        key = f"{section}.{name}" if section else name
        object.__setattr__(config, name, _plain(getattr(config, name), hint))  # the dataclass is frozen
        _check(key, getattr(config, name), hint, bounds.get(name))


def refuse_misfit(message: str) -> None:
    """Refuse a config whose fields are each allowed but do not fit together.

    Raises:
        ValueError: always, with the message, except within `drafting`.
    """
    if not _drafting.get():
        raise ValueError(message)


@contextlib.contextmanager
def drafting() -> Iterator[None]:
    """Within the block, fields of a config need not fit together, because more of them are still to be changed.

    The caller checks the complete config afterwards.
    """
    before = _drafting.set(True)
    try:
        yield
    finally:
        _drafting.reset(before)


def require_instance(kind: type, name: str, value: object, advice: str) -> None:
    """Refuse an argument that is not an instance of a type.

    Args:
        kind: the type that is required.
        name: the argument's name.
        value: the argument.
        advice: how to obtain an instance; ends the message.

    Raises:
        TypeError: `value` has another type.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}; found {type(value).__name__}: {advice}")


def field_types(config: type) -> dict[str, Any]:
    """The resolved type of each field of a config dataclass."""
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def by_key(config: Any, kind: type | None = None) -> dict[str, Any]:
    """Config key, such as `seed` or `model.heads` -> value, of a config or of its part that a base class has."""
    values: dict[str, Any] = {}
    for name in field_types(kind or type(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            values |= {f"{name}.{key}": item for key, item in by_key(value).items()}
        else:
            values[name] = value
    return values


def is_finite(value: float) -> bool:
    """Whether a number is finite as a float: neither NaN nor infinite, nor an int above the largest float."""
    return abs(value) <= sys.float_info.max


def _plain(value: Any, hint: Any) -> Any:
    """Convert a list to a tuple if the field's type is one, and a NumPy number to Python's."""
    if isinstance(value, list) and typing.get_origin(hint) is tuple:
        return tuple(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _check(key: str, value: Any, hint: Any, bounds: Bounds | None) -> None:
    origin, arguments, or_none = typing.get_origin(hint), typing.get_args(hint), ""
    if origin in (typing.Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not type(None)]
        if len(kinds) < len(arguments):
            or_none = ", or None"
        if or_none and value is None:
            return
        hint = next((kind for kind in kinds[1:] if isinstance(value, kind)), kinds[0])
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{key} must be one of {', '.join(map(repr, arguments))}; found {value!r}")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"{key} must be a list; found {value!r}")
        for item in value:
            _check(key, item, arguments[0], bounds)
    elif not isinstance(value, (int, float) if hint is float else hint) or (
        hint in (int, float) and isinstance(value, bool)
    ):
        raise ValueError(f"{key} must be {hint.__name__}{or_none}; found {value!r}")
    elif hint is float and not is_finite(value):
        raise ValueError(f"{key} must be a finite number{f' {bounds}' if bounds else ''}{or_none}; found {value!r}")
    elif bounds is not None and value not in bounds:
        raise ValueError(f"{key} must be {bounds}{or_none}; found {value!r}")
