"""What to change when a run does not fit: every remedy with the memory it leaves, by differences of a closed form.

    state          (params + moments) / (fsdp tensor)
    whole          layers gathered once: compute type, float32 gradient, and its sum over micro-batches; / tensor
    scores         3 N/tensor S/context S per sequence: weights, their exponentials and gradient (attention in XLA)
    states         one (S, D) per loop with gradient, and per layer of one loop (all layers without loop remat)

The form is only trusted for differences; the total is the compiler's.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from looplm.config.load import override
from looplm.config.schema import Run
from looplm.sharding.rules import BATCH_AXES
from looplm.train.memory import Memory
from looplm.train.program import Program

FLOAT32 = 4


class Remedy(NamedTuple):
    settings: tuple[str, ...]
    """For `--set`."""
    predicted_bytes: int
    costs: str

    @property
    def kind(self) -> tuple[str, ...]:
        return tuple(setting.partition("=")[0] for setting in self.settings)


def remedies(program: Program, memory: Memory, available_bytes: float) -> list[Remedy]:
    """The three cheapest that fit, or the three that help most. Sorted from the cheapest."""
    found = []
    for settings, costs in _candidates(program):
        changed = override(program.run, dict(settings))
        saved = _predicted(program, program.run, program.gathers_per_layer) - _predicted(
            program, changed, program.gathers_per_layer or changed.sharding.gather == "per_layer"
        )
        if saved > 0:
            written = tuple(f"{key}={value}" for key, value in settings.items())
            found.append(Remedy(written, max(0, int(memory.total - saved)), costs))
    enough: dict[object, Remedy] = {}  # of each kind, the smallest step that is enough
    for remedy in found:
        if remedy.predicted_bytes <= available_bytes:
            enough.setdefault(remedy.kind, remedy)
    return list(enough.values())[:3] or sorted(found, key=lambda remedy: remedy.predicted_bytes)[:3]


def _candidates(program: Program) -> Iterator[tuple[Mapping[str, object], str]]:
    """From the cheapest to the dearest."""
    run, mesh = program.run, program.mesh.shape
    rows = program.batch.batch_size // run.data.accumulation_steps // _shards(mesh)
    for factor in (2, 4, 8):
        if rows % factor == 0:
            steps = run.data.accumulation_steps * factor
            yield {"data.accumulation_steps": steps}, f"{rows // factor} sequences a device and micro-batch"
    if run.loop.remat in ("none", "layer"):
        yield {"loop.remat": "loop"}, "one more forward pass of the loops"
    for outer in ("data", "replica"):
        if mesh[outer] > 1 and program.run.model.dim % (mesh["fsdp"] * mesh[outer]) == 0:
            yield {f"mesh.{outer}": 1, "mesh.fsdp": mesh["fsdp"] * mesh[outer]}, "gathers over more devices"
    for axis in ("tensor", "context"):
        for factor in (2, 4, 8):
            if _splits(run, axis, mesh[axis] * factor) and mesh["fsdp"] % factor == 0:
                yield (
                    {
                        f"mesh.{axis}": mesh[axis] * factor,
                        "mesh.fsdp": mesh["fsdp"] // factor,
                        "data.accumulation_steps": run.data.accumulation_steps * factor,
                    },
                    "activations travel in every layer",
                )
    if not program.gathers_per_layer:
        yield {"sharding.gather": "per_layer"}, "weights and gradients travel in every layer of every loop"


def _splits(run: Run, axis: str, parts: int) -> bool:
    model = run.model
    sizes = [run.data.sequence_length]
    if axis == "tensor":
        sizes += [model.num_heads, model.kv_heads, model.hidden_dim, model.vocab_size]
    return all(size % parts == 0 for size in sizes)


def _predicted(program: Program, run: Run, per_layer: bool) -> float:
    mesh = {axis: getattr(run.mesh, axis) for axis in program.mesh.shape}
    if -1 in mesh.values():
        known = math.prod(size for size in mesh.values() if size != -1)
        mesh = {axis: program.mesh.size // known if size == -1 else size for axis, size in mesh.items()}
    itemsize, model, S = program.dtype.itemsize, run.model, run.data.sequence_length
    split = mesh["fsdp"] * mesh["tensor"]
    experts, rest = program.lm.num_params_of_experts, program.lm.num_params - program.lm.num_params_of_layers
    layers = program.lm.num_params_of_layers - experts + experts / mesh["expert"]
    sums = FLOAT32 * (2 if run.data.accumulation_steps > 1 else 1)
    whole = (rest + (0 if per_layer else layers)) * (itemsize + sums) / mesh["tensor"]
    state = 3 * FLOAT32 * (layers + rest) / split + (layers * sums / split if per_layer else 0)

    rows = run.data.batch_tokens // S // run.data.accumulation_steps / _shards(mesh)
    scores = 3 * FLOAT32 * model.num_heads / mesh["tensor"] * (S / mesh["context"]) * S
    window, layers_of_loop = int(program.depths.window), model.calls_per_loop * model.largest_block
    saved: dict[str, Callable[[], int]] = {
        "none": lambda: 16 * window * layers_of_loop,
        "layer": lambda: window * layers_of_loop,
    }
    kept = saved.get(run.loop.remat, lambda: window + layers_of_loop)()
    states = kept * S / mesh["context"] / mesh["tensor"] * model.dim * itemsize
    return state + whole + rows * (scores + states)


def _shards(mesh: Mapping[str, int]) -> int:
    return math.prod(mesh[axis] for axis in BATCH_AXES)
