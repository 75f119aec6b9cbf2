"""Frozen dataclass trees: from `configs/NAME.py`, from the command line, to JSON and back.

A config is a short Python file whose `config()` returns the settings of one experiment; its docstring says
the command, the cost and the score to expect. JSON is strict: what a reader does not know, it refuses.
"""

import contextlib
import dataclasses
import difflib
import io
import runpy
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from editjax.errors import DataError, NoInputError, UsageError, shown

Settings = TypeVar("Settings")
Json = dict[str, Any]

LARGEST_SIZE = 1 << 16
MOST_LAYERS = 64
COMPUTED_IN = ("float32", "bfloat16", "float16")


def load_config(path: str | Path) -> Any:
    """What `config()` of a Python file returns; NoInputError when there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise NoInputError(f"{path}: no such config; those that come with editjax are in configs/")
    try:
        build = runpy.run_path(str(path)).get("config")
    except Exception as error:  # a config is a program, and may be wrong in any way
        raise DataError(f"{path}: is no config ({type(error).__name__}: {error})") from error
    if build is None:
        raise DataError(f"{path}: defines no config() function")
    try:
        return build()
    except (ValueError, UsageError) as error:
        raise DataError(f"{path}: {error}") from None


def override(settings: Settings, arguments: Sequence[str]) -> Settings:
    """Settings with fields changed by command-line arguments such as `--optim.steps 100`.

    UsageError for an unknown option (naming the nearest) or a bad value; `--help` prints all and exits.
    """
    if not arguments:
        return settings
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            changed, unknown = tyro.cli(
                type(settings),
                default=settings,
                args=list(arguments),
                prog="editjax train CONFIG",
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_complaint(printed.getvalue())) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if unknown:
        near = difflib.get_close_matches(unknown[0].lstrip("-"), option_names(settings), 1)
        hint = f"did you mean --{near[0]}?" if near else "editjax train CONFIG --help lists them"
        raise UsageError(f"unknown option {unknown[0]}; {hint}")
    return changed


def option_names(settings: Any, prefix: str = "") -> list[str]:
    """The dotted command-line names of all fields, `optim.learning-rate`."""
    names = []
    for field in dataclasses.fields(settings):
        name, value = prefix + field.name.replace("_", "-"), getattr(settings, field.name)
        names += option_names(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return names


def to_json(settings: Any) -> Json:
    """A dataclass tree as plain JSON values (tuples become lists)."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def from_json(kind: type[Settings], values: Json, where: str = "settings") -> Settings:
    """The inverse of `to_json`; DataError names an unknown or missing field and one of the wrong type."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: expected an object of settings, found {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise DataError(f"{where}: unknown field {shown(name)}; this version knows {', '.join(fields)}")
    for name, field in fields.items():
        if name not in values and _is_required(field):
            raise DataError(f"{where}: field {name!r} is missing")
    read = {name: _typed(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return kind(**read)
    except (ValueError, UsageError) as error:
        raise DataError(f"{where}: {error}") from None


def refuse_sizes(settings: Any, *positive: str) -> None:
    """ValueError for numbers that no model's settings have, and for those named unless they are above 0.

    Otherwise they would fill any memory, or be traced without an end.
    """
    for field in dataclasses.fields(settings):
        name, value = field.name, getattr(settings, field.name)
        most = MOST_LAYERS if name.endswith("layers") else LARGEST_SIZE
        least = 1 if name in positive else -LARGEST_SIZE if isinstance(value, float) else 0
        for number in _numbers(name, value):
            if not least <= number <= most:
                raise ValueError(f"{name} {shown(number)}: give at least {least}, no larger than {most}")
        if name == "dtype" and value not in COMPUTED_IN:
            raise ValueError(f"dtype {shown(value)}: choose one of {', '.join(COMPUTED_IN)}")


def _numbers(name: str, value: Any) -> list[float]:
    """The numbers in one setting, which may be in a tuple, or in tuples in one."""
    if not isinstance(value, tuple):
        return [value] if isinstance(value, (int, float)) else []
    if len(value) > MOST_LAYERS:
        raise ValueError(f"{name} has {len(value)} entries: give at most {MOST_LAYERS}")
    return [number for item in value for number in _numbers(name, item)]


def first_difference(a: Any, b: Any, name: str = "") -> str | None:
    """The dotted name of the first field in which two JSON values differ, or None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a | b:
            inner = f"{name}.{key}" if name else key
            if key not in a or key not in b:
                return inner
            if found := first_difference(a[key], b[key], inner):
                return found
        return None
    return None if a == b else name


def _complaint(printed: str) -> str:
    """What tyro says is wrong, without the box round it and the help below it."""
    lines = [line.strip("│| ") for line in printed.splitlines()]
    problems = [line for line in lines if line.strip("╭╮╰╯├┤─- ")]
    return problems[1] if len(problems) > 1 else "the settings on the command line cannot be understood"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no place in settings: use numbers, names and tuples of them")


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated `kind`: dataclass, tuple, union with None, Literal or scalar."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_json(kind, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        inner = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
        if len(inner) == len(value):
            return tuple(_typed(k, v, where) for k, v in zip(inner, value, strict=True))
    elif origin is typing.Literal and value in arguments:
        return value
    elif origin in (typing.Union, types.UnionType):
        return _member(arguments, value, where)
    elif kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif kind is Any or type(value) is kind:
        return value
    raise DataError(f"{where}: {shown(value)} is not a {getattr(kind, '__name__', kind)}")


def _member(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    problem = DataError(f"{where}: {shown(value)} is not allowed here")
    for kind in kinds:
        if kind is types.NoneType:
            continue
        try:
            return _typed(kind, value, where)
        except DataError as error:
            problem = error
    raise problem
