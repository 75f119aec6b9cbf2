"""Pairs of (raw, edited) audio → mel shards, and a report of what was used, skipped and how well it agrees.

Pointers come from the `.edits.json` where there is one, else from aligning the two files; where only mels and
labels are left of them, from these (`cached_mels`). Each recording is prepared alone, in a pool of spawned
processes or on Apache Beam, into a staging folder inside the shards' folder, under a fingerprint of its files
and settings. An interrupted run therefore goes on where it was; the shards are assembled from the staged
records in the order of their ids, so that the same pairs give the same bytes whoever prepared them.
"""

import hashlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax import __version__, pipeline, shards
from editjax.array_records import FILE_BYTES, MANIFEST, write_json
from editjax.audio import Reader
from editjax.beats import BeatSettings, beat_phases, track_beats
from editjax.cached_mels import cached_recording
from editjax.edits import (
    EditList,
    beat_labels,
    duration_samples,
    pointers_by_time,
    read_edits,
    to_pointers,
)
from editjax.errors import (
    CannotCreateError,
    DataError,
    EditjaxError,
    InputOutputError,
    NoInputError,
    UsageError,
    first_line,
)
from editjax.events import in_frames
from editjax.files import sha256_of
from editjax.mel import FrameGrid, MelSettings, mel_of, mel_of_span, stem_mel
from editjax.pairs import EditFiles, RawFiles, find_cached, find_pairs
from editjax.records import Edit, Recording, encode, half_phases
from editjax.stores import StorePath, in_store, new_file, place, refresh, remove_tree, stamp
from editjax.styles import STYLES
from editjax.workers import results, usable_cores

REPORT = "report.json"
STAGING = ".staging"
LENGTH_TOLERANCE_S = 0.1
"""An edited file may differ from the length of its edit list by this much (codec padding)."""

READERS = 16  # small files read at once: a store takes long to answer, not long to read

KEPT = "finished recordings are kept, run again"
ADVICE = f"{KEPT}, with fewer --workers if memory is short"


@dataclass(frozen=True)
class PrepareSettings:
    """How recordings become records.

    `split` names the part of the data these pairs are; of them the share `validation` goes to the split
    "validation", chosen by a hash of the recording's id, all its edits together. A pair of which alignment
    finds less than `least_aligned`, or of which cached labels tell less truly, is bad. `check_alignment` also
    aligns pairs that have an edit list, to compare.
    """

    beats: BeatSettings = field(default_factory=BeatSettings)
    split: str = "train"
    validation: float = 0.0
    least_aligned: float = 0.5
    check_alignment: bool = False
    shard_bytes: int = FILE_BYTES

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation < 1.0:
            raise UsageError(f"validation {self.validation}: give a share from 0 to below 1")


OpenAudio = Callable[[Path], Reader]


class Raw(NamedTuple):
    """A raw recording as its edits need it."""

    files: RawFiles
    samples: int
    grid: FrameGrid
    mel_TF: np.ndarray
    beat_frames: np.ndarray
    stems_IMF: np.ndarray | None
    open_audio: OpenAudio


def prepare(
    pairs: str | Path,
    shards_dir: str | Path,
    settings: PrepareSettings = PrepareSettings(),
    workers: int | None = None,
    overwrite: bool = False,
    runner: str | None = None,
    runner_options: Sequence[str] = (),
) -> dict[str, Any]:
    """Build shards of all pairs and return the report, which is also written as `report.json` beside them.

    The report names `good` pairs, `skipped` ones with the reason, and says what alignment found in `aligned`.
    Both folders may lie in an object store (`s3://…`). `workers` None uses every core this process may use.
    With a `runner`, one of `pipeline.RUNNERS`, Apache Beam finds the workers, by its own `runner_options`.
    Shards that are already complete for these files and settings are left as they are. Raises
    CannotCreateError when other shards are there and `overwrite` is off, DataError when no pair is good,
    TryAgainError when a worker died.
    """
    run_all = _chosen(workers, runner, runner_options)
    found = find_cached(pairs) or find_pairs(pairs)
    folder = place(shards_dir)
    keys = {files.id: _fingerprint(files, settings) for files in found.recordings}
    build = _digest([keys, found.skipped])
    if (report := _finished(folder, build, overwrite)) is not None:
        return report
    staging = _make_staging(folder)
    before = _outcomes(staging, keys.values())
    done = {key for key, outcome in before.items() if not outcome["skipped"]}  # the others are tried again
    jobs = [Job(files, keys[files.id]) for files in found.recordings if keys[files.id] not in done]
    jobs.sort(key=lambda job: -stamp(job.files.raw)[0])
    run_all(partial(_stage, settings, staging), jobs)
    outcomes = _outcomes(staging, keys.values())
    if lost := [files.id for files in found.recordings if keys[files.id] not in outcomes]:
        advice = "every worker must reach this folder by this name; choose one that they share"
        raise InputOutputError(
            f"{folder}: nothing came of {len(lost)} recordings such as {lost[0]}; {advice}"
        )
    report = _report(build, found.skipped, [outcomes[keys[files.id]] for files in found.recordings])
    if report["good"]:  # a report never stands beside shards of another build as if they were its own
        (folder / MANIFEST).unlink(missing_ok=True)
    write_json(folder / REPORT, report)
    if not report["good"]:
        remove_tree(staging)
        name, reason = report["skipped"][0]["pair"], report["skipped"][0]["reason"]
        raise DataError(f"{pairs}: none of {len(report['skipped'])} pairs is good; {name}: {reason}")
    good = [key for files in found.recordings if outcomes[key := keys[files.id]]["good"]]
    records = (_staged(staging, key)[0].read_bytes() for key in good)
    described = {key: value for key, value in asdict(settings).items() if key != "shard_bytes"}
    shards.write(
        folder, records, mel=asdict(settings.beats.mel), settings=described, shard_bytes=settings.shard_bytes
    )
    remove_tree(staging)
    return report


def prepare_recording(
    files: RawFiles, settings: PrepareSettings, open_audio: OpenAudio = Reader
) -> tuple[Recording | None, dict[str, Any]]:
    """The record of one recording with its good edits (None without any), and the report's part about it."""
    outcome: dict[str, Any] = {"good": [], "skipped": [], "aligned": []}
    edits: list[Edit] = []
    meta: dict[str, Any] = {}
    try:
        if files.cached:
            return _prepare_cached(files, settings, outcome), outcome
        raw, meta, phase_T3 = _read_raw(files, settings, open_audio)
    except Exception as error:  # whatever is wrong with one file must not end a run over thousands
        return None, _nothing_of(files, error)
    for edit_files in files.edits:
        try:
            edit, editor, found = _prepare_edit(raw, edit_files, settings)
            _describe_recording(meta, editor, raw.grid)
        except Exception as error:  # as above
            outcome["skipped"].append({"pair": edit_files.id, "reason": _reason(error)})
            continue
        edits.append(edit)
        outcome["good"].append(edit_files.id)
        if found is not None:
            outcome["aligned"].append({"pair": edit_files.id, **found})
    if not edits:
        return None, outcome
    recording = Recording(files.id, raw.mel_TF, phase_T3, raw.beat_frames, tuple(edits), meta, raw.stems_IMF)
    return recording, outcome


def _nothing_of(files: RawFiles, error: Exception) -> dict[str, Any]:
    """The report's part about a recording that could not be read: every edit of it is skipped."""
    skipped = [{"pair": edit.id, "reason": _reason(error)} for edit in files.edits]
    return {"good": [], "skipped": skipped, "aligned": []}


def _prepare_cached(files: RawFiles, settings: PrepareSettings, outcome: dict[str, Any]) -> Recording:
    """The record of cached mels and labels, noted as good in the report's part about them."""
    recording, agreement = cached_recording(files, settings.least_aligned, settings.beats)
    outcome["good"].append(files.id)
    doubt = {"doubt": agreement.doubt} if agreement.doubt else {}
    outcome["aligned"].append({"pair": files.id, "alignment_ratio": round(agreement.share, 4), **doubt})
    return recording._replace(meta={"split": _split_of(files.id, settings), **recording.meta})


def _read_raw(
    files: RawFiles, settings: PrepareSettings, open_audio: OpenAudio
) -> tuple[Raw, dict[str, Any], np.ndarray]:
    mel = settings.beats.mel
    with open_audio(files.raw) as reader:
        mel_TF, samples = mel_of(reader, mel)
        rate_hz = reader.info.sample_rate_hz
    if not samples:
        raise DataError(f"{files.raw}: holds no samples")
    beats = track_beats(mel_TF, settings.beats)
    phase_T3 = half_phases(beat_phases(beats, len(mel_TF), settings.beats))
    meta = {
        "split": _split_of(files.id, settings),
        "sources": [],
        "sample_rate_hz": rate_hz,
        "samples": samples,
        "tempo_bpm": round(float(beats.tempo_bpm), 2),
        "beat_confidence": round(float(beats.confidence), 3),
    }
    stems_IMF = _read_stems(files, samples, rate_hz, len(mel_TF), settings) if files.stems else None
    mel_TF, beat_frames = mel_TF.astype(np.float16), np.asarray(beats.beat_frames)
    raw = Raw(files, samples, mel.grid(rate_hz), mel_TF, beat_frames, stems_IMF, open_audio)
    return raw, meta, phase_T3


def _read_stems(
    files: RawFiles, samples: int, rate_hz: int, n_frames: int, settings: PrepareSettings
) -> np.ndarray:
    """The stems' mels in steps, (I, M, F) float16; a stem may end before the recording, not after it."""
    stems = []
    for path in files.stems:
        with Reader(path) as reader:
            if (
                reader.info.sample_rate_hz != rate_hz
                or reader.frames > samples + LENGTH_TOLERANCE_S * rate_hz
            ):
                raise DataError(
                    f"{path}: {reader.frames} samples at {reader.info.sample_rate_hz} Hz are no stem of "
                    f"{files.raw.name}, which has {samples} at {rate_hz} Hz; take it out of its folder"
                )
            stems.append(stem_mel(reader, n_frames, settings.beats.mel).astype(np.float16))
    return np.stack(stems)


def _prepare_edit(
    raw: Raw, files: EditFiles, settings: PrepareSettings
) -> tuple[Edit, dict[str, Any], dict[str, Any] | None]:
    """One edit, its editor's notes, and what alignment found where it was used or asked for."""
    pointers_N, edit_list, found = _find_pointers(raw, files, settings)
    editor = edit_list.editor
    style = files.style or str(editor.get("style", STYLES[0]))
    if style not in STYLES:
        raise DataError(f"{files.edits or files.edited}: style {style!r} is none of {', '.join(STYLES)}")
    effects = [(int(effect[0]), int(effect[1])) for effect in editor.get("effects", ())]
    labels = beat_labels(edit_list, raw.beat_frames, len(raw.mel_TF), grid=raw.grid, effects=effects)
    edit_mel_NF = None
    if files.edited is not None and (files.edits is None or style == "produced" or _is_processed(edit_list)):
        edit_mel_NF = _heard_mel(raw, files.edited, edit_list, settings.beats.mel)
    target_s = editor.get("target_length_s")
    meta: dict[str, Any] = {
        "natural": target_s is None,
        "pointers": "edit list" if files.edits else "alignment",
    }
    if target_s is not None:
        meta["target_s"] = float(target_s)
    return Edit(files.id, style, pointers_N, labels, edit_mel_NF, meta), editor, found


def _find_pointers(
    raw: Raw, files: EditFiles, settings: PrepareSettings
) -> tuple[np.ndarray, EditList, dict[str, Any] | None]:
    """Pointers (N,) int32 and the edit list they come from or were aligned to."""
    found = None
    if files.edits is not None:
        edit_list = _read_edit_list(raw, files, files.edits)
        pointers_N = to_pointers(edit_list, raw.grid)
        if settings.check_alignment and files.edited is not None:
            aligned_N, _, ratio = _align(raw, files.edited, settings)
            found = {"alignment_ratio": round(ratio, 4), **_compare(edit_list, raw.grid, aligned_N)}
    elif files.edited is not None:
        pointers_N, edit_list, ratio = _align(raw, files.edited, settings)
        found = {"alignment_ratio": round(ratio, 4)}
        if ratio < settings.least_aligned:
            raise DataError(f"{files.edited}: only {ratio:.0%} of it was found in {raw.files.raw.name}")
    else:
        raise DataError(f"{files.id}: neither an edited file nor an edit list")
    if not (pointers_N >= 0).any():
        raise DataError(f"{files.edits or files.edited}: the edit keeps nothing of the recording")
    return pointers_N.astype(np.int32), edit_list, found


def _read_edit_list(raw: Raw, files: EditFiles, path: Path) -> EditList:
    """The edit list, checked to be of this recording and of this edited file."""
    edit_list = read_edits(path)
    source, name = edit_list.source, raw.files.raw.name
    if (source.frames, source.sample_rate) != (raw.samples, raw.grid.source_rate_hz):
        raise DataError(
            f"{files.edits}: is of a source of {source.frames} samples at {source.sample_rate} Hz, "
            f"but {name} has {raw.samples} at {raw.grid.source_rate_hz} Hz"
        )
    if source.sha256 and source.sha256 != sha256_of(raw.files.raw):
        raise DataError(f"{files.edits}: is of another recording than {name} (SHA-256)")
    if files.edited is not None:
        _check_length(raw, files.edited, duration_samples(edit_list) / source.sample_rate)
    return edit_list


def _check_length(raw: Raw, edited: Path, wanted_s: float) -> None:
    """Refuse an edited file that is not as long as its edit list; only a header that agrees is believed."""
    with raw.open_audio(edited) as reader:
        rate_hz, header_frames = reader.info.sample_rate_hz, reader.info.header_frames
        if abs(header_frames / rate_hz - wanted_s) > LENGTH_TOLERANCE_S:
            counted_s = reader.frames / rate_hz
            if abs(counted_s - wanted_s) > LENGTH_TOLERANCE_S:
                raise DataError(f"{edited}: lasts {counted_s:.2f} s, its edit list makes {wanted_s:.2f} s")


def _align(raw: Raw, edited: Path, settings: PrepareSettings) -> tuple[np.ndarray, EditList, float]:
    """Pointers, edit list and aligned share of an edit by listening to the two files."""
    from editjax.align import AlignSettings, align

    how = AlignSettings(mel=settings.beats.mel)
    with raw.open_audio(raw.files.raw) as raw_reader, raw.open_audio(edited) as edited_reader:
        alignment = align(raw_reader, edited_reader, how)
    return np.asarray(alignment.pointers_N), alignment.edit_list, float(alignment.alignment_ratio)


def _compare(edit_list: EditList, grid: FrameGrid, aligned_N: np.ndarray) -> dict[str, Any]:
    """How far aligned pointers agree with the edit list's, at each frame of the edited file."""
    true_N = pointers_by_time(edit_list, grid)
    length = min(len(true_N), len(aligned_N))
    apart_N = np.abs(true_N[:length] - aligned_N[:length])
    return {
        "within_1_frame": round(float((apart_N <= 1).sum() / max(len(true_N), len(aligned_N), 1)), 4),
        "frames": [len(true_N), len(aligned_N)],
    }


def _is_processed(edit_list: EditList) -> bool:
    """Whether the edit sounds otherwise than the raw frames it plays (short joins aside)."""
    touched = any(s.fade_in or s.fade_out or s.gain_db for s in edit_list.segments)
    return touched or bool(edit_list.editor.get("effects") or edit_list.editor.get("unaligned"))


def _heard_mel(raw: Raw, path: Path, edit_list: EditList, mel: MelSettings) -> np.ndarray:
    """The edited file's mel (N, F) float16, one frame a pointer, where in the file that raw frame is heard.

    A frame of the file's own grid is up to half a hop away from the raw frame that it plays, which alone
    changes a mel by more than effects do.
    """
    with raw.open_audio(path) as reader:
        spans = _heard_at(edit_list, raw.grid, reader.frames)
        pieces = [mel_of_span(reader, at, frames, mel) for at, frames in spans]
    return np.concatenate([*pieces, np.zeros((0, mel.n_mels), np.float32)]).astype(np.float16)


def _heard_at(edit_list: EditList, grid: FrameGrid, samples: int) -> Iterator[tuple[int, int]]:
    """Where the edit's frames are heard, in its own samples: (first sample, frames) of runs without a gap.

    What has no place in the recording is heard between the segments; no frame begins after the last sample.
    """
    unaligned: Counter[int] = Counter()
    for index, frames in edit_list.editor.get("unaligned", ()):
        unaligned[index] += frames
    at = 0
    for index, segment in enumerate((*edit_list.segments, None)):
        if frames := unaligned[index]:
            yield min(at, samples - 1), frames
            at += int(grid.sample_of_frame(frames))
        if segment is not None:
            first, last = grid.frames_in(segment.nominal_start), grid.frames_in(segment.nominal_stop)
            heard = at + int(grid.sample_of_frame(first)) - segment.start
            if last > first:
                yield min(max(heard, 0), samples - 1), last - first
            at += segment.stop - segment.start


def _describe_recording(meta: dict[str, Any], editor: dict[str, Any], grid: FrameGrid) -> None:
    """Add what an edit list tells of its recording: the sources it is made of and what happens when."""
    meta["sources"] = sorted({*meta["sources"], *map(str, editor.get("sources", ()))})
    if "events" in editor and "events" not in meta:
        meta["events"] = in_frames(editor["events"], grid, meta["samples"])


def _split_of(id: str, settings: PrepareSettings) -> str:
    position = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
    return "validation" if position < settings.validation else settings.split


class Job(NamedTuple):
    """One recording to prepare and the key to keep it under."""

    files: RawFiles
    key: str


RunAll = Callable[[Callable[[Job], None], Sequence[Job]], None]


def _chosen(workers: int | None, runner: str | None, runner_options: Sequence[str]) -> RunAll:
    """What calls a function for every job: the pool, or Beam, which has all it needs."""
    if runner is None:
        return partial(_run, workers=workers or usable_cores())
    if workers is not None:
        raise UsageError(
            "--workers is of the local pool; tell Beam after --, such as: "
            "-- --direct_num_workers=4 --direct_running_mode=multi_processing"
        )
    return partial(pipeline.run_each, pipeline=pipeline.start(runner, runner_options), advice=KEPT)


def _run(function: Callable[[Job], None], jobs: Sequence[Job], workers: int) -> None:
    """Every job in the pool, with a progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=len(jobs), unit="recording", disable=not sys.stderr.isatty()) as bar:
        for _ in results(function, jobs, workers, ADVICE):
            bar.update()


def _stage(settings: PrepareSettings, staging: Path, job: Job) -> None:
    """Prepare one recording; keep its record, if there is one, and then what became of its edits."""
    recording, outcome = _prepare_anywhere(job.files, settings)
    record_path, outcome_path = _staged(staging, job.key)
    if recording is not None:
        with new_file(record_path) as temporary:
            temporary.write_bytes(encode(recording))
    write_json(outcome_path, outcome)


def _prepare_anywhere(files: RawFiles, settings: PrepareSettings) -> tuple[Recording | None, dict[str, Any]]:
    """The same as `prepare_recording`; what lies in a store is copied to this machine for so long."""
    if not in_store(files.raw):
        return prepare_recording(files, settings)
    with tempfile.TemporaryDirectory(prefix="editjax-") as folder:
        stored: dict[str, str] = {}

        def fetch(path: Path) -> Path:
            local = Path(folder, str(len(stored)), path.name)
            local.parent.mkdir()
            assert isinstance(path, StorePath)
            try:
                path.download(local)
            except InputOutputError:  # many a store fails now and then
                path.download(local)
            stored[str(local)] = str(path)
            return local

        try:
            fetched = files.moved(fetch)
        except (NoInputError, InputOutputError) as error:  # one object must not end a run over thousands
            return None, _nothing_of(files, error)
        recording, outcome = prepare_recording(fetched, settings)
    for bad in outcome["skipped"]:
        for local, path in stored.items():
            bad["reason"] = bad["reason"].replace(local, path)
    return recording, outcome


def _staged(staging: Path, key: str) -> tuple[Path, Path]:
    return staging / f"{key}.record", staging / f"{key}.json"


def _outcomes(staging: Path, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What became of the recordings that are staged, by their keys."""

    def read(key: str) -> dict[str, Any]:
        return json.loads(_staged(staging, key)[1].read_text(encoding="utf-8"))

    refresh(staging)
    there = {path.stem for path in staging.glob("*.json")}
    staged = [key for key in keys if key in there]
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(staged, pool.map(read, staged), strict=True))


def _make_staging(folder: Path) -> Path:
    try:
        (folder / STAGING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot write shards there ({error.strerror})") from error
    return folder / STAGING


def _finished(folder: Path, build: str, overwrite: bool) -> dict[str, Any] | None:
    """The report of shards that are already complete for this build."""
    if overwrite or not (folder / MANIFEST).exists():
        return None
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        report = None
    if isinstance(report, dict) and report.get("build") == build and report.get("good"):
        return report
    raise CannotCreateError(f"{folder}: holds other shards; choose another folder or add --overwrite")


def _report(
    build: str, skipped: tuple[tuple[str, str], ...], outcomes: list[dict[str, Any]]
) -> dict[str, Any]:
    unpaired = [{"pair": name, "reason": reason} for name, reason in skipped]
    return {
        "build": build,
        "editjax": __version__,
        "good": [name for outcome in outcomes for name in outcome["good"]],
        "skipped": [*unpaired, *(bad for outcome in outcomes for bad in outcome["skipped"])],
        "aligned": [found for outcome in outcomes for found in outcome["aligned"]],
    }


def _fingerprint(files: RawFiles, settings: PrepareSettings) -> str:
    """Changes whenever the record could: with settings, package version, file names, sizes and times."""
    stamps = []
    for path in [
        files.raw,
        *files.stems,
        *(path for edit in files.edits for path in (edit.edited, edit.edits) if path),
    ]:
        stamps.append([str(path), *stamp(path)])
    names = [[edit.id, edit.style] for edit in files.edits]
    return _digest([__version__, shards.SHARDS.version, asdict(settings), files.id, names, stamps])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    kind = "" if isinstance(error, EditjaxError) else f"{type(error).__name__}: "
    return kind + first_line(error)
