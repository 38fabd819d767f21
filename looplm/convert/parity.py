"""Logits on fixed inputs: of the folder and of the run that was made of it, and of the library transformers."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

import looplm.api
from looplm.errors import UserError

ROWS, LENGTH = 2, 16


def fixed_ids(vocab_size: int) -> np.ndarray:
    """(2, 16) int32, always the same for a vocabulary, spread over all of it."""
    return (np.arange(ROWS * LENGTH, dtype=np.int64).reshape(ROWS, LENGTH) * 7919 % vocab_size).astype(np.int32)


def compare_logits(source: Path, workdir: Path, allow_keys: Collection[str], *, reference: bool) -> Iterator[str]:
    """One line for each comparison, with the largest absolute difference in float32."""
    ours = logits_of(workdir, ())
    theirs = logits_of(source, allow_keys)
    shape = f"logits of {ROWS} x {LENGTH} fixed ids"
    yield f"{shape} differ by {_largest(ours, theirs)} between the folder and the run"
    if reference:
        yield f"{shape} differ by {_largest(ours, _transformers(source))} from those of the library transformers"


def logits_of(path: Path, allow_keys: Collection[str]) -> np.ndarray:
    """After all loops. A first state that is drawn is drawn from one key."""
    import jax

    lm = looplm.api.load(path, dtype="float32", allow_keys=allow_keys)
    loops = lm.loop.num_loops
    return np.asarray(jax.jit(lambda ids_BS: lm(ids_BS).logits(loops))(fixed_ids(lm.model.vocab_size)))


def _transformers(source: Path) -> np.ndarray:
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise UserError(f"--reference needs torch and transformers ({error}); install them, or leave it out") from error
    try:
        # Code that came with the folder is not run, nor pickles read.
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--reference: transformers does not read {source} ({reason}); leave it out") from error
    with torch.no_grad():
        return model(torch.from_numpy(fixed_ids(model.config.vocab_size)).long()).logits.numpy()


def _largest(first: np.ndarray, second: np.ndarray) -> str:
    return f"{np.max(np.abs(first - second)):.2g} at most"
