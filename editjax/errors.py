"""Errors a user can cause: one line each, carrying the exit code the command ends with (sysexits.h)."""


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
