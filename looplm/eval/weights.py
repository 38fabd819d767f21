"""Which weights of a run are scored or loaded: those of a checkpoint, or their moving average."""

from pathlib import Path

import jax

from looplm.checkpoint.reader import CheckpointReader
from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params
from looplm.objective import build_objective
from looplm.optim.build import build_guarded
from looplm.optim.ema import abstract_ema, ema_params
from looplm.optim.learning import learning_of


def restore_weights(
    workdir: Path, run: Run, lm: FunctionalLM, abstract_params: Params, *, step: int | None, ema: bool
) -> tuple[Params, int]:
    """Returns (weights with the shardings of `abstract_params`, their step); the newest when `step` is None.

    Raises UserError for a step that is not there or damaged, or an average that the run does not keep.
    """
    checkpoints = CheckpointReader(workdir / "checkpoints")
    if not ema:
        restored = checkpoints.restore({"params": abstract_params}, step=step)
        return restored.trees["params"], restored.seal.step
    check_average(run, workdir)
    trains = build_objective(run.objective).trains
    learning, optimizer = learning_of(run.optim, lm, trains), build_guarded(run.optim, lm, run.num_steps, trains)
    learned = learning.only(abstract_params)
    # What does not learn has no average, and is what the checkpoint holds.
    wanted = {"opt_state": abstract_ema(optimizer, lm.shapes, learned)}
    if len(jax.tree.leaves(learned)) < len(jax.tree.leaves(abstract_params)):
        wanted["params"] = learning.put(jax.tree.map(lambda _: ..., learned), abstract_params)
    restored = checkpoints.restore(wanted, step=step)
    averaged = ema_params(restored.trees["opt_state"])
    assert averaged is not None, "optim.ema_decay is set"
    return learning.put(averaged, restored.trees.get("params", averaged)), restored.seal.step


def check_average(run: Run, workdir: Path) -> None:
    """Raises UserError for a run that keeps no moving average of its weights."""
    if run.optim.ema_decay is None:
        raise UserError(
            f"the run in {workdir} keeps no moving average of its weights (optim.ema_decay=None); "
            "ask for the weights themselves, or train with e.g. optim.ema_decay=0.999"
        )
