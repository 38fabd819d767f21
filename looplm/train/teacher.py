"""The frozen model whose predictions a run learns from: sharded like the student, never saved, without gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from looplm.checkpoint.folder import checkpoint_of
from looplm.checkpoint.reader import CheckpointReader
from looplm.config.load import from_json
from looplm.config.schema import Run
from looplm.data.tokenizer import Tokenizer
from looplm.data.window import PADDING
from looplm.errors import UserError
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.ops.attention import choose_for, prefix_of, self_mask
from looplm.sharding.mesh import check_fit
from looplm.sharding.split import Split
from looplm.train.batch import Batch


@dataclass(frozen=True)
class Teacher:
    """A model of a folder, at its depth."""

    path: Path
    is_official: bool
    """Whether that is a folder in the official format, and not a run."""
    allow_keys: tuple[str, ...]
    lm: FunctionalLM
    num_loops: int
    dtype: jnp.dtype
    """In which it computes and is held: the student's compute type."""

    @classmethod
    def of(cls, run: Run, mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> "Teacher":
        """Reads the config of `run.teacher`. Raises UserError for a folder that is no model, a model with another
        vocabulary, and one that the mesh does not fit."""
        from looplm.checkpoint.hf_folder import HFFolder, is_official  # here: a run has no teacher, as a rule

        path = Path(run.teacher or "")
        if official := is_official(path):
            folder = HFFolder(path, run.init_allow_keys)
            model, loop = folder.model(), folder.loop()
            folder.check(model)
        else:
            if not (path / "config.json").is_file():
                raise UserError(f"teacher={path} is neither a run directory nor a model folder; give one of them")
            taught = from_json(path / "config.json")
            model, loop = taught.model, taught.loop
        if model.vocab_size != run.model.vocab_size:
            raise UserError(
                f"teacher={path} has a vocabulary of {model.vocab_size} tokens and model.vocab_size="
                f"{run.model.vocab_size}; predictions are compared token by token, so give a teacher of the same tokens"
            )
        data = run.data
        try:
            micro_batch = data.batch_tokens // data.sequence_length // data.accumulation_steps
            check_fit(mesh, model, micro_batch=micro_batch, sequence_length=data.sequence_length)
            choose_for(model, data.sequence_length, dtype, mesh)
        except UserError as error:
            raise UserError(f"teacher={path}: {error}") from error
        return cls(path, official, run.init_allow_keys, FunctionalLM(model), run.teacher_loops or loop.num_loops, dtype)

    def check_tokens(self, tokenizer: Tokenizer | None) -> None:
        """Raises UserError when the folder is of a run whose tokens are others than those of `tokenizer`."""
        if self.is_official:
            return
        from looplm.data.tokenizer.official import tokenizer_of

        theirs = tokenizer_of(checkpoint_of(self.path)[0], from_json(self.path / "config.json"))
        if theirs and tokenizer and theirs.eos_id >= 0 and theirs.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"teacher={self.path} was trained with another tokenizer than {tokenizer.path}; "
                f"build the datasets with {theirs.path}, or give another teacher"
            )

    def abstract(self, mesh: jax.sharding.Mesh) -> Params:
        """Shapes, types and shardings of its weights on the mesh."""

        def leaf(shape: jax.ShapeDtypeStruct, declaration: nnx.Param) -> jax.ShapeDtypeStruct:
            dtype = shape.dtype if declaration.wide else self.dtype
            return jax.ShapeDtypeStruct(shape.shape, dtype, sharding=shape.sharding)

        return self.lm.map(leaf, self.lm.abstract(mesh))

    def weights(self, mesh: jax.sharding.Mesh, report: Callable[[str], None]) -> Params:
        """Reads them onto the mesh. Raises UserError for what is damaged, or holds other weights than its config."""
        abstract = self.lm.abstract(mesh)
        if self.is_official:
            from looplm.checkpoint.hf_folder import HFFolder

            params = HFFolder(self.path, self.allow_keys).params(self.lm.config, jnp.float32)
            report(f"learning from {self.path} at {self.num_loops} loops")
        else:
            root, step = checkpoint_of(self.path)
            restored = CheckpointReader(root / "checkpoints", report).restore({"params": abstract}, step=step)
            params = restored.trees["params"]
            report(f"learning from {root} after step {restored.seal.step} at {self.num_loops} loops")
        with jax.set_mesh(mesh):
            return jax.tree.map(_placed, params, self.abstract(mesh))

    def forward(self, whole: Params, micro_batch: Batch, split: Split | None, key: jax.Array) -> Forward:
        """The pass over a micro-batch.

        Args:
            whole: its weights, ready for use (`FunctionalLM.gather`).
            split: how sequences lie on the devices.
            key: draws its first state, if it draws one.
        """
        config = self.lm.config
        context = Context(
            micro_batch.positions,
            self_mask(config, micro_batch.segments, prefix_of(config, micro_batch.labels, micro_batch.segments), split),
            key=key,
            sequence_B=micro_batch.sequence,
            counted_BS=micro_batch.segments != PADDING,
        )
        return Forward(self.lm.bind(whole), micro_batch.tokens, context, Depth(self.num_loops), self.dtype)


def _placed(value: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Where it belongs, in the type in which it is held."""
    if isinstance(value, jax.Array):
        return value.astype(leaf.dtype)  # restored there
    assert leaf.sharding is not None, "of abstract weights"
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: np.asarray(value[index]).astype(leaf.dtype)
    )
