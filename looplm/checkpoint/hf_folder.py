"""A folder with Hugging Face's config.json and safetensors files, read tensor by tensor. Needs the extra `hf`."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from looplm.checkpoint.adapters import Adapter, find, kind_of
from looplm.checkpoint.adapters.base import to_params
from looplm.config.schema import Model
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params


class HFFolder:
    """Opens lazily: the config first, a tensor when it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path / 'config.json'} cannot be read ({error}); is {path} a model folder?") from error
        self.adapter: Adapter = find(self.config)

    def params(self, model: Model, dtype: Any) -> Params:
        """All parameters as numpy arrays. Raises UserError when tensors are missing, left over or of another shape."""
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

        with safe_open(self._files[name], framework="flax") as file:  # numpy has no bfloat16
            return file.get_tensor(name)

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
            with safe_open(file, framework="flax") as opened:
                names |= dict.fromkeys(opened.keys(), file)
        return names


def is_official(root: Path) -> bool:
    """Whether the folder's config.json is an official one and not a run's."""
    try:
        return kind_of(json.loads((root / "config.json").read_text())) is not None
    except (OSError, ValueError):
        return False
