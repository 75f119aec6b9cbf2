"""Sound → latents → sound by the official 24 kHz codec on one core, ours beside the reference in PyTorch.

Weights are random, and the same: ours are the reference's, converted. *whole* is the pure function on the
whole sound at once, *blocks* what `Codec` does, in memory that does not grow. *tiny* is the codec that ships.
The music is that of the tests, three clips of three seconds by turns. CPU seconds are medians.
"""

import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

from report import (
    finish,
    growth_exponent,
    installed,
    median_seconds,
    options,
    require_agreement,
    use_one_core,
)

use_one_core()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from editjax.audio import resample_stream  # noqa: E402
from editjax.codec import Codec, load_codec  # noqa: E402
from editjax.config import load_config  # noqa: E402
from editjax.convert_codec import convert_encodec  # noqa: E402
from editjax.models.codec import CodecSettings, decode, encode, init  # noqa: E402

ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT / "tests" / "recordings"
TINY = ROOT / "configs" / "codec_tiny.py"
RATE_HZ = CodecSettings().sample_rate_hz
TOLERANCE = 1e-4


def main() -> None:
    """Prove agreement, then time every case at every length."""
    chosen = options(__doc__)
    lengths_s, rounds = ((2,), 1) if chosen.quick else ((4, 16, 64), 3)
    codec, theirs = models(installed("torch") and installed("encodec"))
    small = load_config(TINY).model
    tiny = Codec(small, init(small, jax.random.key(0)))
    rows, seconds = [], dict[tuple[str, int], float]()
    for length_s in lengths_s:
        cases = {
            "whole, ours": partial(whole, codec),
            "blocks, ours": partial(in_blocks, codec),
            "tiny, blocks, ours": partial(in_blocks, tiny),
            **({"whole, torch": theirs} if theirs else {}),
        }
        sound_CS = music(length_s)
        if theirs and length_s == lengths_s[0]:
            prove(cases, sound_CS)
        timed = {name: partial(case, sound_CS) for name, case in cases.items()}
        for name, taken in median_seconds(timed, rounds).items():
            seconds[name, length_s] = taken
            rows.append({"case": name, "audio_s": length_s, "cpu_s": taken, "× real time": length_s / taken})
    last = lengths_s[-1]
    ratios = {f"times real time, {name}": last / taken for (name, s), taken in seconds.items() if s == last}
    if theirs:
        ratios["torch / ours, whole"] = seconds["whole, torch", last] / seconds["whole, ours", last]
        ratios["torch / ours, blocks"] = seconds["whole, torch", last] / seconds["blocks, ours", last]
    if not chosen.quick:
        growth = [seconds["blocks, ours", length_s] for length_s in lengths_s]
        ratios["growth of blocks, exponent"] = growth_exponent(lengths_s, growth)
    packages = ["numpy", "jax", *(["torch", "encodec"] if theirs else [])]
    finish("codec", rows, ratios, packages, chosen.out)


def music(length_s: float) -> np.ndarray:
    """The clips at the codec's rate, repeated: (1, S)."""
    parts = []
    for path in sorted(RECORDINGS.glob("*.flac")):
        samples, rate_hz = soundfile.read(path, dtype="float32")
        parts += list(resample_stream([samples], rate_hz, RATE_HZ))
    whole_S, n_samples = np.concatenate(parts), length_s * RATE_HZ
    return np.tile(whole_S, -(-n_samples // len(whole_S)))[None, :n_samples]


def models(with_peer: bool) -> tuple[Codec, Callable[[np.ndarray], np.ndarray] | None]:
    """Ours, and the reference with the same weights where it is installed."""
    if not with_peer:
        settings = CodecSettings()
        return Codec(settings, init(settings, jax.random.key(0))), None
    import torch

    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # reads files, and may want CUDA
    from encodec import EncodecModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = EncodecModel.encodec_model_24khz(pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder) / "w.th")
        codec = load_codec(convert_encodec(Path(folder) / "w.th", Path(folder) / "codec"))

    def theirs(sound_CS: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            latents = model.encoder(torch.from_numpy(sound_CS[None]))
            return model.decoder(latents)[0, :, : sound_CS.shape[1]].numpy()

    return codec, theirs


_encode, _decode = (partial(jax.jit, static_argnums=0)(function) for function in (encode, decode))


def whole(codec: Codec, sound_CS: np.ndarray) -> np.ndarray:
    latents_BTD = _encode(codec.settings, codec.params, sound_CS[None])
    return np.asarray(_decode(codec.settings, codec.params, latents_BTD))[0, :, : sound_CS.shape[1]]


def in_blocks(codec: Codec, sound_CS: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(sound_CS, RATE_HZ))[:, : sound_CS.shape[1]]


def prove(cases: dict[str, Callable[[np.ndarray], np.ndarray]], sound_CS: np.ndarray) -> None:
    """Ends the benchmark unless all but the tiny codec, which is another, sound the same."""
    wanted_CS = cases["whole, torch"](sound_CS)
    for name, case in cases.items():
        if "tiny" not in name:
            off = np.abs(case(sound_CS) - wanted_CS).max() / np.abs(wanted_CS).max()
            require_agreement(name, float(off), TOLERANCE)


if __name__ == "__main__":
    main()
