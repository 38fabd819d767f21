"""Ouro 2.6B (arXiv 2510.25741): as ouro_1_4b with 48 shared layers.

    looplm train configs/ouro_2_6b.py --workdir runs/ouro --set data.train=DATASET

2,667,974,657 parameters.
"""

from pathlib import Path

from looplm.config.load import load_config, override
from looplm.config.schema import Run


def config() -> Run:
    return override(load_config(Path(__file__).with_name("ouro_1_4b.py")), {"model.block_layers": 48, "recipes": ()})
