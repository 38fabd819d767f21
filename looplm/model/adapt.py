"""Hangs adapters on the projections of a model that the config means."""

from flax import nnx

from looplm.config.schema import Model
from looplm.errors import UserError
from looplm.model.experts import MATRICES, Experts
from looplm.model.layers import Linear, in_group
from looplm.model.lora import ExpertLoRA, ExpertLoRAs, LoRA
from looplm.model.naming import means, unknown

INNER = (".project", ".linear")
"""Names of projections that only repeat what the module around them is."""
KEY = "model.adapter.targets"


def adapt(model: nnx.Module, core: nnx.Module, config: Model, *, rngs: nnx.Rngs) -> None:
    """Give the projections their adapters. core: the part of the model that runs once a loop.

    Raises UserError for a target that is no projection, and where experts would have to leave something out.
    """
    if config.adapter is None or config.adapter.rank == 0:
        return
    parts = {".".join(map(str, path)): part for path, part in nnx.iter_graph(model)}
    # An adapter is of tokens; what is made once a sequence (`trajectory.py`) has none.
    linears = {path: part for path, part in parts.items() if isinstance(part, Linear) and "S" in part.equation}
    experts = {
        f"{path}.{name}": part
        for path, part in parts.items()
        if isinstance(part, Experts)
        for name in MATRICES
        if getattr(part, name) is not None
    }
    loops_over = {id(part) for _, part in nnx.iter_graph(core)}
    for path in chosen(config.adapter.targets, [*linears, *experts], parts, is_tied=config.tie_embeddings):
        if path in experts and config.adapter.drops:
            raise UserError(
                f"model.adapter leaves out nothing of what experts read, and its targets mean {path}; set dropout and "
                "loop_dropout to 0, or name other targets"
            )
        part = experts[path] if path in experts else linears[path]
        in_core = id(part) in loops_over
        loops = config.adapter.loops if in_core else None
        if isinstance(part, Linear):
            lora = LoRA(part, config.adapter, loops, runs_in_loops=in_core, rngs=rngs)
            part.adapter = in_group("adapter", lora, part.kernel.place)
        else:
            name = path.rpartition(".")[2]
            kernel = getattr(part, name)
            part.adapter = part.adapter or ExpertLoRAs(config.adapter)
            pair = ExpertLoRA(kernel, config.adapter, loops, rngs=rngs)
            setattr(part.adapter, name, in_group("adapter", pair, kernel.place))


def chosen(targets: tuple[str, ...], projections: list[str], parts: dict, *, is_tied: bool) -> list[str]:
    """Return the paths of the projections that the targets mean, in the model's order; raises as `adapt`."""
    roles = {_role(path): path for path in projections}
    params = {path: part for path, part in parts.items() if isinstance(part, nnx.Param)}
    tables = [path for path, part in params.items() if part.axes == ("vocab", "embed")]
    found: set[str] = set()
    for word in targets:
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
