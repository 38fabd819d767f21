"""Rotary settings as Hugging Face configs write them: at the top (transformers 4) or in a table (5)."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Discriminator, Tag, model_validator

from looplm.checkpoint.adapters.config import OfficialConfig, other_model
from looplm.config.schema import LinearScaling, NoScaling, RampScaling, Rope


class Unscaled(OfficialConfig):
    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None

    def scaling(self) -> NoScaling | LinearScaling | RampScaling:
        return NoScaling()


class Linear(Unscaled):
    factor: float

    def scaling(self) -> LinearScaling:
        return LinearScaling(factor=self.factor)


class Llama3(Unscaled):
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    @model_validator(mode="after")
    def _has_a_ramp(self) -> Self:
        low, high = self.low_freq_factor, self.high_freq_factor
        if low >= high:
            raise other_model(f"low_freq_factor={low} is not below high_freq_factor={high}, so there is no ramp")
        return self

    def scaling(self) -> RampScaling:
        return RampScaling(
            factor=self.factor,
            low_frequency_factor=self.low_freq_factor,
            high_frequency_factor=self.high_freq_factor,
            original_length=self.original_max_position_embeddings,
        )


def _kind(table: Any) -> str:
    kind = (table.get("rope_type") or table.get("type")) if isinstance(table, dict) else None
    return f"<{kind or 'default'}>"


Table = Annotated[
    Annotated[Unscaled, Tag("<default>")] | Annotated[Linear, Tag("<linear>")] | Annotated[Llama3, Tag("<llama3>")],
    Discriminator(_kind),
]


class RotaryConfig(OfficialConfig):
    """The keys of a config that say how positions turn queries and keys."""

    THETA: ClassVar[float] = 10_000.0
    """What the official code takes where there is none."""
    rope_theta: float | None = None
    rope_scaling: Table | None = None
    rope_parameters: Table | None = None

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        thetas = {theta for theta in (self.rope_theta, *(table.rope_theta for table in self._tables())) if theta}
        if len(thetas) > 1:
            raise other_model(f"rope_theta is {' and '.join(map(repr, sorted(thetas)))}; keep the one that is meant")
        if len({table.scaling() for table in self._tables()}) > 1:
            raise other_model("rope_scaling and rope_parameters differ; keep the one that is meant")
        return self

    def _tables(self) -> list[Unscaled]:
        return [table for table in (self.rope_parameters, self.rope_scaling) if table]

    def rope(self) -> Rope:
        thetas = (self.rope_theta, *(table.rope_theta for table in self._tables()), self.THETA)
        scaling = next((table.scaling() for table in self._tables()), NoScaling())
        return Rope(theta=next(theta for theta in thetas if theta), scaling=scaling)
