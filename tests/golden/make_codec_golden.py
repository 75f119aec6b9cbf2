"""Writes `encodec.th` and `encodec.npz`: a small EnCodec of the reference implementation, and what it says.

    python tests/golden/make_codec_golden.py

needs PyTorch, and `encodec` 0.1.1 (Facebook's package, MIT). Weights are random. Of several lengths of noise,
the shortest of one sample, there are latents, codes and both decoders' outputs. Numbers are float16 where
they are inputs, so that all have few bytes.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # which only reads files, and needs CUDA

from encodec.modules import SEANetDecoder, SEANetEncoder  # noqa: E402
from encodec.quantization import ResidualVectorQuantizer  # noqa: E402

SIZES = {"n_filters": 2, "dimension": 8, "last_kernel_size": 3, "norm": "weight_norm", "causal": True}
LENGTHS = (1, 5, 8, 41, 321, 640, 1601)
CODEBOOKS, CODES = 4, 16


def main() -> None:
    folder = Path(__file__).parent
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = torch.nn.Module()
    model.encoder, model.decoder = SEANetEncoder(**SIZES), SEANetDecoder(**SIZES)
    model.quantizer = ResidualVectorQuantizer(SIZES["dimension"], CODEBOOKS, CODES)
    model.eval()
    for name, parameter in model.named_parameters():
        if name.endswith("weight_g"):
            parameter.data.mul_(1.6)  # or little is left of the sound after so many layers
        parameter.data.copy_(parameter.data.half().float())
    sounds = {n: (0.3 * rng.standard_normal((1, 1, n))).astype(np.float16) for n in LENGTHS}
    with torch.inference_mode():
        scale = float(model.encoder(torch.from_numpy(sounds[LENGTHS[-1]].astype(np.float32))).std())
        for at, layer in enumerate(model.quantizer.vq.layers):
            book = layer._codebook
            book.embed.copy_((scale * 0.7**at * torch.randn(book.embed.shape)).half().float())
            book.inited.fill_(1.0)
            book.cluster_size.fill_(2.0)
        found = {}
        for n, sound in sounds.items():
            latents = model.encoder(torch.from_numpy(sound.astype(np.float32)))
            codes = model.quantizer.vq.encode(latents)
            found |= {
                f"sound_{n}": sound,
                f"latents_{n}": latents.numpy(),
                f"codes_{n}": codes.transpose(0, 1).numpy().astype(np.uint8),
                f"decoded_{n}": model.decoder(latents).numpy(),
                f"quantised_{n}": model.decoder(model.quantizer.vq.decode(codes)).numpy(),
            }
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "encodec.th")
    np.savez_compressed(folder / "encodec.npz", **found)


if __name__ == "__main__":
    main()
