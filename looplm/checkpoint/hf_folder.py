"""A folder with Hugging Face's config.json and safetensors files, read tensor by tensor. Needs the extra `hf`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from looplm.checkpoint.adapters import Adapter, find, kind_of
from looplm.checkpoint.adapters.base import to_params
from looplm.config.schema import Loop, Model
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params

T = TypeVar("T")


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
        """All parameters as numpy arrays. Raises UserError when tensors are missing, left over or of another shape."""
        layers = model.prelude_layers + model.block_layers + model.coda_layers
        if layers > len(self._files):
            raise UserError(
                f"{self.path / 'config.json'} speaks of {layers} layers, and the files hold {len(self._files)} "
                "tensors; the files do not belong to this config.json"
            )
        tensors = self.adapter.tensors(model)
        wanted, stored = {tensor.name for tensor in tensors}, set(self._files) - set(self.adapter.ignored)
        # A tied head is often stored a second time.
        left_over = stored - wanted - ({"lm_head.weight"} if model.tie_embeddings else set())
        if wanted - stored or left_over:
            raise UserError(
                f"{self.path}: missing tensors {sorted(wanted - stored) or 'none'}, unknown tensors "
                f"{sorted(left_over) or 'none'}; the files do not belong to this config.json"
            )
        return to_params(tensors, self.tensor, FunctionalLM(model).shapes, dtype)

    def tensor(self, name: str) -> Any:
        from safetensors import safe_open

        file = self._files[name]
        with _reading(file), safe_open(file, framework="flax") as opened:  # numpy has no bfloat16
            return opened.get_tensor(name)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """{tensor name: file}."""
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
        names: dict[str, Path] = {}
        for file in files:
            with _reading(file), safe_open(file, framework="flax") as opened:
                found = list(opened.keys())
            if twice := sorted(set(found) & set(names)):
                raise UserError(
                    f"{file} and {names[twice[0]]} both hold {twice[0]!r}; keep the files of one model in the folder"
                )
            names |= dict.fromkeys(found, file)
        return names


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
