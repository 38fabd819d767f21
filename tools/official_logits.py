"""Writes the logits that the authors' code computes with a model folder: what an export is compared with.

python tools/official_logits.py FOLDER IDS.npy OUT.npy [--code DIR] [--adapter DIR]      needs torch and transformers

`--code DIR` is a folder with the authors' files for a family that is not in transformers: modeling_ouro.py and
configuration_ouro.py, or raven_modeling_minimal.py and raven_config_minimal.py, in a package. `--adapter DIR` is one of
PEFT, which it needs then.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

CLASSES = {
    "ouro": ("modeling_ouro", "OuroForCausalLM"),
    "huginn_raven": ("raven_modeling_minimal", "RavenForCausalLM"),
}


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of a model.")],
    ids: Annotated[Path, typer.Argument(help="Array (B, S) of ids.")],
    out: Annotated[Path, typer.Argument(help="Where the logits (B, S, V) are written, float32.")],
    code: Annotated[Path | None, typer.Option(help="Folder with the authors' files.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter.")] = None,
) -> None:
    import torch
    import transformers

    kind = json.loads((folder / "config.json").read_text())["model_type"]
    factory: Any = transformers.AutoModelForCausalLM
    if code is not None:
        sys.path.insert(0, str(code.parent))
        module, name = CLASSES[kind]
        factory = getattr(importlib.import_module(f"{code.name}.{module}"), name)
    model, report = factory.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    if adapter is not None:
        model = with_adapter(model, adapter)
    tokens = torch.from_numpy(np.load(ids)).long()
    with torch.no_grad():
        np.save(out, LOGITS.get(kind, plain)(model.float().eval(), tokens).float().numpy())


def with_adapter(model: Any, folder: Path) -> Any:
    """The model with an adapter of PEFT, all of whose tensors are used."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns of tensors that are missing
        return PeftModel.from_pretrained(model, folder)


def plain(model: Any, tokens: Any) -> Any:
    return model(tokens, use_cache=False).logits


def of_the_last_loop(model: Any, tokens: Any) -> Any:
    return model(tokens, use_cache=False, exit_at_step=model.config.total_ut_steps - 1).logits


def from_zeros(model: Any, tokens: Any) -> Any:
    """A first state that is drawn is another one in every library."""
    import torch

    states = torch.zeros(*tokens.shape, model.config.n_embd)
    steps = torch.tensor([model.config.mean_recurrence, 0])
    return model(tokens, input_states=states, num_steps=steps).logits


LOGITS = {"ouro": of_the_last_loop, "huginn_raven": from_zeros}

if __name__ == "__main__":
    typer.run(main)
