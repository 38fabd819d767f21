"""Residual streams: what does not go with several."""

from collections.abc import Iterator

from looplm.config.check.depth import max_loops
from looplm.config.check.rule import Rules
from looplm.config.schema import Run, SequenceMLP, SingleCore, SinkhornMix, Streams


def _layers(run: Run) -> Iterator[str]:
    model = run.model
    if model.streams is None:
        return
    yield from _unused("model.streams", model.streams)
    if model.memory is not None and model.memory_length:
        yield (
            f"model.memory={model.memory.kind} holds what entered a layer as one stream, and model.streams has "
            f"{model.streams.count}; leave one of them out"
        )
    if isinstance(model.attention, SequenceMLP):
        yield (
            "model.attention=sequence_mlp has norms over places, and model.streams stands between places and channels; "
            "use dense, or model.streams=null"
        )


def _loops(run: Run) -> Iterator[str]:
    core = run.model.core
    if not isinstance(core, SingleCore) or core.streams is None:
        return
    name, loops, largest = "model.core.streams", core.streams.loops, max_loops(run)
    yield from _unused(name, core.streams)
    if loops is not None and largest is not None and loops > largest:
        yield f"{name}.loops={loops} is more than the {largest} loops that run; use at most that"
    if loops is not None and run.loop.depth_per == "sequence":
        yield (
            f"{name}.loops={loops} gives loops weights of their own, and loop.depth_per=sequence has sequences at "
            f"different loops at a time; use loop.depth_per=batch, or {name}.loops=null"
        )


def _unused(name: str, streams: Streams) -> Iterator[str]:
    """What nothing reads."""
    fields = type(streams).model_fields
    if streams.weights == "static" and streams.initial_scale != fields["initial_scale"].default:
        yield (
            f"{name}.initial_scale={streams.initial_scale} is of what is made of a token, and {name}.weights=static "
            "makes nothing of it; leave it out"
        )
    reads_eps = streams.bounds == "sigmoid" or streams.collapse == "head" or isinstance(streams.mix, SinkhornMix)
    if not reads_eps and streams.eps != fields["eps"].default:
        yield (
            f"{name}.eps={streams.eps} has no part in bounds={streams.bounds} with mix={streams.mix.kind}; leave it out"
        )


RULES: Rules = (_layers, _loops)
