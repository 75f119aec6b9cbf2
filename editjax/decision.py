"""Which editor decides, and what it wants: the settings of an edit and a heard recording → an edit list.

The pointer network, a scorer, a label policy and the silence cutter come in by the same door; what the user
asked of the edit besides is done to all of their lists alike (`editor`).
"""

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from editjax.audio import Reader
from editjax.crossfade import DEFAULT_SETTINGS
from editjax.edits import EditList, Segment, Source, from_pointers
from editjax.errors import UsageError
from editjax.events import events_of
from editjax.formats import DEFAULT_LIMITS, AudioLimits
from editjax.mel import FrameGrid, MelSettings
from editjax.render import RenderSettings
from editjax.score import scores_of_source
from editjax.silence import silence_edit
from editjax.styles import STYLES

if TYPE_CHECKING:
    from editjax.labeller import Labeller
    from editjax.network import EditedPointers, PointerNetwork
    from editjax.scorer import Scorer
    from editjax.vocoder import Vocoder

EDITORS = ("pointer", "scorer", "labels", "silence")
SNAPS = ("none", "beat", "bar")
SEEDS = 1 << 32
ANY = "any"
GRIFFIN_LIM = "griffin-lim"
MODEL, MODEL_OF_STYLES, SCORER = "final", "styles", "scorer"
LABELLER, RECONSTRUCTION = "labels", "reconstruct"


@dataclass(frozen=True)
class EditSettings:
    """What is asked of an edit. Times and lengths are seconds; `keep` and `cut` are texts such as "1:00,end".

    `model` is the name of a bundled model or a model's folder, left empty the bundled one for the style asked
    for (`model_of`); it, the style and sampling (`seed` with a `temperature` above 0) are the pointer
    editor's. `style` is one the model knows, or "any" for one drawn by the seed; `style_from` names an
    example of a style instead, an edited track or an edit list. `target_s` is the length the edit should
    have, met within 5 %.
    `threshold` or `keep_ratio` is the scorer's (`score.KeepSettings`); without one it keeps what it was
    calibrated to; `min_clip_s` replaces its own. `scores` names a file of scores of the recording
    (`editjax score --out`), used instead of new ones.
    `effects` says how the labels' effects get their sound: "griffin-lim", or a vocoder's folder; without it
    they only change the level. `reconstruction` names the model that knows their level and sound, left empty
    the bundled one.
    `margin_s` is (before, after) each clip, None the editor's own. `allow_truncated` edits what a damaged
    file still holds.
    """

    editor: str = "pointer"
    model: str = ""
    style: str = ""
    style_from: str = ""
    target_s: float | None = None
    temperature: float = 0.0
    seed: int = 0
    threshold: float | None = None
    keep_ratio: float | None = None
    scores: str = ""
    effects: str = ""
    reconstruction: str = ""
    margin_s: tuple[float, float] | None = None
    min_clip_s: float | None = None
    max_pause_s: float | None = None
    snap: str = "none"
    keep: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    render: RenderSettings = DEFAULT_SETTINGS
    mel: MelSettings = MelSettings()
    limits: AudioLimits = DEFAULT_LIMITS
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        if self.editor not in EDITORS:
            raise UsageError(f"unknown editor {self.editor!r}; use one of {', '.join(EDITORS)}")
        if self.snap not in SNAPS:
            raise UsageError(f"unknown snap {self.snap!r}; use one of {', '.join(SNAPS)}")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature {self.temperature}: give 0 (always the likeliest edit) or more")
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed {self.seed}: give a number from 0 to below 2**32")
        if isinstance(self.keep, str) or isinstance(self.cut, str):
            raise UsageError('keep and cut are lists of ranges, such as ["1:00,1:30"]')
        if self.target_s is not None and not 0 < self.target_s < math.inf:
            raise UsageError(f"target length {self.target_s} s: give a length above 0")
        if self.editor != "pointer" and self.temperature:
            raise UsageError("a temperature needs the pointer editor: --editor pointer")
        if self.editor == "silence" and self.model:
            raise UsageError("the silence cutter has no model: --editor pointer, scorer or labels")
        if self.editor != "pointer" and (self.style or self.style_from):
            raise UsageError("a style needs the pointer editor: --editor pointer")
        if self.editor != "scorer" and (self.threshold, self.keep_ratio, self.scores) != (None, None, ""):
            raise UsageError("a threshold, keep ratio or scores need the scorer: --editor scorer")
        if None not in (self.threshold, self.keep_ratio):
            raise UsageError("give a threshold or a keep ratio: --threshold or --keep-ratio")
        if self.editor != "labels" and self.effects:
            raise UsageError("effects need the label policy: --editor labels")
        if self.editor != "labels" and self.reconstruction:
            raise UsageError("a reconstruction model needs the label policy: --editor labels")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UsageError(f"threshold {self.threshold}: give a number of standard deviations")
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise UsageError(f"keep ratio {self.keep_ratio}: give a share above 0 and at most 1")
        if self.style and self.style_from:
            raise UsageError("give a style or an example of one: --style or --style-from")


class Heard(NamedTuple):
    """A recording as the editors see it; `timings_s` as in `EditResult`.

    `stems_IMF` are the mels of its tracks (`mel.stem_mel`), where it is a sum and the editor hears them.
    """

    source: Source
    grid: FrameGrid
    mel_TF: np.ndarray
    timings_s: dict[str, float]
    stems_IMF: np.ndarray | None = None


def model_of(settings: EditSettings) -> str:
    """The model that edits: the one named, else the editor's own, which may depend on the style."""
    if settings.editor == "scorer":
        return settings.model or SCORER
    if settings.editor == "labels":
        return settings.model or LABELLER
    plain = settings.style in ("", STYLES[0]) and not settings.style_from
    return settings.model or (MODEL if plain else MODEL_OF_STYLES)


def ready(settings: EditSettings) -> EditSettings:
    """The settings with their model's mel: an unusable model, style or example is refused before the work."""
    match settings.editor:
        case "pointer":
            _style(settings)
            return replace(settings, mel=_network_of(settings).mel)
        case "scorer":
            return replace(settings, mel=_scorer(model_of(settings)).mel)
        case "labels":
            if settings.effects:
                vocoder_of(settings)
            return replace(settings, mel=_labeller_of(settings).mel)
    return settings


def hears_stems(settings: EditSettings) -> bool:
    """Whether the tracks of a session, where they are known, change its edit."""
    return settings.editor == "pointer" and _network_of(settings).hears_stems


def choose(heard: Heard, settings: EditSettings) -> EditList:
    """What the editor itself wants, before any adjustment."""
    match settings.editor:
        case "pointer":
            return _pointer_edit(heard, settings)
        case "scorer":
            return _scored_edit(heard, settings)
        case "labels":
            return _labelled_edit(heard, settings)
    own = {} if settings.margin_s is None else {"margin_s": 0.0}  # the margin asked for replaces its own
    return silence_edit(heard.mel_TF, heard.grid, heard.source, mel_settings=settings.mel, **own)


def choose_several(heard: Heard, settings: EditSettings, count: int) -> list[EditList]:
    """At most `count` edits that differ: the likeliest, or where edits are drawn those of seeds counted up.

    The likeliest differ in what they keep (see `PointerNetwork.variants`), and there may be fewer.
    """
    with timed(heard.timings_s, "decide"):
        if count == 1:
            return [choose(heard, settings)]
        if settings.temperature or settings.style == ANY:
            seeds = ((settings.seed + k) % SEEDS for k in range(count))
            return [choose(heard, replace(settings, seed=seed)) for seed in seeds]
        return _pointer_variants(heard, settings, count)


def _scored_edit(heard: Heard, settings: EditSettings) -> EditList:
    """What a scorer finds good enough."""
    scorer = _scorer(model_of(settings))
    if settings.scores:
        made_by = model_of(settings), scorer.sha256
        score_T = scores_of_source(settings.scores, heard.source.sha256, len(heard.mel_TF), *made_by).score_T
    else:
        with timed(heard.timings_s, "network"):
            score_T = scorer.anomaly(heard.mel_TF)
    keep = scorer.asked(settings.threshold, settings.keep_ratio, settings.min_clip_s)
    return scorer.edit(score_T, heard.grid, heard.source, keep, {"model": model_of(settings)})


def _labelled_edit(heard: Heard, settings: EditSettings) -> EditList:
    """What a label policy makes of the beats."""
    with timed(heard.timings_s, "network"):
        name, labeller = model_of(settings), _labeller_of(settings)
        notes = {"model": name, **({"sound": settings.effects} if settings.effects else {})}
        return labeller.edit(heard.mel_TF, heard.grid, heard.source, notes, levels=not settings.effects)


def sounding(heard: Heard, reader: Reader, settings: EditSettings) -> Reader:
    """The recording as the edit plays it: with the sound of effects, where that is asked for."""
    if not settings.effects:
        return reader
    from editjax.effects import with_effects

    wanted_TF, spans = _labeller_of(settings).effects(heard.mel_TF)
    return with_effects(reader, wanted_TF, spans, settings.mel, vocoder_of(settings))


def vocoder_of(settings: EditSettings) -> "Vocoder | None":
    """The vocoder that makes the sound of effects, None for Griffin–Lim alone."""
    return None if settings.effects == GRIFFIN_LIM else _vocoder(settings.effects)


def _pointer_edit(heard: Heard, settings: EditSettings) -> EditList:
    """The network's edit.

    A wanted length is left to `bring_to_length`: a network asked for one could stop early, and what it never
    played cannot be brought back.
    """
    network, phase_T3 = _network_of(settings), _phases(heard, settings)
    with timed(heard.timings_s, "network"):
        edited = network.edit_pointers(
            heard.mel_TF,
            phase_T3,
            temperature=settings.temperature,
            seed=settings.seed,
            style=_style(settings),
            stems_IMF=heard.stems_IMF,
        )
    drawn = settings.temperature or settings.style == ANY
    notes = {"temperature": settings.temperature, "seed": settings.seed} if drawn else {}
    return _listed(edited, heard, settings, notes)


def _pointer_variants(heard: Heard, settings: EditSettings, count: int) -> list[EditList]:
    """The likeliest edits of the network that differ."""
    network, phase_T3 = _network_of(settings), _phases(heard, settings)
    with timed(heard.timings_s, "network"):
        found = network.variants(
            heard.mel_TF, phase_T3, count, style=_style(settings), stems_IMF=heard.stems_IMF
        )
    listed = [_listed(edited, heard, settings, {"variant": k}) for k, edited in enumerate(found, 1)]
    return listed or [_pointer_edit(heard, settings)]  # an edit that keeps nothing is refused as one alone is


def _phases(heard: Heard, settings: EditSettings) -> np.ndarray:
    with timed(heard.timings_s, "beats"):
        return _network_of(settings).phases(heard.mel_TF)


def _listed(
    edited: "EditedPointers", heard: Heard, settings: EditSettings, notes: dict[str, Any]
) -> EditList:
    """Pointers as an edit list: scores are the probability of each jump, reasons the mean to keep a frame.

    What was heard is noted, so that every cut has a reason (`operations`).
    """
    heard_as = events_of(edited.kind_T, heard.grid, heard.source.frames)
    editor = {
        "name": "pointer",
        "model": model_of(settings),
        **_style_notes(settings),
        "stopped": edited.stopped,
        "expected_length_s": round(edited.length_frames / settings.mel.frames_per_second, 2),
        **({"heard": heard_as} if heard_as else {}),
    }
    probability_N = np.exp(edited.score_N.astype(np.float64))
    edit_list = from_pointers(
        edited.pointers_N, heard.source, heard.grid, probability_N.round(4), editor=editor | notes
    )
    return edit_list._replace(
        segments=tuple(_with_reason(s, heard.grid, edited.keep_T) for s in edit_list.segments)
    )


def _style(settings: EditSettings) -> np.ndarray:
    """The point of the style asked for; where edits are drawn, so is what the style leaves open."""
    network = _network_of(settings)
    if settings.style_from:
        decoding = settings.limits, settings.allow_truncated
        return _example_style(*_version_of(settings.style_from), model_of(settings), *decoding)
    style = settings.style or network.style
    if settings.temperature or style == ANY:
        return network.some_style(style, settings.seed)
    return network.point_of(style)


def _style_notes(settings: EditSettings) -> dict[str, Any]:
    """What an edit list says of the style it was made in: a name only where a name was asked for."""
    if settings.style_from:
        return {"style_from": settings.style_from}
    if settings.style == ANY:
        return {"style_drawn": settings.seed}
    return {"style": settings.style or _network_of(settings).style}


def _version_of(path: str) -> tuple[str, int, int]:
    """A file as it is now: another path, size or time is another example."""
    place = Path(path).resolve()
    found = place.stat() if place.is_file() else None
    return str(place), found.st_size if found else 0, found.st_mtime_ns if found else 0


@functools.lru_cache(maxsize=8)
def _example_style(
    path: str, size: int, time_ns: int, model: str, limits: AudioLimits, allow_truncated: bool
) -> np.ndarray:
    from editjax.reference import style_of_example

    return style_of_example(path, _network(model), limits, allow_truncated)


def _with_reason(segment: Segment, grid: FrameGrid, keep_T: np.ndarray) -> Segment:
    keep = keep_T[grid.frames_in(segment.start) : grid.frames_in(segment.stop)].mean()
    return segment._replace(reason=f"keep {keep:.2f}")


def _labeller_of(settings: EditSettings) -> "Labeller":
    return _labeller(model_of(settings), settings.reconstruction or RECONSTRUCTION)


def _network_of(settings: EditSettings) -> "PointerNetwork":
    return _network(model_of(settings))


@functools.lru_cache(maxsize=2)
def _scorer(model: str) -> "Scorer":
    from editjax.scorer import load_scorer

    return load_scorer(model)


@functools.lru_cache(maxsize=2)
def _labeller(model: str, reconstruction: str) -> "Labeller":
    from editjax.labeller import load_labeller

    return load_labeller(model, reconstruction)


@functools.lru_cache(maxsize=2)
def _vocoder(model: str) -> "Vocoder":
    from editjax.vocoder import load_vocoder

    return load_vocoder(model)


@functools.lru_cache(maxsize=2)
def _network(model: str) -> "PointerNetwork":
    from editjax.network import load_model

    return load_model(model)


@contextlib.contextmanager
def timed(timings_s: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the wall clock of a block to a stage's."""
    began = time.perf_counter()
    yield
    timings_s[stage] = timings_s.get(stage, 0.0) + time.perf_counter() - began
