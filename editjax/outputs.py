"""Files that appear together or not at all.

Comes in: every path a command is going to write. Goes out: temporary paths beside them, which take their
names when all are written.
"""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from editjax.errors import CannotCreateError, EditjaxError
from editjax.files import atomic_path, check_target

EDITED = "_edited"
"""What the name of an edit adds to its recording's."""


class Outputs:
    """Files that appear together: named before the work, so that what cannot be written is refused first.

    `add` gives the temporary path to write to. On a clean exit all take their names, after the names of all
    were looked at again; on an error none does. Folders that were made and hold nothing are taken away again.
    Errors speak of the final names.
    """

    def __init__(self, overwrite: bool, inputs: Sequence[Path]) -> None:
        self.overwrite, self._inputs = overwrite, tuple(inputs)
        self._stack = contextlib.ExitStack()
        self._new: dict[Path, Path] = {}  # final → temporary
        self._made: list[Path] = []
        self._outdated: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._stack.callback(self._look_again)
        try:
            self._stack.__exit__(kind, error, trace)
        except BaseException as late:
            self._take_folders_away()
            raise self._renamed(late) from None
        if error is not None:
            self._take_folders_away()
            if isinstance(error, EditjaxError):
                raise self._renamed(error) from error.__cause__
            return
        for path in {*self._outdated} - {*self._new}:
            path.unlink(missing_ok=True)
        self._take_folders_away()

    def make_folder(self, path: Path) -> None:
        """Makes a folder, and those above it, unless it is there."""
        self._made[:0] = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotCreateError(
                f"{path}: cannot be created ({error.strerror}); name another folder"
            ) from None

    def make_scratch(self, path: Path) -> Path:
        """A temporary folder in a folder, gone in the end. Raises CannotCreateError."""
        try:
            scratch = tempfile.TemporaryDirectory(prefix=".editjax-", dir=path)
        except OSError as error:
            raise CannotCreateError(
                f"{path}: cannot be written ({error.strerror}); name another folder"
            ) from None
        return Path(self._stack.enter_context(scratch))

    def add(self, path: Path) -> Path:
        """The temporary path of a new output. Raises CannotCreateError before any work is done."""
        if _spelled_out(path) in map(_spelled_out, self._new):
            raise CannotCreateError(f"{path}: is named twice; give each output its own name")
        context = atomic_path(path, self.overwrite, self._inputs)
        self._new[path] = context.__enter__()
        self._stack.push(lambda *error: context.__exit__(*error) if path in self._new else None)
        return self._new[path]

    def outdate(self, path: Path) -> None:
        """Removes an older file in the end, unless an output of that name takes its place."""
        self._outdated.append(path)

    def keep(self, path: Path) -> None:
        """Lets an older file stay that was to be removed."""
        self._outdated.remove(path)

    def drop(self, path: Path) -> None:
        """Takes back an output that turned out to have no content."""
        self._new.pop(path).unlink()

    def __getitem__(self, path: Path) -> Path:
        """Where to write an output that was added."""
        return self._new[path]

    def _look_again(self) -> None:
        for path in self._new:
            check_target(path, self.overwrite, self._inputs)

    def _renamed(self, error: BaseException) -> BaseException:
        text = str(error)
        for final, temporary in self._new.items():
            text = text.replace(str(temporary), str(final))
        return type(error)(text) if isinstance(error, EditjaxError) and text != str(error) else error

    def _take_folders_away(self) -> None:
        for folder in self._made:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()


def _spelled_out(path: Path) -> str:
    return os.path.join(os.path.realpath(path.parent), path.name)
