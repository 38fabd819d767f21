"""Parts of a user's own: config classes that are defined outside of looplm and build what they configure.

    class GatedInjection(OwnInjection):
        initial_share: Fraction = 0.5

        def build(self, model, *, rngs):
            return Gated(model.dim, self.initial_share, rngs)

In JSON such a part says where its class is: `{"kind": "my_file:GatedInjection", "initial_share": 0.5}`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from looplm.config.schema.base import Section
from looplm.config.schema.importing import import_for

if TYPE_CHECKING:
    from looplm.config.schema.model import Model
    from looplm.config.schema.run import Run

PLACE = re.compile(r"[\w-]+(\.[\w-]+)*:[\w.<>]+")
"""`module:Class`."""
NOT_FOUND = "own_class_not_found"
"""Type of the error of a part whose class is not there."""


class Own(Section):
    """Base of all parts of a user's own."""

    kind: str = ""
    """`module:Class`; it follows from the class."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        kind = f"{cls.__module__}:{cls.__qualname__}"
        if not PLACE.fullmatch(kind):
            raise TypeError(f"{cls.__name__} is in a file whose name means another module or none; rename the file")
        cls.model_fields["kind"].default = kind
        cls.model_rebuild(force=True)

    def faults(self, run: "Run") -> Iterator[str]:
        """Yields what of the run does not fit this part, with the remedy; asked before anything is computed."""
        yield from ()


class OwnInjection(Own):
    """How the input enters every loop."""

    def build(self, model: "Model", *, rngs: Any) -> Any:
        """Makes the module, a `looplm.model.injection.Injection`."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")


class OwnCore(Own):
    """How the state moves in one loop. The model's other settings (injection, norms, ...) are there to be used."""

    def build(self, model: "Model", *, rngs: Any) -> Any:
        """Makes the module, a `looplm.model.core.Core`."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")


class OwnHalting(Own):
    """Who takes part in a loop, who has left, and what all loops together give."""

    def build(self, model: "Model", *, rngs: Any) -> Any:
        """Makes the module, a `looplm.model.halting.Halting`."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")


class OwnObjective(Own):
    """What is minimised."""

    def build(self) -> Any:
        """Makes the function, a `looplm.objective.base.Objective`."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")


def subclasses(cls: type[Own]) -> Iterator[type[Own]]:
    """Walks over all that were defined so far."""
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def find(base: type[Own], kind: str) -> type[Own]:
    """Finds the class that is called `module:Class`, importing its module if that is needed.

    Raises PydanticCustomError of type NOT_FOUND, with the reason and the remedy.
    """
    found, reason = _known(base, kind), None
    if found is None and (reason := import_for(kind)) is None:
        found = _known(base, kind)
    if found is None:
        reason = reason or f"what was imported under that name is no {base.__name__}; import the file that defines it"
        context = {"kind": kind, "reason": reason}
        raise PydanticCustomError(NOT_FOUND, "{kind} is a class of your own, and {reason}", context)
    return found


def _known(base: type[Own], kind: str) -> type[Own] | None:
    """The newest, as a config file may have run twice."""
    return next((cls for cls in reversed([*subclasses(base)]) if cls.model_fields["kind"].default == kind), None)


@dataclass(frozen=True)
class OrOwn:
    """Marks `Annotated[shipped | OwnX, OrOwn(OwnX)]`: a union of shipped variants, or a part of a user's own."""

    base: type[Own]

    def __get_pydantic_core_schema__(self, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        shipped, _ = get_args(union)
        # As it is: a part of a user's own is written with all its fields.
        written = core_schema.wrap_serializer_function_ser_schema(
            lambda value, write: write(value), schema=core_schema.any_schema()
        )
        return core_schema.no_info_wrap_validator_function(
            self._validated, handler.generate_schema(shipped), serialization=written
        )

    def _validated(self, value: Any, shipped: core_schema.ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, self.base):
            return value
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or not PLACE.fullmatch(kind):
            return shipped(value)
        own = find(self.base, kind)
        try:
            return own.model_validate(value)
        except ValidationError as error:
            # The kind is put where a union of shipped variants has it.
            faults = [
                InitErrorDetails(
                    type=told["type"], loc=(kind, *told["loc"]), input=told["input"], ctx=told.get("ctx", {})
                )
                for told in error.errors()
            ]
            raise ValidationError.from_exception_data(error.title, faults) from None
