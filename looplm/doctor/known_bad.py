"""Versions that are known to compute wrong results or to fail: data, with the source of each entry."""

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

SHOWN = ("looplm", "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax",
         "orbax-checkpoint", "grain", "tensorstore", "numpy")  # fmt: skip


class KnownBad(NamedTuple):
    package: str
    versions: str
    """A version specifier, e.g. `>=1.2,<1.4`."""
    platform: str
    """cpu, gpu, tpu or a regular expression over them."""
    what: str
    remedy: str
    source: str


KNOWN_BAD = (
    KnownBad(
        "libtpu",
        "==0.0.48",
        "tpu",
        "gradients of embeddings that are summed over micro-batches come out wrong",
        "use another version, or LIBTPU_INIT_ARGS=--xla_disable_hlo_passes=while-loop-all-reduce-code-motion",
        "github.com/openxla/xla/issues/49143",
    ),
    KnownBad(
        "libtpu",
        ">=0.0.42,<0.0.43",
        "tpu",
        "gradients of indexing that run outside of jax.jit come out wrong",
        "use another version, or call lm.loss_and_grads under jax.jit",
        "github.com/jax-ml/jax/issues/39025",
    ),
)


def installed() -> dict[str, str]:
    """{package: version} of what matters here and is there."""
    found = {}
    for name in SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def version_problems(versions: Mapping[str, str], platform: str) -> list[str]:
    """One line for every known-bad combination, and for every package below what looplm asks for."""
    found = [
        f"{bad.package} {versions[bad.package]}: {bad.what} ({bad.source}); {bad.remedy}"
        for bad in KNOWN_BAD
        if bad.package in versions
        and re.fullmatch(bad.platform, platform)
        and Version(versions[bad.package]) in Requirement(f"{bad.package}{bad.versions}").specifier
    ]
    for requirement in _requirements():
        have = versions.get(requirement.name)
        if have is not None and not requirement.specifier.contains(have, prereleases=True):
            found.append(
                f"{requirement.name} {have}: looplm needs {requirement.specifier}; pip install '{requirement}'"
            )
    return found


def _requirements() -> list[Requirement]:
    """What looplm asks for, without extras; empty when it runs from a checkout that is not installed."""
    try:
        return [r for r in map(Requirement, requires("looplm") or ()) if r.marker is None]
    except PackageNotFoundError:
        return []
