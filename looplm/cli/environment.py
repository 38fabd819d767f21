"""Variables that other programs' users have set, and what looplm makes of them."""

import os

from looplm.errors import note

SET_ASIDE = {
    "JAX_ENABLE_X64": "a run computes in the types of its config (model.dtype)",
    "JAX_DISABLE_JIT": "training is one compiled program",
}
"""Switches of jax that change numbers or that a compiled program cannot have; from Python they are the caller's."""
ON = ("1", "y", "yes", "t", "true", "on")
NO_BACKEND = "Unable to initialize backend"


def settle_environment() -> None:
    """Switches off what has no part here, before jax is imported, and says so."""
    for name, reason in SET_ASIDE.items():
        if (value := os.environ.get(name, "")).lower() in ON:
            note(f"{name}={value} is set aside: {reason}")
            os.environ[name] = "0"


def backend_failure(error: RuntimeError) -> str:
    """What a user is told when jax has no devices of the wanted kind; empty for any other error."""
    if NO_BACKEND not in (first := (str(error).splitlines() or [""])[0]):
        return ""
    reason = first[first.index(NO_BACKEND) :].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
    wanted = os.environ.get("JAX_PLATFORMS")
    asked = f"JAX_PLATFORMS={wanted}: " if wanted else ""
    return f"{asked}{reason}; unset JAX_PLATFORMS to take what there is, or install jax for that kind of device"
