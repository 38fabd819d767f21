"""Which parameters learn. The others are constants of a training step: they have no gradient and no optimizer state."""

from collections.abc import Iterable
from typing import get_args

from flax import nnx

from looplm.config.schema import Optim
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM
from looplm.model.layers import Group
from looplm.model.naming import means, unknown
from looplm.model.subset import Subset


def learning_of(config: Optim, lm: FunctionalLM, trains: frozenset[Group] | None = None) -> Subset:
    """Choose: what `optim.train` means, else the adapter, else all; and of these not what `optim.frozen` means.

    trains: groups to which an objective confines the training, instead of the first.

    Raises UserError for a word that means no parameter, and where nothing is left.
    """
    parts = declared(lm)
    train, frozen = (selected(f"optim.{key}", getattr(config, key), parts) for key in ("train", "frozen"))
    adapters = {path for path, variable in parts.items() if variable.group == "adapter"}
    adapter = lm.config.adapter
    if trains is not None:
        chosen = {path for path, variable in parts.items() if variable.group in trains}
    else:
        chosen = train or (set(parts) if adapter is None else adapters)
    if not (chosen := chosen - frozen):
        empty = "model.adapter.rank=0 adds no parameters, and beside an adapter nothing else learns"
        none = f"optim.frozen={list(config.frozen)} leaves nothing to learn"
        raise UserError(
            f"{empty}; use e.g. 16" if adapter is not None and adapter.rank == 0 else f"{none}; take something out"
        )
    return Subset.of(lm, chosen)


def check_rates(config: Optim, lm: FunctionalLM, learning: Subset) -> None:
    """Raises UserError for a word of `optim.rates` that means no parameter, or none that learns."""
    for word in config.rates:
        if not selected("optim.rates", [word], declared(lm)) & learning.paths:
            raise UserError(f"optim.rates: {word!r} means only what does not learn; take it out")


def declared(lm: FunctionalLM) -> dict[str, nnx.Param]:
    """The declarations of all parameters by dotted path."""
    return {".".join(path): variable for path, variable in lm.declarations.items()}


def selected(key: str, words: Iterable[str], parts: dict[str, nnx.Param]) -> set[str]:
    """The paths of all parameters that some of the words mean: a group's name (`gate`, `injection`, `layers`,
    `adapter`), names on the path (`attention`, `core.block`, `embedding`), or a pattern of them (`*.norm.scale`).

    Raises UserError for a word that means none. key: the setting.
    """
    found: set[str] = set()
    for word in words:
        meant = {path for path, variable in parts.items() if _means(word, path, variable)}
        if not meant:
            raise unknown(key, word, parts)
        found |= meant
    return found


def _means(word: str, path: str, variable: nnx.Param) -> bool:
    # `gate` is the exit gate, and not that of a feed-forward.
    return variable.group == word if word in get_args(Group) else means(word, path)
