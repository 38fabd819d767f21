"""An official config.json as data: every key is read, may have one value only, or has no effect on the numbers.

A key is a field of a class here, or stands in the table `WITHOUT_EFFECT` with the reason. Every other key is refused:
nobody can know what it would change.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from looplm.errors import UserError

Value = TypeVar("Value")
OTHER_MODEL = "other_model"


class OfficialConfig(BaseModel):
    """Base of a family's config. Its fields are the keys that decide what is computed; their defaults are what the
    official code takes for a missing key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = {}
    """Keys that change no number which looplm computes with stored weights, each with the reason."""

    @classmethod
    def understand(cls, stored: Mapping[str, Any], allow_keys: Collection[str] = ()) -> Self:
        """Reads a config.json.

        Args:
            allow_keys: unknown keys to pass over; `rope_scaling.mscale` is one of a table.

        Raises UserError, one line that names every key which is unknown, missing, no value of its type, or asks for
        another model.
        """
        try:
            return cls.model_validate({key: value for key, value in stored.items() if key not in cls.WITHOUT_EFFECT})
        except ValidationError as error:
            faults = [fault for fault in error.errors() if not (_is_unknown(fault) and _name(fault) in allow_keys)]
            if faults:
                raise UserError("; ".join(_told(faults))) from error
        return cls.understand(_without(stored, allow_keys), ())


def only(*values: Value, otherwise: str = "") -> AfterValidator:
    """Of a key that stands for another model when it has another value: the values that looplm computes, and what to do
    about others, if there is something."""

    def check(value: Value) -> Value:
        if value not in values:
            raise other_model(otherwise or f"looplm computes {' and '.join(map(repr, values))} only")
        return value

    return AfterValidator(check)


def other_model(told: str) -> PydanticCustomError:
    """To raise in a validator for what no model of looplm computes."""
    return PydanticCustomError(OTHER_MODEL, "{told}", {"told": told})


def _told(faults: list[ErrorDetails]) -> list[str]:
    missing = [_name(fault) for fault in faults if fault["type"] == "missing"]
    unknown = [_name(fault) for fault in faults if _is_unknown(fault)]
    lines = [_other(fault) for fault in faults if fault["type"] != "missing" and not _is_unknown(fault)]
    if missing:
        lines.append(f"has no {', '.join(missing)}, which its kind of model needs; download it again")
    if unknown:
        lines.append(
            f"has the unknown {'key' if len(unknown) == 1 else 'keys'} {', '.join(unknown)}, which may ask for another "
            f"model; if not, pass over {'it' if len(unknown) == 1 else 'them'} with "
            f"{' '.join(f'--allow-key {name}' for name in unknown)} (in Python allow_keys={unknown})"
        )
    return lines


def _other(fault: ErrorDetails) -> str:
    given = f"{_name(fault)}={fault['input']!r}" if fault["loc"] else ""
    if fault["type"] == OTHER_MODEL:
        return ": ".join(filter(None, [given, fault["msg"]]))
    if fault["type"] == "literal_error":
        return f"{given}: looplm computes {fault['ctx']['expected']} only"
    if fault["type"] == "union_tag_invalid":
        told = f"{_name(fault)}: {fault['ctx']['tag']!r} is not known; looplm computes {fault['ctx']['expected_tags']}"
        return told.replace("<", "").replace(">", "")
    return f"describes no model ({given}: {fault['msg'][0].lower()}{fault['msg'][1:]}); download it again"


def _is_unknown(fault: ErrorDetails) -> bool:
    return fault["type"] == "extra_forbidden"


def _name(fault: ErrorDetails) -> str:
    """Of the key. Marks that tell the forms of a value apart ("<linear>") and places in a list are no part of it."""
    return ".".join(part for part in map(str, fault["loc"]) if not part.startswith("<") and not part.isdigit())


def _without(stored: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {
        key: _without(value, [name.removeprefix(f"{key}.") for name in keys if name.startswith(f"{key}.")])
        if isinstance(value, Mapping)
        else value
        for key, value in stored.items()
        if key not in keys
    }
