"""Some of a model's parameters, and trees of them alone."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax

from looplm.model.functional import FunctionalLM, Params


@dataclass(frozen=True)
class Subset:
    """A choice of parameters. A tree of them alone is a nested dictionary like the parameters, without the others."""

    kept: Params
    """Such a tree, of True."""

    @classmethod
    def of(cls, lm: FunctionalLM, paths: Collection[str]) -> "Subset":
        """Choose by dotted path."""
        kept: Params = {}
        for names in lm.declarations:
            if ".".join(names) in paths:
                node = kept
                for name in names[:-1]:
                    node = node.setdefault(name, {})
                node[names[-1]] = True
        return cls(kept)

    def others(self, lm: FunctionalLM) -> "Subset":
        """Choose those that are not in it."""
        return Subset.of(lm, {path for names in lm.declarations if (path := ".".join(names)) not in self.paths})

    @property
    def paths(self) -> set[str]:
        """The dotted paths."""
        leaves = jax.tree_util.tree_leaves_with_path(self.kept)
        return {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves}

    def only(self, tree: Params) -> Params:
        """Leave the other leaves out of a tree like the parameters, or like these."""
        return _only(tree, self.kept)

    def put(self, part: Params, tree: Params) -> Params:
        """Replace in a tree like the parameters, or add to it, the leaves of a tree of these."""
        return _put(part, tree)

    def size(self, shapes: Params) -> int:
        """Count the numbers in them."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.only(shapes)))


def _only(tree: Params, kept: Params) -> Params:
    return {
        name: _only(node, kept[name]) if isinstance(kept[name], dict) else node
        for name, node in tree.items()
        if name in kept
    }


def _put(part: Params, tree: Params) -> Params:
    merged: dict[str, Any] = {**tree}
    for name, node in part.items():
        merged[name] = _put(node, tree.get(name, {})) if isinstance(node, dict) else node
    return merged
