"""Which layers see a window of the last tokens: Hugging Face configs say it for every layer, our model for all."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import model_validator

from looplm.checkpoint.adapters.config import OfficialConfig, other_model
from looplm.config.schema import Model


class WindowConfig(OfficialConfig):
    """`sliding_window` counts if `use_sliding_window` is set: for the layers that `layer_types` names, else for those
    from `max_window_layers` on."""

    num_hidden_layers: int
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        layers, near = self.num_hidden_layers, self._near()
        if self.layer_types is not None and len(self.layer_types) != layers:
            raise other_model(f"layer_types has {len(self.layer_types)} entries for num_hidden_layers={layers}")
        if near and self._window() is None:
            raise other_model(
                f"layer_types gives layers {_short(near)} a window, and use_sliding_window={self.use_sliding_window}, "
                f"sliding_window={self.sliding_window} give it no size; set them, or full_attention"
            )
        if 0 < len(near) < layers:
            key = "layer_types" if self.layer_types is not None else f"max_window_layers={self.max_window_layers}"
            raise other_model(
                f"{key} gives {len(near)} of {layers} layers ({_short(near)}) the sliding_window of "
                f"{self.sliding_window}; looplm has one window for all layers or none"
            )
        return self

    def window(self) -> int | None:
        return self._window() if self._near() else None

    def _window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    def _near(self) -> Sequence[int]:
        """Layers with a window."""
        if self.layer_types is not None:
            return [i for i, kind in enumerate(self.layer_types) if kind == "sliding_attention"]
        return () if self._window() is None else range(max(0, self.max_window_layers), self.num_hidden_layers)


def described(model: Model) -> dict[str, Any]:
    """The window of all layers, or none, as keys of a config."""
    window, layers = model.attention_window, model.block_layers
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": layers if window is None else 0,
        "layer_types": ["full_attention" if window is None else "sliding_attention"] * layers,
    }


def _short(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers[:4])) + (", ..." if len(layers) > 4 else "")
