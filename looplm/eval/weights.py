"""Which weights of a run are scored or loaded: those of a checkpoint, or their moving average."""

from pathlib import Path

from looplm.checkpoint.manager import CheckpointManager
from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params
from looplm.optim.build import build_optimizer
from looplm.optim.ema import abstract_ema, ema_params


def restore_weights(
    workdir: Path, run: Run, lm: FunctionalLM, abstract_params: Params, *, step: int | None, ema: bool
) -> tuple[Params, int]:
    """Returns (weights with the shardings of `abstract_params`, their step); the newest when `step` is None.

    Raises UserError for a step that is not there, or an average that the run does not keep.
    """
    checkpoints = CheckpointManager(workdir / "checkpoints")
    if not ema:
        return checkpoints.restore_params(step, abstract_params)
    if run.optim.ema_decay is None:
        raise UserError(
            f"the run in {workdir} keeps no moving average of its weights (optim.ema_decay=None); "
            "ask for the weights themselves, or train with e.g. optim.ema_decay=0.999"
        )
    optimizer = build_optimizer(run.optim, lm, run.num_steps)
    opt_state, step = checkpoints.restore_partly(step, abstract_ema(optimizer, lm.shapes, abstract_params))
    averaged = ema_params(opt_state)
    assert averaged is not None, "optim.ema_decay is set"
    return averaged, step
