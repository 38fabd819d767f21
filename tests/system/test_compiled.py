"""Programs are kept beside the run: a second start compiles nothing anew."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from looplm.config.schema import Run

MISS = "/jax/compilation_cache/cache_misses"


@pytest.fixture
def misses() -> Iterator[list[str]]:
    """Programs that were not found in the folder, as they come; everything is kept there, whatever it took."""
    found: list[str] = []

    def listen(event: str, **_: object) -> None:
        if event == MISS:
            found.append(event)

    options = {
        "jax_compilation_cache_dir": None,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    jax.clear_caches()
    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_second_start_compiles_nothing(
    misses: list[str], command, tiny_run: Callable[..., Run], config_file: Callable[[Run], Path], tmp_path: Path
) -> None:
    config = config_file(tiny_run(**{"eval.every_steps": 3}))
    assert command("train", config, "--workdir", tmp_path / "runs" / "first").code == 0
    assert len(misses) >= 3  # the state, the step, the scores
    assert list((tmp_path / "runs" / "compiled").iterdir())

    misses.clear()
    jax.clear_caches()
    assert command("train", config, "--workdir", tmp_path / "runs" / "second").code == 0
    assert misses == []


@pytest.mark.slow
def test_another_folder_can_be_given(
    misses: list[str], command, tiny_run: Callable[..., Run], config_file: Callable[[Run], Path], tmp_path: Path
) -> None:
    config = config_file(tiny_run(num_steps=3))
    train = ("train", config, "--workdir", tmp_path / "runs" / "first")
    assert command(*train, "--compiled", tmp_path / "elsewhere").code == 0
    assert list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "runs" / "compiled").exists()
