"""What every process puts on its devices: together it is the whole batch, with the depths of its own rows."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from looplm.config.schema import Run
from looplm.sharding.mesh import BatchPart, build_mesh
from looplm.train import batch
from looplm.train.batch import PER_TOKEN, BatchLayout


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_the_parts_of_all_processes_are_the_batch(
    num_parts: int, num_steps: int, tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are told apart by their numbers; of a batch of 8 on a mesh of 8 places every process has its own ones."""
    run = tiny_run(**{"data.accumulation_steps": num_steps, "mesh.data": 4, "mesh.fsdp": 1})
    mesh = build_mesh(run.mesh, jax.devices()[:4])
    rows, length = run.data.batch_tokens // run.data.sequence_length, run.data.sequence_length
    number_B = np.arange(rows, dtype=np.int32)
    drawn = np.stack([100 + number_B, 200 + number_B], axis=-1)
    seen: dict[str, set[tuple[int, ...]]] = {}
    for part in range(num_parts):
        places = tuple(range(part * 4 // num_parts, (part + 1) * 4 // num_parts))
        monkeypatch.setattr(
            batch, "batch_part", lambda _, part=part, places=places: BatchPart(part, num_parts, places, 4)
        )
        monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, _, at, p=places: parts_of(shape, at, p))
        layout = BatchLayout(run, mesh, per_sequence=True)
        mine = number_B[part * rows // num_parts : (part + 1) * rows // num_parts]
        given = {name: np.repeat(mine[:, None], length, axis=1) for name in PER_TOKEN}
        placed = layout.place(given, drawn)
        for place in range(len(places)):
            sequence = placed.sequence[place]
            np.testing.assert_array_equal(placed.tokens[place], np.repeat(sequence[..., None], length, axis=-1))
            np.testing.assert_array_equal(placed.depth[place], drawn[sequence])
            assert sequence.shape == (num_steps, rows // num_steps // 4)
            seen.setdefault("rows", set()).update(sequence.reshape(-1).tolist())
    assert seen["rows"] == set(range(rows))


def parts_of(shape: tuple[int, ...], at: Callable[..., np.ndarray], places: tuple[int, ...]) -> Any:
    """What is asked of a process for every place of its devices in a batch that four places share."""
    count = shape[1] // 4
    whole = tuple(slice(0, size) for size in shape[2:])
    return [at((slice(None), slice(place * count, (place + 1) * count), *whole)) for place in places]


@pytest.mark.parametrize("wide", [False, True])
def test_what_is_placed_is_what_the_step_was_compiled_for(wide: bool, tiny_run: Callable[..., Run]) -> None:
    """In the 64-bit mode too, in which a number without a type of its own would have 64 bits."""
    run = tiny_run(**{"mesh.data": 2, "mesh.fsdp": 1})
    layout = BatchLayout(run, build_mesh(run.mesh, jax.devices()[:2]), per_sequence=True)
    rows, length = run.data.batch_tokens // run.data.sequence_length, run.data.sequence_length
    with jax.enable_x64(wide):
        placed = layout.place(
            dict.fromkeys(PER_TOKEN, np.zeros((rows, length), np.int32)), np.zeros((rows, 2), np.int32)
        )
    assert jax.tree.map(kind, placed) == jax.tree.map(kind, layout.abstract())


def kind(leaf: jax.Array) -> tuple[Any, ...]:
    return leaf.shape, leaf.dtype, leaf.sharding


@pytest.mark.parametrize("per_sequence", [False, True])
def test_the_first_device_has_the_first_and_the_last_chunk_of_a_split_sequence(
    per_sequence: bool, tiny_run: Callable[..., Run]
) -> None:
    run = tiny_run(**{"data.accumulation_steps": 2, "mesh.data": 2, "mesh.context": 2, "mesh.fsdp": 1})
    layout = BatchLayout(run, build_mesh(run.mesh, jax.devices()[:4]), per_sequence=per_sequence)
    rows, length = run.data.batch_tokens // run.data.sequence_length, run.data.sequence_length
    given = {name: number + np.arange(rows * length).reshape(rows, length) for number, name in enumerate(PER_TOKEN)}
    drawn = np.arange(2 * rows).reshape(rows, 2)
    placed = {name: leaf for name, leaf in layout.place(given, drawn)._asdict().items() if leaf is not None}
    expected = given | {"sequence": np.arange(rows)} | ({"depth": drawn} if per_sequence else {})
    assert placed.keys() == expected.keys()
    chunks = np.split(np.arange(length), 4)
    order = np.concatenate([chunks[number] for number in (0, 3, 1, 2)])
    for name, whole in expected.items():
        wanted = whole[:, order] if name in PER_TOKEN else whole
        np.testing.assert_array_equal(placed[name], wanted.reshape(2, rows // 2, *whole.shape[1:]), err_msg=name)
