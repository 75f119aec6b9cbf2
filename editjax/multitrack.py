"""The tracks of one session → one edit list → every track edited: `editjax.edit_tracks`, `edit --multitrack`.

As `editor`, whose steps these are, with the sum of the tracks (`tracks.Mix`) as the recording. A model with
`stem_width` above 0 hears each of them beside it.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax.audio import Writer
from editjax.decision import EditSettings, Heard, ready, timed
from editjax.editor import changed, decide, listen, reader_of, writer_for
from editjax.edits import EditList, Summary, summary
from editjax.errors import UsageError
from editjax.outputs import EDITED, Outputs
from editjax.render import render_tracks
from editjax.tracks import Mix, folder_of


class TracksResult(NamedTuple):
    """One edit made of several tracks, in their order: the rest as in `EditResult`."""

    edit_list: EditList
    summary: Summary
    sample_rate_hz: int
    samples: tuple[np.ndarray, ...] | None
    paths: tuple[Path, ...] | None
    timings_s: dict[str, float]


def edit_tracks(
    sources: Sequence[str | Path | np.ndarray],
    sample_rate_hz: int | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    settings: EditSettings = EditSettings(),
    **changes: Any,
) -> TracksResult:
    """Edits the tracks of one session alike: one edit, decided on their sum, sample-locked to all.

    A model that hears stems listens to each of them as well.

    The tracks have one rate; shorter ones are silent to the end of the longest, mono ones are heard on every
    channel of the sum. Each keeps its own format, and all edits are equally long: they add up to the edited
    sum (`render.render_tracks` says how exactly). With `out` they are written into that folder as
    NAME_edited, all or none, and `samples` is None. The rest is as in `edit`.
    """
    settings = ready(changed(settings, changes))
    readers = [reader_of(source, sample_rate_hz, settings) for source in sources]
    in_memory = any(isinstance(source, np.ndarray) for source in sources)
    if in_memory and out is not None:
        raise UsageError("samples have no names to write them under; write the result's samples")
    paths = [reader.info.path for reader in readers]
    with (
        Mix(readers, Path("<samples>") if in_memory or not paths else folder_of(paths)) as mix,
        Outputs(overwrite, paths) as outputs,
        contextlib.ExitStack() as stack,
    ):
        edited: list[Path] = []
        if out is not None:
            outputs.make_folder(Path(out))
            edited = [Path(out) / f"{path.stem}{EDITED}{path.suffix}" for path in paths]
        writers = [
            stack.enter_context(writer_for(reader, outputs.add(path), overwrite=True))
            for reader, path in zip(readers, edited, strict=False)
        ]
        heard = listen(mix, settings)
        result = render_track_edits(decide(heard, mix, settings), heard, mix, writers, settings)
    return result._replace(paths=tuple(edited) or None)


def render_track_edits(
    edit_list: EditList, heard: Heard, mix: Mix, writers: Sequence[Writer], settings: EditSettings
) -> TracksResult:
    """Renders a decided edit of a sum into a writer a track, or into memory without any."""
    timings_s = dict(heard.timings_s)
    with timed(timings_s, "render"):
        rendered = render_tracks(edit_list, mix, writers or [None] * len(mix.readers), settings.render)
    samples = tuple(track_SC for track_SC in rendered if track_SC is not None) or None
    return TracksResult(edit_list, summary(edit_list), mix.info.sample_rate_hz, samples, None, timings_s)
