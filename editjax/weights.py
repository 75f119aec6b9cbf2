"""Tensors out of other programs' weights: a PyTorch checkpoint or a safetensors file, without PyTorch.

A PyTorch checkpoint is a pickle, which is a program: whoever loads one runs what its author wrote. Here it
may build dictionaries, lists, tuples and numbers, and say where in the file tensors lie; at anything else
reading ends before it happens. Sizes, strides and places are checked before a tensor is read, and no more is
read than the file has bytes, so that a small file cannot ask for a large memory.

The two forms are torch.save's: a zip archive (since 1.6), and the row of pickles before it, in which the
weights of the HiFi-GAN paper are.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from editjax.errors import DataError
from editjax.files import open_regular

LARGEST_FILE_BYTES = 2 << 30
LARGEST_PICKLE_BYTES = 16 << 20
MOST_ENTRIES = 100_000
DEEPEST = 8
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

BFLOAT16 = "bfloat16"
STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "<u1",
}

OPCODES = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
"""
"""What torch.save writes of a state dict, in pickle's protocols 2 and 4."""


class _Kind(NamedTuple):
    """The type of a storage's numbers."""

    dtype: str


class _Storage(NamedTuple):
    """Numbers in a row, somewhere in the file."""

    key: str
    dtype: str
    numel: int

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == BFLOAT16 else np.dtype(self.dtype).itemsize

    @property
    def n_bytes(self) -> int:
        return self.numel * self.itemsize


class _Tensor(NamedTuple):
    """A tensor that lies in a storage, within its bounds; offset and strides in items."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The file's tensors as float32 by their names, those of nested dictionaries joined by dots.

    Raises NoInputError for a file that cannot be opened, DataError for one that is no such file, is damaged,
    or would do more than hold tensors.
    """
    with open_regular(path, LARGEST_FILE_BYTES) as file:
        head = file.read(9)
        file.seek(0)
        # First, for the length of a safetensors header may begin with any byte: every 32nd with a pickle's.
        if head[8:] == b"{":
            return _read_safetensors(path)
        if head.startswith(b"PK"):
            return _read_zip(path, file)
        if head.startswith(b"\x80"):
            return _read_legacy(path, file)
    raise DataError(f"{path}: neither a PyTorch checkpoint nor a safetensors file")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: _single(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:  # or of a type NumPy lacks
        raise DataError(f"{path}: not a safetensors file that can be read ({error})") from error


def _read_zip(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """An archive of one folder: the pickle, and each storage in a file of its own, nothing compressed."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
            if len(folders) != 1:
                raise DataError(f"{path}: a zip archive, but not a PyTorch checkpoint")

            def record(name: str) -> bytes:
                if folders[0] + name not in names:
                    raise DataError(f"{path}: {name} is missing in it")
                info = archive.getinfo(folders[0] + name)
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                    raise DataError(f"{path}: {name} is compressed, as PyTorch never does")
                return archive.read(info)

            if folders[0] + "byteorder" in names and record("byteorder") != b"little":
                raise DataError(f"{path}: written on a big-endian machine; save it again on another")
            held, _ = _unpickled(path, io.BytesIO(record("data.pkl")))
            return _tensors(path, held, lambda storage: record(f"data/{storage.key}"))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{path}: a damaged checkpoint ({error})") from error


def _read_legacy(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """Pickles: a magic number, a version, the machine, what is held, the storages' keys; then the storages.

    Before each storage stands its number of items, in eight bytes.
    """
    magic, version, machine = (_unpickled(path, file)[0] for _ in range(3))
    if (magic, version) != (LEGACY_MAGIC, LEGACY_VERSION) or not isinstance(machine, dict):
        raise DataError(f"{path}: a pickle, but not a PyTorch checkpoint")
    if dict.get(machine, "little_endian") is not True:  # of the type itself: a pickle may set an attribute
        raise DataError(f"{path}: written on a big-endian machine; save it again on another")
    held, storages = _unpickled(path, file)
    keys, places, at = _unpickled(path, file)[0], {}, file.tell()
    size = path.stat().st_size
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages:
            raise DataError(f"{path}: a storage that nothing is said of")
        places[key] = at
        at += 8 + storages[key].n_bytes
        if at > size:
            raise DataError(f"{path}: storages of more bytes than the file has")

    def read(storage: _Storage) -> bytes:
        if storage.key not in places:
            raise DataError(f"{path}: storage {storage.key} is missing in it")
        file.seek(places[storage.key])
        if file.read(8) != storage.numel.to_bytes(8, "little"):
            raise DataError(f"{path}: storage {storage.key} is not as long as it is said to be")
        return file.read(storage.n_bytes)

    return _tensors(path, held, read)


def _unpickled(path: Path, file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """What one pickle says, and the storages it names; the file is left behind it.

    The codes are looked through first: a number for the memo alone can cost any memory.
    """
    start, known = file.tell(), set(OPCODES.split())
    try:
        for code, argument, at in pickletools.genops(file):
            if code.name not in known:
                raise DataError(
                    f"{path}: holds a pickle with {code.name}, which tensors do not need: refused"
                )
            memo = argument if code.name.endswith("PUT") else 0
            if max((at or 0) - start, memo or 0) > LARGEST_PICKLE_BYTES:
                raise DataError(f"{path}: holds a larger pickle than tensors need: refused")
        length = file.tell() - start
        file.seek(start)
        unpickler = _Unpickler(path, io.BytesIO(file.read(length)))
        return unpickler.load(), unpickler.storages
    except DataError:
        raise
    except Exception as error:  # damaged codes fail in any way
        raise DataError(f"{path}: a damaged pickle ({type(error).__name__}: {error})") from error


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries in order, storages, and how a tensor lies in one; refuses everything else."""

    def __init__(self, path: Path, file: BinaryIO):
        super().__init__(file)
        self.path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # New functions each time: a pickle may set attributes of what it is given.
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: OrderedDict()
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *parts: self._tensor(*parts)
        if module == "torch" and name in STORAGES:
            return _Kind(STORAGES[name])
        raise DataError(
            f"{self.path}: wants to call {module}.{name}; refused, and nothing in it was executed"
        )

    def persistent_load(self, parts: Any) -> _Storage:
        match parts:
            case ("storage", _Kind(dtype), str(key), str(), int(numel), *rest) if rest in ([], [None]):
                storage = _Storage(key, dtype, numel)
                if numel >= 0 and self.storages.setdefault(key, storage) == storage:
                    return storage
        raise DataError(f"{self.path}: a storage of an unknown kind or of several lengths")

    def _tensor(self, *parts: Any) -> _Tensor:
        match parts:
            case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if len(shape) == len(
                strides
            ) <= DEEPEST and all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
                last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
                if math.prod(shape) <= storage.numel and (last < storage.numel or not math.prod(shape)):
                    return _Tensor(storage, offset, shape, strides)
        raise DataError(f"{self.path}: a tensor that does not lie within its storage")


def _tensors(path: Path, held: Any, read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    """The tensors in what a checkpoint holds, as float32."""
    named = _named(path, held)
    in_all = sum(math.prod(tensor.shape) * tensor.storage.itemsize for tensor in named.values())
    if in_all > path.stat().st_size:
        raise DataError(f"{path}: tensors of {in_all} bytes, more than the file has: refused")
    arrays: dict[str, np.ndarray] = {}
    for name, (storage, offset, shape, strides) in named.items():
        blob = read(storage)
        if len(blob) != storage.n_bytes:
            raise DataError(f"{path}: {name} has {len(blob)} bytes of {storage.n_bytes}")
        numbers = _numbers(blob, storage.dtype)
        steps = tuple(numbers.itemsize * step for step in strides)
        try:
            part = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
            arrays[name] = _single(part)
        except (OverflowError, ValueError) as error:  # of no items, but with sides of any length
            raise DataError(f"{path}: {name} has a size or a stride that no array has") from error
    return arrays


def _named(path: Path, held: Any) -> dict[str, _Tensor]:
    """The tensors in nested dictionaries, by their keys joined with dots."""
    named: dict[str, _Tensor] = {}
    waiting, seen = [("", held, 0)], 0
    while waiting:
        prefix, tree, depth = waiting.pop()
        if not isinstance(tree, dict):
            continue
        seen += len(tree)
        if depth > DEEPEST or seen > MOST_ENTRIES:
            raise DataError(f"{path}: dictionaries in dictionaries without an end: refused")
        for key, value in dict.items(tree):  # of the type itself: a pickle may have set an attribute
            if not isinstance(key, (str, int)):
                continue
            if isinstance(value, _Tensor):
                named[f"{prefix}{key}"] = value
            else:
                waiting.append((f"{prefix}{key}.", value, depth + 1))
    return named


def _single(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "c":
        raise ValueError("its numbers are complex")
    with np.errstate(over="ignore"):  # too large for float32 is infinite then, as for PyTorch
        return array.astype(np.float32)


def _numbers(blob: bytes, dtype: str) -> np.ndarray:
    if dtype != BFLOAT16:
        return np.frombuffer(blob, dtype)
    return (np.frombuffer(blob, "<u2").astype("<u4") << 16).view("<f4")
