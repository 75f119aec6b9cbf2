"""What a run learns from: which kind of shards, their batches, and what a model notes of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from editjax import data, mixes, shards, sounds
from editjax.array_records import read_manifest
from editjax.config import to_json
from editjax.errors import UsageError
from editjax.family import family_of
from editjax.mesh import make_mesh
from editjax.mixer_loss import MixerLossSettings
from editjax.mixes import MixSettings
from editjax.models.match import STEP_FRAMES
from editjax.models.mixer import MixerSettings
from editjax.models.pointer import PointerSettings
from editjax.models.policy import PolicySettings
from editjax.models.reconstruct import ReconstructSettings
from editjax.sounds import SoundSettings
from editjax.step import TrainConfig
from editjax.styles import STYLES


class Feed(NamedTuple):
    """`batches(folder, settings, process_index=, process_count=)` is endless; `facts` (JSON) are noted.

    `check(config, name)` raises UsageError where the config called `name` does not fit the shards.
    """

    batches: Callable[..., Any]
    facts: dict[str, Any]
    check: Callable[[TrainConfig, str], None]


def feed_of(config: TrainConfig, folder: Path) -> Feed:
    """The feed of a folder of shards, of the kind that the config's data settings are for."""
    settings = config.data
    if isinstance(settings, SoundSettings):
        return _sounds(folder, settings.batch_size)
    if isinstance(settings, MixSettings):
        return _mixes(folder, settings)
    manifest = shards.read_manifest(folder)
    mel, styles = manifest["mel"], settings.styles or manifest["counts"]["styles"]

    def check_mels(config: TrainConfig, name: str) -> None:
        for field, value in to_json(config.model).items():
            if mel.get(field, value) != value:
                raise UsageError(f"{folder}: mels with {field} {mel[field]}, but {name} wants {value}")
        check_buckets(config)

    facts = {"mel": mel, "settings": manifest["settings"], "styles": [s for s in STYLES if s in styles]}
    return Feed(data.batches, facts, check_mels)


def _sounds(folder: Path, batch_size: int) -> Feed:
    manifest = read_manifest(folder, sounds.SOUNDS)
    rate_hz = manifest["rate_hz"]

    def check(config: TrainConfig, name: str) -> None:
        wanted = getattr(config.model, "sample_rate_hz", rate_hz)
        if wanted != rate_hz:
            raise UsageError(f"{folder}: sounds at {rate_hz} Hz, but {name} wants {wanted}")
        _check_division(config, batch_size)

    return Feed(sounds.batches, {"rate_hz": rate_hz, "counts": manifest["counts"]}, check)


def _mixes(folder: Path, settings: MixSettings) -> Feed:
    manifest = read_manifest(folder, mixes.MIXES)
    made, labels = manifest["settings"], mixes.Mixes(folder).labels(settings.label) if settings.label else []

    def check(config: TrainConfig, name: str) -> None:
        model, loss = config.model, config.loss
        if not isinstance(model, MixerSettings) or not isinstance(loss, MixerLossSettings):
            raise UsageError(f"{folder}: holds mixes, which {name} does not learn from")
        if made["picture"] != to_json(model.picture):
            raise UsageError(f"{folder}: mixes with other pictures than {name} wants")
        if (loss.spectral or loss.loudness) and not made["sound"]:
            raise UsageError(f"{folder}: holds no sound to hear; editjax mixes --sound, or loss.spectral 0")
        if loss.masked and model.kind != "ast":
            raise UsageError(
                f"{name}: patches are masked for an ast alone; use model.kind ast, or loss.masked 0"
            )
        if len(labels) != model.classes:
            kind = f"of the kind {settings.label!r}" if settings.label else "asked for by data.label"
            raise UsageError(f"{folder}: {len(labels)} labels {kind}, but model.classes is {model.classes}")
        _check_division(config, settings.batch_size)

    facts = {"settings": made, "counts": manifest["counts"], "labels": labels}
    return Feed(mixes.batches, facts, check)


def _check_division(config: TrainConfig, size: int) -> None:
    """Refuses batches that the mesh's devices cannot share evenly."""
    mesh = make_mesh(config.mesh)
    each = mesh.shape["data"] * mesh.shape["fsdp"] * config.optim.accumulate
    if size % each:
        raise UsageError(f"batches of {size} do not divide over {each}: change --data.batch-size")


def check_buckets(config: TrainConfig) -> None:
    """Refuses batches that the mesh's devices cannot share evenly: examples, and time where that is split."""
    settings = config.data
    assert isinstance(settings, data.DataSettings)
    mesh = make_mesh(config.mesh)
    devices, parts = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["seq"]
    each, (wide, long) = devices * config.optim.accumulate, _windows(config.model)
    if each > devices and family_of(config.model, config.loss).learn:
        raise UsageError("optim.accumulate: this family makes minibatches of its own; leave it at 1")
    for frames, steps in settings.buckets:
        if parts > 1 and (frames % (2 * STEP_FRAMES * parts) or steps % parts):
            raise UsageError(
                f"a bucket of {frames} frames and {steps} steps does not split over {parts} devices: change "
                f"--mesh.seq, or --data.buckets to multiples of {2 * STEP_FRAMES * parts} and {parts}"
            )
        # Attention over more than a neighbour's part would be right, but every device would hold the whole.
        if parts > 1 and (wide * parts > frames or long * parts > steps):
            raise UsageError(
                f"windows of {wide} frames and {long} steps reach over a device's part of a bucket "
                f"of {frames} and {steps}: use a smaller --mesh.seq or larger --data.buckets"
            )
        if (size := settings.batch_size(frames)) % each:
            of = f" in {config.optim.accumulate} parts" if each > devices else ""
            raise UsageError(
                f"batches of {size} with {frames} frames do not divide over {devices} devices{of}: "
                f"add --data.batch-multiple {each}"
            )


def _windows(model: Any) -> tuple[int, int]:
    """How many frames and steps a model's attention reaches over, where time may be split."""
    match model:
        case PointerSettings():
            frames = max(model.landmark_window * model.landmark_frames, model.frame_window)
            return frames, model.decoder_window - 1
        case PolicySettings():
            return _windows(model.hears)[0], 0
        case ReconstructSettings():
            return model.window, 0
    return 0, 0
