"""Texts behind prompts: every device of a mesh writes a share of them."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from looplm.api import LoadedLM
from looplm.lm_eval.asked import Asked
from looplm.lm_eval.encoding import Ids
from looplm.lm_eval.progress import bar
from looplm.model.functional import Params


class Writing:
    """Writes with the weights that the devices hold."""

    def __init__(
        self, model: LoadedLM, params: Params, mesh: jax.sharding.Mesh, num_rows: int, options: Mapping[str, Any]
    ) -> None:
        """params: whole on every device of the mesh. num_rows: texts that a device writes at the same time. options:
        more of `LoadedLM.generate`."""
        self._model, self._params, self._devices = model, params, list(mesh.devices.flat)
        self._num_rows, self._options = num_rows, dict(options)

    def __call__(self, prompts: Sequence[Ids], asked: Asked, depth: int) -> list[str]:
        """Return what follows every prompt. What is not drawn is written once for equal prompts."""
        if asked.temperature == 0:
            once = list(dict.fromkeys(prompts))
            known = dict(zip(once, self._write(once, asked, depth), strict=True))
            return [known[prompt] for prompt in prompts]
        return self._write(prompts, asked, depth)

    def _write(self, prompts: Sequence[Ids], asked: Asked, depth: int) -> list[str]:
        # The longest first, as neighbours: they are padded to one length.
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        shares = [order[place :: len(self._devices)] for place in range(len(self._devices))]
        others = dict(asked.others)
        texts, seeds = [""] * len(prompts), seeds_of(prompts, int(others.pop("seed", 0)))
        options = self._options | others | {"num_loops": depth, "max_tokens": asked.max_tokens, "stop": asked.stop}

        def write(device: jax.Device, share: list[int]) -> None:
            model = copy.copy(self._model)
            model.params = jax.tree.map(lambda leaf: on_device(leaf, device), self._params)
            with jax.default_device(device):
                written = model.generate(
                    [np.array(prompts[number], np.int32) for number in share],
                    temperature=asked.temperature,
                    seed=[seeds[number] for number in share],
                    batch_size=self._num_rows,
                    on_answer=lambda *_: count(),
                    **options,
                )
            for number, text in zip(share, written, strict=True):
                texts[number] = str(text)

        with bar(f"texts at depth {depth}", len(prompts)) as count, ThreadPoolExecutor(len(shares)) as pool:
            busy = [pool.submit(write, *pair) for pair in zip(self._devices, shares, strict=True) if pair[1]]
            for each in busy:
                each.result()
        return texts


def seeds_of(prompts: Sequence[Ids], seed: int) -> list[int]:
    """Return a seed for every prompt; one that is there again has another, on whatever device it is answered."""
    copies: Counter[Ids] = Counter()
    seeds = []
    for prompt in prompts:
        seeds.append(seed + copies[prompt])
        copies[prompt] += 1
    return seeds


def on_device(leaf: jax.Array, device: jax.Device) -> jax.Array:
    """Return the copy of a weight that a device holds."""
    return next(shard.data for shard in leaf.addressable_shards if shard.device == device)
