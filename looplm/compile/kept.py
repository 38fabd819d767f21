"""Compiled programs are kept on disk: a restart takes seconds where compiling takes minutes."""

import math
from pathlib import Path

import jax

from looplm.data.folder import obstacle
from looplm.errors import UserError, warn


def keep_compiled(folder: Path | None, workdir: Path) -> None:
    """Lets this process keep compiled programs: in `folder`, else in JAX_COMPILATION_CACHE_DIR, else beside the run.

    jax keeps what took a second or more to compile (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS). The folder may be
    shared by runs and hosts and deleted at any time; JAX_ENABLE_COMPILATION_CACHE=false turns all of it off. A folder
    that cannot be written is read from, if it is there, and a line says so.

    Raises UserError when `folder` cannot be written.
    """
    configured: str | None = getattr(jax.config, "jax_compilation_cache_dir", None)
    if folder is None and configured and "://" in configured:
        return
    place = folder or (Path(configured) if configured else workdir.absolute().parent / "compiled")
    if reason := obstacle(place / "program"):
        if folder is not None:
            raise UserError(f"--compiled {folder} cannot be written: {reason}; give another folder")
        if getattr(jax.config, "jax_enable_compilation_cache", True):
            warn(
                f"compiled programs are not kept: {place} cannot be written ({reason}); --compiled names another folder"
            )
        if not place.is_dir():
            jax.config.update("jax_enable_compilation_cache", False)
            return
        jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)  # what jax would fail to write
    jax.config.update("jax_compilation_cache_dir", str(place.absolute()))
