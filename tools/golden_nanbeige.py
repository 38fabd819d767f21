"""Makes tests/golden/nanbeige_a: a tiny Llama of the library transformers whose stack runs several times.

python tools/golden_nanbeige.py tests/golden/nanbeige_a          needs torch and transformers 5.23.0

The authors' code could not be fetched; three independent ports of it (mlx-lm, llama.cpp, Core AI) agree that it is
this: the layers of a Llama, then its norm, `num_loops` times, and `skip_loop_final_norm` leaves the norm out between.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

CONFIG = dict(
    architectures=["NanbeigeForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
    head_dim=16, hidden_act="silu", hidden_size=40, initializer_range=0.02, intermediate_size=56,
    max_position_embeddings=128, mlp_bias=False, model_type="nanbeige", num_attention_heads=4, num_hidden_layers=3,
    num_key_value_heads=2, num_loops=2, pad_token_id=0, rms_norm_eps=1e-5, rope_scaling=None, rope_theta=70_000_000.0,
    skip_loop_final_norm=False, tie_word_embeddings=False, torch_dtype="float32", transformers_version="4.54.1",
    use_cache=True, vocab_size=97, loop_loss_weights=[], enable_mhc=False, emb_neighbor_num=None,
)  # fmt: skip
B, S, SEED, PROMPT, WRITTEN = 2, 17, 23, 6, 12


def main(out: Annotated[Path, typer.Argument(help="Folder of the fixture.")]) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    model = llama_of(CONFIG)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(0.2 * torch.randn_like(value))
            else:
                value.normal_(std=1.3 * value.shape[1] ** -0.5)
    tokens = torch.randint(0, CONFIG["vocab_size"], (B, S))
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1))
    save_file({name: value.clone() for name, value in model.state_dict().items()}, out / "model.safetensors")

    arrays: dict[str, Any] = {"input_ids": tokens}
    arrays["hidden_states"], logits = looped(model, tokens, CONFIG)
    arrays["logits"] = logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    arrays["loss_labels"] = loss
    arrays |= {f"gradnorm/{name}": value.grad.norm() for name, value in model.named_parameters()}
    with torch.no_grad():
        arrays["gen_prompt"] = ids = tokens[:, :PROMPT]
        for _ in range(WRITTEN):
            ids = torch.cat([ids, looped(model, ids, CONFIG)[1][:, -1:].argmax(-1)], dim=1)
        arrays["gen_ids"] = ids
        arrays["logits_f64"] = looped(model.double(), tokens, CONFIG)[1]
    np.savez_compressed(out / "io.npz", **{name: value.detach().numpy() for name, value in arrays.items()})


def llama_of(config: dict[str, Any]) -> Any:
    """The layers that are looped. Angles and norms are in float64 where the weights are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    own = ("num_loops", "skip_loop_final_norm", "loop_loss_weights", "enable_mhc", "emb_neighbor_num", "model_type")
    given = {key: value for key, value in config.items() if key not in own}
    model = LlamaForCausalLM(LlamaConfig(**given, attn_implementation="sdpa"))
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = wide_norm.__get__(module)
    model.model.rotary_emb.forward = wide_angles.__get__(model.model.rotary_emb)
    return model.eval()


def wide_norm(self: Any, x: Any) -> Any:
    return self.weight * (x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt())


def wide_angles(self: Any, x: Any, position_ids: Any) -> Any:
    import torch

    rope = self.config.rope_parameters
    assert rope["rope_type"] == "default"
    size = self.config.head_dim
    frequencies = rope["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = (position_ids[:, :, None] * frequencies).repeat(1, 1, 2)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def looped(model: Any, tokens: Any, config: dict[str, Any]) -> tuple[Any, Any]:
    """(what the head reads after every loop, logits after the last)."""
    import torch

    hidden, norm, states = model.model.embed_tokens(tokens), model.model.norm, []
    for loop in range(config["num_loops"]):
        is_last = loop == config["num_loops"] - 1
        model.model.norm = norm if is_last or not config["skip_loop_final_norm"] else torch.nn.Identity()
        hidden = model.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        states.append(hidden)
    return torch.stack(states), model.lm_head(hidden)


if __name__ == "__main__":
    typer.run(main)
