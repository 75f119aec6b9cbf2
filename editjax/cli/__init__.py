"""The command line: arguments → a command's options → its exit code.

`main` is the only place where errors become one line on stderr and a number (sysexits.h). A command's module
is imported when that command is called, so that `editjax --help` loads nothing heavy.
"""

import contextlib
import contextvars
import difflib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import editjax
from editjax.cli.cache import compile_quickly, keep_compiled_code
from editjax.errors import EditjaxError, InputOutputError, TryAgainError, UsageError
from editjax.files import MEDIUM_ERRORS

COMMANDS = {
    "edit": "edit recordings: decide what stays, splice it, write it beside the input",
    "score": "say how far each moment of a recording is from edited audio",
    "render": "render an edit list again, after changing it by hand",
    "mix": "mix stems: levels, filters, compression, loudness, a Reaper project",
    "hear": "say how a stem was mixed, from the stem and the mix",
    "compare": "make a page that compares two mixes blind, excerpt by excerpt",
    "taste": "learn what is liked from the votes of such pages",
    "remix": "make a new piece of windows of two recordings that belong together",
    "align": "find out what somebody cut, looped and moved, from a recording and its edit",
    "simulate": "make recording sessions with known edits",
    "prepare": "turn pairs of raw and edited recordings into mel shards",
    "sounds": "turn recordings into sound shards",
    "mixes": "make mixes with known settings, of sound shards",
    "shards": "check shards against their manifest",
    "train": "train a model on shards, or go on training it",
    "evaluate": "score a model on pairs, beside editors that need none",
    "export": "write a training run as a model",
    "convert-vocoder": "write a HiFi-GAN trained in PyTorch as a model",
    "convert-codec": "write an EnCodec trained in PyTorch as a model",
    "models": "list the models that ship with editjax",
}
"""What each command does; its options and its `run` are in the module of that name, with `_` for `-`."""

INTERRUPTED = 130
DEBUG = contextvars.ContextVar("DEBUG", default=False)
NOTHING_HALF_WRITTEN = "interrupted; nothing was left half-written"


class Terminated(KeyboardInterrupt):
    """SIGTERM came: unwinds like Ctrl-C, so that no temporary file stays."""


@contextlib.contextmanager
def _terminated_in_order() -> Iterator[None]:
    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; the traceback of an internal error needs `--debug`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    DEBUG.set("--debug" in words)
    words = [word for word in words if word != "--debug"]
    return ended(lambda: _dispatch(words))


def ended(do: Callable[[], int]) -> int:
    """The exit code of a command, or of what it ends with, which is said."""
    try:
        with _terminated_in_order():
            return do()
    except EditjaxError as error:
        return complain(error)
    except KeyboardInterrupt as interrupt:
        print("editjax:", str(interrupt) or NOTHING_HALF_WRITTEN, file=sys.stderr)
        return TryAgainError.exit_code if isinstance(interrupt, Terminated) else INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone
        return InputOutputError.exit_code
    except Exception as error:
        return complain_internally(error)


def complain(error: EditjaxError) -> int:
    """Prints an error as one line on stderr and returns its exit code."""
    line = " ".join(str(error).split())
    print("editjax:", "".join(map(_visible, line)), file=sys.stderr, flush=True)
    return error.exit_code


def _visible(character: str) -> str:
    """A character as itself where it is printed, else its escape: names may hold what a terminal obeys."""
    return character if character.isprintable() else ascii(character)[1:-1]


def complain_internally(error: Exception) -> int:
    """The same for an error that nobody foresaw, or that the medium of our own output made."""
    if isinstance(error, OSError) and error.errno in MEDIUM_ERRORS:
        return complain(InputOutputError(f"writing failed ({error.strerror}); free space"))
    if DEBUG.get():
        traceback.print_exception(error)
    hint = "" if DEBUG.get() else "; run it again with --debug and report what that prints"
    return complain(EditjaxError(f"internal error: {type(error).__name__}: {error}{hint}"))


def help_text() -> str:
    """What `editjax --help` prints."""
    rows = "\n".join(f"  {name:<15} {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: editjax COMMAND …\n\n"
        "Edits recordings the way a trained editor would: keeps the good takes, cuts the rest.\n\n"
        f"commands:\n{rows}\n\n"
        "editjax COMMAND --help explains a command's options.\n"
        "--debug, anywhere, shows the traceback of an internal error.\n"
        "Start with: editjax edit IN.wav --plot OUT.png"
    )


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), file=sys.stdout if words else sys.stderr)
        return 0 if words else UsageError.exit_code
    name, rest = words[0], words[1:]
    if name in ("--version", "-V"):
        print(f"editjax {editjax.__version__}")
        return 0
    if name not in COMMANDS:
        raise UsageError(_unknown_command(name))
    keep_compiled_code()
    if name != "train":
        compile_quickly()
    try:
        return importlib.import_module(f"editjax.cli.{name.replace('-', '_')}").run(rest)
    except SystemExit as stop:  # --help of a command
        return int(stop.code or 0)


def _unknown_command(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, 1)
    if near:
        return f"unknown command {name!r}; did you mean {near[0]!r}?"
    if Path(name).exists():
        return f"unknown command {name!r}; did you mean: editjax edit {name}"
    return f"unknown command {name!r}; use one of {', '.join(COMMANDS)}"
