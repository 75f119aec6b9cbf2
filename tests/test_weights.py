"""Other programs' weights: their tensors are read exactly, and nothing else in their files ever happens."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_files import (
    ORDERED,
    called,
    long_number,
    mapping,
    number,
    pickled,
    row,
    state_dict,
    storage,
    storages,
    tensor,
    text,
    write_legacy,
    write_zip,
)

from editjax import weights
from editjax.errors import DataError, NoInputError
from editjax.weights import read_weights

TENSORS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "a.bias": np.array([1.5, -2.25], np.float16),
    "deep.scale": np.array([[1e300], [0.1]]).clip(-1e30, 1e30),
    "empty": np.zeros((0, 3), np.float32),
    "one": np.array(3.0, np.float32),
}
DATA = {"0": b"\0" * 40}
FOUR = storage("0", 10)


def write(path: Path, form: str, tensors: dict[str, np.ndarray] = TENSORS) -> Path:
    if form == "safetensors":
        save_file(tensors, path)
        return path
    value = mapping(
        {"generator": state_dict(tensors, form == "legacy"), "steps": number(7), "note": text("x")}
    )
    if form == "zip":
        return write_zip(path, value, storages(tensors), byteorder=b"little", version=b"3\n")
    data = {
        key: (a.size, blob)
        for a, (key, blob) in zip(tensors.values(), storages(tensors).items(), strict=True)
    }
    return write_legacy(path, value, data)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_tensors_are_read_exactly(tmp_path: Path, form: str) -> None:
    found = read_weights(write(tmp_path / "weights", form))
    prefix = "" if form == "safetensors" else "generator."
    assert {*found} == {prefix + name for name in TENSORS}
    for name, wanted in TENSORS.items():
        np.testing.assert_array_equal(found[prefix + name], wanted.astype(np.float32), strict=True)


def test_a_safetensors_header_may_be_of_any_length(tmp_path: Path) -> None:
    """Of some lengths the first byte, or two, are those of a pickle or a zip archive."""
    first = set()
    for longer in range(0, 300, 8):
        path = tmp_path / "w.safetensors"
        save_file({"a" * (1 + longer): np.ones(3, np.float32)}, path)
        first.add(path.read_bytes()[0])
        assert read_weights(path)["a" * (1 + longer)].tolist() == [1.0, 1.0, 1.0]
    assert 0x80 in first


def test_strides_offsets_shared_storages_and_half_brains_are_followed(tmp_path: Path) -> None:
    """`bfloat16` is the upper half of a float32; a transposed tensor lies in the order of its strides."""
    numbers = np.arange(10, dtype=np.float32)
    brains = (np.array([1.5, -3.0], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    value = mapping(
        {
            "turned": tensor(FOUR, (2, 3), (1, 2), offset=1),
            "every other": tensor(FOUR, (3,), (2,), offset=2),
            "half": tensor(storage("1", 2, "BFloat16Storage"), (2,)),
        }
    )
    found = read_weights(
        write_zip(tmp_path / "w.pth", value, {"0": numbers.tobytes(), "1": brains.tobytes()})
    )
    np.testing.assert_array_equal(found["turned"], [[1, 3, 5], [2, 4, 6]])
    np.testing.assert_array_equal(found["every other"], [2, 4, 6])
    np.testing.assert_array_equal(found["half"], [1.5, -3.0])


def dangerous(victim: Path) -> dict[str, bytes]:
    """Pickles that would create a file, or take hold of Python, by every road there is."""
    touch = text(f"touch {victim}")
    opened = called("builtins.open", text(str(victim)), text("w"))
    return {
        "os.system": called("os.system", touch),
        "posix.system": called("posix.system", touch),
        "builtins.eval": called("builtins.eval", text(f"open({str(victim)!r}, 'w')")),
        "open": opened,
        "by its name on the stack": text("os") + text("system") + b"\x93" + row(touch) + b"R",
        "subprocess": called("subprocess.check_output", text("touch")),
        "an attribute of what is allowed": text("collections") + text("OrderedDict.__init__") + b"\x93",
        "another function of torch's": called("torch._utils._rebuild_parameter", b"N"),
        "torch.load": called("torch.load", text(str(victim))),
        "a storage's name elsewhere": called("os.FloatStorage"),
        "an instance, protocol 0": b"(" + touch + b"ios\nsystem\n",
        "an object, protocol 1": b"(" + b"cos\nsystem\n" + touch + b"o",
        "a new object": b"cos\nsystem\n" + row(touch) + b"\x81",
        "an extension code": b"\x82\x01" + row(touch) + b"R",
        "what was handed out, called otherwise": called("collections.OrderedDict", b"](" + opened + b"e"),
        "a tensor made of a command": called("torch._utils._rebuild_tensor_v2", opened),
        "hidden in a dictionary": mapping({"generator": mapping({"x": called("os.system", touch)})}),
        "beside good tensors": mapping({"a": tensor(FOUR, (2,)), "b": opened}),
    }


DANGERS = sorted(dangerous(Path()))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", DANGERS)
def test_nothing_in_a_file_is_executed(tmp_path: Path, name: str, legacy: bool) -> None:
    victim, path = tmp_path / "created", tmp_path / "w.pth"
    value = dangerous(victim)[name]
    (write_legacy if legacy else write_zip)(path, value, {})
    with pytest.raises(DataError) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not victim.exists()


def test_the_dangers_are_real(tmp_path: Path) -> None:
    """Python's own pickle would have created the file."""
    pickle.loads(pickled(dangerous(tmp_path / "created")["os.system"]))
    assert (tmp_path / "created").exists()


def test_what_would_be_called_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "w.pth", called("os.system", text("true")), {})
    with pytest.raises(DataError, match=r"wants to call os\.system; refused, and nothing in it was executed"):
        read_weights(path)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((11,), (1,), 0),
        ((10,), (1,), 1),
        ((2,), (10,), 0),
        ((2,), (-1,), 5),
        ((2,), (1,), -1),
        ((-2,), (1,), 0),
        ((1 << 40,), (0,), 0),
        ((1 << 20, 1 << 20), (0, 0), 0),
        ((2, 2), (1,), 0),
        ((0,), (1,), -4),
        ((2,) * 40, (0,) * 40, 0),
        ((2,), (1 << 62,), 0),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    path = write_zip(tmp_path / "w.pth", mapping({"a": tensor(FOUR, shape, strides, offset)}), DATA)
    with pytest.raises(DataError, match="does not lie within its storage"):
        read_weights(path)


def test_a_storage_that_is_not_what_it_is_said_to_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for stored in (
        storage("0", -1),
        storage("0", 10, "OddStorage"),
        row(text("storage"), text("FloatStorage"), text("0"), text("cpu"), number(10)) + b"Q",
        row(text("module")) + b"Q",
        storage("0", 10, "FloatStorage", row(text("view"))),
    ):
        write_zip(path, mapping({"a": tensor(stored, (2,))}), DATA)
        with pytest.raises(DataError, match=r"storage of an unknown kind|wants to call torch\.OddStorage"):
            read_weights(path)
    write_zip(path, mapping({"a": tensor(FOUR, (2,)), "b": tensor(storage("0", 9), (2,))}), DATA)
    with pytest.raises(DataError, match="several lengths"):
        read_weights(path)
    write_zip(path, mapping({"a": tensor(storage("../../secret", 10), (2,))}), DATA)
    with pytest.raises(DataError, match="missing"):
        read_weights(path)
    write_zip(path, mapping({"a": tensor(FOUR, (2,))}), {"0": b"\0" * 36})
    with pytest.raises(DataError, match="a has 36 bytes of 40"):
        read_weights(path)


def test_a_small_file_cannot_ask_for_a_large_memory(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    write_zip(path, mapping({str(n): tensor(FOUR, (10,)) for n in range(500)}), DATA, zipfile.ZIP_STORED)
    assert path.stat().st_size > 500 * 40  # each of them is said in more bytes than it has
    many = mapping({str(n): b"h\x00" for n in range(5000)})  # the same tensor by a name of the memo
    write_zip(
        path, tensor(storage("0", 1000), (1000,)) + b"q\x00" + b"0" * 0 + b"0" + many, {"0": b"\0" * 4000}
    )
    with pytest.raises(DataError, match="POP, which tensors do not need"):
        read_weights(path)
    value = mapping({"first": tensor(storage("0", 1000), (1000,)) + b"q\x00", "many": many})
    write_zip(path, value, {"0": b"\0" * 4000})
    with pytest.raises(DataError, match="more than the file has"):
        read_weights(path)
    write_zip(path, mapping({"a": tensor(FOUR, (2,))}), {"0": b"\0" * 10_000_000}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="is compressed"):
        read_weights(path)
    for bomb in (
        b"Nr\xf0\xff\xff\xff",
        b"\x96" + struct.pack("<Q", 1 << 40),
        b"\x8e" + struct.pack("<Q", 1 << 40),
    ):
        write_zip(path, bomb, {})
        with pytest.raises(DataError):
            read_weights(path)


@pytest.mark.parametrize("numel", [2**33, 2**61, 2**70])
def test_a_small_legacy_file_cannot_ask_for_a_large_memory(tmp_path: Path, numel: int) -> None:
    stored = storage("0", numel, "FloatStorage", b"N")
    path = write_legacy(tmp_path / "w.pth", mapping({"a": tensor(stored, (2,))}), {"0": (0, b"")})
    sized = path.read_bytes()[:-8] + (numel % 2**64).to_bytes(8, "little")
    path.write_bytes(sized)
    assert len(sized) < 300
    with pytest.raises(DataError, match="storages of more bytes than the file has"):
        read_weights(path)


@pytest.mark.parametrize("key", [b"]", b"}", number(0), row(text("0"))], ids=["list", "dict", "int", "tuple"])
def test_a_storage_has_a_name(tmp_path: Path, key: bytes) -> None:
    path = write_legacy(tmp_path / "w.pth", mapping({}), {})
    path.write_bytes(path.read_bytes().removesuffix(pickled(b"](e")) + pickled(b"](" + key + b"e"))
    with pytest.raises(DataError, match="a storage that nothing is said of"):
        read_weights(path)


@pytest.mark.parametrize(
    ("shape", "strides"), [((0, 2**70), (1, 1)), ((0, 2**62, 2**62), (1, 1, 1)), ((1,), (2**70,))]
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_sizes_that_no_array_has_are_one_line(
    tmp_path: Path, form: str, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    path = tmp_path / "w.pth"
    if form == "zip":
        write_zip(path, mapping({"a": tensor(FOUR, shape, strides)}), DATA)
    else:
        four = storage("0", 10, "FloatStorage", b"N")
        write_legacy(path, mapping({"a": tensor(four, shape, strides)}), {"0": (10, DATA["0"])})
    with pytest.raises(DataError, match=r"w\.pth: "):
        read_weights(path)


def test_what_is_said_of_the_machine_cannot_change_how_it_is_read(tmp_path: Path) -> None:
    whole = write_legacy(tmp_path / "w.pth", mapping({}), {}).read_bytes()
    machine = pickled(mapping({"protocol_version": number(1001), "little_endian": b"\x88"}))
    assert machine in whole
    hidden = mapping({"little_endian": b"\x88"}, ORDERED) + mapping({"get": b"N"}) + b"b"
    (tmp_path / "w.pth").write_bytes(whole.replace(machine, pickled(hidden)))
    assert read_weights(tmp_path / "w.pth") == {}


def test_dictionaries_without_an_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    write_zip(path, b"}q\x00" + text("again") + b"h\x00s", {})
    with pytest.raises(DataError, match="without an end"):
        read_weights(path)
    bushes = {"0": b"}q\x00"}
    for level in range(1, 5):  # a few kilobytes, and twelve million dictionaries
        branches = mapping({str(n): b"h" + bytes([level - 1]) for n in range(60)})
        bushes[str(level)] = branches + b"q" + bytes([level])
    write_zip(path, mapping(bushes), {})
    assert path.stat().st_size < 4000
    with pytest.raises(DataError, match="without an end"):
        read_weights(path)
    deep = b"}"
    for _ in range(20_000):
        deep = b"}" + text("x") + deep + b"s"
    write_zip(path, deep, {})
    with pytest.raises(DataError):
        read_weights(path)


def test_a_pickle_cannot_change_how_it_is_read(tmp_path: Path) -> None:
    """Attributes that it sets on what it was given go with it."""
    hidden = (
        mapping({"x": tensor(FOUR, (3,))}, ORDERED)
        + mapping({"items": b"ccollections\nOrderedDict\n"})
        + b"b"
    )
    value = mapping({"a": hidden, "b": tensor(FOUR, (2,))})
    assert {*read_weights(write_zip(tmp_path / "w.pth", value, DATA))} == {"a.x", "b"}
    defaults = b"ctorch._utils\n_rebuild_tensor_v2\n" + row(b"N", mapping({"__defaults__": b"N"})) + b"b"
    write_zip(tmp_path / "w.pth", mapping({"a": defaults}), DATA)
    assert read_weights(tmp_path / "w.pth") == {}
    assert [*read_weights(write(tmp_path / "good.pth", "zip"))]


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_any_damage_is_one_line(tmp_path: Path, form: str) -> None:
    whole, path = write(tmp_path / "whole", form).read_bytes(), tmp_path / "broken"
    rng = np.random.default_rng(0)
    broken = [whole[:length] for length in rng.integers(0, len(whole), 40)]
    for at in rng.integers(0, len(whole), 80):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        broken.append(bytes(changed))
    refused = 0
    for blob in broken:
        path.write_bytes(blob)
        try:
            read_weights(path)
        except (DataError, NoInputError) as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 60  # others are numbers that changed


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(NoInputError, match="cannot read it"):
        read_weights(path)
    with pytest.raises(DataError, match="is a folder, a pipe or a device"):
        read_weights(tmp_path)
    for blob in (b"", b"RIFF....WAVE", b"\x93NUMPY"):
        path.write_bytes(blob)
        with pytest.raises(DataError, match="neither a PyTorch checkpoint nor a safetensors file"):
            read_weights(path)
    path.write_bytes(pickled(number(5)) * 3)
    with pytest.raises(DataError, match="a pickle, but not a PyTorch checkpoint"):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    with pytest.raises(DataError, match="a zip archive, but not a PyTorch checkpoint"):
        read_weights(path)
    write_zip(path, mapping({}), {}, byteorder=b"big")
    with pytest.raises(DataError, match="big-endian"):
        read_weights(path)
    write_legacy(path, mapping({}), {}, little=False)
    with pytest.raises(DataError, match="big-endian"):
        read_weights(path)
    write_zip(path, long_number(1 << 1000), {})
    assert read_weights(path) == {}


def test_what_no_weights_are_is_neither_waited_for_nor_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a folder, a pipe or a device"):
        read_weights(tmp_path / "pipe")
    header = '{"a": {"dtype": "F32", "shape": [274877906944], "data_offsets": [0, 1099511627776]}}'
    sparse = tmp_path / "sparse.safetensors"
    sparse.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    os.truncate(sparse, 8 + len(header) + (1 << 40))
    with pytest.raises(DataError, match="bytes, more than the"):
        read_weights(sparse)
    header = '{"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}'
    (tmp_path / "complex").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(DataError, match="complex"):
        read_weights(tmp_path / "complex")


def test_what_is_opened_is_what_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is another one by the time it is opened is judged by that; links are followed."""
    path = write(tmp_path / "w.pth", "zip")
    status = path.stat()
    monkeypatch.setattr(weights, "LARGEST_FILE_BYTES", status.st_size)
    (tmp_path / "link").symlink_to(path)
    assert read_weights(tmp_path / "link")
    os.truncate(path, status.st_size + 1)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)
    with pytest.raises(DataError, match=r"bytes, more than the"):
        read_weights(path)


def test_a_large_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGEST_PICKLE_BYTES", 100)
    with pytest.raises(DataError, match="larger pickle than tensors need"):
        read_weights(write(tmp_path / "w.pth", "zip"))
