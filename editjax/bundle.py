"""The folder of a model bundle: found, checked and read, whatever the family.

A bundle is `model.safetensors` (tensors named by their path in the tree of parameters), `config.json`
(settings, the table of tensors, digests, how it was trained) and `README.md`. `export` writes it.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from editjax.config import Json
from editjax.errors import DataError, NoInputError, shown
from editjax.files import read_regular
from editjax.quantise import restored, wrong_in_losses, wrong_in_scales
from editjax.styles import STYLES

FORMAT = "editjax.model"
VERSION = 1
TENSORS = "model.safetensors"
CONFIG = "config.json"
FACTS = {
    "editjax": str,
    "family": str,
    "model": dict,
    "mel": dict,
    "training": dict,
    "tensors": dict,
    "sha256": str,
}
"""What every config.json says besides format, version and digest."""
DTYPES = {"float32": "F32", "float16": "F16", "int8": "I8"}
"""What tensors are stored as, by NumPy's names and those of safetensors; int8 with scales (`quantise`)."""
LOADED = np.dtype(np.float32).itemsize
LARGEST_CONFIG_BYTES = 1 << 20
LARGEST_MODEL_BYTES = 2 << 30
MOST_AXES = 8
BUNDLED = Path(__file__).parent / "bundled"


def find_bundle(model: str | Path) -> Path:
    """The folder of a model: a name that ships with editjax, else a path."""
    names = bundled_names()
    if str(model) in names:
        return BUNDLED / str(model)
    path = Path(model)
    try:
        found = path.is_dir()
    except OSError as error:
        raise NoInputError(f"{model}: cannot look there ({error.strerror})") from None
    if not found:
        known = ", ".join(names) or "none in this installation"
        raise NoInputError(f"{model}: no such model; give a model's folder or a name that ships: {known}")
    return path


def bundled_names() -> list[str]:
    """The models that ship with this installation."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def ships(path: Path) -> bool:
    """Whether a model's folder came with this very version, and is what its tests have seen."""
    return path.parent == BUNDLED


def read_config(path: Path) -> Json:
    """A bundle's config.json, with format, version, digest and the kinds of its facts checked."""
    file = path / CONFIG
    try:
        text = _content(file, LARGEST_CONFIG_BYTES)
    except NoInputError as error:
        raise NoInputError(f"{error}: {path} is no model folder") from None
    try:
        config = parsed(text)
        known = isinstance(config, dict) and config.get("format") == FORMAT
        digest, spelled = (digest_of(config), f"{dumped(config)}\n".encode()) if known else ("", b"")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    if not known:
        raise DataError(f"{file}: not an editjax model (format is not {FORMAT!r})")
    if (version := shown(config.get("version"))) != str(VERSION):
        raise DataError(f"{file}: model version {version}, this editjax reads {VERSION}: upgrade it")
    if config.get("digest") != digest or text != spelled:
        raise DataError(f"{file}: changed or damaged since it was exported; export the model again")
    for name, kind in FACTS.items():
        if not isinstance(config.get(name), kind):
            raise DataError(f"{file}: {name} is missing or of another kind; export the model again")
    problem = wrong_in_training(config["training"]) or _wrong_in_tensors(config["tensors"])
    if problem := problem or wrong_in_losses(config.get("quantised")):
        raise DataError(f"{file}: {problem}")
    return config


def parsed(text: bytes) -> Any:
    """JSON of one meaning. ValueError for what readers take differently: a name twice, NaN, no UTF-8."""

    def once(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name is there twice")
        return found

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    return json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)


def wrong_in_training(training: Json) -> str:
    """What is wrong with what is read of how a model was trained."""
    styles, scores = training.get("styles") or [], training.get("scores") or {}
    if not isinstance(styles, list) or any(style not in STYLES for style in styles):
        return f"training.styles {shown(styles)}: this version knows {', '.join(STYLES)}"
    if not isinstance(scores, dict):
        return "training.scores are no figures by name"
    for name, value in scores.items():
        if value is not None and not (type(value) in (int, float) and abs(value) < 1e9):
            return f"training.scores: {shown(name)} is {shown(value)}"
    return ""


def _wrong_in_tensors(tensors: Json) -> str:
    """What is wrong with the table of tensors: each a type that is stored, and sides; all of a size."""
    for name, facts in tensors.items():
        if not isinstance(facts, dict) or set(facts) != {"shape", "dtype"}:
            return f"tensor {shown(name)}: has no shape and dtype"
        shape, dtype = facts["shape"], facts["dtype"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            return f"tensor {shown(name)}: of type {shown(dtype)}, not {' or '.join(DTYPES)}"
        if not isinstance(shape, list) or len(shape) > MOST_AXES:
            return f"tensor {shown(name)}: of shape {shown(shape)}"
        if any(type(side) is not int or not 0 <= side <= LARGEST_MODEL_BYTES for side in shape):
            return f"tensor {shown(name)}: of shape {shown(shape)}"
    loaded = LOADED * sum(math.prod(facts["shape"]) for facts in tensors.values())
    if not tensors or loaded > LARGEST_MODEL_BYTES:
        return f"tensors of {loaded} bytes in all: give some, and at most {LARGEST_MODEL_BYTES}"
    return wrong_in_scales(tensors)


def bytes_of(tensors: Json) -> int:
    """The size in bytes of all tensors that a table lists."""
    return sum(math.prod(facts["shape"]) * np.dtype(facts["dtype"]).itemsize for facts in tensors.values())


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
    """The parameters in a bundle's file: float16 as they are stored, all others float32."""
    try:
        return restored(read_stored(file, config))
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def read_stored(file: Path, config: Json) -> dict[str, np.ndarray]:
    """The tensors in a bundle's file, which must be those that its config lists and nothing else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    blob = _content(file, bytes_of(config["tensors"]) + LARGEST_CONFIG_BYTES)
    if hashlib.sha256(blob).hexdigest() != config["sha256"]:
        raise DataError(f"{file}: SHA-256 differs from the one in {CONFIG}; copy or export the model again")
    try:
        header = parsed(blob[8 : 8 + min(int.from_bytes(blob[:8], "little"), LARGEST_CONFIG_BYTES)])
        if header_facts(header) != config["tensors"]:
            raise DataError(f"{file}: tensors differ in name, shape or dtype from those {CONFIG} lists")
        tensors = load(blob)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise DataError(f"{file}: not a safetensors file ({error})") from error
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise DataError(f"{file}: tensor {shown(name)} holds values that are not finite")
    return tensors


def header_facts(header: Any) -> Json:
    """What a safetensors header says of its tensors, as a table of them has it; {} for any other header."""
    names = {theirs: ours for ours, theirs in DTYPES.items()}
    found = {}
    for name, entry in header.items() if isinstance(header, dict) else ():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            return {}
        found[name] = {"shape": entry["shape"], "dtype": names.get(str(entry["dtype"]))}
    return found


def _content(file: Path, largest_bytes: int) -> bytes:
    """A file of a bundle. Some installers make of links what they install; others' links are refused."""
    return read_regular(file.resolve() if ships(file.parent) else file, largest_bytes)


def facts_of(array: np.ndarray) -> Json:
    """A tensor's entry in the table: its shape and NumPy's name of its type."""
    return {"shape": list(array.shape), "dtype": array.dtype.name}


def digest_of(config: Json) -> str:
    """SHA-256 of everything in the config but the digest itself."""
    content = {name: value for name, value in config.items() if name != "digest"}
    return hashlib.sha256(dumped(content).encode()).hexdigest()


def dumped(config: Json) -> str:
    """A config's only spelling: what its digest is of, and with a line feed its file."""
    return json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False)
