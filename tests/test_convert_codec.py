"""EnCodecs of PyTorch become models: the same from any form of weights; what does not fit is named."""

import re
from pathlib import Path

import numpy as np
import pytest
from codec_cases import SETTINGS, WEIGHTS, params, tensors
from safetensors.numpy import save_file
from torch_files import called, mapping, text, write_zip

from editjax.bundle import flatten
from editjax.cli import main
from editjax.codec import load_codec
from editjax.convert_codec import convert_encodec
from editjax.errors import CannotCreateError, DataError
from editjax.export import load_bundle
from editjax.vocoder import load_vocoder


def hugging_face(public: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tensors by the names that Hugging Face's library gives them."""
    rules = (
        (r"^(encoder|decoder)\.model\.", r"\1.layers."),
        (r"\.conv\.conv\.|\.convtr\.convtr\.", ".conv."),
        (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
        (r"weight_g$", "parametrizations.weight.original0"),
        (r"weight_v$", "parametrizations.weight.original1"),
    )

    def renamed(name: str) -> str:
        for theirs, ours in rules:
            name = re.sub(theirs, ours, name)
        return name

    return {renamed(name): array for name, array in public.items()}


def same(model: Path) -> None:
    bundle = load_bundle(model)
    assert bundle.settings == SETTINGS and bundle.config["family"] == "codec"
    found, wanted = flatten(bundle.params), flatten(params())
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_public_file_becomes_a_codec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert-codec", str(WEIGHTS), "-o", str(tmp_path / "codec")]
    assert main([*words, "--licence", "MIT, Jane Doe"]) == 0
    assert capsys.readouterr().out == f"codec written: {tmp_path / 'codec'}\n"
    same(tmp_path / "codec")
    card = (tmp_path / "codec" / "README.md").read_text()
    for fact in ("*codec*", "editjax convert-codec", "MIT, Jane Doe", "320 samples", "load_codec('codec')"):
        assert fact in card
    assert main(words) == 73 and "exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize("prefix", ["", "best_state.model."])
def test_hugging_faces_names_are_known(tmp_path: Path, prefix: str) -> None:
    theirs = {prefix + name: array for name, array in hugging_face(tensors()).items()}
    theirs["lm.weight"] = np.zeros((2, 2), np.float32) if prefix else None
    save_file({name: a for name, a in theirs.items() if a is not None}, tmp_path / "model.safetensors")
    same(convert_encodec(tmp_path / "model.safetensors", tmp_path / "codec"))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def without(part: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in tensors().items() if part not in name}


BOOK = "quantizer.vq.layers.2._codebook"


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (without("encoder.model.0.conv"), "holds 0 EnCodec models"),
        (without("quantizer"), "0 codebooks"),
        (without("encoder.model.13.lstm.bias_hh_l1"), "encoder.model.13.lstm.bias_hh_l1 is missing"),
        (without("decoder.model.4.shortcut"), r"decoder.model.4.shortcut.conv.conv.bias is missing"),
        ({**tensors(), "decoder.model.20.conv.conv.bias": zeros(2)}, "20.conv.conv.bias is no part of"),
        ({**tensors(), f"{BOOK}.embed": zeros(16, 9)}, r"embed has shape \(16, 9\)"),
        ({**tensors(), f"{BOOK}.embed": zeros(16, 8) + np.float32(np.nan)}, "2._codebook.embed holds values"),
        ({**tensors(), "encoder.model.0.conv.norm.weight": zeros(2)}, "only the causal 24 kHz model"),
        ({**tensors(), "encoder.model.3.conv.conv.weight_v": zeros(4, 2, 6)}, "frames of 480 samples"),
        ({**tensors(), "encoder.model.0.conv.conv.weight_v": zeros(0, 1, 7)}, "no EnCodec|n_filters|give at"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, capsys, theirs: dict, said: str) -> None:
    save_file(theirs, tmp_path / "w.safetensors")
    words = ["convert-codec", str(tmp_path / "w.safetensors"), "-o", str(tmp_path / "codec")]
    assert main(words) == 65 and not (tmp_path / "codec").exists()
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith(f"editjax: {tmp_path / 'w.safetensors'}: ")
    assert re.search(said, line)


def test_a_command_in_the_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = called("os.system", text(f"touch {tmp_path / 'created'}"))
    weights = write_zip(tmp_path / "w.th", mapping({"encoder": command}), {})
    assert main(["convert-codec", str(weights), "-o", str(tmp_path / "codec")]) == 65
    assert "os.system; refused" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"w.th"}


def test_a_codec_is_no_vocoder_and_an_editor_no_codec(tmp_path: Path) -> None:
    codec = convert_encodec(WEIGHTS, tmp_path / "codec")
    with pytest.raises(DataError, match="family 'codec', not a vocoder"):
        load_vocoder(codec)
    with pytest.raises(DataError, match="family 'pointer', not a codec"):
        load_codec("final")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(CannotCreateError, match="is not a model"):
        convert_encodec(WEIGHTS, tmp_path / "thesis", overwrite=True)
