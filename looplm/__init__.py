"""looplm: pretrain, fine-tune and measure looped language models in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from looplm.api import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    # Importing looplm.config must not import jax: the public function comes in when it is asked for.
    if name == "load":
        from looplm.api import load

        return load
    raise AttributeError(f"module 'looplm' has no attribute {name!r}")
