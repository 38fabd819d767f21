"""What a save costs a run: seconds for which the training thread is held up, and the digests' part of them.

    python tools/bench_checkpoint.py [CONFIG[:NAME]] [--saves 20] [--every 100] [--set key=value ...]

CONFIG is demo_cpu when left out. Random tokens are trained on, a checkpoint is saved every so many steps,
and times are medians over the saves after the first. `blocked`: inside `save`, with the device idle as the trainer
leaves it. `digest in it`: of that, what the digests take. `digest, device`: what the device works on them. `behind`:
from `save` until the checkpoint has its name.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

from looplm.checkpoint.digest import compile_digests, leaves_of
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.writer import CheckpointWriter, Facts
from looplm.config.load import load_config
from looplm.config.schema import Checkpoint
from looplm.sharding.mesh import build_mesh
from looplm.train.batch import PER_TOKEN
from looplm.train.program import Program


class Timed:
    """A function with the seconds of all its calls."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.seconds = function, []

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = self.function(*arguments)
        self.seconds.append(time.perf_counter() - started)
        return result


def main(
    config: Annotated[str, typer.Argument(metavar="CONFIG[:NAME]")] = "demo_cpu",
    saves: int = 20,
    every: int = 100,
    set: Annotated[list[str] | None, typer.Option()] = None,
) -> None:
    run = load_config(config, set or ())
    program = Program(run, build_mesh(run.mesh))
    step, state = program.compile(), program.create_state()
    draw = np.random.default_rng(0)
    shape = (run.data.batch_tokens // run.data.sequence_length, run.data.sequence_length)
    rows = {name: draw.integers(0, run.model.vocab_size, shape, np.int32) for name in PER_TOKEN}
    rows["segments"], rows["positions"] = np.zeros(shape, np.int32), np.arange(shape[1])[None].repeat(shape[0], 0)
    rows = {name: value.astype(np.int32) for name, value in rows.items()}

    def trees() -> dict[str, Any]:
        return {"params": state.params, "opt_state": state.opt_state}

    digest = Timed(compile_digests(trees()))
    num_bytes = sum(leaf.nbytes for leaf in leaves_of(trees()).values())
    blocked, behind, device, with_save, without = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), Checkpoint(keep_last=1), Facts("", 0, ""), trees(), digest=digest)
        for number in range(saves + 1):
            for index in range(every):
                beside = writer._thread is not None and writer._thread.is_alive()
                started = time.perf_counter()
                state, _ = step(state, rows, number * every + index)
                jax.block_until_ready(state.step)
                (with_save if beside else without).append(time.perf_counter() - started)
            writer.wait()
            started = time.perf_counter()
            jax.block_until_ready(digest.function(list(leaves_of(trees()).values())))
            device.append(time.perf_counter() - started)
            started = time.perf_counter()
            saved = writer.save(number + 1, trees())
            blocked.append(time.perf_counter() - started)
            assert saved
            if number % 2:  # every other one is left to run beside the steps
                writer.wait()
                behind.append(time.perf_counter() - started)
        writer.close()
        started = time.perf_counter()
        CheckpointReader(Path(folder)).verified(saves + 1)
        verified = time.perf_counter() - started
    seconds = statistics.median(without)
    blocked_s, digest_s = statistics.median(blocked[1:]), statistics.median(digest.seconds[1:])
    print(f"{num_bytes / 1e6:.1f} MB in {len(leaves_of(trees()))} arrays on {program.mesh.size} devices, {saves} saves")
    print(f"step            {1e3 * seconds:8.2f} ms")
    print(f"blocked         {1e3 * blocked_s:8.2f} ms  {blocked_s / seconds / every:.2%} of {every} steps")
    print(f"digest in it    {1e3 * digest_s:8.3f} ms  {digest_s / blocked_s:.2%} of blocked")
    device_s = statistics.median(device)
    print(f"digest, device  {1e3 * device_s:8.2f} ms  {num_bytes / 1e9 / device_s:.1f} GB/s")
    print(f"behind          {1e3 * statistics.median(behind):8.2f} ms")
    print(f"files verified  {1e3 * verified:8.2f} ms")
    if with_save:
        print(f"step that begins while a checkpoint is written {1e3 * statistics.median(with_save):.2f} ms")


if __name__ == "__main__":
    typer.run(main)
