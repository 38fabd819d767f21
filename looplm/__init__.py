"""looplm: pretrain, fine-tune and measure looped language models in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from looplm.api import load as load
    from looplm.convert.from_folder import from_folder as from_folder

__version__ = "0.1.0"
__all__ = ["__version__", "from_folder", "load"]


def __getattr__(name: str) -> object:
    # Importing looplm.config must not import jax: a public function comes in when it is asked for.
    if name == "load":
        from looplm.api import load

        return load
    if name == "from_folder":
        from looplm.convert.from_folder import from_folder

        return from_folder
    raise AttributeError(f"module 'looplm' has no attribute {name!r}")
