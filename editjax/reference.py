"""An example of somebody's edit → the point of its style, for `--style-from`.

An example is an edited track, or an edit list. Where its raw recording lies beside it (`NAME_raw` beside
`NAME_edit` or `NAME.edits.json`), it is heard how that became the edit: what was cut, looped and shortened.
"""

from functools import partial
from pathlib import Path

import numpy as np

from editjax.audio import Reader
from editjax.errors import DataError, NoInputError
from editjax.formats import AudioLimits
from editjax.mel import mel_of
from editjax.network import PointerNetwork
from editjax.pairs import edit_with_raw
from editjax.prepare import PrepareSettings, prepare_recording
from editjax.records import gather_frames
from editjax.styles import STYLES


def style_of_example(
    path: str | Path, network: PointerNetwork, limits: AudioLimits, allow_truncated: bool = False
) -> np.ndarray:
    """The style (Z,) of an edited track or an edit list.

    Raises NoInputError where there is none, DataError for one that cannot be used, UsageError for a model
    without styles.
    """
    path = Path(path)
    network.refuse_styles()
    if not path.is_file():
        raise NoInputError(f"{path}: no such file; name an edited track or an edit list as the example")
    files = edit_with_raw(path)
    if files is None and path.suffix.lower() == ".json":
        raise DataError(f"{path}: needs its recording beside it, as NAME_raw.wav beside NAME.edits.json")
    if files is None:
        with Reader(path, limits, allow_truncated) as reader:
            mel_NF, samples = mel_of(reader, network.mel)
        if not samples:
            raise DataError(f"{path}: holds no samples")
        return network.style_of(mel_NF)
    files = files._replace(edits=(files.edits[0]._replace(style=STYLES[0]),))  # its name says nothing here
    open_audio = partial(Reader, limits=limits, allow_truncated=allow_truncated)
    recording, outcome = prepare_recording(files, PrepareSettings(beats=network.beats), open_audio)
    if recording is None:
        raise DataError(f"{path}: no example of a style ({outcome['skipped'][0]['reason']})")
    (edit,), mel_TF = recording.edits, recording.mel_TF.astype(np.float32)
    # The raw frames, as in training: what was done to them besides is heard of an edited track alone.
    return network.style_of(gather_frames(mel_TF, edit.pointers_N), edit.pointers_N, len(mel_TF))
