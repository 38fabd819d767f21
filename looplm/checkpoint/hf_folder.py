"""A folder with Hugging Face's config.json and safetensors files, read tensor by tensor. Needs the extra `hf`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from looplm.checkpoint.adapters import Adapter, find, kind_of
from looplm.checkpoint.adapters.base import Official, to_params
from looplm.config.schema import Loop, Model
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params

T = TypeVar("T")


class Stored(NamedTuple):
    """Where a tensor is, and its shape."""

    file: Path
    shape: tuple[int, ...]


class HFFolder:
    """Opens lazily: the config first, a tensor when it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        try:
            config = json.loads((path / "config.json").read_text())
            if not isinstance(config, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path / 'config.json'} cannot be read ({error}); is {path} a model folder?") from error
        self.config: dict[str, Any] = config
        self.adapter: Adapter = find(self.config)

    def model(self) -> Model:
        """What the config describes. Raises UserError for one that lacks a key or holds what no model can be."""
        return self._understand(self.adapter.model)

    def loop(self) -> Loop:
        """How it is looped; raises as `model`."""
        return self._understand(self.adapter.loop)

    def _understand(self, read: Callable[[dict[str, Any]], T]) -> T:
        try:
            return read(self.config)
        except KeyError as error:
            raise UserError(
                f"{self.path / 'config.json'} has no {error.args[0]}, which its kind of model needs; download it again"
            ) from error
        except UserError:
            raise
        except (ValueError, TypeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.path / 'config.json'} describes no model ({reason}); download it again") from error

    def params(self, model: Model, dtype: Any) -> Params:
        """All parameters as numpy arrays; raises as `check`."""
        return to_params(self.check(model), self.tensor, FunctionalLM(model).shapes, dtype)

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
        wanted, stored = {tensor.name for tensor in tensors}, set(self._stored) - set(self.adapter.ignored)
        # A tied head is often stored a second time.
        left_over = stored - wanted - ({"lm_head.weight"} if model.tie_embeddings else set())
        if wanted - stored or left_over:
            raise UserError(
                f"{self.path}: missing tensors {sorted(wanted - stored) or 'none'}, unknown tensors "
                f"{sorted(left_over) or 'none'}; the files do not belong to this config.json"
            )
        for tensor in tensors:
            if (shape := self._stored[tensor.name].shape) != tensor.shape:
                raise UserError(
                    f"{self.path}: {tensor.name} has shape {shape}, but config.json asks for {tensor.shape}; "
                    "the files do not belong to this config.json"
                )
        return tensors

    def tensor(self, name: str) -> Any:
        from safetensors import safe_open

        file = self._stored[name].file
        with _reading(file), safe_open(file, framework="flax") as opened:  # numpy has no bfloat16
            return opened.get_tensor(name)

    @cached_property
    def _stored(self) -> dict[str, Stored]:
        """By name of the tensor, from the headers."""
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise UserError("reading safetensors needs the package safetensors; pip install looplm[hf]") from error
        files = sorted(self.path.glob("model*.safetensors"))
        if not files:
            raise UserError(
                f"{self.path} holds no model*.safetensors; give the folder of a downloaded model, and convert weights "
                "in PyTorch's own files with tools/to_safetensors.py"
            )
        stored: dict[str, Stored] = {}
        for file in files:
            with _reading(file), safe_open(file, framework="flax") as opened:
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            if twice := sorted(set(shapes) & set(stored)):
                raise UserError(
                    f"{file} and {stored[twice[0]].file} both hold {twice[0]!r}; keep the files of one model in the "
                    "folder"
                )
            stored |= {name: Stored(file, shape) for name, shape in shapes.items()}
        return stored


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Inside, a file that is not what it should be is a UserError. The library checks lengths and offsets against the
    file and reads nothing else, so a forged header costs no memory."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is no sound safetensors file ({reason}); download it again") from error


def is_official(root: Path) -> bool:
    """Whether the folder's config.json is an official one and not a run's."""
    try:
        config = json.loads((root / "config.json").read_text())
        return isinstance(config, dict) and kind_of(config) is not None
    except (OSError, ValueError, RecursionError):
        return False
