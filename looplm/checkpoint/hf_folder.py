"""A folder with Hugging Face's config.json and safetensors files, read tensor by tensor. Needs the extra `hf`."""

import json
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from looplm.checkpoint.adapters import Adapter, find, kind_of
from looplm.checkpoint.adapters.base import Official, by_leaf, name_of_embeddings, rows_of, to_params
from looplm.checkpoint.adapters.config import OfficialConfig
from looplm.checkpoint.streamed import Streamed
from looplm.checkpoint.weight_files import Stored, read, refuse_pointer, stored_tensors, without_wrappers
from looplm.config.schema import Loop, Model
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params

T = TypeVar("T")
HEAD = "lm_head.weight"
TABLE_ERROR = 0.02
"""Cosines that are stored in bfloat16 are wrong by less; of another base, by more."""


class HFFolder:
    """Opens lazily: the config first, a tensor when it is asked for.

    allow_keys: keys of config.json to pass over, which looplm would refuse since it does not know them.
    """

    def __init__(self, path: Path, allow_keys: Collection[str] = ()):
        self.path, self.allow_keys = path, frozenset(allow_keys)
        refuse_pointer(path / "config.json")
        try:
            config = json.loads((path / "config.json").read_text())
            if not isinstance(config, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path / 'config.json'} cannot be read ({error}); is {path} a model folder?") from error
        self.stored_config: dict[str, Any] = config
        self.adapter: Adapter[Any] = find(config)

    @cached_property
    def config(self) -> OfficialConfig:
        """Raises UserError for one that lacks a key, or has a key or value that is not known."""
        return self._understand(lambda: self.adapter.config.understand(self.stored_config, self.allow_keys))

    def model(self) -> Model:
        """What the config describes; raises as `config`, and for what no model can be."""
        config = self.config
        return self._understand(lambda: self.adapter.model(config))

    def loop(self) -> Loop:
        """How it is looped; raises as `model`."""
        config = self.config
        return self._understand(lambda: self.adapter.loop(config))

    def _understand(self, get: Callable[[], T]) -> T:
        file = self.path / "config.json"
        try:
            return get()
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        except (ValueError, TypeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file} describes no model ({reason}); download it again") from error

    def params(self, model: Model, dtype: Any) -> Params:
        """All parameters as numpy arrays. Raises as `checked`."""
        tensors, get = self.checked(model)
        return to_params(tensors, get, FunctionalLM(model).shapes, dtype)

    def streamed(self, model: Model) -> Params:
        """All parameters as leaves that are read while they are written, float32. Raises as `checked`, then or now."""
        tensors, get = self.checked(model)
        placed = by_leaf(tensors)

        def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Streamed:
            own = placed[jax.tree_util.keystr(path, simple=True, separator=".")]
            return Streamed(shape.shape, np.dtype(np.float32), lambda: rows_of(own, get, shape.shape))

        return jax.tree_util.tree_map_with_path(leaf, FunctionalLM(model).shapes)

    def checked(self, model: Model) -> tuple[list[Official], Callable[[str], np.ndarray]]:
        """How the tensors map, and what reads one by its official name. Raises as `check`, and UserError for a tensor
        that holds something else than finite numbers, or that is not what the config makes of it: a head that is tied,
        a table of rotations."""
        tensors = self.check(model)
        named = self._named(tensors)
        for name, expected in self.adapter.buffers.items():
            if name in named:
                self._check_buffer(named[name], expected(model, named[name].shape))
        for copy, name in self._copies(model, tensors).items():
            if copy in named:
                self._check_tied(named[copy], named[name])
        return tensors, lambda name: _finite(named[name])

    def stored_dtype(self) -> str:
        """The type of all stored tensors in the words of safetensors; float32's where they differ."""
        kinds = {tensor.dtype for tensor in self._stored.values()}
        return kinds.pop() if len(kinds) == 1 else "F32"

    def check(self, model: Model) -> list[Official]:
        """Returns how the tensors map; reads the headers of the files alone.

        Raises UserError when tensors are missing, left over or of another shape.
        """
        layers = model.prelude_layers + model.block_layers + model.coda_layers
        if layers > len(self._stored):
            raise UserError(
                f"{self.path / 'config.json'} speaks of {layers} layers, and the files hold {len(self._stored)} "
                "tensors; the files do not belong to this config.json"
            )
        tensors = self.adapter.tensors(model)
        named, wanted = self._named(tensors), {tensor.name for tensor in tensors}
        known = wanted | set(self.adapter.buffers) | set(self._copies(model, tensors))
        if wanted - set(named) or set(named) - known:
            raise UserError(
                f"{self.path}: missing tensors {_some(wanted - set(named))}, unknown tensors "
                f"{_some(set(named) - known)}; the files do not belong to this config.json"
            )
        for tensor in tensors:
            if (shape := named[tensor.name].shape) != tensor.shape:
                raise UserError(
                    f"{self.path}: {tensor.name} has shape {shape}, but config.json asks for {tensor.shape}; "
                    "the files do not belong to this config.json"
                )
        return tensors

    def tensor(self, name: str) -> Any:
        """One tensor by the name that its file gives it."""
        return read(self._stored[name])

    def _copies(self, model: Model, tensors: list[Official]) -> dict[str, str]:
        """Tensors of a tied head, which is often stored a second time, and which ones they repeat."""
        if not model.tie_embeddings:
            return {}
        return dict(self.adapter.copies) or {HEAD: name_of_embeddings(tensors)}

    def _named(self, tensors: list[Official]) -> dict[str, Stored]:
        """The stored tensors by official names."""
        return without_wrappers(self._stored, {tensor.name for tensor in tensors})

    @cached_property
    def _stored(self) -> dict[str, Stored]:
        return stored_tensors(self.path)

    def _check_buffer(self, stored: Stored, expected: np.ndarray) -> None:
        if stored.shape != expected.shape or np.max(np.abs(_finite(stored) - expected), initial=0.0) > TABLE_ERROR:
            raise UserError(
                f"{self.path}: {stored.name} of shape {stored.shape} is not what the rotary settings and head size of "
                "config.json give; the files do not belong to this config.json"
            )

    def _check_tied(self, head: Stored, table: Stored) -> None:
        if head.shape != table.shape or not np.array_equal(_finite(head), _finite(table)):
            raise UserError(
                f"{self.path}: config.json ties the head to the embeddings, and {head.name} is not {table.name}; "
                "untie it there to use the stored head, or remove the stored head"
            )


def _finite(stored: Stored) -> np.ndarray:
    value = read(stored)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise UserError(f"{stored.file}: {stored.name} holds {value.dtype}; looplm reads weights that are floats")
    # On the host, one tensor at a time; float8 has no infinity to ask for.
    array = np.asarray(value).astype(np.float32 if value.dtype.itemsize < 4 else value.dtype)
    if not np.isfinite(array).all():
        raise UserError(
            f"{stored.file}: {stored.name} holds {int(np.sum(~np.isfinite(array)))} values that are no finite numbers; "
            "the model is broken, or the file was damaged: download it again"
        )
    return array


def _some(names: set[str]) -> str:
    if len(names) <= 4:
        return str(sorted(names) or "none")
    return f"{sorted(names)[:3]} and {len(names) - 3} more"


def is_official(root: Path) -> bool:
    """Whether the folder's config.json is an official one and not a run's."""
    refuse_pointer(root / "config.json")
    try:
        config = json.loads((root / "config.json").read_text())
        return isinstance(config, dict) and kind_of(config) is not None
    except (OSError, ValueError, RecursionError):
        return False
