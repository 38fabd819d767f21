"""Rotary settings as Hugging Face configs write them: at the top (transformers 4) or in a table (5)."""

import math
from typing import Annotated, Any, ClassVar, Self

from pydantic import Discriminator, PositiveFloat, PositiveInt, Tag, model_validator

from looplm.checkpoint.adapters.config import OfficialConfig, other_model
from looplm.config.schema import LinearScaling, NoScaling, RampScaling, Rope, Scaling, YarnScaling


class Unscaled(OfficialConfig):
    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None

    def scaling(self) -> Scaling:
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


class Yarn(Unscaled):
    """What a call of it is: `transformers.modeling_rope_utils`."""

    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt
    beta_fast: PositiveFloat | None = None
    beta_slow: PositiveFloat | None = None
    attention_factor: PositiveFloat | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @model_validator(mode="after")
    def _has_a_ramp(self) -> Self:
        fast, slow = self.beta_fast or 32.0, self.beta_slow or 1.0
        if slow >= fast:
            raise other_model(f"beta_slow={slow} is not below beta_fast={fast}, so there is no ramp")
        return self

    def scaling(self) -> YarnScaling:
        return YarnScaling(
            factor=self.factor,
            fast_turns=self.beta_fast or 32.0,
            slow_turns=self.beta_slow or 1.0,
            original_length=self.original_max_position_embeddings,
            whole_dims=self.truncate,
            attention_factor=self._attention_factor(),
        )

    def _attention_factor(self) -> float | None:
        if self.attention_factor is None and self.mscale and self.mscale_all_dim and self.factor > 1:
            log = 0.1 * math.log(self.factor)
            return (self.mscale * log + 1) / (self.mscale_all_dim * log + 1)
        return self.attention_factor


def _kind(table: Any) -> str:
    kind = (table.get("rope_type") or table.get("type")) if isinstance(table, dict) else None
    return f"<{kind or 'default'}>"


Table = Annotated[
    Annotated[Unscaled, Tag("<default>")]
    | Annotated[Linear, Tag("<linear>")]
    | Annotated[Llama3, Tag("<llama3>")]
    | Annotated[Yarn, Tag("<yarn>")],
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


def described(rope: Rope) -> dict[str, Any]:
    """The same as keys of a config, in the layout of transformers 4, which 5 reads too."""
    return {"rope_theta": rope.theta, "rope_scaling": _table(rope.scaling)}


def _table(scaling: Scaling) -> dict[str, Any] | None:
    match scaling:
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case RampScaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScaling():
            given = {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.fast_turns,
                "beta_slow": scaling.slow_turns,
                "original_max_position_embeddings": scaling.original_length,
                "truncate": scaling.whole_dims,
                **given,
            }
        case _:
            return None
