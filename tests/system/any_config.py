"""Configs drawn at random from the schema itself: every field and every choice that is there, sizes of one, all meshes.

What is drawn at a place depends on the seed, the place, and how often it was drawn before. What a rule refuses is drawn
again at one of the places that its line names, until everything fits.
"""

import math
import re
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import jax
from pydantic import TypeAdapter, ValidationError

from looplm.config.check import check
from looplm.config.load import from_dict
from looplm.config.schema import Distillation, Own, Run, Section
from looplm.config.schema.importing import importable
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, compute_dtype
from looplm.objective import build_objective
from looplm.ops.attention import choose_for
from looplm.optim.learning import learning_of
from looplm.sharding.mesh import build_mesh, check_fit
from looplm.sharding.rules import BATCH_AXES, MESH_AXES
from tests.own_parts import LeaveAfter, MeanCore, MeanCrossEntropy

with importable(Path(__file__).parents[2] / "examples"):
    GatedInjection = import_module("own_injection").GatedInjection

OWN_PARTS = (MeanCore, LeaveAfter, MeanCrossEntropy, GatedInjection)
LEFT_ALONE = {
    "Run": ("init_from", "init_allow_keys", "teacher", "teacher_loops", "recipes"),
    "Optim": ("rates", "train", "frozen"),
    "LoRA": ("targets",),
}
"""What names files, machines, or parts of a model, by section."""
WITH_FILES = (Distillation,)
"""What is refused without one of those names: a teacher is a folder."""
NUMBERS: dict[Any, tuple[float, ...]] = {int: (0, 1, 2, 3, 4, 5, 8, 16), float: (0.0, 0.1, 0.5, 0.9, 1.0, 2.0)}
FEW = re.compile(r"(layers|loops|steps)$")
"""Names of numbers that make a program longer, not wider."""
PLACE = re.compile(rf"\b(?:{'|'.join(Run.model_fields)})(?:\.\w+)*\b")
MOST_ROUNDS = 200

Choice = tuple[str, str, str]
"""(section, field, what was chosen)."""


class AnyConfig(NamedTuple):
    """A config that every rule accepts, and the devices that it is for."""

    run: Run
    mesh: jax.sharding.Mesh
    chosen: frozenset[Choice]
    refused: tuple[str, ...]
    """What rules said of the draws before it, a line each."""


def any_config(seed: int) -> AnyConfig | None:
    """Draws a config for one device or for eight; None when too many draws were refused."""
    draw, refused = Draw(seed), []
    devices = jax.devices()[: draw.random("devices").choice((1, 8, 8))]
    for _ in range(MOST_ROUNDS):
        tree = draw.tree(len(devices))
        try:
            run = check(from_dict(tree))
            mesh, data = build_mesh(run.mesh, devices), run.data
            micro_batch = data.batch_tokens // data.sequence_length // data.accumulation_steps
            choose_for(run.model, data.sequence_length, compute_dtype(run.model), mesh)
            if run.model.adapter is not None:
                learning_of(run.optim, FunctionalLM(run.model), build_objective(run.objective).trains)
            check_fit(mesh, run.model, micro_batch=micro_batch, sequence_length=data.sequence_length)
        except UserError as error:
            refused.append(str(error))
            draw.again(str(error))
        else:
            return AnyConfig(run, mesh, frozenset(draw.chosen), tuple(refused))
    return None


class Draw:
    """A tree of values for `Run`, some of which may be drawn again."""

    def __init__(self, seed: int):
        self.seed, self.times, self.chosen = seed, Counter[str](), set[Choice]()

    def again(self, line: str) -> None:
        """Next time, one of the places that a line names has another value, or all that stands beside it."""
        random = self.random("again", sum(self.times.values()))
        place = random.choice(sorted(set(PLACE.findall(line))) or ["data"])
        parent = place.rpartition(".")[0]
        whole = parent == "mesh" or (parent.count(".") and random.random() < 0.3)
        self.times[parent if whole else place] += 1

    def random(self, *place: object) -> Random:
        path = ".".join(map(str, place))
        begun = [path[: dot.start()] for dot in re.finditer(r"\.|$", path)]
        return Random(f"{self.seed} {path} {[self.times[part] for part in begun]}")

    def tree(self, num_devices: int) -> dict[str, Any]:
        self.chosen.clear()
        tree = self.section(Run, "")
        tree["mesh"], data = self.mesh(num_devices), tree["data"]
        # The sizes that hardly any draw would hit.
        places = math.prod(self.sizes(num_devices)[axis] for axis in BATCH_AXES)
        sequences = places * data.get("accumulation_steps", 1) * self.random("data.batch_tokens").choice((1, 1, 2, 3))
        data["batch_tokens"] = sequences * data["sequence_length"]
        if (attention := tree["model"].get("attention", {})).get("kind") == "sequence_mlp":
            front = tree["model"].get("front") or {}
            of_id = -(-(front.get("ids") or {"dim": 0})["dim"] // max(tree["model"]["dim"], 1))
            attention["length"] = data["sequence_length"] + of_id + front.get("learned", 0) + front.get("zeros", 0)
        return tree

    def sizes(self, num_devices: int) -> Counter[str]:
        """Sizes whose product is the number of devices, a power of two."""
        sizes = Counter(dict.fromkeys(MESH_AXES, 1))
        for axis in self.random("mesh").choices(MESH_AXES, k=num_devices.bit_length() - 1):
            sizes[axis] *= 2
        return sizes

    def mesh(self, num_devices: int) -> dict[str, int]:
        rest = self.random("mesh", "rest").choice((*MESH_AXES, *(None,) * len(MESH_AXES)))
        return {axis: -1 if axis == rest else size for axis, size in self.sizes(num_devices).items()}

    def section(self, cls: type[Section], place: str) -> dict[str, Any]:
        """Half of what has a default keeps it."""
        tree = {}
        for name, annotation in hints(cls).items():
            inside, field = f"{place}.{name}".lstrip("."), cls.model_fields[name]
            if name == "kind":
                tree[name] = field.default
            elif name not in LEFT_ALONE.get(cls.__name__, ()) and (
                field.is_required() or self.random(inside, "given").random() < 0.5
            ):
                tree[name] = self.value(annotation, inside, (cls.__name__, name))
        return tree

    def value(self, annotation: Any, place: str, owner: tuple[str, str]) -> Any:
        random = self.random(place)
        label, form = random.choice(options(annotation))
        self.chosen.add((*owner, label))
        plain = unwrapped(form)
        if get_origin(plain) is tuple:
            return [self.value(held(plain), f"{place}.{i}", owner) for i in range(random.randint(0, 3))]
        if get_origin(plain) is dict:
            keys = random.sample(numbers(get_args(plain)[0], few=True), random.randint(1, 3))
            return {key: self.value(held(plain), f"{place}.{key}", owner) for key in keys}
        if plain is str:
            return place
        if isinstance(plain, type) and issubclass(plain, Section):
            return self.section(plain, place)
        return random.choice(numbers(form, few=bool(FEW.search(owner[1])))) if plain in NUMBERS else form


@cache
def all_choices(cls: type[Section] = Run) -> frozenset[Choice]:
    """Everything that may be chosen in a section and in those inside it, found by walking over the schema."""
    found: set[Choice] = set()
    for name, annotation in hints(cls).items():
        if name == "kind" or name in LEFT_ALONE.get(cls.__name__, ()):
            continue
        inside = [annotation]
        while inside:
            for label, form in options(inside.pop()):
                found.add((cls.__name__, name, label))
                plain = unwrapped(form)
                if get_origin(plain) in (tuple, dict):
                    inside.append(held(plain))
                if isinstance(plain, type) and issubclass(plain, Section):
                    found |= all_choices(plain)
    return frozenset(found)


@cache
def hints(cls: type[Section]) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if name in cls.model_fields}


def unwrapped(form: Any) -> Any:
    return get_args(form)[0] if get_origin(form) is Annotated else form


def held(plain: Any) -> Any:
    """What a tuple of any length holds, or a dict beside its keys."""
    return get_args(plain)[0 if get_origin(plain) is tuple else 1]


@cache
def options(annotation: Any) -> tuple[tuple[str, Any], ...]:
    """(name, type or value) of what a field may hold: variants of a union, words, yes and no, or a type alone.

    A base of users' parts stands for those that there are.
    """
    plain = unwrapped(annotation)
    if plain in WITH_FILES:
        return ()
    if get_origin(plain) in (Union, UnionType) or get_origin(plain) is Annotated:
        return tuple(option for argument in get_args(plain) for option in options(argument))
    if get_origin(plain) is Literal:
        return tuple((str(word), word) for word in get_args(plain))
    if plain in (bool, NoneType):
        return tuple((str(value), value) for value in ((False, True) if plain is bool else (None,)))
    if isinstance(plain, type) and issubclass(plain, Own) and plain not in OWN_PARTS:
        own = tuple((part.__name__, part) for part in OWN_PARTS if issubclass(part, plain))
        assert own, f"no part of a user's own is a {plain.__name__}"
        return own
    return ((getattr(plain, "__name__", str(plain)), annotation),)


@cache
def numbers(form: Any, *, few: bool) -> tuple[float, ...]:
    """Those that a type takes."""
    adapter = TypeAdapter(form)

    def fits(number: float) -> bool:
        try:
            return adapter.validate_python(number) is not None
        except ValidationError:
            return False

    return tuple(number for number in NUMBERS[unwrapped(form)] if fits(number) and not (few and number > 3))
