"""What one recipe needs and takes: memory, and the least time of a step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from looplm.compile.collectives import Collective
from looplm.compile.roofline import Roofline, roofline
from looplm.config.schema import Mesh, Run
from looplm.plan.chips import Chips
from looplm.plan.held import Turns, held
from looplm.plan.sent import sent
from looplm.plan.sizes import Sizes
from looplm.plan.traced import Form, Traced
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import Flops
from looplm.train.memory import available_bytes

MARGIN = 0.15
"""Of what a step holds beside its state: so far from the compiled figures of docs/scaling.md an estimate may lie."""


class Recipe(NamedTuple):
    """How a step is laid out."""

    mesh: Mapping[str, int]
    form: Form
    micro_batches: int
    rows: int
    """Sequences of a micro-batch on a device."""

    @property
    def settings(self) -> dict[str, object]:
        """What `--set` makes of a run."""
        axes: dict[str, object] = {f"mesh.{axis}": size for axis, size in self.mesh.items() if size > 1}
        return (
            axes
            | {"data.accumulation_steps": self.micro_batches, "loop.remat": self.form.remat}
            | ({"sharding.gather": self.form.gather})
        )


class Estimate(NamedTuple):
    """What a recipe comes to."""

    recipe: Recipe
    state_bytes: float
    """State and batch on a device: exact, but for the padding of a TPU's tiles."""
    temporary_bytes: float
    """Beside it, an estimate within MARGIN of what is compiled."""
    available_bytes: int
    flops_per_token: Flops
    time: Roofline
    """Of a step. Products and links are at the peaks, so no step is faster; traffic of the memory is an estimate."""
    sent_once_bytes: float
    """That a device sends outside loops: weights and gradients, where they are gathered once."""
    tokens_per_step: int
    num_devices: int
    peak_flops: float

    @property
    def total_bytes(self) -> float:
        return self.state_bytes + self.temporary_bytes

    @property
    def fits(self) -> bool:
        """Whether memory holds it even if it is MARGIN more than estimated."""
        return self.state_bytes + self.temporary_bytes * (1 + MARGIN) <= self.available_bytes

    @property
    def tokens_at_a_time(self) -> int:
        """Of a micro-batch on a device."""
        mesh = self.recipe.mesh
        return self.tokens_per_step // self.recipe.micro_batches * mesh["context"] * mesh["tensor"] // self.num_devices

    @property
    def tokens_per_s(self) -> float:
        """At most, of all devices together."""
        return self.tokens_per_step / self.time.step_s

    @property
    def mfu(self) -> float:
        """At most."""
        return self.tokens_per_s * self.flops_per_token.model / (self.num_devices * self.peak_flops)

    @property
    def bound_by(self) -> str:
        """What takes longest."""
        links = self.time.links_in_loops_s + self.time.links_once_s
        times = {"products": self.time.compute_s, "memory": self.time.memory_s, "links": links}
        return max(times, key=lambda name: times[name])


def estimate(run: Run, chips: Chips, traced: Traced, recipe: Recipe) -> Estimate:
    """Add up a recipe. traced: the step of the recipe's form."""
    copies = recipe.mesh["replica"] * recipe.mesh["data"]
    sizes = Sizes(traced.mesh, {**recipe.mesh, "replica": 1, "data": copies}, recipe.rows)
    turns = Turns(traced.detached_loops, recipe.micro_batches)
    level = traced.level(recipe.micro_batches)
    found, state = held(level, level.inputs, sizes, turns), sum(sizes.of(value.aval) for value in level.inputs)
    per_token, count = traced.flops_per_token, chips.num_devices
    hardware = per_token.hardware * run.data.batch_tokens / count + traced.optimizer_flops(recipe.mesh["fsdp"])
    collectives = _together(list(sent(level, sizes, turns)))
    time = roofline(
        chips.device,
        build_mesh(Mesh(**recipe.mesh), chips.devices),
        device_flops=hardware,
        traffic_bytes=found.moved,
        collectives=collectives,
    )
    return Estimate(
        recipe,
        state,
        found.peak - state,
        available_bytes(chips.device),
        per_token,
        time,
        sum(one.step_bytes for one in collectives if not one.loop_depth),
        run.data.batch_tokens,
        count,
        chips.device.peak_flops,
    )


def _together(found: Sequence[Collective]) -> list[Collective]:
    """Alike ones as one, with all their bytes. What goes along `data`, of a mesh without replicas, goes along both."""
    total: dict[tuple, float] = defaultdict(float)
    for one in found:
        axes = ("replica", *one.axes) if "data" in one.axes else one.axes
        total[one.kind, axes, one.group_size, min(one.loop_depth, 1)] += one.step_bytes
    return [Collective(kind, (), axes, size, wire, depth, 1.0, "") for (kind, axes, size, depth), wire in total.items()]
