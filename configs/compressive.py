"""Compressive Transformer (arXiv 1911.05507): a Transformer-XL that compresses what leaves its memory; its block
runs once.

    looplm train configs/compressive.py:enwik8 --workdir runs/compressive --set data.train=DATASET    (bytes as tokens)
    looplm train configs/compressive.py:tiny --workdir runs/compressive_tiny      (on the data of `looplm demo`)

enwik8 has 377,919,692 parameters: the published 24 layers and 277 M, those of the Transformer-XL of 24 layers, and
100.7 M of the convolutions that compress, which the published number does not count. Lengths, batch and learning rate
are those of the Transformer-XL, the rate and the length of the compressed memory those of
lucidrains/compressive-transformer-pytorch: 4, and a quarter of the memory. tiny is for a CPU, and runs its block
three times.
"""

from looplm.config.load import load_config, override, shipped_configs
from looplm.config.schema import CompressiveMemory, Run


def _compressive(name: str) -> Run:
    run = load_config(shipped_configs() / f"transformer_xl.py:{name}")
    assert run.model.memory is not None
    length = run.model.memory.length
    return override(run, {"model.memory": CompressiveMemory(length=length, compressed_length=length // 4, rate=4)})


def config_enwik8() -> Run:
    return _compressive("enwik8.24l")


def config_tiny() -> Run:
    return _compressive("tiny")
