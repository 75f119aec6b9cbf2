"""Errors a user can cause: one line each, carrying the exit code the command ends with (sysexits.h)."""

import reprlib
from typing import Any


class EditjaxError(Exception):
    """An error to show as one line; `exit_code` is what the command returns."""

    exit_code = 70


class UsageError(EditjaxError):
    """The command or an option is wrong."""

    exit_code = 2


class DataError(EditjaxError):
    """A file was read and its content cannot be used."""

    exit_code = 65


class NoInputError(EditjaxError):
    """An input is missing or cannot be opened."""

    exit_code = 66


class CannotCreateError(EditjaxError):
    """An output cannot be created, or exists and may not be overwritten."""

    exit_code = 73


class InputOutputError(EditjaxError):
    """Reading or writing failed half way (full disk, broken medium)."""

    exit_code = 74


class TryAgainError(EditjaxError):
    """The run was interrupted in good order and can be resumed (pre-emption)."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: Any) -> str:
    """A value out of a file as an error names it: short, and nothing in it that a terminal obeys."""
    return _SHOWN.repr(value)


_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 100
