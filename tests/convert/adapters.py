"""Runs with an adapter beside the weights of an official folder, written and not trained."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from looplm.checkpoint.hf_folder import HFFolder
from looplm.checkpoint.streamed import Streamed, write_streamed
from looplm.config.load import to_json
from looplm.config.schema import LoRA, Optim
from looplm.convert.import_folder import run_of
from looplm.model.functional import FunctionalLM
from looplm.model.subset import Subset


def adapter_run(folder: Path, workdir: Path, *, optim: dict[str, Any] | None = None, **fields: Any) -> Path:
    """A run after 5 steps: the folder's weights, and noise in an adapter."""
    official = HFFolder(folder)
    base, adapter = official.model(), LoRA(**{"rank": 3, "alpha": 1.0} | fields)
    lm = FunctionalLM(base.model_copy(update={"adapter": adapter}))
    params = official.params(base, np.float32)
    others = Subset.of(
        lm, {".".join(names) for names, variable in lm.declarations.items() if variable.group == "adapter"}
    )
    noise = np.random.default_rng(0)
    params = others.put(
        jax.tree.map(lambda leaf: noise.normal(0, 0.2, leaf.shape).astype(np.float32), others.only(lm.shapes)), params
    )
    run = run_of(lm.config, official.loop(), official.adapter.objective, 64)
    config = to_json(
        run.model_copy(update={"optim": Optim(learning_rate=1e-4, **optim or {}), "init_from": str(folder)})
    )
    streamed = jax.tree.map(lambda leaf: Streamed(leaf.shape, leaf.dtype, lambda: iter([leaf])), params)
    write_streamed(workdir / "checkpoints", 5, streamed, config=config, seed=0, metrics={})
    (workdir / "config.json").write_text(config)
    return workdir
