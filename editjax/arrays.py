"""NumPy files that somebody else may have written → arrays, nothing of them executed.

Whatever is wrong with one becomes one line: it may be cut short, of another kind, encrypted or full of Python
objects.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from editjax.errors import DataError, EditjaxError, NoInputError

MOST_NAMES = 8
"""Of an archive that an error lists."""


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy. Raises NoInputError for a file that cannot be opened, DataError for any other."""
    with _reading(path) as file:
        array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: holds {_names(array)}, wanted one array without a name")
        return array


def read_arrays(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of an .npz by name, the optional ones where they are there. Raises as `read_array`."""
    with _reading(path) as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: holds one array without a name, wanted {', '.join(required)}")
        with archive:
            for name in required:
                if name not in archive:
                    raise DataError(f"{path}: holds no array {name}, but {_names(archive)}")
            arrays = {name: archive[name] for name in (*required, *optional) if name in archive}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # NumPy gives the bytes of what is no array
                raise DataError(f"{path}: {name} in it is no array")
        return arrays


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """A NumPy file, open."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        try:
            yield file
        except EditjaxError:
            raise
        except Exception as error:  # damaged archives fail in any way
            if "allow_pickle" in str(error):
                why = "not a NumPy file, or one of Python objects, which are refused"
            else:
                why = f"damaged, or not a NumPy file ({type(error).__name__}: {error})"
            raise DataError(f"{path}: {' '.join(why.split())}") from error


def _names(archive: Any) -> str:
    names = [*archive]
    return ", ".join([*names[:MOST_NAMES], *(["…"] if names[MOST_NAMES:] else [])]) or "nothing"
