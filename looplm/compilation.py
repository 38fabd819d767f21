"""Compiled programs are kept on disk: a restart takes seconds where compiling takes minutes."""

from pathlib import Path

import jax


def keep_compiled(folder: Path | None, workdir: Path) -> None:
    """Lets this process keep compiled programs: in `folder`, else in JAX_COMPILATION_CACHE_DIR, else beside the run.

    jax keeps what took a second or more to compile (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS). The folder may be
    shared by runs and hosts and deleted at any time; JAX_ENABLE_COMPILATION_CACHE=false turns all of it off.
    """
    if folder is None and not getattr(jax.config, "jax_compilation_cache_dir", None):
        folder = workdir.absolute().parent / "compiled"
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
