"""Where in our parameters the layers of every stack are, and the injection: what a retrofit moves and adds."""

from looplm.config.schema import Place

STACKS: dict[Place, str] = {"prelude": "prelude.layers", "block": "core.block.layers", "coda": "coda.layers"}
INJECTION = "core.injection"
KERNEL, LOW_RANK = "kernel", ("adapter.a", "adapter.b")
"""Of a projection, and beside it the matrices that are read from the input, and written to the output."""


def of_layer(path: str) -> tuple[Place, str] | None:
    """(the stack, the path within a layer) of a leaf; None for one that belongs to no stack of layers."""
    for place, stack in STACKS.items():
        if path.startswith(f"{stack}."):
            return place, path.removeprefix(f"{stack}.")
    return None


def of_injection(path: str) -> str | None:
    """The path of a leaf within the injection; None for another one."""
    return path.removeprefix(f"{INJECTION}.") if path.startswith(f"{INJECTION}.") else None


def of_low_rank(path: str) -> tuple[str, int] | None:
    """(the path of the kernel that it is beside, which of the two matrices) of a leaf of LoRA; None for another one."""
    for number, name in enumerate(LOW_RANK):
        if path.endswith(f".{name}"):
            return path.removesuffix(name) + KERNEL, number
    return None
