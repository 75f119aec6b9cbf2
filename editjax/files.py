"""Files that appear whole or not at all, and their fingerprints.

Comes in: a path to write to. Goes out: a temporary path beside it that takes its name on success.
"""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from editjax.errors import CannotCreateError, InputOutputError, NoInputError

MEDIUM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""The medium gave out while writing; everything else is a name that cannot be created."""


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike[str],
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[Path]:
    """Yields a temporary path in the target's folder; on a clean exit it is synced and renamed to `path`.

    The temporary file keeps the suffix and is removed on any error or interrupt. Raises CannotCreateError
    when `path` exists and may not be overwritten, is one of `inputs` (same inode, so links count too), or its
    folder cannot be written; InputOutputError when the medium gives out.
    """
    path, inputs = Path(path), tuple(inputs)
    check_target(path, overwrite, inputs)
    temporary = path.parent / f".editjax-{secrets.token_hex(8)}{path.suffix}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        yield temporary
        check_target(path, overwrite, inputs)
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        if os.name == "posix":
            _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.errno in MEDIUM_ERRORS:
            raise _cannot_write(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_errors() -> Iterator[None]:
    """Where a temporary file is made and filled: what goes wrong there becomes an InputOutputError."""
    try:
        yield
    except OSError as error:
        raise InputOutputError(
            f"no room for the decoded samples in the temporary folder ({error.strerror}); "
            "set TMPDIR to a folder with more space"
        ) from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hex. Raises NoInputError when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read ({error.strerror}); check the name") from None


def check_target(path: Path, overwrite: bool, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Raises CannotCreateError for a name that `atomic_path` would refuse."""
    try:
        str(path).encode()
        for source in inputs:
            if path.exists() and os.path.exists(source) and path.samefile(source):
                raise CannotCreateError(f"{path}: is the input {source}; choose another output name")
        if path.is_dir():
            raise CannotCreateError(f"{path}: is a folder; name a file in it")
        if os.path.lexists(path) and not overwrite:
            raise CannotCreateError(f"{path}: exists already; choose another name or allow --overwrite")
        if not path.parent.is_dir():
            raise CannotCreateError(f"{path}: there is no folder {path.parent}; create it first")
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, a folder that may not be entered
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotCreateError(f"{path}: cannot be created ({reason}); choose another name") from None


def _cannot_write(path: Path, error: OSError) -> InputOutputError | CannotCreateError:
    if error.errno in MEDIUM_ERRORS:
        return InputOutputError(
            f"{path}: writing failed ({error.strerror}); free space or choose another folder"
        )
    return CannotCreateError(f"{path}: cannot be created ({error.strerror}); choose another folder or name")


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
