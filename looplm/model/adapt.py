"""Hangs adapters on the projections of a model that the config means."""

from flax import nnx

from looplm.config.schema import Model
from looplm.errors import UserError
from looplm.model.layers import Linear, in_group
from looplm.model.lora import LoRA
from looplm.model.naming import means, unknown

INNER = (".project", ".linear")
"""Names of projections that only repeat what the module around them is."""
KEY = "model.adapter.targets"


def adapt(model: nnx.Module, core: nnx.Module, config: Model, *, rngs: nnx.Rngs) -> None:
    """Give the projections their adapters. core: the part of the model that runs once a loop.

    Raises UserError for a target that is no projection, or that has experts.
    """
    if config.adapter is None or config.adapter.rank == 0:
        return
    parts = {".".join(map(str, path)): part for path, part in nnx.iter_graph(model)}
    projections = {
        path: part for path, part in parts.items() if isinstance(part, Linear) and not _has_experts(part.kernel)
    }
    loops_over = {id(part) for _, part in nnx.iter_graph(core)}
    for path in chosen(config.adapter.targets, projections, parts, is_tied=config.tie_embeddings):
        linear = projections[path]
        in_core = id(linear) in loops_over
        loops = config.adapter.loops if in_core else None
        lora = LoRA(linear, config.adapter, loops, runs_in_loops=in_core, rngs=rngs)
        linear.adapter = in_group("adapter", lora, linear.kernel.place)


def chosen(targets: tuple[str, ...], projections: dict, parts: dict, *, is_tied: bool) -> list[str]:
    """Return the paths of the projections that the targets mean, in the model's order; raises as `adapt`."""
    roles = {_role(path): path for path in projections}
    params = {path: part for path, part in parts.items() if isinstance(part, nnx.Param)}
    tables = [path for path, part in params.items() if part.axes == ("vocab", "embed")]
    experts = [path for path, part in params.items() if _has_experts(part)]
    found: set[str] = set()
    for word in targets:
        if with_experts := [path for path in experts if means(word, path)]:
            others = dict.fromkeys(role.rpartition("layers.")[2] for role in roles)
            raise UserError(
                f"{KEY}: {word!r} also means {with_experts[0]}, and experts have no adapters; name others: "
                f"{', '.join(others)}"
            )
        meant = {path for role, path in roles.items() if means(word, role)}
        if not meant and (table := next((path for path in tables if means(word, path)), None)):
            both = ", which is the embedding and the head at once" if is_tied else ""
            raise UserError(
                f"{KEY}: {word!r} means {table}{both}, and adapters go beside projections; to train it as a "
                f'whole, take it out and set optim.train=["adapter", "{table}"]'
            )
        if not meant:
            raise unknown(KEY, word, roles)
        found |= meant
    return [path for path in projections if path in found]


def _role(path: str) -> str:
    return next((path.removesuffix(inner) for inner in INNER if path.endswith(inner)), path)


def _has_experts(kernel: nnx.Param) -> bool:
    return any(axis in ("experts", "head_experts") for axis in kernel.axes)
