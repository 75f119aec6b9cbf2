"""Files that appear whole or not at all, and their fingerprints.

Comes in: a path to write to. Goes out: a temporary path beside it that takes its name on success.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from editjax.errors import CannotCreateError, DataError, InputOutputError, NoInputError

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
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder that takes the name `path`, in the place of any folder there, on a clean exit.

    What may be replaced is for the caller to say. Raises OSError as the system does; then all is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".editjax-", dir=path.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


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


def read_regular(path: Path, largest_bytes: int) -> bytes:
    """A file of a folder that somebody else made, at most so large.

    As `open_regular`; a link is a DataError too.
    """
    with open_regular(path, largest_bytes, links=False) as file:
        return file.read(min(os.fstat(file.fileno()).st_size, largest_bytes))


@contextlib.contextmanager
def open_regular(path: Path, largest_bytes: int, links: bool = True) -> Iterator[BinaryIO]:
    """A file to read, at most so large; pipes and devices are not waited for.

    Raises DataError for these and for a larger file, before anything is read, NoInputError for one that
    cannot be opened or read.
    """
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_BINARY", *(() if links else ("O_NOFOLLOW",))):
        flags |= getattr(os, name, 0)  # not all of them exist on all systems
    try:
        if not links and path.is_symlink():
            raise DataError(f"{path}: is a link, which may lead anywhere; copy the file itself there")
        descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: is a folder, a pipe or a device, not a file")
            if status.st_size > largest_bytes:
                raise DataError(f"{path}: {status.st_size} bytes, more than the {largest_bytes} it may have")
            with open(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)
    except OSError as error:
        raise NoInputError(f"{path}: cannot read it ({error.strerror})") from None


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
