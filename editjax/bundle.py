"""The folder of a model bundle: found, checked and read, whatever the family.

A bundle is `model.safetensors` (tensors named by their path in the tree of parameters), `config.json`
(settings, the table of tensors, digests, how it was trained) and `README.md`. `export` writes it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from editjax.config import Json
from editjax.errors import DataError, NoInputError

FORMAT = "editjax.model"
VERSION = 1
TENSORS = "model.safetensors"
CONFIG = "config.json"
LARGEST_CONFIG_BYTES = 4 << 20
BUNDLED = Path(__file__).parent / "bundled"


def find_bundle(model: str | Path) -> Path:
    """The folder of a model: a name that ships with editjax, else a path."""
    names = bundled_names()
    if str(model) in names:
        return BUNDLED / str(model)
    path = Path(model)
    if not path.is_dir():
        known = ", ".join(names) or "none in this installation"
        raise NoInputError(f"{model}: no such model; give a model's folder or a name that ships: {known}")
    return path


def bundled_names() -> list[str]:
    """The models that ship with this installation."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def read_config(path: Path) -> Json:
    """A bundle's config.json, with format, version and digest checked."""
    file = path / CONFIG
    try:
        if file.stat().st_size > LARGEST_CONFIG_BYTES:
            raise DataError(f"{file}: too large to be a model's settings")
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise NoInputError(f"{file}: cannot read it ({error.strerror}): {path} is no model folder") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise DataError(f"{file}: not an editjax model (format is not {FORMAT!r})")
    if config.get("version") != VERSION:
        raise DataError(
            f"{file}: model version {config.get('version')}, this editjax reads {VERSION}: upgrade it"
        )
    if config.get("digest") != digest_of(config):
        raise DataError(f"{file}: changed or damaged since it was exported; export the model again")
    return config


def flatten(params: Any) -> dict[str, np.ndarray]:
    """Nested dict of arrays → arrays named by path, `encoder/norm/scale`."""
    flat: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{inner}": array for inner, array in flatten(value).items()}
        else:
            flat[name] = np.asarray(value)
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    params: dict[str, Any] = {}
    for path, array in flat.items():
        *folders, name = path.split("/")
        inner = params
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = array
    return params


def read_tensors(file: Path, config: Json) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        blob = file.read_bytes()
    except OSError as error:
        raise NoInputError(f"{file}: cannot read it ({error.strerror})") from error
    if hashlib.sha256(blob).hexdigest() != config["sha256"]:
        raise DataError(f"{file}: SHA-256 differs from the one in {CONFIG}; copy or export the model again")
    try:
        tensors = load(blob)
    except SafetensorError as error:
        raise DataError(f"{file}: not a safetensors file ({error})") from error
    if {name: facts_of(array) for name, array in tensors.items()} != config["tensors"]:
        raise DataError(f"{file}: tensors differ in name, shape or dtype from those {CONFIG} lists")
    return tensors


def facts_of(array: np.ndarray) -> Json:
    return {"shape": list(array.shape), "dtype": array.dtype.name}


def digest_of(config: Json) -> str:
    """SHA-256 of everything in the config but the digest itself."""
    content = {name: value for name, value in config.items() if name != "digest"}
    return hashlib.sha256(dumped(content).encode()).hexdigest()


def dumped(config: Json) -> str:
    return json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False)
