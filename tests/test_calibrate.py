"""A scorer calibrated anew: the same model with other weights, and a card that says of what."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scorer_cases import TINY, params_of, recording

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))

from calibrate import main

from editjax import shards
from editjax.bundle import flatten
from editjax.config import to_json
from editjax.errors import CannotCreateError, DataError
from editjax.export import load_bundle, write_bundle
from editjax.mel import MelSettings
from editjax.records import Edit, Recording, encode

MEL = MelSettings(n_mels=TINY.n_mels)


@pytest.fixture(scope="module", params=["float32", "float16"])
def model(request, tmp_path_factory):
    training = {"scores": {}, "export_command": "none", "step": 0, "checkpoint": "best"}
    facts = {"family": "scorer", "model": to_json(TINY), "mel": to_json(MEL), "licence": "none"}
    tensors = {name: a.astype(request.param) for name, a in flatten(params_of(TINY)).items()}
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return write_bundle(folder, tensors, facts | {"training": training})


def pairs(folder: Path, mel: MelSettings = MEL) -> Path:
    """Shards of two recordings whose second halves are kept."""

    def recorded(number: int) -> bytes:
        mel_TF, phase_T3 = recording(600, number).astype(np.float16), np.zeros((600, 3), np.float16)
        pointers_N = np.arange(300, 600, dtype=np.int32)
        edit = Edit(f"r{number}", "final", pointers_N, np.zeros(5, np.uint8), None, {"natural": True})
        meta = {"sources": [str(number)], "split": "train"}
        return encode(Recording(f"r{number}", mel_TF, phase_T3, np.arange(0, 600, 43), (edit,), meta))

    shards.write(folder, (recorded(k) for k in range(2)), mel=to_json(mel), settings={})
    return folder


def test_the_model_stays_the_same_and_says_what_it_was_calibrated_on(model, tmp_path, capsys):
    data = pairs(tmp_path / "own_pairs")
    main([str(model), str(data), str(tmp_path / "out")])
    assert "auroc_ensemble" in capsys.readouterr().out
    before, after = load_bundle(model), load_bundle(tmp_path / "out")
    assert after.config["sha256"] == before.config["sha256"]
    training = after.config["training"]
    assert training["calibrated_on"] == "own_pairs" and training["scores"]["calibrated_to"] == 0.5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Scores on `own_pairs`, which it was calibrated on" in card and "validation" not in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "config.json").read_text()


def test_another_mel_is_refused(model, tmp_path):
    data = pairs(tmp_path / "pairs", replace(MEL, hop=256))
    with pytest.raises(DataError, match="another mel"):
        main([str(model), str(data), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_result_that_exists_is_refused_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr("calibrate.load_scorer", lambda *_: pytest.fail("began to work"))
    with pytest.raises(CannotCreateError, match="exists"):
        main([str(model), str(tmp_path / "pairs"), str(tmp_path)])
