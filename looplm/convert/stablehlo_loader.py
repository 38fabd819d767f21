"""Runs the program of this folder, with jax, flatbuffers and safetensors: python load.py 12 7 300 (ids)."""

import pathlib
import sys

import numpy as np
from jax import export
from safetensors import numpy as stored

HERE = pathlib.Path(__file__).parent
PROGRAM = export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))
WEIGHTS = stored.load_file(HERE / "model.safetensors")


def logits(tokens: np.ndarray) -> np.ndarray:
    """Return logits (B, S, V) of tokens (B, S), S at most what the program was made for."""
    batch, length = PROGRAM.in_avals[-1].shape  # a program with experts takes one row, others take any number
    filled = np.pad(np.asarray(tokens, np.int32), ((0, 0), (0, length - tokens.shape[1])))
    parts = np.split(filled, len(filled)) if batch == 1 else [filled]
    return np.concatenate([PROGRAM.call(WEIGHTS, part) for part in parts])[:, : tokens.shape[1]]


if __name__ == "__main__":
    print(logits(np.array([[int(token) for token in sys.argv[1:]]]))[0, -1].argmax())
