"""What every file of a folder must hash to: written once the folder is whole, checked before it is believed.

`MANIFEST.json` holds the number of the folder, the size and the SHA-256 of every file below it, and a digest
of itself. So a flipped bit, a file cut short, missing, added or of another folder is found, and named.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from editjax.errors import DataError
from editjax.files import sha256_of

MANIFEST = "MANIFEST.json"
VERSION = 1


def seal(folder: Path, number: int) -> None:
    """Write the manifest of a folder and bring everything in it to the disk."""
    paths = _files(folder)
    files = {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()}
    content = {"version": VERSION, "number": number, "files": files}
    (folder / MANIFEST).write_text(_text(content), encoding="utf-8")
    for path in (*paths.values(), folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        to_disk(path)


def check(folder: Path, number: int) -> None:
    """DataError naming the first file that is not as the manifest says, NoInputError an unreadable one."""
    listed = _read(folder / MANIFEST, number)
    found = _files(folder)
    for name in sorted(listed | found):
        if name not in found:
            raise DataError(f"{folder / name}: missing, though the manifest lists it")
        if name not in listed:
            raise DataError(f"{folder / name}: not in the manifest")
        if found[name].stat().st_size != listed[name]["bytes"]:
            raise DataError(f"{folder / name}: size differs from the manifest")
    for name, path in found.items():
        if sha256_of(path) != listed[name]["sha256"]:
            raise DataError(f"{folder / name}: SHA-256 differs from the manifest")


def refuse_links(folder: Path) -> None:
    """DataError for what is neither file nor folder: it may lead outside, or be waited for without an end."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
            raise DataError(f"{path}: is a link, a pipe or a device, not a file")


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 of JSON content, in hex, of everything but its own `digest`."""
    unsigned = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(unsigned, sort_keys=True).encode()).hexdigest()


def to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk; a file leaves memory, so that reading it reads the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise") and path.is_file():
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _read(path: Path, number: int) -> dict[str, dict[str, Any]]:
    """The files that a manifest lists."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if text != _text(content):
            raise ValueError("its digest differs")
        version, of, files = content["version"], content["number"], content["files"]
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error})") from None
    if version != VERSION:
        raise DataError(f"{path}: version {version}, this editjax reads {VERSION}: upgrade it")
    if of != number:
        raise DataError(f"{path}: belongs to {of}")
    return files


def _text(content: dict[str, Any]) -> str:
    """A manifest's only spelling, its digest included: any other byte is damage."""
    return json.dumps({**content, "digest": digest_of(content)}, indent=1, sort_keys=True) + "\n"


def _files(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its relative name; hidden ones are left by file systems, not by us."""
    paths = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    return {
        path.relative_to(folder).as_posix(): path
        for path in paths
        if path.name != MANIFEST and not path.name.startswith(".")
    }
