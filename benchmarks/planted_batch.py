"""A batch of noise with a known edit: what steps and losses are measured on, whatever fields a batch has."""

import numpy as np

from editjax.data import Batch
from editjax.edits import PAD, STOP
from editjax.events import UNKNOWN
from editjax.mel import STEM_FRAMES


def planted(n_frames: int, examples: int, kept: int, cut: int, n_mels: int = 128) -> Batch:
    """Recordings of which `kept` frames are played, then `cut` are not, and so on to the end.

    The steps end in padding, as they do in training.
    """
    rng = np.random.default_rng(0)
    frame_T = np.arange(n_frames)
    structure_T = (frame_T % (kept + cut) < kept).astype(np.int32)
    played_N = np.flatnonzero(structure_T)
    pointers_BN = np.full((examples, len(played_N) + kept), PAD, np.int32)
    pointers_BN[:, : len(played_N)], pointers_BN[:, len(played_N)] = played_N, STOP
    count_B = np.ones(examples, np.int32)
    return Batch(
        mel_BTF=rng.random((examples, n_frames, n_mels), np.float32),
        frames_B=count_B * n_frames,
        phase_BT3=rng.random((examples, n_frames, 3), np.float32),
        pointers_BN=pointers_BN,
        steps_B=count_B * (len(played_N) + 1),
        structure_BT=np.tile(structure_T, (examples, 1)),
        kind_BT=np.full((examples, n_frames), UNKNOWN, np.int32),
        target_B=np.zeros(examples, np.float32),
        style_B=count_B * 0,
        ids_B=np.arange(examples, dtype=np.int32),
        stems_BIMF=np.zeros((examples, 0, -(-n_frames // STEM_FRAMES), n_mels), np.float32),
        present_BI=np.zeros((examples, 0), bool),
        edited_BTF=np.zeros((examples, 0, n_mels), np.float32),
        label_BT=np.zeros((examples, 0), np.int32),
        beat_BT=np.zeros((examples, 0), np.int32),
    )
