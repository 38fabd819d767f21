"""Which weights of a run are scored or loaded: those of a checkpoint, or their moving average."""

from pathlib import Path

from looplm.checkpoint.reader import CheckpointReader
from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params
from looplm.optim.build import build_guarded
from looplm.optim.ema import abstract_ema, ema_params


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
    if run.optim.ema_decay is None:
        raise UserError(
            f"the run in {workdir} keeps no moving average of its weights (optim.ema_decay=None); "
            "ask for the weights themselves, or train with e.g. optim.ema_decay=0.999"
        )
    optimizer = build_guarded(run.optim, lm, run.num_steps)
    restored = checkpoints.restore({"opt_state": abstract_ema(optimizer, lm.shapes, abstract_params)}, step=step)
    averaged = ema_params(restored.trees["opt_state"])
    assert averaged is not None, "optim.ema_decay is set"
    return averaged, restored.seal.step
