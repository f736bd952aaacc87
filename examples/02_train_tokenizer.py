"""Train a tokenizer on recorded episodes, and turn frames into tokens and back.

Run the first example before this one. Preset `debug` takes seconds, `cpu` takes minutes.
"""

import sys
from pathlib import Path

import torch

from envs.episodes import EpisodeReader
from worldmodel import preset
from worldmodel.loading import load_tokenizer
from worldmodel.metrics import psnr
from worldmodel.training.train import TrainingRun, train, train_preset


def main(folder: Path) -> None:
    """Train a tokenizer, and print the PSNR of frames that it encodes and decodes."""
    data, out = folder / "data", folder / "tokenizer"
    short = train_preset("tokenizer", "debug", iterations=60)
    train(TrainingRun("tokenizer", preset("debug"), short, [data], out), resume=out.exists())

    # Frames are float32 BTCHW in [0, 1] for the model; a token is the index of a code.
    tokenizer = load_tokenizer(out)
    frames_THWC = EpisodeReader(data, split="val")[0].frames_THWC[:4]
    frames_BTCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():
        tokens_BThw = tokenizer.encode(frames_BTCHW)
        decoded_BTCHW = tokenizer.decode(tokens_BThw)
    print(f"frames {tuple(frames_BTCHW.shape)} -> tokens {tuple(tokens_BThw.shape)}")
    print(f"PSNR of the reconstruction: {psnr(decoded_BTCHW, frames_BTCHW):.1f} dB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples"))
