"""Which recipes there are for a number of devices, which of them fit, and which is the fastest by the bound."""

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, get_args

from jax.sharding import AbstractMesh

from looplm.config.load import override
from looplm.config.schema import MoE, Place, Run
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, compute_dtype
from looplm.plan.chips import Chips
from looplm.plan.estimate import MARGIN, Estimate, Recipe, estimate
from looplm.plan.traced import Form, Traces
from looplm.sharding.mesh import build_mesh, check_fit
from looplm.sharding.rules import BATCH_AXES
from looplm.sharding.split import split_of
from looplm.train.machine import TILE, TORUS_SPLIT, for_machine, split_of_weights
from looplm.train.program import gathers_per_layer

ALIKE = 1.02
"""Recipes are ranked as equal up to this ratio of their times; then the simpler one is first."""
ENOUGH_TOKENS = 8192
"""Of a micro-batch on a device: from here on products are large."""
MOST_EXPERTS = 8
"""Devices that experts are split over."""
REMATS = ("none", "layer", "loop")
"""From what is kept most to what is kept least."""


class Split(NamedTuple):
    """Of a model and its sequences; the rest of the devices split batches and weights."""

    expert: int = 1
    context: int = 1
    tensor: int = 1

    def __str__(self) -> str:
        """Return the axes as they are set."""
        return ", ".join(f"{name}={size}" for name, size in self._asdict().items() if size > 1) or "fsdp and data alone"


class LeftOut(NamedTuple):
    """A split that gives no recipe, and why."""

    split: str
    why: str


class Found(NamedTuple):
    """What there is."""

    recipes: list[Estimate]
    """The best of every split, from the fastest by the bound."""
    left_out: list[LeftOut]


class Search:
    """Looks for recipes.

    Args:
        given: leaves of the run that the user has set; they are kept.
    """

    def __init__(self, run: Run, chips: Chips, given: Collection[str]) -> None:
        own = build_mesh(for_machine(run, chips.devices, given).mesh, chips.devices)
        self.own_mesh = dict(own.shape)
        """What `looplm train` would take there."""
        self.mesh_is_given = any(key.partition(".")[0] == "mesh" for key in given)
        self.run, self.chips, self.given = run, chips, set(given)
        self.lm = FunctionalLM(run.model)
        self.traces = Traces(run, chips)
        self.fullest: LeftOut | None = None
        """Of what memory does not hold, what needs least."""
        self.least_bytes = float("inf")
        self.sequences = run.data.batch_tokens // run.data.sequence_length

    def search(self) -> Found:
        """Return the recipes that fit. Raises UserError where there is none."""
        found: list[Estimate] = []
        left_out: list[LeftOut] = []
        for split in self._splits(found):
            remats = REMATS if not found else (found[0].recipe.form.remat, "loop")
            best, why = self._best(split, self._remats(remats))
            if best is not None:
                found.append(best)
                found.sort(key=lambda one: one.time.step_s)
            else:
                left_out.append(LeftOut(str(split), why))
        if not found:
            # The first split is the simplest: all others need numbers of chips that it can do with too.
            first = left_out[0] if self.fullest is None else self.fullest
            remedy = "take more chips, or ones with more memory" if self.fullest else "take a number of chips that fits"
            raise UserError(f"no recipe fits {self.chips.words} ({first.split}: {first.why}); {remedy}")
        return Found(_ranked(found), left_out)

    def _remats(self, wanted: Collection[str]) -> list[str]:
        if "loop.remat" in self.given or self.run.loop.remat not in REMATS:
            return [self.run.loop.remat]
        return list(dict.fromkeys(wanted))

    def _splits(self, found: list[Estimate]) -> Iterator[Split]:
        """Yield splits from the simplest on, and finer ones as long as nothing has fitted."""
        if self.mesh_is_given:
            yield Split(*(self.own_mesh[axis] for axis in Split._fields))
            return
        yield Split()
        experts = [
            moe.num_experts
            for place in get_args(Place)
            if isinstance(moe := self.run.model.feed_forward_of(place), MoE)
        ]
        reach = TORUS_SPLIT if self.chips.device.torus else self.chips.device.domain
        over = math.gcd(MOST_EXPERTS, self.chips.num_devices, *experts) if experts else 1
        if over > 1:
            yield Split(expert=over)
        for size in (2, 4, 8, 16):
            if size <= self.chips.num_devices and (size == 2 or not found):
                if size <= max(reach, 1) and size <= self.run.model.num_heads:
                    yield Split(tensor=size)
                if self.run.data.sequence_length // size >= TILE:
                    yield Split(context=size)

    def _best(self, split: Split, remats: list[str]) -> tuple[Estimate | None, str]:
        """(the fastest recipe of a split that fits; why there is none)."""
        fitting: list[Estimate] = []
        nearest: Estimate | None = None
        meshes, why = self._meshes(split)
        for forms in self._forms(split, meshes, remats):
            for mesh, form in forms:
                for recipe in self._recipes(mesh, form):
                    one = estimate(self.run, self.chips, self.traces.of(form), recipe)
                    if not one.fits:
                        nearest = min(filter(None, (nearest, one)), key=lambda one: one.total_bytes)
                        break
                    fitting.append(one)
            if fitting:
                break  # what recomputes more takes longer
        if fitting:
            return _ranked(fitting)[0], ""
        if nearest is not None:
            gib, memory = nearest.total_bytes / 2**30, nearest.available_bytes / 2**30
            why = f"about {gib:.1f} GiB at the least, of {memory:.1f}, and {MARGIN:.0%} to spare"
            if nearest.total_bytes < self.least_bytes:
                self.least_bytes, self.fullest = nearest.total_bytes, LeftOut(str(split), why)
            return None, why
        return None, why or f"{self.chips.num_devices} devices are no multiple of it"

    def _meshes(self, split: Split) -> tuple[list[dict[str, int]], str]:
        """(sizes of all axes: weights over few devices, over those that fast links reach, over all; why there are
        none)."""
        count, why, fitting = self.chips.num_devices, "", []
        for mesh in [self.own_mesh] if self.mesh_is_given else self._of_split(split, count):
            try:
                self._check(mesh)
                fitting.append(mesh)
            except UserError as error:
                why = why or str(error).partition(";")[0]
        return fitting, why

    def _of_split(self, split: Split, count: int) -> Iterator[dict[str, int]]:
        rest, left = divmod(count, split.expert * split.context * split.tensor)
        if left:
            return
        dim, device = self.run.model.dim, self.chips.device
        sizes = {1, min(device.domain, rest), min(TORUS_SPLIT, rest), rest, self.own_mesh["fsdp"]}
        sizes.add(split_of_weights(device, count, dim, self.lm.num_params))
        sizes = {size for size in sizes if rest % size == 0 and dim % size == 0}
        # The TPU compiler all-reduces whole gradients where a part is no multiple of a tile.
        whole = {size for size in sizes if not device.torus or dim // size % TILE == 0}
        for fsdp in sorted(whole or sizes):
            yield {"replica": 1, "data": rest // fsdp, "fsdp": fsdp} | split._asdict()

    def _check(self, mesh: dict[str, int]) -> None:
        """Raise UserError where the model, or the batch, does not fit a mesh."""
        shape: Any = AbstractMesh(tuple(mesh.values()), tuple(mesh))
        shards = _shards(mesh)
        if self.sequences % shards:
            raise UserError(f"{shards} devices cannot share the {self.sequences} sequences of a step evenly")
        check_fit(shape, self.run.model, micro_batch=shards, sequence_length=self.run.data.sequence_length)

    def _forms(
        self, split: Split, meshes: list[dict[str, int]], remats: list[str]
    ) -> Iterator[list[tuple[dict[str, int], Form]]]:
        """Yield a form for every mesh, with ever less that is kept: last with layers that are gathered one by one."""
        dtype = compute_dtype(self.run.model, self.chips.platform)
        for remat in remats:
            forms = []
            for mesh in meshes:
                steps = self.sequences // _shards(mesh)
                run = override(self.run, {"loop.remat": remat, "data.accumulation_steps": steps})
                per_layer = gathers_per_layer(run, self.lm, dtype, mesh, self.chips.device_kind)
                laid_out = split_of(run, AbstractMesh(tuple(mesh.values()), tuple(mesh)))
                keys = "ring" if laid_out is not None and laid_out.ring else "gathered"
                forms.append((mesh, Form(*split, remat, "per_layer" if per_layer else "once", keys)))
            yield forms
        if self.run.sharding.gather == "auto" and remats[-1] != "none":
            once = [(mesh, form) for mesh, form in forms if form.gather == "once" and mesh["fsdp"] > 1]
            yield [(mesh, form._replace(gather="per_layer")) for mesh, form in once]

    def _recipes(self, mesh: dict[str, int], form: Form) -> Iterator[Recipe]:
        """Yield recipes, with ever larger micro-batches."""
        of_device = self.sequences // _shards(mesh)
        if "data.accumulation_steps" in self.given:
            steps = self.run.data.accumulation_steps
            if of_device % steps == 0:
                yield Recipe(mesh, form, steps, of_device // steps)
            return
        for rows in (1, 2, 4, 8, 16, 32, 64, 128):
            if of_device % rows == 0:
                yield Recipe(mesh, form, of_device // rows, rows)


def _shards(mesh: dict[str, int]) -> int:
    shards = 1
    for axis in BATCH_AXES:
        shards *= mesh[axis]
    return shards


def _ranked(found: list[Estimate]) -> list[Estimate]:
    """Sort from the fastest. Of recipes that are alike the one is first that leaves a model and its sequences whole,
    has large micro-batches, and needs least memory."""
    ranked: list[Estimate] = []
    rest = sorted(found, key=lambda one: one.time.step_s)
    while rest:
        alike = [one for one in rest if one.time.step_s <= rest[0].time.step_s * ALIKE]
        alike.sort(key=lambda one: (_num_splits(one), one.tokens_at_a_time < ENOUGH_TOKENS, one.total_bytes))
        ranked += alike
        rest = rest[len(alike) :]
    return ranked


def _num_splits(one: Estimate) -> int:
    return sum(one.recipe.mesh[axis] > 1 for axis in Split._fields)
