"""Makes tests/golden/*/changes.npz: what the official code computes when keys of config.json have other values.

python tools/golden_changes.py OFFICIAL tests/golden          needs torch and transformers 4.54.1; for llama_a, qwen3_a,
olmo2_a and nanbeige_a (`--only NAME`), 5.23.0

OFFICIAL is a folder of packages with the authors' files: `ouro` (modeling_ouro.py, configuration_ouro.py), `raven`
(raven_modeling_minimal.py, raven_config_minimal.py of seal-rg/recurrent-pretraining), `parcae_lm` and `moeut`.

An array's name is JSON: the keys that changed, the tensors that went (by the start of their names) and came (by shape).
It holds the logits (S, V) of the first row of the fixture's tokens after the last loop.
"""

import importlib
import json
import math
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer

from tools.golden_nanbeige import llama_of, looped

NEAR = {"use_sliding_window": True, "sliding_window": 4}
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
TIED = ({"tie_word_embeddings": True}, ["lm_head.weight"])
DECODER: list[Any] = [{"rms_norm_eps": 0.1}, {"rope_theta": 500.0}, TIED]
EXPERTS: list[Any] = [*DECODER, {"num_experts_per_tok": 1}, ({"num_hidden_layers": 2}, ["model.layers.2."])]
CHANGES: dict[str, list[Any]] = {
    "ouro_a": [
        *DECODER, {"total_ut_steps": 2}, {"rope_scaling": LINEAR}, {"rope_scaling": LLAMA3},
        {**NEAR, "layer_types": ["sliding_attention"] * 3}, {**NEAR, "layer_types": None, "max_window_layers": 0}, NEAR,
        {**NEAR, "layer_types": None}, ({"num_hidden_layers": 2, "layer_types": None}, ["model.layers.2."]),
    ],
    "huginn_a": [
        {"norm_eps": 0.1}, ({"rope_base": 500.0}, ["freqs_cis"]), {"mean_recurrence": 2},
        ({"qk_bias": False}, [f"transformer.{part}.{i}.attn.qk_bias" for part, count in
                              (("prelude", 2), ("core_block", 4), ("coda", 2)) for i in range(count)]),
        ({"bias": True}, [], {"transformer.adapter.bias": [32]}),
        ({"tie_embeddings": False, "tie_word_embeddings": False}, [], {"lm_head.weight": [101, 32]}),
        {"block_class_name": "SandwichBlockSwin"}, ({"injection_type": "add"}, ["transformer.adapter."]),
        ({"n_layers_in_coda": 1}, ["transformer.coda.1."]),
    ],
    "parcae_a": [
        {"norm_eps": 0.1}, {"logit_softcap": 2.0}, ({"prelude_norm": False}, ["transformer.ln_prelude."]),
        {"qk_norm": False}, {"mean_recurrence": 2}, ({"tie_embeddings": False}, [], {"lm_head.weight": [61, 32]}),
    ],
    "moeut_a": [
        {"ff_k": 1}, {"att_k": 1}, {"rope_base": 500.0}, {"rotate_fraction": 1.0}, {"n_layers": 4, "n_repeats": 2},
        ({"n_layers": 3, "group_size": 1}, ["transformer.layers.1."]),
    ],
    "llama_a": [
        *DECODER, {"rope_scaling": LINEAR}, {"rope_scaling": LLAMA3}, {"rope_scaling": YARN},
        {"rope_scaling": {**YARN, "attention_factor": 1.5}}, {"rope_scaling": {**YARN, "truncate": False}},
        {"rope_scaling": {**YARN, "mscale": 0.5, "mscale_all_dim": 1.5}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ],
    "qwen3_a": [{"rms_norm_eps": 0.1}, {"rope_theta": 500.0}, {"rope_scaling": YARN},
                {**NEAR, "layer_types": ["sliding_attention"] * 4},
                ({"tie_word_embeddings": False}, [], {"lm_head.weight": [131, 64]})],
    "olmo2_a": [*DECODER, {"rope_scaling": LINEAR}],
    "nanbeige_a": [*DECODER, {"num_loops": 3}, {"skip_loop_final_norm": True}],
    "mixtral_a": [*EXPERTS, {"sliding_window": 4}],
    "olmoe_a": [*EXPERTS, {"norm_topk_prob": True}, {"rope_scaling": LINEAR}],
    "qwen3moe_a": [*EXPERTS, {"norm_topk_prob": False}, {"rope_scaling": LLAMA3}, NEAR],
}  # fmt: skip
"""(keys, tensors that go, tensors that come), or keys alone."""


def main(
    official: Annotated[Path, typer.Argument(help="Folder of packages with the authors' code.")],
    golden: Annotated[Path, typer.Argument(help="Folder of the fixtures.")],
    only: Annotated[list[str] | None, typer.Option(help="Of these fixtures; of all when left out.")] = None,
) -> None:
    sys.path.insert(0, str(official))
    import torch
    from safetensors.torch import load_file

    for name, changes in CHANGES.items():
        if only and name not in only:
            continue
        folder, found = golden / name, {}
        io = {key: torch.from_numpy(value) for key, value in np.load(folder / "io.npz").items()}
        for change in changes:
            keys, gone, come = (*change, {}, {})[:3] if isinstance(change, tuple) else (change, [], {})
            stored = load_file(folder / "model.safetensors")
            tensors = {key: value for key, value in stored.items() if not key.startswith(tuple(gone or ["-"]))}
            tensors |= {key: torch.from_numpy(made(shape)) for key, shape in come.items()}
            # A copy: the library writes into the tables that it is given.
            config = json.loads((folder / "config.json").read_text()) | json.loads(json.dumps(keys))
            with torch.no_grad():
                logits = OFFICIAL[name.partition("_")[0]](torch, config, tensors, io)[0]
            found[json.dumps({"config": keys, "gone": list(gone), "come": dict(come)})] = logits.float().numpy()
        np.savez_compressed(folder / "changes.npz", **found)
        print(name, len(found))


def made(shape: list[int]) -> np.ndarray:
    """Numbers for a tensor that no fixture has."""
    return (0.3 * np.cos(np.arange(math.prod(shape)))).reshape(shape).astype(np.float32)


def loaded(model: Any, tensors: dict[str, Any]) -> Any:
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight", "freqs_cis"}, missing
    assert not unexpected, unexpected
    return model.eval()


def ouro(torch: Any, config: dict[str, Any], tensors: dict[str, Any], io: dict[str, Any]) -> Any:
    code = importlib.import_module("ouro.modeling_ouro")
    model = loaded(code.OuroForCausalLM(code.OuroConfig(**config)), tensors)
    model.tie_weights()
    return model(io["input_ids"], use_cache=False, exit_at_step=config["total_ut_steps"] - 1).logits


def huginn(torch: Any, config: dict[str, Any], tensors: dict[str, Any], io: dict[str, Any]) -> Any:
    """Blocks and injections that the minimal file has not are put in as recpre/model_dynamic.py has them."""
    code = importlib.import_module("raven.raven_modeling_minimal")
    del config["tie_word_embeddings"]  # it would be given twice
    model = code.RavenForCausalLM(code.RavenConfig(**config))
    if config["injection_type"] == "add":
        model.transformer.adapter = torch.nn.Identity()
        model.transformer.adapter.register_forward_hook(lambda *call: sum(call[-1].chunk(2, dim=-1)))
    loaded(model, tensors)
    model.tie_weights()
    if config["block_class_name"] == "SandwichBlockSwin":
        for block in model.modules():
            if isinstance(block, code.SandwichBlock):
                block.forward = swin.__get__(block)
    steps = torch.tensor([config["mean_recurrence"], 0])
    return model(io["input_ids"], input_states=io["init_state"], num_steps=steps).logits


def swin(self: Any, x: Any, *arguments: Any) -> Any:
    x = x + self.norm_2(self.attn(self.norm_1(x), *arguments))
    return x + self.norm_4(self.mlp(self.norm_3(x)))


def parcae(torch: Any, config: dict[str, Any], tensors: dict[str, Any], io: dict[str, Any]) -> Any:
    code = importlib.import_module("parcae_lm.models.parcae.config")
    del config["_class_name"]
    model = loaded(code.ParcaeConfig(**config).construct_model(), tensors)
    model.initialize_state = lambda _: io["init_state"]
    steps = torch.tensor([config["mean_recurrence"], 0])
    return model(io["input_ids"], return_logits=True, num_steps_pair=steps)["logits"]


@dataclass
class Chosen:
    """In place of moeut/cvmm.py, whose kernel needs a GPU: what a token chose, and the weights that sum it up."""

    experts: Any
    reduction_weight: Any = None
    sel_index: Any = 0
    out_index: Any = 0

    def clone(self) -> "Chosen":
        return replace(self)


def products(x: Any, chosen: Chosen, matrices: Any) -> Any:
    """Every row with the matrix of its expert; rows stand for a token, or for each of its heads or experts."""
    count = chosen.experts.shape[-1]
    rows = x[..., None, :] if x.ndim == chosen.experts.ndim else x
    rows = rows.repeat_interleave(count // rows.shape[-2], dim=-2)
    y = (rows[..., None, :] @ matrices[chosen.experts.long()])[..., 0, :]
    weight = chosen.reduction_weight
    return y if weight is None else (y.view(*weight.shape, y.shape[-1]) * weight[..., None]).sum(-2)


def moeut(torch: Any, config: dict[str, Any], tensors: dict[str, Any], io: dict[str, Any]) -> Any:
    stand_in: Any = ModuleType("moeut.cvmm")
    stand_in.cvmm, stand_in.cvmm_prepare_sel2, stand_in.CVMMSel = products, Chosen, Chosen
    sys.modules["moeut.cvmm"] = stand_in
    code = importlib.import_module("moeut.moeut")
    rotation = {key: config.pop(key) for key in ("rotate_fraction", "rope_base")}
    sizes = {key: value for key, value in config.items() if key not in ("repo", "n_repeats")}
    model = code.MoEUTLM(**sizes, attention=partial(code.SwitchHeadRope, **rotation))
    return loaded(model, tensors)(io["input_ids"]).outputs


def transformers(torch: Any, config: dict[str, Any], tensors: dict[str, Any], io: dict[str, Any]) -> Any:
    library: Any = importlib.import_module("transformers")
    kind = config.pop("model_type")
    model = loaded(library.AutoModelForCausalLM.from_config(library.AutoConfig.for_model(kind, **config)), tensors)
    model.tie_weights()
    return model.float()(io["input_ids"], use_cache=False).logits


def nanbeige(torch: Any, config: dict[str, Any], tensors: dict[str, Any], io: dict[str, Any]) -> Any:
    model = loaded(llama_of(config), tensors)
    model.tie_weights()
    return looped(model, io["input_ids"], config)[1]


OFFICIAL: dict[str, Any] = {
    "ouro": ouro, "huginn": huginn, "parcae": parcae, "moeut": moeut, "mixtral": transformers, "olmoe": transformers,
    "qwen3moe": transformers, "llama": transformers, "qwen3": transformers, "olmo2": transformers,
    "nanbeige": nanbeige,
}  # fmt: skip

if __name__ == "__main__":
    typer.run(main)
