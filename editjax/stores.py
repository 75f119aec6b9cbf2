"""Files that lie in an object store, under the names of `pathlib`: s3://bucket/pairs, gs://bucket/shards.

`place` turns what a user named into a path of this machine or of a store. fsspec reaches the stores, with the
package of each (s3fs, gcsfs, adlfs). In a store an object appears whole when it has been written; none can be
renamed, and folders are only what names begin with. What must be a file of this machine, such as audio, is
copied to one and back.
"""

import contextlib
import errno
import fnmatch
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self, cast

from editjax.errors import CannotCreateError, InputOutputError, NoInputError, UsageError, first_line
from editjax.files import atomic_path

CHANGING = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")
"""Where stores say that an object is another one than before; each has some of these."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class StorePath(PurePosixPath):
    """An object, or the folder that names begin with: as much of `pathlib.Path` as is asked of one.

    Raises InputOutputError when the store cannot be reached or refuses. Listings are kept, so that what they
    tell of each object is not asked for again: see `refresh`.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def exists(self) -> bool:
        """Whether there is such an object or folder."""
        return self._ask("exists")

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return self._ask("isfile")

    def is_dir(self) -> bool:
        """Whether names of objects begin with this one and a slash, or it is a bucket."""
        return self._ask("isdir")

    def iterdir(self) -> Iterator[Self]:
        """What lies in the folder; nothing where there is no such folder."""
        with contextlib.suppress(FileNotFoundError):
            yield from self._below(self._ask("ls", detail=False))

    def glob(self, pattern: str) -> Iterator[Self]:
        """What lies in one folder and has a name like this; only the last part is a pattern."""
        named = PurePosixPath(pattern)
        for path in (self / named.parent).iterdir():
            if fnmatch.fnmatchcase(path.name, named.name):
                yield path

    def rglob(self, pattern: str) -> Iterator[Self]:
        """Every object in the folder and the folders in it that has a name like this."""
        for path in self._below(self._ask("find")):
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def info(self) -> dict[str, Any]:
        """What the store says of an object."""
        return self._ask("info")

    def read_bytes(self) -> bytes:
        """The object's content. Raises FileNotFoundError without one."""
        return self._ask("cat_file")

    def read_text(self, encoding: str = "utf-8") -> str:
        """The object's content as text."""
        return self.read_bytes().decode(encoding)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there when something is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object; with `missing_ok` after a look whether it is there."""
        if not missing_ok or self.exists():
            self._ask("rm_file")

    def rmtree(self) -> None:
        """Remove everything in the folder."""
        with contextlib.suppress(FileNotFoundError):
            self._ask("rm", recursive=True)

    def download(self, local: Path) -> None:
        """Copy the object to a file of this machine. Raises NoInputError when it has gone."""
        try:
            self._ask("get_file", str(local))
        except FileNotFoundError:
            raise NoInputError(f"{self}: is there no longer") from None
        except InputOutputError as error:
            if getattr(error.__cause__, "errno", None) in NO_ROOM:  # nothing is written but here
                raise InputOutputError(
                    f"{local.parent}: no room for {self} there; set TMPDIR to a folder with more space"
                ) from error
            raise

    def upload(self, local: Path) -> None:
        """Copy a file of this machine to the object, then whole; CannotCreateError without its bucket."""
        system, key = self._system()
        try:
            with self._refusals():
                system.put_file(str(local), key)
        except FileNotFoundError:
            raise CannotCreateError(f"{self}: there is no such bucket; create it first") from None

    def refresh(self) -> None:
        """Forget listings: other processes have written since."""
        self._system()[0].invalidate_cache()

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        system, key = self._system()
        with self._refusals():
            return getattr(system, method)(key, *arguments, **options)

    def _below(self, names: list[str]) -> Iterator[Self]:
        _, key = self._system()
        for name in sorted(names):
            if below := name.removeprefix(key).strip("/"):
                yield self / below

    def _system(self) -> tuple[Any, str]:
        """The store, and this name in it."""
        from fsspec.core import url_to_fs

        with self._refusals():
            return url_to_fs(str(self))

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # every store has its own
            raise InputOutputError(
                f"{self}: {first_line(error)}; check the name and your access to the store"
            ) from error


def place(named: str | Path) -> Path:
    """The path that a user named; UsageError for a store of which the package is missing, or an unknown one.

    file:// is this machine. A name in which slashes mean more than a path keeps is refused. A StorePath goes
    by the name of Path: it has the methods that are asked of it.
    """
    scheme, separator, name = str(named).partition("://")
    if not separator:
        return Path(named)
    if scheme == "file" and name:
        return Path(name)
    if not name or name.startswith("/") or "//" in name:
        raise UsageError(
            f"{named}: give a bucket or a host, and names after single slashes: s3://bucket/pairs"
        )
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise UsageError(f"{named}: {first_line(error)}") from None
    except ValueError:
        raise UsageError(f"{named}: no store {scheme}:// is known; try s3://, gs:// or a folder") from None
    return cast(Path, StorePath(str(named)))


def in_store(path: Path) -> bool:
    """Whether a path is of a store and no file of this machine."""
    return isinstance(path, StorePath)


def stamp(path: Path) -> tuple[int, str]:
    """The size in bytes, and what changes with the content: the time it was written, a store's checksum."""
    if isinstance(path, StorePath):
        info = path.info()
        return int(info["size"] or 0), " ".join(str(info[key]) for key in CHANGING if key in info)
    status = path.stat()
    return status.st_size, str(status.st_mtime_ns)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file of this machine to write, which becomes `path` when the block ends well: whole or not at all."""
    if isinstance(path, StorePath):
        with tempfile.TemporaryDirectory(prefix="editjax-") as folder:
            yield (local := Path(folder, path.name))
            path.upload(local)
    else:
        with atomic_path(path, overwrite=True) as temporary:
            yield temporary


def refresh(folder: Path) -> None:
    """See what other processes have written."""
    if isinstance(folder, StorePath):
        folder.refresh()


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it."""
    if isinstance(folder, StorePath):
        folder.rmtree()
    else:
        shutil.rmtree(folder)
