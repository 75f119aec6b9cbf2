"""PyTorch's HiFi-GANs become models: the same sound from any form of weights; what does not fit is named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hifigan_cases import SMALL, config_of, normalised, reference, weights_of
from safetensors.numpy import save_file
from torch_files import called, mapping, state_dict, storages, text, write_legacy, write_zip

from editjax.cli import main
from editjax.convert import NORMALISED, convert_hifigan, read_settings
from editjax.errors import CannotCreateError, DataError, NoInputError
from editjax.export import load_bundle
from editjax.models.hifigan import HifiGanSettings, VocoderMel, synthesise
from editjax.network import load_model
from editjax.vocoder import load_vocoder

SETTINGS = SMALL[1]
TENSORS = weights_of(SETTINGS)
NORMED = [normalised(TENSORS, names) for names in NORMALISED]
MEL_TF = np.random.default_rng(1).standard_normal((9, 10)).astype(np.float32)


def write_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    config = {**config_of(SETTINGS), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "left out"}))
    return path


def write_weights(path: Path, tensors: dict[str, np.ndarray] = TENSORS, form: str = "zip") -> Path:
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "zip":
        write_zip(path, mapping({"generator": state_dict(tensors)}), storages(tensors))
    else:
        sizes = [array.size for array in tensors.values()]
        data = {key: (n, blob) for n, (key, blob) in zip(sizes, storages(tensors).items(), strict=True)}
        write_legacy(path, mapping({"generator": state_dict(tensors, legacy=True)}), data)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize(
    "names", [None, *NORMALISED], ids=["whole", "old normalisation", "new normalisation"]
)
def test_a_converted_generator_sounds_as_its_weights_say(tmp_path: Path, form: str, names) -> None:
    tensors = normalised(TENSORS, names) if names else TENSORS
    weights = write_weights(tmp_path / "g_02500000", tensors, form)
    code = main(["convert-vocoder", str(weights), str(write_config(tmp_path)), "-o", str(tmp_path / "voice")])
    assert code == 0
    vocoder = load_vocoder(tmp_path / "voice")
    assert vocoder.settings == SETTINGS
    found_S = synthesise(vocoder.settings, vocoder.params, MEL_TF)
    np.testing.assert_allclose(found_S, reference(SETTINGS, TENSORS, MEL_TF), atol=5e-6)


@pytest.mark.parametrize("prefix", ["", "module.", "vocoder.generator."])
def test_a_generator_is_found_among_other_tensors(tmp_path: Path, prefix: str) -> None:
    tensors = {prefix + name: array for name, array in TENSORS.items()}
    if prefix:
        tensors["discriminator.convs.0.weight"] = np.zeros((2, 2), np.float32)
    weights = write_weights(tmp_path / "w.safetensors", tensors, "safetensors")
    assert convert_hifigan(weights, write_config(tmp_path), tmp_path / "voice") == tmp_path / "voice"
    twice = {f"{ours}{name}": a for ours in ("a.", "b.") for name, a in TENSORS.items()}
    write_weights(weights, twice, "safetensors")
    with pytest.raises(DataError, match="holds 2 HiFi-GAN generators"):
        convert_hifigan(weights, tmp_path / "config.json", tmp_path / "voice", overwrite=True)


def test_the_card_and_the_config_say_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, config = write_weights(tmp_path / "w.pth"), write_config(tmp_path)
    words = ["convert-vocoder", str(weights), str(config), "-o", str(tmp_path / "voice")]
    assert main([*words, "--licence", "MIT, Jane Doe"]) == 0
    assert capsys.readouterr().out == f"vocoder written: {tmp_path / 'voice'}\n"
    card = (tmp_path / "voice" / "README.md").read_text()
    for fact in ("hifigan", "editjax convert-vocoder", "MIT, Jane Doe", "10 bands", "load_vocoder('voice')"):
        assert fact in card
    bundle = load_bundle(tmp_path / "voice")
    assert bundle.config["family"] == "hifigan" and bundle.settings == SETTINGS
    assert main(words) == 73 and "exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


def test_the_public_configs_are_read(tmp_path: Path) -> None:
    """`fmax` null is half the sample rate; V1's own config.json, as published."""
    config = {
        "resblock": "1", "num_gpus": 0, "batch_size": 16, "learning_rate": 0.0002, "adam_b1": 0.8,
        "adam_b2": 0.99, "lr_decay": 0.999, "seed": 1234,
        "upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, 4],
        "upsample_initial_channel": 512, "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]], "segment_size": 8192, "num_mels": 80,
        "num_freq": 1025, "n_fft": 1024, "hop_size": 256, "win_size": 1024, "sampling_rate": 22050, "fmin": 0,
        "fmax": 8000, "fmax_for_loss": None, "num_workers": 4,
        "dist_config": {"dist_backend": "nccl", "dist_url": "tcp://localhost:54321", "world_size": 1},
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert read_settings(path) == HifiGanSettings()
    path.write_text(json.dumps({**config, "fmax": None}))
    assert read_settings(path).mel == VocoderMel(high_hz=None)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def without(name: str) -> dict[str, np.ndarray]:
    return {other: array for other, array in TENSORS.items() if other != name}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (without("ups.1.weight"), "ups.1.weight is missing"),
        (without("resblocks.3.convs2.1.bias"), "resblocks.3.convs2.1.bias is missing"),
        (without("conv_pre.bias"), "holds 0 HiFi-GAN generators"),
        ({**TENSORS, "ups.2.weight": zeros(2, 1, 4)}, "ups.2.weight is no part of the generator"),
        ({**TENSORS, "conv_post.bias": zeros(2)}, r"conv_post.bias has shape \(2,\), .* \(1,\)"),
        ({**TENSORS, "ups.0.weight": zeros(4, 8, 8)}, r"ups.0.weight has shape \(4, 8, 8\)"),
        ({**TENSORS, "conv_pre.bias": zeros(8) + np.float32(np.nan)}, "conv_pre.bias holds values"),
        ({**NORMED[0], "conv_pre.weight_v": zeros(8, 10, 7)}, "conv_pre.weight holds values that are not"),
        ({**NORMED[1], f"ups.1.{NORMALISED[1][0]}": zeros(4, 4, 1)}, r"original0 has shape \(4, 4, 1\)"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, capsys, tensors: dict, said: str) -> None:
    weights = write_weights(tmp_path / "w.pth", tensors)
    words = ["convert-vocoder", str(weights), str(write_config(tmp_path)), "-o", str(tmp_path / "voice")]
    assert main(words) == 65 and not (tmp_path / "voice").exists()
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith(f"editjax: {weights}: ")
    with pytest.raises(DataError, match=said):
        convert_hifigan(weights, tmp_path / "config.json", tmp_path / "voice")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_mels": "left out"}, "num_mels is missing"),
        ({"hop_size": "256"}, "'256' is not a int"),
        ({"resblock": "3"}, "'3' is not a int"),
        ({"resblock": ["1"]}, r"\['1'\] is not a int"),
        ({"resblock": {}}, "{} is not a int"),
        ({"upsample_rates": [4, 4]}, "does not make the mel's hop"),
        ({"upsample_rates": [[4], 2]}, "is not a int"),
        ({"upsample_initial_channel": 16}, r"has shape .* but the config describes"),
        ({"upsample_initial_channel": 1 << 40}, "no larger than 65536"),
        ({"n_fft": 1 << 40}, "no larger than 65536"),
        ({"fmin": 10**400}, "is not a float"),
        ({"fmax": 80_000}, "does not fit 22050 samples a second"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(tmp_path: Path, changes: dict, said: str) -> None:
    weights, config = write_weights(tmp_path / "w.pth"), write_config(tmp_path, **changes)
    with pytest.raises(DataError, match=said):
        convert_hifigan(weights, config, tmp_path / "voice")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    weights, config = write_weights(tmp_path / "w.pth"), tmp_path / "config.json"
    with pytest.raises(NoInputError, match=r"config.json: cannot read it"):
        convert_hifigan(weights, config, tmp_path / "voice")
    for content in ("{", "[1]", "[" * 100_000, '{"a": 1}'):
        config.write_text(content)
        with pytest.raises(DataError, match=r"config.json: "):
            convert_hifigan(weights, config, tmp_path / "voice")
    with pytest.raises(NoInputError, match=r"none.pth: cannot read it"):
        convert_hifigan(tmp_path / "none.pth", write_config(tmp_path), tmp_path / "voice")
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(DataError, match=r"config.json: is a folder, a pipe or a device"):
        convert_hifigan(weights, config, tmp_path / "voice")
    config.unlink()
    write_config(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(CannotCreateError, match="is not a model"):
        convert_hifigan(weights, config, tmp_path / "thesis", overwrite=True)


def test_a_command_in_the_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = called("os.system", text(f"touch {tmp_path / 'created'}"))
    weights = write_zip(tmp_path / "w.pth", mapping({"generator": command}), {})
    words = ["convert-vocoder", str(weights), str(write_config(tmp_path)), "-o", str(tmp_path / "voice")]
    assert main(words) == 65
    assert "os.system; refused" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"w.pth", "config.json"}


def test_an_editor_is_no_vocoder_and_a_vocoder_no_editor(tmp_path: Path) -> None:
    voice = convert_hifigan(write_weights(tmp_path / "w.pth"), write_config(tmp_path), tmp_path / "voice")
    with pytest.raises(DataError, match="family 'hifigan', not a pointer network"):
        load_model(voice)
    with pytest.raises(DataError, match="family 'pointer', not a vocoder"):
        load_vocoder("final")
