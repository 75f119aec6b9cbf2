"""The PyTorch peer of `benchmarks/decode.py` is our decoder: the same pointers and logits at every step."""

import importlib
from pathlib import Path

import pytest

from editjax.models.pointer import PointerSettings

pytest.importorskip("torch", reason="PyTorch is an optional peer of the benchmarks")

SMALL = PointerSettings(
    width=32, heads=2, frame_width=16, decoder_layers=2, decoder_window=16, landmark_frames=4, look_ahead=3
)
STEPS = 120


def test_the_peer_decodes_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch_peer` ends the benchmark where a pointer or a logit differs."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    monkeypatch.setattr(importlib.import_module("report"), "use_one_core", lambda: None)
    benchmark, maker = (importlib.import_module(name) for name in ("decode", "random_decoder"))
    monkeypatch.setattr(maker, "JUMP_SHARE", 0.1)
    task = benchmark.Task(*maker.random_decoder(SMALL, 900), STEPS)
    said = benchmark.torch_peer(task, STEPS).run()
    assert len(said) == STEPS
    assert 3 <= sum(bool(one.levels) for one in said) < STEPS / 2, "few jumps show little, nor do few runs"
    peer = importlib.import_module("torch_decoder").TorchDecoder
    state = peer.state
    monkeypatch.setattr(peer, "state", lambda self, *step: state(self, *step) * 1.01)
    with pytest.raises(SystemExit, match="differs"):
        benchmark.torch_peer(task, STEPS)
