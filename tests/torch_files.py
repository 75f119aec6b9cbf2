"""PyTorch checkpoints written byte by byte, so that no PyTorch is needed and nothing need be well-behaved."""

import struct
import zipfile
from pathlib import Path

import numpy as np

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
ORDERED = b"ccollections\nOrderedDict\n)R"
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage"}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else long_number(value)


def long_number(value: int) -> bytes:
    blob = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(blob)]) + blob


def row(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def mapping(items: dict[str, bytes], empty: bytes = b"}") -> bytes:
    return empty + b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def called(what: str, *arguments: bytes) -> bytes:
    """The result of calling `module.name`."""
    module, _, name = what.rpartition(".")
    return f"c{module}\n{name}\n".encode() + row(*arguments) + b"R"


def storage(key: str, numel: int, kind: str = "FloatStorage", *rest: bytes) -> bytes:
    return (
        row(text("storage"), f"ctorch\n{kind}\n".encode(), text(key), text("cpu"), number(numel), *rest)
        + b"Q"
    )


def tensor(
    stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0
) -> bytes:
    """A tensor in a storage, in C's order unless strides are given."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    sizes, steps = (row(*map(number, counts)) for counts in (shape, strides))
    return called("torch._utils._rebuild_tensor_v2", stored, number(offset), sizes, steps, b"\x89", ORDERED)


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def state_dict(tensors: dict[str, np.ndarray], legacy: bool = False) -> bytes:
    """An ordered dictionary, as `module.state_dict()`."""
    rest = (b"N",) if legacy else ()
    return mapping(
        {
            name: tensor(storage(str(at), a.size, STORAGES[a.dtype.name], *rest), a.shape)
            for at, (name, a) in enumerate(tensors.items())
        },
        ORDERED,
    )


def storages(tensors: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {str(at): np.ascontiguousarray(a).tobytes() for at, a in enumerate(tensors.values())}


def write_zip(
    path: Path, value: bytes, data: dict[str, bytes], method: int = zipfile.ZIP_STORED, **more: bytes
) -> Path:
    """torch.save's archive of a pickled value; `more` are further records of the folder."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        for name, blob in more.items():
            archive.writestr(f"archive/{name}", blob)
        for key, blob in data.items():
            archive.writestr(f"archive/data/{key}", blob)
    return path


def write_legacy(path: Path, value: bytes, data: dict[str, tuple[int, bytes]], little: bool = True) -> Path:
    """torch.save's file before 1.6: of each storage the number of items and the bytes."""
    machine = mapping({"protocol_version": number(1001), "little_endian": b"\x88" if little else b"\x89"})
    keys = b"](" + b"".join(map(text, data)) + b"e"
    blobs = [struct.pack("<q", numel) + blob for numel, blob in data.values()]
    path.write_bytes(b"".join([MAGIC, VERSION, pickled(machine), pickled(value), pickled(keys), *blobs]))
    return path
