"""Makes tests/golden/parcae_a: numbers of the official Parcae code for a tiny model with random weights.

python tools/golden_parcae.py CHECKOUT tests/golden/parcae_a          CHECKOUT: sandyresearch/parcae; needs torch
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

SIZES = dict(
    block_size=32, vocab_size=61, padding_multiple=1, n_embd=32, num_attention_heads=2, num_key_value_heads=2,
    intermediate_size=32, recurrent_embedding_dimension=32, recurrent_intermediation_embedding_dimension=32,
    n_layers_in_prelude=2, n_layers_in_recurrent_block=2, n_layers_in_coda=2, mean_recurrence=4,
    mean_backprop_depth=2,
)  # fmt: skip
"""What differs from the released parcae-140m."""
B, S, SEED, DEPTH_STEP = 3, 10, 7, 11
DEPTHS = (1, 4, 8)


def main(
    checkout: Annotated[Path, typer.Argument(help="Checkout of sandyresearch/parcae.")],
    out: Annotated[Path, typer.Argument(help="Folder of the fixture.")],
) -> None:
    sys.path.insert(0, str(checkout))
    import parcae_lm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    config = parcae_lm.create_config("parcae-small-140m", **SIZES)
    model = config.construct_model()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1 or "adapter" in name:
                value.add_(0.1 * torch.randn_like(value))
            else:
                value.normal_(std=value.shape[1] ** -0.5)
    tokens = torch.randint(0, config.vocab_size, (B, S))
    labels = torch.roll(tokens, -1, dims=1)
    labels[:, -1] = -100
    state = torch.randn(B, S, config.n_embd)

    out.mkdir(parents=True, exist_ok=True)
    model_config = json.loads(json.dumps(config.__getstate__()))
    (out / "config.json").write_text(json.dumps(model_config, indent=1))
    weights = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, out / "model.safetensors")

    arrays: dict[str, Any] = {"input_ids": tokens, "labels": labels, "init_state": state}
    for suffix in ("", "_f64"):
        with precision(model, torch, double=bool(suffix)):
            wide = state.to(next(model.parameters()).dtype)
            model.initialize_state = lambda _, wide=wide: wide
            for depth in DEPTHS:
                steps = torch.tensor([depth, 0])
                with torch.no_grad():
                    logits = model(tokens, return_logits=True, num_steps_pair=steps)["logits"]
                arrays[f"logits_steps{depth}{suffix}"] = logits
            model.step = DEPTH_STEP  # seeds the depths
            arrays["depths_nk"] = torch.stack(model._sample_batch_depths(B), dim=-1)
            model.train().zero_grad()
            loss = model(tokens, labels=labels)["loss"]
            loss.backward()
            arrays[f"loss_sequences{suffix}"] = loss.detach()
            grads = {name: value.grad.to(torch.float) for name, value in model.named_parameters()}
    save_file(grads, out / "grads_sequences.safetensors")
    arrays["sampler_nk_mean8_bptt4"] = official_depths(model, torch, 10_000, mean=8, window=4)
    numpy = {name: value.detach().numpy() for name, value in arrays.items()}
    np.savez_compressed(out / "io.npz", **numpy)
    (out / "io_shapes.json").write_text(
        json.dumps({name: [str(value.dtype), list(value.shape)] for name, value in numpy.items()}, indent=0)
    )
    print(f"torch {torch.__version__}; depths (n, k) of the sequences {arrays['depths_nk'].tolist()}")
    for name in [f"logits_steps{depth}" for depth in DEPTHS] + ["loss_sequences"]:
        print(name, f"float32 against float64 {np.abs(numpy[name] - numpy[name + '_f64']).max():.1e}")


@contextmanager
def precision(model: Any, torch: Any, *, double: bool) -> Iterator[None]:
    """In float64, what the code casts to float32 (norms, rotation, logits) stays float64, and its table of angles is
    made anew."""
    if not double:
        yield
        return
    narrow, single, to_float = model.freqs_cis, torch.float32, torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    torch.float32 = torch.float64
    try:
        model.double()
        model.freqs_cis = model._precompute_freqs_cis()
        yield
    finally:
        torch.Tensor.float, torch.float32, model.freqs_cis = to_float, single, narrow
        model.float()


def official_depths(model: Any, torch: Any, count: int, *, mean: int, window: int) -> Any:
    """(n without gradient, k with) of so many sequences, from the official sampler."""
    model.config.mean_recurrence, model.config.mean_backprop_depth = mean, window
    model.step = 0
    return torch.stack(model._sample_batch_depths(count), dim=-1).to(torch.int16)


if __name__ == "__main__":
    typer.run(main)
