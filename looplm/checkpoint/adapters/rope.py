"""Rotary settings as Hugging Face configs write them, in the layout of transformers 4 (top level) and 5 (a table)."""

from typing import Any

from looplm.config.schema import LinearScaling, NoScaling, RampScaling, Rope
from looplm.errors import UserError


def rope(config: dict[str, Any], default_theta: float = 10_000.0) -> Rope:
    """Reads theta and scaling. Raises UserError for a kind of scaling that is not known."""
    table = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = table.get("rope_theta") or config.get("rope_theta") or default_theta
    kind = table.get("rope_type") or table.get("type") or "default"
    scaling: NoScaling | LinearScaling | RampScaling
    match kind:
        case "default":
            scaling = NoScaling()
        case "linear":
            scaling = LinearScaling(factor=table["factor"])
        case "llama3":
            scaling = RampScaling(
                factor=table["factor"],
                low_frequency_factor=table["low_freq_factor"],
                high_frequency_factor=table["high_freq_factor"],
                original_length=table["original_max_position_embeddings"],
            )
        case _:
            raise UserError(f"rope_type={kind!r} is not known; looplm has default, linear and llama3")
    return Rope(theta=theta, scaling=scaling)
