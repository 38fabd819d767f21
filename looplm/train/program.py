"""The one compiled program of a run: a training step for every step and depth, lowered from shapes alone."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from looplm.config.schema import MoE, Place, Run
from looplm.hardware import find as find_device
from looplm.metrics.step import StepOutput
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.model.subset import Subset
from looplm.objective import build_objective
from looplm.ops.attention import choose_for
from looplm.ops.grouped_matmul import check_backend
from looplm.optim.build import build_guarded
from looplm.sharding.mesh import check_fit
from looplm.sharding.split import split_of
from looplm.train.batch import Batch, BatchLayout
from looplm.train.carrying import build_carrying
from looplm.train.depth import DepthSchedule
from looplm.train.state import TrainState, abstract_state, create_state, state_of
from looplm.train.step import build_forward, build_train_step, learning_of
from looplm.train.teacher import Teacher


class Program:
    """What a run computes on a mesh. Raises UserError when the model or batch does not fit the mesh, or what
    it needs there is not installed, or cannot compute it."""

    def __init__(self, run: Run, mesh: jax.sharding.Mesh):
        self.run, self.mesh = run, mesh
        self.depths = DepthSchedule(run)
        micro_batch = run.data.batch_tokens // run.data.sequence_length // run.data.accumulation_steps
        check_fit(mesh, run.model, micro_batch=micro_batch, sequence_length=run.data.sequence_length)
        self.batch = BatchLayout(run, mesh, per_sequence=self.depths.per_sequence)
        platform = mesh.devices.flat[0].platform
        for place in get_args(Place):
            if isinstance(moe := run.model.feed_forward_of(place), MoE):
                check_backend(moe.backend, platform)
        self.lm = FunctionalLM(run.model)
        self.dtype = compute_dtype(run.model, platform)
        backend, split = choose_for(run.model, run.data.sequence_length, self.dtype, mesh), split_of(run, mesh)
        self.attention = str(backend) if split is None else f"{backend}; {split}"
        """What computes it, and how sequences lie on devices: a line for the console."""
        self.learning = learning_of(run, self.lm)
        """Which parameters learn."""
        self.teacher = None if run.teacher is None else Teacher.of(run, mesh, self.dtype)
        """Whom the run learns from."""
        self.carrying = build_carrying(run)
        """What is kept of a batch from step to step."""
        self.optimizer = build_guarded(run.optim, self.lm, run.num_steps, build_objective(run.objective).trains)

    @property
    def gathers_per_layer(self) -> bool:
        """What `sharding.gather` comes to on these devices."""
        return gathers_per_layer(self.run, self.lm, self.dtype, self.mesh.shape, self.mesh.devices.flat[0].device_kind)

    def create_state(self) -> TrainState:
        """Drawn from the run's seed."""
        return create_state(self.lm, self.optimizer, self.mesh, self.run.seed, self.empty_carry)

    def create_params(self, *, but_for: Subset) -> Params:
        """Draws parameters as `create_state` does, and leaves some out; no others are allocated."""
        rest = but_for.others(self.lm)
        abstract = rest.only(self.lm.abstract(self.mesh))
        if not abstract:
            return {}

        def create(key: jax.Array) -> Params:
            return jax.tree.map(
                lambda leaf, laid: jax.sharding.reshard(leaf, laid.sharding.spec),
                rest.only(self.lm.init(key)),
                abstract,
            )

        with jax.set_mesh(self.mesh):
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            return jax.jit(create, out_shardings=shardings)(jax.random.key(self.run.seed))

    def state_of(self, params: Params) -> TrainState:
        """A new state around weights that are on the mesh; takes them."""
        return state_of(self.optimizer, self.mesh, params, self.empty_carry)

    def abstract_state(self) -> TrainState:
        return abstract_state(self.lm, self.optimizer, self.mesh, self.empty_carry)

    def empty_carry(self) -> Any:
        """What a run without a step behind it has kept, inside of a trace on the mesh; None where nothing is."""
        if self.carrying is None:
            return None
        batch, drawn = self.batch.abstract(), self.batch.abstract_drawn()
        state = jax.eval_shape(self._state_after, self.lm.abstract(self.mesh), batch, drawn)
        return self.carrying.empty(batch, state)

    def _state_after(self, params: Params, batch: Batch, drawn: jax.Array) -> Any:
        """The core's states after a pass over the micro-batches of a batch."""
        build_pass = build_forward(self.run, self.lm, self.depths, dtype=self.dtype)
        whole = self.lm.gather(params, self.dtype)

        def after(_: None, micro_batch: Batch) -> tuple[None, Any]:
            forward = build_pass(whole, micro_batch, drawn, jnp.int32(0))
            return None, forward("last", lambda hidden_BSD: ()).state

        return jax.lax.scan(after, None, batch)[1]

    def trace(self) -> jax.stages.Traced:
        """The training step with the state donated; allocates nothing."""
        step = build_train_step(
            self.run,
            self.lm,
            self.optimizer,
            self.depths,
            dtype=self.dtype,
            per_layer=self.gathers_per_layer,
            teacher=self.teacher,
        )
        taught = () if self.teacher is None else (self.teacher.abstract(self.mesh),)
        arguments = (self.abstract_state(), self.batch.abstract(), self.batch.abstract_drawn(), *taught)
        with jax.set_mesh(self.mesh):
            return jax.jit(step, donate_argnums=0).trace(*arguments)

    def lower(self) -> jax.stages.Lowered:
        """The traced step in XLA's language."""
        return self.trace().lower()

    def taught(self, report: Callable[[str], None]) -> tuple[Params, ...]:
        """What the step gets beside state, batch and depth: the teacher's weights, if there is one. Reads them."""
        return () if self.teacher is None else (self.teacher.weights(self.mesh, report),)

    def compile(
        self, *taught: Params
    ) -> Callable[[TrainState, Mapping[str, np.ndarray], int], tuple[TrainState, StepOutput]]:
        """Returns step(state, rows, index): training step `index` (from 0) on this process's rows; takes the state.
        taught: see `taught`."""
        compiled = self.lower().compile()

        def step(state: TrainState, rows: Mapping[str, np.ndarray], index: int) -> tuple[TrainState, StepOutput]:
            drawn = self.depths.draw(index)
            return compiled(state, self.batch.place(rows, drawn), self.batch.place_drawn(drawn), *taught)

        return step


def gathers_per_layer(run: Run, lm: FunctionalLM, dtype: np.dtype, mesh: Mapping[str, int], device_kind: str) -> bool:
    """Return what `sharding.gather` comes to on a mesh of these sizes."""
    gather, device = run.sharding.gather, find_device(device_kind)
    if gather != "auto" or device is None:
        return gather == "per_layer"
    bytes_each = dtype.itemsize + 4  # the weight, and its gradient in float32
    held = lm.num_params_of_layers - lm.num_params_of_experts + lm.num_params_of_experts / mesh["expert"]
    whole = held * bytes_each / mesh["tensor"]
    return mesh["fsdp"] > 1 and run.loop.remat != "none" and whole > device.memory_bytes / 3
