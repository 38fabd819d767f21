"""Where in our parameters the layers of every stack are, and the injection: what a retrofit moves and adds."""

from looplm.config.schema import Place

STACKS: dict[Place, str] = {"prelude": "prelude.layers", "block": "core.block.layers", "coda": "coda.layers"}
INJECTION = "core.injection"


def of_layer(path: str) -> tuple[Place, str] | None:
    """(the stack, the path within a layer) of a leaf; None for one that belongs to no stack of layers."""
    for place, stack in STACKS.items():
        if path.startswith(f"{stack}."):
            return place, path.removeprefix(f"{stack}.")
    return None


def of_injection(path: str) -> str | None:
    """The path of a leaf within the injection; None for another one."""
    return path.removeprefix(f"{INJECTION}.") if path.startswith(f"{INJECTION}.") else None
