"""Checkpoints of a run: WORKDIR/checkpoints/<step>/{params,opt_state,meta}, written asynchronously by Orbax.

Arrays are stored whole and named; a restore goes onto an abstract state, so any mesh restores what any other saved.
`meta` holds the config as JSON: loading a checkpoint runs no code.
"""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from looplm.errors import UserError


class CheckpointManager:
    """Saves in the background, keeps the last few, and restores the newest complete one."""

    def __init__(self, folder: Path, *, keep_last: int | None = None):
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep_last, create=keep_last is not None),
            item_names=("params", "opt_state", "meta"),
        )

    def latest_step(self) -> int | None:
        """The newest step whose save was completed, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any, meta: dict[str, Any]) -> None:
        """Copies the arrays and returns; writing goes on behind. Raises RuntimeError when nothing was saved."""
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave(meta),
            ),
        )
        if not saved:
            # Orbax says this only by its return value.
            raise RuntimeError(
                f"checkpoint {step} was not saved: {self.folder} already holds step {self.latest_step()}"
            )

    def restore(self, step: int, abstract_params: Any, abstract_opt_state: Any) -> tuple[Any, Any]:
        """Returns (params, opt_state) with the shardings of the abstract trees."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract_params),
                opt_state=ocp.args.StandardRestore(abstract_opt_state),
            ),
        )
        return restored["params"], restored["opt_state"]

    def restore_params(self, step: int | None, abstract_params: Any) -> tuple[Any, int]:
        """Returns the weights alone and their step; the newest when `step` is None. Raises UserError if absent."""
        step = self._existing(step)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
        return self._manager.restore(step, args=args)["params"], step

    def restore_partly(self, step: int | None, abstract_opt_state: Any) -> tuple[Any, int]:
        """As `restore_params`, of the optimizer's state; leaves that are `...` are not read."""
        step = self._existing(step)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_opt_state)
        args = ocp.args.Composite(opt_state=ocp.args.PyTreeRestore(abstract_opt_state, restore_args))
        return self._manager.restore(step, args=args)["opt_state"], step

    def _existing(self, step: int | None) -> int:
        """The step, or the newest. Raises UserError when it is not there."""
        steps = sorted(self._manager.all_steps())
        step = self.latest_step() if step is None else step
        if step is None:
            raise UserError(
                f"{self.folder} holds no checkpoint yet; `looplm train` saves one every checkpoint.every_steps"
            )
        if step not in steps:
            raise UserError(f"{self.folder} holds no checkpoint of step {step}; it has {steps}")
        return step

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
