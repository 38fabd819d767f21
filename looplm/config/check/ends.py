"""What stands between the tables of tokens and the residual stream, and several shared blocks."""

from collections.abc import Iterator

from looplm.config.check.rule import Rules
from looplm.config.schema import Run, SingleCore


def _widths(run: Run) -> Iterator[str]:
    model = run.model
    if model.embedding_width == model.dim:
        return
    name = f"model.embedding_dim={model.embedding_dim}"
    if model.tie_embeddings and model.head_transform is None:
        yield (
            f"{name} is not model.dim={model.dim}, and a tied head reads states of the embeddings' width; use "
            "model.head_transform={} or model.tie_embeddings=False"
        )
    if model.front is not None:
        yield (
            f"{name} is not model.dim={model.dim}, and places of model.front have the model's width; leave one of "
            "them out"
        )


def _front(run: Run) -> Iterator[str]:
    if run.model.front is not None and run.model.token_types:
        yield (
            f"model.token_types={run.model.token_types} are kinds of tokens, and places of model.front have none; "
            "leave one of them out"
        )


def _groups(run: Run) -> Iterator[str]:
    core = run.model.core
    if not isinstance(core, SingleCore) or core.groups == 1:
        return
    name = f"model.core.groups={core.groups}"
    if run.loop.depth_per == "sequence":
        yield (
            f"{name} gives loops blocks of their own, and loop.depth_per=sequence has sequences at different loops at "
            "a time; use loop.depth_per=batch, or one group"
        )
    if core.groups > run.loop.num_loops:
        yield f"{name} is more than loop.num_loops={run.loop.num_loops}, so some would never run; use at most that"
    for part in (*run.model.own_loops, *(["adapter"] if run.model.adapter is not None else [])):
        yield f"{name} and model.{part} both give loops parameters of their own; leave one of them out"


RULES: Rules = (_widths, _front, _groups)
