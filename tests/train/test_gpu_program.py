"""The training step as it would be for a GPU, traced on a CPU."""

from collections.abc import Callable

import jax
import pytest

from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.ops.attention import choice, cudnn
from looplm.sharding.mesh import build_mesh
from looplm.train.flops import bodies
from looplm.train.program import Program

FORWARD = {"cudnn": "dot_product_attention_fwd_wrapper", "triton": "mha_forward"}
SETTINGS = {
    "model.dtype": "bfloat16", "model.dim": 64, "model.num_heads": 2, "model.num_kv_heads": 1,
    "data.sequence_length": 128, "data.batch_tokens": 1024,
}  # fmt: skip


def count(jaxpr: jax.extend.core.Jaxpr, name: str) -> int:
    here = sum(name in (equation.primitive.name, equation.params.get("name")) for equation in jaxpr.eqns)
    return here + sum(count(body, name) for equation in jaxpr.eqns for body in bodies(equation))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], None]:
    """Pretends that programs are for a GPU, and that this process has one of this compute capability."""

    def pretend(capability: tuple[int, int]) -> None:
        fused = cudnn._fused()
        monkeypatch.setattr(choice, "platform", lambda: "gpu")
        monkeypatch.setattr(cudnn, "_capability", lambda: capability)
        monkeypatch.setattr(fused, "check_compute_capability", lambda wanted: True)
        monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda wanted: False)
        monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91200)

    return pretend


@pytest.mark.parametrize(("remat", "most"), [("none", 1), ("layer", 1), ("names", 2), ("loop", 2), ("offload", 2)])
@pytest.mark.parametrize("backend", ["cudnn", "triton"])
def test_a_step_runs_the_forward_kernel_once_and_at_most_once_more(
    backend: str, remat: str, most: int, tiny_run: Callable[..., Run], on_a_gpu: Callable
) -> None:
    on_a_gpu((9, 0) if backend == "cudnn" else (8, 0))
    run = tiny_run(**SETTINGS, **{"loop.remat": remat, "mesh.fsdp": 2, "mesh.tensor": 1})
    program = Program(run, build_mesh(run.mesh, jax.devices()[:2]))
    assert program.attention.partition(";")[0] == backend
    assert 1 <= count(program.trace().jaxpr.jaxpr, FORWARD[backend]) <= most


def test_a_backend_that_is_wanted_and_cannot_is_refused_before_anything_is_traced(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(**{"model.attention_backend": "splash", "mesh.fsdp": 1})
    with pytest.raises(
        UserError, match=r"model\.attention_backend=splash .* it is a kernel for a tpu, and this is a cpu"
    ):
        Program(run, build_mesh(run.mesh, jax.devices()[:1]))
