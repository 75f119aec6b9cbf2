"""Arguments → a command's frozen options dataclass, by tyro; every refusal is one line (UsageError)."""

import contextlib
import difflib
import io
import itertools
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from editjax.errors import UsageError

if TYPE_CHECKING:
    from editjax.formats import AudioLimits

Options = TypeVar("Options")


def named(metavar: str, *aliases: str) -> Any:
    """How an option is shown whose default is "not given": with a name for its value and no default."""
    return tyro.conf.arg(metavar=metavar, aliases=aliases or None, help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """The options of all commands that open recordings: what is refused."""

    allow_truncated: bool = False
    """Take what a truncated or damaged recording still holds."""
    max_duration: Annotated[str, tyro.conf.arg(metavar="LENGTH")] = "12h"
    """Refuse recordings longer than this."""
    max_channels: int = 64
    """Refuse recordings with more channels than this."""
    max_rate: Annotated[int, tyro.conf.arg(metavar="HZ")] = 768_000
    """Refuse recordings with a higher sample rate than this."""

    def limits(self) -> "AudioLimits":
        """The limits. Raises UsageError for a length that cannot be read."""
        from editjax.adjust import parse_length
        from editjax.formats import AudioLimits

        return AudioLimits(parse_length(self.max_duration), self.max_channels, self.max_rate)


def parse(kind: type[Options], arguments: Sequence[str], prog: str, spread: str | None = None) -> Options:
    """The options of one command; `spread` names the tuple field that takes the words between the options.

    Raises UsageError (unknown option, with the nearest known one; bad or missing value) and SystemExit(0)
    after `--help`.
    """
    options, rest = parse_leading(kind, arguments, prog)
    for word in rest:
        if word.startswith("-"):
            raise UsageError(_unknown_option(word.split("=")[0], kind, prog))
    if rest and spread is None:
        raise UsageError(f"unexpected argument {rest[0]!r}; see {prog} --help")
    if rest:
        options = replace(options, **{spread: (*getattr(options, spread), *rest)})  # type: ignore
    return options


def parse_leading(kind: type[Options], arguments: Sequence[str], prog: str) -> tuple[Options, list[str]]:
    """The options of one command and the words it does not know, which another parser may."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(
                kind,
                prog=prog,
                args=list(arguments),
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_first_paragraph(caught.getvalue())}; see {prog} --help") from None


def _unknown_option(word: str, kind: Any, prog: str) -> str:
    near = difflib.get_close_matches(word, _flags(kind), 1)
    return f"unknown option {word}; " + (f"did you mean {near[0]}?" if near else f"see {prog} --help")


def _flags(kind: Any) -> list[str]:
    """The long options of a dataclass and of those in it, whose names are used without a prefix."""
    flags = []
    for field in fields(kind):
        flags.append(f"--{field.name.replace('_', '-')}")
        if field.default_factory is not MISSING and is_dataclass(inner := field.default_factory()):
            flags += _flags(inner)
    return flags


def _first_paragraph(box: str) -> str:
    """What tyro says is wrong: the lines between the title and the next rule of its box, UTF-8 or ASCII."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    said = itertools.dropwhile(_is_rule, lines)
    return " ".join(itertools.takewhile(lambda line: not _is_rule(line), said)).rstrip(".")


def _is_rule(line: str) -> bool:
    return not line.strip("─-")
