"""Which parts of a model a word means: a name on the path of modules, or a pattern of names."""

import difflib
import re
from collections.abc import Collection, Iterable
from fnmatch import translate

from looplm.errors import UserError


def means(word: str, path: str) -> bool:
    """Whether a word means a part of the model, or something that the part is in.

    Args:
        word: names that stand on the path one after the other, with dots between; `*` and `?` as in file names.
        path: the part's, e.g. `core.block.layers.attention.query.project.kernel`.
    """
    pattern = translate(word).removesuffix(r"\z").removesuffix(r"\Z")
    return re.fullmatch(rf"(.*\.)?{pattern}(\..*)?", path, re.DOTALL) is not None


def unknown(key: str, word: str, paths: Collection[str]) -> UserError:
    """Make the error for a word that means nothing, with what comes near it. key: the setting."""
    words = _words(paths)
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5) or difflib.get_close_matches(word, paths, n=3)
    return UserError(f"{key}: {word!r} means no part of this model; {_told(close, paths)}")


def _words(paths: Iterable[str]) -> list[str]:
    """All that may be given instead of a whole path: any names on it that follow one another."""
    found: dict[str, None] = {}
    for path in paths:
        names = path.split(".")
        for first in range(len(names)):
            for last in range(first + 1, len(names) + 1):
                found.setdefault(".".join(names[first:last]))
    return list(found)


def _told(close: list[str], paths: Collection[str]) -> str:
    return f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(sorted(paths)[:8])}, ..."
