"""Model folders that somebody made to do harm or to confuse: a name → what it changes in a good one.

Every digest and SHA-256 is made to agree again, unless the attack is that it does not: whoever changes a
model can renew them. Pickles leave a trace (`TRACE`) when they are loaded; what links lead to lies in
`outside`, a folder beside the model's.
"""

import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from editjax.bundle import CONFIG, TENSORS, digest_of, dumped, facts_of
from editjax.config import to_json
from editjax.console.heard import PictureSettings
from editjax.export import write_bundle
from editjax.files import sha256_of
from editjax.mel import MelSettings
from editjax.models.autoencoder import ScorerSettings
from editjax.models.codec import CodecSettings
from editjax.models.hifigan import HifiGanSettings
from editjax.models.mixer import MixerSettings
from editjax.models.pointer import PointerSettings, init
from editjax.models.policy import PolicySettings
from editjax.models.reconstruct import ReconstructSettings
from editjax.models.window import WindowSettings
from editjax.quantise import SCALE, quantised

SETTINGS = PointerSettings(
    n_mels=64, width=16, heads=1, landmark_layers=1, frame_width=16, frames_per_beat=4, frames_per_bar=16
)
MANY = 10**9
TERA = 1 << 40
ESCAPE = "\x1b[2J\x1b]0;owned\x07\u202e"
TRACE = "pickle_was_executed"

Attack = Callable[[Path], None]


def good_model(folder: Path) -> Path:
    """A model as `editjax export` writes it, of random parameters."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init(SETTINGS, key), jax.random.key(0))
    params = jax.tree_util.tree_leaves_with_path(shapes)
    names = ["/".join(part.key for part in path) for path, _ in params]
    tensors = {
        name: rng.normal(size=leaf.shape).astype(np.float32)
        for name, (_, leaf) in zip(names, params, strict=True)
    }
    training = {"step": 1, "checkpoint": "best", "export_command": "editjax export", "styles": ["final"]}
    facts = {
        "family": "pointer",
        "model": to_json(SETTINGS),
        "mel": to_json(MelSettings(n_mels=64)),
        "training": training,
        "licence": "",
    }
    return write_bundle(folder, tensors, facts)


class Pickled:
    """Executes something when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.makedirs, (TRACE,))


PICKLE = pickle.dumps(Pickled())


# --- what the attacks are made of -----------------------------------------------------------------------


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


def tell(folder: Path, config: dict[str, Any]) -> None:
    """Write a config with its digest."""
    (folder / CONFIG).write_text(dumped({**config, "digest": digest_of(config)}) + "\n")


def says(**changes: Any) -> Attack:
    """config.json says something else."""
    return lambda folder: tell(folder, {**config_of(folder), **changes})


def lacks(name: str) -> Attack:
    """config.json does not say something."""

    def change(folder: Path) -> None:
        config = config_of(folder)
        del config[name]
        tell(folder, config)

    return change


def within(part: str, **changes: Any) -> Attack:
    """A part of config.json says something else."""
    return lambda folder: tell(
        folder, {**(config := config_of(folder)), part: {**config.get(part, {}), **changes}}
    )


def of_family(name: str, settings: Any, **changes: Any) -> Attack:
    """A model of another family, with some of its settings changed."""
    return says(family=name, model={**to_json(settings), **changes})


def seeing(**changes: Any) -> Attack:
    """A regressor of mixes whose pictures are made in other ways."""
    return of_family("mixer", MixerSettings(), picture={**to_json(PictureSettings()), **changes})


def text(content: str | bytes | Callable[[str], str | bytes]) -> Attack:
    """config.json is other text."""

    def change(folder: Path) -> None:
        new = content((folder / CONFIG).read_text()) if callable(content) else content
        (folder / CONFIG).write_bytes(new.encode() if isinstance(new, str) else new)

    return change


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The header of the good tensors, and their data."""
    blob = (folder / TENSORS).read_bytes()
    length = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def tensors(blob: bytes) -> Attack:
    """model.safetensors is something else, and config.json knows its SHA-256."""

    def change(folder: Path) -> None:
        (folder / TENSORS).write_bytes(blob)
        says(sha256=sha256_of(folder / TENSORS))(folder)

    return change


def header(change: Callable[[dict[str, Any]], Any], data: Callable[[bytes], bytes] = bytes) -> Attack:
    """The tensors' header says something else: an object, text, or bytes; the data may be changed too."""

    def build(folder: Path) -> None:
        good, content = header_of(folder)
        new = change(good)
        new = new if isinstance(new, (str, bytes)) else json.dumps(new)
        raw = new.encode() if isinstance(new, str) else new
        tensors(struct.pack("<Q", len(raw)) + raw + data(content))(folder)

    return build


def entry(of: int = 0, **changes: Any) -> Attack:
    """One tensor's entry in the header says something else."""

    def change(good: dict[str, Any]) -> dict[str, Any]:
        name = sorted(good)[of]
        return {**good, name: {**good[name], **changes}}

    return header(change)


def length(number: int) -> Attack:
    """The header claims a length."""
    return lambda folder: tensors(struct.pack("<Q", number) + (folder / TENSORS).read_bytes()[8:])(folder)


def listed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Attack:
    """The table of tensors in config.json says something else."""
    return lambda folder: says(tensors=change(config_of(folder)["tensors"]))(folder)


def first(**facts: Any) -> Attack:
    """The table says something else of the first tensor."""
    return listed(lambda table: {**table, min(table): {**table[min(table)], **facts}})


def renamed(new: str) -> Attack:
    """The first tensor has another name in the table and in the header alike."""

    def change(named: dict[str, Any]) -> dict[str, Any]:
        old = min(named)
        return {new if name == old else name: value for name, value in named.items()}

    def build(folder: Path) -> None:
        header(change)(folder)
        listed(change)(folder)

    return build


def everywhere(shape: list[int], dtype: str = "float32", code: str = "F32") -> Attack:
    """Table and header give the first tensor the same other shape and type."""

    def build(folder: Path) -> None:
        entry(shape=shape, dtype=code)(folder)
        first(shape=shape, dtype=dtype)(folder)

    return build


def values(number: float) -> Attack:
    """The last parameter is this number."""
    return header(lambda good: good, lambda data: data[:-4] + struct.pack("<f", number))


def sparse(name: str, size_bytes: int) -> Attack:
    """A file that claims a size without having it; of so many zeros nobody has the SHA-256 at hand."""
    return lambda folder: os.truncate(folder / name, size_bytes)


def instead(name: str, make: Callable[[Path], Any]) -> Attack:
    """Something else in the place of a file."""

    def build(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return build


def link_out(name: str) -> Attack:
    """The file lies outside, whole and good, and a link leads there."""

    def build(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        (folder / name).rename(outside / name)
        (folder / name).symlink_to(outside / name)

    return build


def link_within(folder: Path) -> None:
    (folder / TENSORS).rename(folder / "weights")
    (folder / TENSORS).symlink_to("weights")


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def folder_without_end(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    folder.symlink_to(folder)


def bind(path: Path) -> None:
    """A socket; its address may be longer than sockets' names are, so it is bound from its own folder."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(before)


def pickle_alone(folder: Path) -> None:
    """As other programs keep models."""
    (folder / TENSORS).unlink()
    for name in ("pytorch_model.bin", "model.pkl", "model.pt", "model.safetensors.index.json"):
        (folder / name).write_bytes(PICKLE)


def vocoder_of_old(folder: Path) -> None:
    """A HiFi-GAN as its authors give it away."""
    (folder / TENSORS).rename(folder / "generator")
    (folder / "generator").write_bytes(PICKLE)
    text('{"resblock": "1", "num_gpus": 0, "upsample_rates": [8, 8, 2, 2]}')(folder)


def archive(name: str, content: bytes) -> bytes:
    """A zip archive in which zeros take no room."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return packed.getvalue()


def object_array() -> bytes:
    packed = io.BytesIO()
    np.save(packed, np.array([Pickled()], object), allow_pickle=True)
    return packed.getvalue()


def twice(written: str) -> str:
    return written.replace("{", '{\n "family": "scorer",', 1)


def header_twice(good: dict[str, Any]) -> str:
    name = min(good)
    return json.dumps(good)[:-1] + f", {json.dumps(name)}: {json.dumps(good[name])}}}"


def overlapping(good: dict[str, Any]) -> dict[str, Any]:
    """Two tensors of one shape lie in one place."""
    one, other = two_alike(good)
    return {**good, other: good[one]}


def two_alike(good: dict[str, Any]) -> list[str]:
    for one in good:
        for other in good:
            if one != other and good[one]["shape"] == good[other]["shape"]:
                return [one, other]
    raise AssertionError("no two tensors have the same shape")


def shifted(by: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """All tensors lie so many bytes on, after a gap or half outside."""
    return lambda good: {
        name: {**facts, "data_offsets": [at + by for at in facts["data_offsets"]]}
        for name, facts in good.items()
    }


def backwards(good: dict[str, Any]) -> dict[str, Any]:
    return {name: {**facts, "data_offsets": facts["data_offsets"][::-1]} for name, facts in good.items()}


def fits_nothing(folder: Path) -> None:
    """A tensor's sides are exchanged in table and header alike, and the version is ours."""
    table = config_of(folder)["tensors"]
    name = next(n for n, f in table.items() if len(set(f["shape"])) > 1)
    shape = table[name]["shape"][::-1]
    header(lambda good: {**good, name: {**good[name], "shape": shape}})(folder)
    listed(lambda good: {**good, name: {**good[name], "shape": shape}})(folder)


# --- the corpus: name → (what is done, what the error says) ----------------------------------------------

VOCODER = HifiGanSettings()

PROGRAMS = {
    "a pickle as config": (text(PICKLE), "not JSON"),
    "a pickle as tensors": (tensors(PICKLE), "not a safetensors file"),
    "an array of objects as tensors": (tensors(object_array()), "not a safetensors file"),
    "a PyTorch archive as tensors": (tensors(archive("archive/data.pkl", PICKLE)), "not a safetensors file"),
    "a zip bomb as tensors": (
        lambda folder: tensors(archive("archive/data.pkl", bytes(100 << 20)))(folder),
        "not a safetensors file|more than",
    ),
    "pickles beside no tensors": (pickle_alone, "model.safetensors: cannot read it"),
    "a vocoder of old": (vocoder_of_old, "not an editjax model"),
    "a program as config": (text("#!/bin/sh\nmkdir " + TRACE), "not JSON"),
}

PLACES = {
    "config is a link outside": (link_out(CONFIG), "config.json: is a link"),
    "tensors are a link outside": (link_out(TENSORS), "model.safetensors: is a link"),
    "tensors are a link within": (link_within, "model.safetensors: is a link"),
    "config is a link to the users": (instead(CONFIG, link_to("/etc/passwd")), "is a link"),
    "config is a link to no end of zeros": (instead(CONFIG, link_to("/dev/zero")), "is a link"),
    "tensors are a link to no end of zeros": (instead(TENSORS, link_to("/dev/zero")), "is a link"),
    "tensors are a link up": (instead(TENSORS, link_to("../../../../etc/shadow")), "is a link"),
    "config is a link to nothing": (instead(CONFIG, link_to("nowhere")), "is a link"),
    "config is a link to itself": (instead(CONFIG, link_to(CONFIG)), "is a link"),
    "the folder is a link to itself": (folder_without_end, "no such model|cannot look there"),
    "config is a pipe": (instead(CONFIG, os.mkfifo), "config.json: is a folder, a pipe or a device"),
    "tensors are a pipe": (instead(TENSORS, os.mkfifo), "safetensors: is a folder, a pipe or a device"),
    "config is a socket": (instead(CONFIG, bind), "config.json: cannot read it"),
    "config is a folder": (instead(CONFIG, Path.mkdir), "config.json: is a folder"),
    "tensors are a folder": (instead(TENSORS, Path.mkdir), "model.safetensors: is a folder"),
    "config is missing": (instead(CONFIG, lambda path: None), "config.json: cannot read it"),
    "tensors are missing": (instead(TENSORS, lambda path: None), "safetensors: cannot read it"),
    "config is empty": (text(""), "not JSON"),
    "tensors are empty": (tensors(b""), "not a safetensors file"),
    "config of a terabyte": (sparse(CONFIG, TERA), "bytes, more than"),
    "tensors of a terabyte": (sparse(TENSORS, TERA), "bytes, more than"),
}

TEXTS = {
    "lists in lists": (text("[" * 200_000), "not JSON"),
    "objects in objects": (text('{"a":' * 150_000), "not JSON"),
    "hundreds of thousands of lists": (
        says(training={"a": [[] for _ in range(100_000)]}, mel={}, tensors={}),
        "tensors of 0 bytes",
    ),
    "lists without spaces": (
        text('{"format": "editjax.model", "version": 1, "a": [' + "[]," * 349_000 + "0]}"),
        "changed or damaged",
    ),
    "lists in lists in the training": (
        text(
            lambda good: good.replace('"training": {', '"training": {"a": ' + "[" * 5000 + "]" * 5000 + ",")
        ),
        "not JSON|changed or damaged",
    ),
    "a name twice": (text(twice), "not JSON.*twice"),
    "NaN": (within("training", loss=float("nan")), "not JSON.*NaN"),
    "infinity": (within("model", floor_db=float("-inf")), "not JSON.*Infinity"),
    "more digits than a number has": (text(f'{{"version": {"9" * 5000}}}'), "not JSON"),
    "a byte order mark": (text(lambda good: b"\xef\xbb\xbf" + good.encode()), "not JSON"),
    "UTF-16": (text(lambda good: good.encode("utf-16")), "not JSON"),
    "no UTF-8": (text(lambda good: good.replace("licence", "licencé").encode("latin-1")), "not JSON"),
    "half a character": (
        text(r'{"format": "editjax.model", "version": 1, "a": "\ud800"}'),
        "not JSON",
    ),
    "a NUL at the end": (text(lambda good: good + "\0"), "not JSON"),
    "a comment": (text(lambda good: "// a model\n" + good), "not JSON"),
    "other spelling": (text(lambda good: good.replace("\n ", "\n  ")), "changed or damaged"),
    "a list": (text("[]"), "not an editjax model"),
    "a sentence": (text('"a model"'), "not an editjax model"),
}

FACTS = {
    **{
        f"no {name}": (lacks(name), f"{name} is missing")
        for name in ("editjax", "family", "model", "mel", "training", "tensors", "sha256")
    },
    **{
        f"{name} is {kind}": (says(**{name: value}), f"{name} is missing or of another kind")
        for name, kind, value in (
            ("editjax", "a list", ["0.1.0"]),
            ("family", "a list", ["pointer"]),
            ("model", "a list", []),
            ("mel", "null", None),
            ("training", "a list", []),
            ("tensors", "a list", []),
            ("sha256", "a number", 0),
        )
    },
    "no format": (lacks("format"), "not an editjax model"),
    "no version": (lacks("version"), "model version None"),
    "no digest": (
        text(lambda good: dumped({k: v for k, v in json.loads(good).items() if k != "digest"}) + "\n"),
        "changed or damaged",
    ),
    "format is a list": (says(format=["editjax.model"]), "not an editjax model"),
    "version is true": (says(version=True), "model version True"),
    "version is a fraction": (says(version=1.0), "model version 1.0"),
    "version is a screen full": (says(version=ESCAPE * 1000), "model version"),
    "a family that is a path": (says(family="../../../etc"), "family '../../../etc' is unknown"),
    "a family that is a program": (says(family="__import__('os').abort()"), "is unknown"),
    "a family that a terminal obeys": (says(family=ESCAPE), "is unknown"),
    "styles are paths": (within("training", styles=["/etc/passwd"]), "training.styles"),
    "styles are objects": (within("training", styles=[{"final": 1}]), "training.styles"),
    "scores are a list": (within("training", scores=[1.0]), "training.scores"),
    "a score is a word": (within("training", scores={"threshold": "high"}), "training.scores"),
    "a score beyond all floats": (within("training", scores={"threshold": 10**400}), "training.scores"),
}

SETTINGS_OF_MODELS = {
    "heads that are a word": (says(model={"heads": "two"}), "'two' is not a int"),
    "an unknown setting": (within("model", **{ESCAPE: 1}), "unknown field"),
    "a width of words": (within("model", width="16"), "'16' is not a int"),
    "a fractional width": (within("model", width=16.0), "16.0 is not a int"),
    "a width that is true": (within("model", width=True), "True is not a int"),
    "a width of null": (within("model", width=None), "None is not a int"),
    "a width of megabytes": (within("model", width="9" * 500_000), "is not a int"),
    "a width of a milliard": (within("model", width=MANY), "width 1000000000: give at least 1"),
    "a width below nothing": (within("model", width=-16), "width -16"),
    "no heads": (within("model", heads=0), "heads 0"),
    "a beat of no frames": (within("model", frames_per_beat=0), "frames_per_beat 0"),
    "a milliard of layers": (within("model", landmark_layers=MANY), "landmark_layers 1000000000"),
    "a milliard of globals": (within("model", max_globals=MANY), "max_globals 1000000000"),
    "a large width with its tensors wrong": (within("model", width=1 << 16), "another architecture"),
    "a level beyond all floats": (within("model", ceiling_db=10**400), "is not a float"),
    "numbers that are objects": (within("model", dtype="object"), "dtype 'object'"),
    "attention that is a path": (within("model", attention="/etc/passwd"), "attention '/etc/passwd'"),
    "a mel of a milliard": (within("mel", n_fft=2 * MANY), "mel settings are no larger"),
    "a mel of all rates": (within("mel", sample_rate_hz=10**18), "mel settings are no larger"),
    "a mel of one level": (within("mel", floor_db=40.0), "must lie above the floor"),
    "a mel that the model does not hear": (within("mel", n_mels=128), "differ in n_mels"),
    "a scorer without segments": (
        of_family("scorer", ScorerSettings(), segment_steps=0),
        "segment_steps 0",
    ),
    "a scorer of a hundred thousand layers": (
        of_family("scorer", ScorerSettings(), hidden=[8] * 100_000),
        "hidden has 100000 entries",
    ),
    "a scorer of a milliard of codes": (
        of_family("scorer", ScorerSettings(), codes=MANY),
        "codes 1000000000",
    ),
    "a policy that hears with a milliard": (
        of_family("policy", PolicySettings(), hears={**to_json(PointerSettings()), "width": MANY}),
        "width 1000000000",
    ),
    "a reconstruction of a milliard": (
        of_family("reconstruct", ReconstructSettings(), expansion=MANY),
        "expansion 1000000000",
    ),
    "a vocoder of dilations without end": (
        of_family("hifigan", VOCODER, block_dilations=[[1]] * 50_000),
        "block_dilations has 50000 entries",
    ),
    "a vocoder of channels without end": (of_family("hifigan", VOCODER, channels=TERA), "channels 1099"),
    **{
        f"a regressor with {name}": (of_family("mixer", MixerSettings(), **changes), said)
        for name, changes, said in (
            ("a width of a milliard", {"width": MANY}, "width 1000000000"),
            ("a large width", {"width": 1 << 16}, "no layer is wider"),
            ("a width below nothing", {"width": -8}, "width -8"),
            ("no heads", {"heads": 0}, "heads 0"),
            ("widths that double without end", {"kind": "enhanced", "n_layers": 64}, "doubled 31 times"),
            ("layers below nothing", {"n_layers": -1}, "n_layers -1"),
            ("patches of nothing", {"patch": [0, 0]}, "patch 0"),
            ("patches of a level", {"patch": [1, 1]}, "16 to 16384 levels"),
            ("patches of milliards", {"patch": [MANY, 16]}, "patch 1000000000"),
            ("a patch of one side", {"patch": [16]}, "is not a tuple"),
            ("a side that is a word", {"patch": ["16", 16]}, "'16' is not a int"),
            ("a milliard of classes", {"classes": MANY}, "classes 1000000000"),
            ("no share left", {"dropout": 1}, "dropout 1.0"),
            ("an unknown kind", {"kind": ESCAPE}, "is not a Literal"),
            ("eyes that are a number", {"blind": 1}, "1 is not a bool"),
            ("no picture", {"picture": []}, "expected an object"),
        )
    },
    "a picture of no bands": (seeing(n_mels=0), "pictures of 0 bands"),
    "a picture of bands without end": (seeing(n_mels=10**30), "pictures of 1000000"),
    "a picture of fewer bands than coefficients": (seeing(n_mels=16), "pictures of 16 bands"),
    "a picture without an n_fft": (seeing(n_fft=0), "an n_fft of 0"),
    "a picture of a milliard": (seeing(n_fft=MANY), "an n_fft of 1000000000"),
    "a picture that stands still": (seeing(hop=0), "a hop of 0"),
    "a picture that goes backwards": (seeing(hop=-2048), "a hop of -2048"),
    "a picture of every sample": (seeing(hop=1), "a hop of 1"),
    "a picture of no rate": (seeing(rate_hz=0), "pictures at 0 Hz"),
    "a picture of all rates": (seeing(rate_hz=10**18), "pictures at 1000000"),
    "a picture of nothing": (seeing(low_hz=20000.0), "pictures from 20000 to 20000 Hz"),
    "a picture of a word": (seeing(hop="2048"), "'2048' is not a int"),
    **{
        f"a codec with {name}": (of_family("codec", CodecSettings(), **changes), said)
        for name, changes, said in (
            ("filters without end", {"n_filters": MANY}, "n_filters 1000000000"),
            ("many filters", {"n_filters": 1 << 14}, "filters that `compress` divides"),
            ("no filters", {"n_filters": 0}, "n_filters 0"),
            ("no ratios", {"ratios": []}, "needs ratios"),
            ("a ratio of nothing", {"ratios": [0, 5]}, "ratios 0"),
            ("a ratio below nothing", {"ratios": [-8]}, "ratios -8"),
            ("a ratio whose transform is gigabytes", {"ratios": [1 << 14]}, "at most 512"),
            ("a wide and long stage", {"ratios": [512], "n_filters": 4096}, "at most 524288"),
            ("ratios without end", {"ratios": [2] * 65}, "ratios has 65 entries"),
            ("residual layers everywhere", {"residual_layers": 64, "dilation_base": 1}, "64 in all"),
            ("dilations without end", {"residual_layers": 40}, "dilate too far"),
            ("a milliard of layers", {"lstm_layers": MANY}, "lstm_layers 1000000000"),
            ("no codes", {"codes": 1}, "say nothing"),
            ("a milliard of codes", {"codes": MANY}, "codes 1000000000"),
            ("no bandwidth", {"bandwidths_kbps": []}, "bandwidths"),
            ("bandwidths that are words", {"bandwidths_kbps": ["6"]}, "'6' is not a float"),
            ("a rate of nothing", {"sample_rate_hz": 0}, "no rate for frames"),
            ("no dimension", {"dimension": 0}, "dimension 0"),
        )
    },
    **{
        f"an agent with {name}": (of_family("window", WindowSettings(), **changes), said)
        for name, changes, said in (
            ("a width of a milliard", {"width": MANY}, "width 1000000000"),
            ("no heads", {"heads": 0}, "heads 0"),
            ("no pairs", {"pairs": 0}, "pairs 0"),
            ("hours", {"total_s": 65_535.0}, "too much at once"),
            ("many ratios", {"ratios": 65_536}, "too much at once"),
            ("starts at every frame", {"lag_s": 0.013}, "too much at once"),
            ("a milliard of seconds", {"total_s": 1e9}, "total_s 1000000000.0"),
            ("seconds below nothing", {"window_s": -16.0}, "window_s -16.0"),
            ("no time between starts", {"lag_s": 1e-300}, "too few"),
            ("no rate", {"frames_per_second": 0}, "frames_per_second 0.0"),
            ("windows longer than all", {"window_s": 25}, "too few"),
            ("ratios without end", {"most_ratio": 1e9}, "most_ratio 1000000000.0"),
            ("layers without end", {"composer_layers": MANY}, "composer_layers 1000000000"),
            ("no stride", {"stride": 0}, "stride 0"),
            ("an odd head", {"width": 390, "heads": 6}, "must be even"),
            ("attention that is a path", {"attention": "/etc/passwd"}, "attention '/etc/passwd'"),
            ("numbers that are objects", {"dtype": "object"}, "dtype 'object'"),
            ("a switch that is a word", {"compress": "yes"}, "'yes' is not a bool"),
            ("time that is a word", {"total_s": "24"}, "'24' is not a float"),
        )
    },
}


def in_whole_numbers(folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The good model as int8: the name of a tensor of whole numbers, and all tensors as they are stored."""
    from safetensors.numpy import load

    params = load((folder / TENSORS).read_bytes())
    whole = {key: a for name, array in params.items() for key, a in quantised(name, array).items()}
    return min(name for name, array in whole.items() if array.dtype == np.int8), whole


def whole(change: Callable[[str, dict[str, np.ndarray]], Any]) -> Attack:
    """The model is one of whole numbers, of which something was changed; all the rest agrees."""

    def build(folder: Path) -> None:
        from safetensors.numpy import save

        name, stored = in_whole_numbers(folder)
        stored = change(name, dict(stored)) or stored
        (folder / TENSORS).write_bytes(save(stored))
        facts = {key: facts_of(array) for key, array in stored.items()}
        says(tensors=facts, sha256=sha256_of(folder / TENSORS))(folder)

    return build


def scaled(scale: Callable[[np.ndarray], Any]) -> Attack:
    """The scales of a tensor of whole numbers are others."""
    return whole(
        lambda name, stored: {**stored, name + SCALE: np.asarray(scale(stored[name + SCALE]), np.float32)}
    )


WHOLE_NUMBERS = {
    "scales that are missing": (
        whole(lambda name, stored: {key: a for key, a in stored.items() if key != name + SCALE}),
        "int8 needs float32 scales",
    ),
    "a scale too few": (scaled(lambda scale: scale[:-1]), "int8 needs float32 scales"),
    "scales of two axes": (scaled(lambda scale: scale[None]), "int8 needs float32 scales"),
    "one scale for all": (scaled(lambda scale: scale[0]), "int8 needs float32 scales"),
    "scales of halves": (
        whole(lambda name, stored: {**stored, name + SCALE: stored[name + SCALE].astype(np.float16)}),
        "int8 needs float32 scales",
    ),
    "scales of scales": (
        whole(lambda name, stored: {**stored, name + SCALE * 2: np.ones(4, np.float32)}),
        "has scales, but is float32",
    ),
    "scales of what has none": (
        whole(lambda name, stored: {**stored, name: stored[name].astype(np.float32)}),
        "has scales, but is float32",
    ),
    "scales of nothing": (
        whole(lambda name, stored: {**stored, "nothing" + SCALE: np.ones(4, np.float32)}),
        "'nothing:scale' has shape",
    ),
    "a scale that is no number": (scaled(lambda scale: scale * np.nan), "values that are not finite"),
    "a scale without end": (scaled(lambda scale: scale + np.inf), "values that are not finite"),
    "a scale that is too large": (scaled(lambda scale: scale * 0 + 3e38), "its values are not finite"),
    "a scale below nothing": (scaled(lambda scale: -scale), "scales not above 0"),
    "a scale of nothing": (scaled(lambda scale: scale * 0), "scales not above 0"),
    "a number below all": (
        whole(lambda name, stored: {**stored, name: np.full_like(stored[name], -128)}),
        "whole numbers below",
    ),
    "whole numbers in a row": (
        whole(lambda name, stored: {**stored, name: stored[name].reshape(-1)}),
        "int8 without axes before the last",
    ),
    "floats that are called whole": (
        listed(
            lambda table: {
                name: {**facts, "dtype": "int8"} if len(facts["shape"]) > 1 else facts
                for name, facts in table.items()
            }
        ),
        "int8 needs float32 scales",
    ),
    "losses that are words": (says(quantised={"rms_error": "none"}), "quantised"),
    "losses of milliards": (
        says(
            quantised={
                "tensors": 1,
                "rms_error": 1e9,
                "largest_error": 0.1,
                "worst": {"tensor": "a", "rms_error": 0.1},
            }
        ),
        "are no errors",
    ),
    "whole numbers without end": (
        listed(
            lambda table: {
                name: {"shape": [1 << 14, 1 << 15], "dtype": "int8"} for name, facts in table.items()
            }
        ),
        "bytes in all",
    ),
}

TABLES = {
    "a tensor that leads up": (renamed("../../etc/passwd"), "'../../etc/passwd' has shape"),
    "a tensor at an absolute path": (renamed("/etc/passwd"), "'/etc/passwd' has shape"),
    "a tensor that a terminal obeys": (renamed(ESCAPE), "has shape"),
    "a tensor with a NUL": (renamed("a\0b"), "has shape"),
    "a tensor within a tensor": (renamed("coverage/bias/bias/bias"), "has shape"),
    "a tensor without a name": (renamed(""), "'' has shape"),
    "sides whose product overflows": (everywhere([1 << 31, 1 << 31, 4, 4]), "bytes in all"),
    "a side that overflows": (everywhere([1 << 63, 2]), "of shape"),
    "a side below nothing": (everywhere([-1, -16]), "of shape"),
    "a side of nothing": (everywhere([0, 16]), "has shape"),
    "a side of nothing and one without end": (everywhere([0, 1 << 62]), "of shape"),
    "a side that is a word": (everywhere(["16"]), "of shape"),  # type: ignore[list-item]
    "a side that is true": (first(shape=[True]), "of shape"),
    "a thousand sides": (everywhere([1] * 1000), "of shape"),
    "sides that are no list": (first(shape="16"), "of shape"),
    "doubles": (everywhere([16], "float64", "F64"), "of type 'float64'"),
    "objects": (everywhere([16], "object", "O"), "of type 'object'"),
    "integers": (everywhere([16], "int32", "I32"), "of type 'int32'"),
    "a type that is a list": (first(dtype=["float32"]), "of type"),
    "a tensor that is a list": (
        listed(lambda table: {**table, min(table): [16]}),
        "has no shape and dtype",
    ),
    "a tensor too many": (
        listed(lambda table: {**table, "more": {"shape": [4], "dtype": "float32"}}),
        "'more' has shape",
    ),
    "a tensor too few": (
        listed(lambda table: {name: facts for name, facts in table.items() if name != min(table)}),
        "has shape none",
    ),
    "no tensors": (says(tensors={}), "tensors of 0 bytes"),
    "exabytes": (
        listed(lambda table: {name: {**facts, "shape": [1 << 31] * 8} for name, facts in table.items()}),
        "bytes in all",
    ),
    "sides exchanged": (fits_nothing, "another architecture"),
}

HEADERS = {
    "a header longer than all memory": (length((1 << 63) - 1), "not a safetensors file"),
    "a header longer than the file": (length(1 << 30), "not a safetensors file"),
    "a header of nothing": (length(0), "not a safetensors file"),
    "a header in the middle": (length(5), "not a safetensors file"),
    "half a file": (header(lambda good: good, lambda data: data[:-2]), "not a safetensors file"),
    "more data than tensors": (header(lambda good: good, lambda data: data + bytes(64)), "not a safetensors"),
    "a header that is a list": (header(lambda good: list(good)), "tensors differ"),
    "a header that is no UTF-8": (header(lambda good: b'{"\xff": 1}'), "not a safetensors file"),
    "a header with a mark": (header(lambda good: "\ufeff" + json.dumps(good)), "not a safetensors file"),
    "a header of lists in lists": (header(lambda good: "[" * 100_000), "not a safetensors file"),
    "a header with NaN": (entry(shape=[float("nan")]), "not a safetensors file.*NaN"),
    "a header with a tensor twice": (header(header_twice), "twice"),
    "a header with notes": (
        header(lambda good: {"__metadata__": {"run": "rm -rf /"}, **good}),
        "tensors differ",
    ),
    "an entry with more": (entry(path="/etc/passwd"), "tensors differ"),
    "an entry without a place": (
        header(lambda good: {**good, min(good): {"dtype": "F32", "shape": [1]}}),
        "tensors differ",
    ),
    "an entry that is a word": (header(lambda good: {**good, min(good): "F32"}), "tensors differ"),
    "an entry of doubles": (entry(dtype="F64"), "tensors differ"),
    "an entry of halves": (entry(dtype="BF16"), "tensors differ"),
    "an entry of eighths": (entry(dtype="F8_E4M3"), "tensors differ"),
    "an entry of an unknown type": (entry(dtype="COMPLEX"), "tensors differ"),
    "an entry of a type that is a list": (entry(dtype=["F32"]), "tensors differ"),
    "an entry of another shape": (entry(shape=[3, 5]), "tensors differ"),
    "an entry of a shape that overflows": (entry(shape=[1 << 33, 1 << 33]), "tensors differ"),
    "tensors in one place": (header(overlapping), "not a safetensors file.*offset"),
    "tensors after a gap": (header(shifted(16), lambda data: bytes(16) + data), "not a safetensors.*offset"),
    "tensors that begin before the file": (header(shifted(-64)), "not a safetensors file"),
    "tensors that end before they begin": (header(backwards), "not a safetensors file"),
    "a tensor at no place": (entry(data_offsets=["a", "b"]), "not a safetensors file"),
    "a tensor beyond all files": (
        entry(data_offsets=[1 << 62, (1 << 62) + 64]),
        "not a safetensors file.*offset",
    ),
    "a tensor at three places": (entry(data_offsets=[0, 1, 2]), "not a safetensors file"),
    "a value that is no number": (values(float("nan")), "values that are not finite"),
    "a value without end": (values(float("inf")), "values that are not finite"),
    "another SHA-256": (says(sha256="0" * 64), "SHA-256 differs"),
}

ATTACKS: dict[str, tuple[Attack, str]] = {
    **PROGRAMS,
    **PLACES,
    **TEXTS,
    **FACTS,
    **SETTINGS_OF_MODELS,
    **TABLES,
    **WHOLE_NUMBERS,
    **HEADERS,
}
