"""`looplm adapter export`: an adapter in PEFT's format, which PyTorch users load beside the official base model."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from looplm.checkpoint.adapters.base import Official, by_leaf
from looplm.checkpoint.adapters.expressible import family_of
from looplm.checkpoint.official_files import Tensor, write_file
from looplm.convert.adapter_run import AdapterRun, open_adapter
from looplm.convert.files import made_at_once
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM
from looplm.objective import build_objective
from looplm.optim.learning import learning_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, WEIGHT = "base_model.model.", ".weight"


def export_adapter(
    workdir: Path, target: Path, console: Console, *, step: int | None = None, base: str | None = None
) -> None:
    """Writes the folder.

    Args:
        base: what the folder says of where its base model is; what the run began from when None.

    Raises UserError, with nothing written, as `open_adapter`; for a model that no official format says; and where more
    was trained than the adapter.
    """
    opened = open_adapter(workdir, step)
    run = opened.run
    learned = learning_of(run.optim, FunctionalLM(run.model), build_objective(run.objective).trains).paths
    if others := sorted(path for path in learned if opened.parts[path].group != "adapter"):
        raise UserError(
            f"{workdir} trained {others[0]} too (optim.train={list(run.optim.train)}), which a PEFT folder of LoRA "
            "does not hold; merge it with `looplm adapter merge`, and export that"
        )
    try:
        name, family = family_of(opened.base, run.loop)
    except UserError as error:
        raise UserError(f"{workdir} cannot be exported for PEFT: {error}; looplm reads it as it is") from error
    modules = _modules(opened, family.tensors(opened.base))
    every = {tensor.name.removesuffix(WEIGHT) for tensor in family.tensors(opened.base)}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or run.init_from or "",
        "r": opened.adapter.rank,
        "lora_alpha": opened.adapter.alpha,
        "lora_dropout": opened.adapter.dropout,
        "use_rslora": opened.adapter.rank_stabilised,
        "target_modules": _targets(set(modules), every),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }
    with made_at_once(target) as making:
        write_file(making / WEIGHTS, list(_tensors(opened, modules)))
        (making / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    console.print(f"wrote {target}: LoRA of rank {opened.adapter.rank} beside {len(modules)} modules of a {name} model")


def _modules(opened: AdapterRun, tensors: list[Official]) -> dict[str, tuple[str, int | None]]:
    """Of every adapted official module: the path of our adapter, and which of its layers it is."""
    placed, found = by_leaf(tensors), dict[str, tuple[str, int | None]]()
    for kernel, adapter in opened.adapters.items():
        for part, tensor, _ in placed[kernel]:
            if len(tensor.parts) > 1:
                raise UserError(
                    f"{tensor.name} is made of {', '.join(one.path for one in tensor.parts)}, each with a pair of its "
                    "own, and PEFT has one pair for it; merge it with `looplm adapter merge`, and export that"
                )
            if isinstance(tensor.layer, tuple):
                raise UserError(
                    f"{tensor.name} is one of many experts, which transformers holds as one array, and PEFT has a pair "
                    "for a module; merge it with `looplm adapter merge`, and export that"
                )
            inputs = range(len(opened.parts[f"{adapter}.a"].axes) - 1)
            assert part.order[-len(inputs) :] == tuple(inputs), "stored as (outputs, inputs)"
            found[tensor.name.removesuffix(WEIGHT)] = adapter, tensor.layer
    return found


def _tensors(opened: AdapterRun, modules: dict[str, tuple[str, int | None]]) -> Iterator[Tensor]:
    for module, (adapter, layer) in sorted(modules.items()):
        a, b = (matrix if layer is None else matrix[layer] for matrix in opened.pair(adapter))
        rank = opened.adapter.rank
        for end, matrix in (("A", a.reshape(-1, rank).T), ("B", b.reshape(rank, -1).T)):
            value = np.ascontiguousarray(matrix, np.float32)
            yield Tensor(f"{PREFIX}{module}.lora_{end}{WEIGHT}", value.shape, "F32", partial(np.asarray, value))


def _targets(adapted: set[str], every: set[str]) -> list[str]:
    """The last names of the modules, as users of PEFT know them; whole names where the last alone means more."""
    last = {module.rpartition(".")[2] for module in adapted}
    meant = {module for module in every if module.rpartition(".")[2] in last}
    return sorted(last if meant == adapted else adapted)
