"""`looplm compile`: what a run needs and costs on a described machine, from its compiled step."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from looplm.compile.collectives import Collective, collectives
from looplm.compile.compiled import CompiledStep, compile_step
from looplm.compile.remedies import Remedy, remedies
from looplm.compile.roofline import Roofline, roofline
from looplm.compile.traffic import memory_traffic
from looplm.hardware import find
from looplm.model.experts import ROOM
from looplm.ops.rounds import LATER_ROUNDS
from looplm.train.memory import Memory, available_bytes, bytes_of, gib, learning_line, memory_line
from looplm.train.program import Program


@dataclass(frozen=True)
class CompileReport:
    topology: str
    device_kind: str
    num_devices: int
    mesh: dict[str, int]
    gather: str
    remat: str
    attention: str
    """What computes it, and why no better one does."""
    accumulation_steps: int
    num_params: int
    num_active_params: int
    """That a token passes: of the experts only those it uses."""
    num_learning: int
    """Parameters that are trained."""
    optimizer_bytes: int
    """Of the optimizer's state on a device, a part of what the memory counts."""
    memory: Memory
    """Bytes of a device."""
    memory_available: int | None
    """Bytes of a device that a program gets; None for an unknown device."""
    flops_per_token: float
    """Model FLOPs of training, causal attention counted once; at the mean depth."""
    hardware_flops_per_token: float
    """Also what is recomputed, what attention computes before it masks, and the optimizer."""
    tokens_per_step: int
    memory_traffic: float | None
    """Bytes a device moves between memory and chip in a step; an estimate."""
    collectives: list[dict[str, Any]] | None
    """Of a step; alike ones together. Bytes are those a device sends."""
    later_rounds: bool
    """Rows may go to the experts of other devices in more rounds than the one that is counted: see `ops/rounds.py`."""
    time: Roofline | None
    """Seconds, the least possible; None for an unknown device."""
    mfu: float | None
    """At that time: an upper bound."""
    remedies: list[Remedy]
    """The cheapest ones, where the run does not fit."""

    @property
    def fits(self) -> bool | None:
        return None if self.memory_available is None else self.memory.total <= self.memory_available

    def as_json(self) -> dict[str, Any]:
        record = asdict(self) | {"fits": self.fits, "flops_per_step": self.flops_per_token * self.tokens_per_step}
        record["memory"] = self.memory._asdict() | {"total": self.memory.total}
        record["remedies"] = [remedy._asdict() for remedy in self.remedies]
        if self.time:
            record["time"] = self.time._asdict() | {"step_s": self.time.step_s}
        return record


def report(program: Program, topology: str) -> CompileReport:
    """Compiles the step of a run on described devices; may take minutes for a large model."""
    return describe(program, compile_step(program), topology)


def describe(program: Program, step: CompiledStep, topology: str) -> CompileReport:
    run, mesh = program.run, program.mesh
    kind = mesh.devices.flat[0].device_kind
    device, sent = find(kind), None
    traffic = time = mfu = None
    if step.module:
        sent = collectives(step.module, mesh.shape)
        traffic = memory_traffic(step.module)
        if device:
            device_flops = step.flops.hardware / mesh.size
            time = roofline(device, mesh, device_flops=device_flops, traffic_bytes=traffic, collectives=sent)
            mfu = step.flops.model / mesh.size / device.peak_flops / time.step_s
    available = available_bytes(device) if device else None
    too_large = available is not None and step.memory.total > available
    return CompileReport(
        topology=topology,
        device_kind=kind,
        num_devices=mesh.size,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        gather="per_layer" if program.gathers_per_layer else "once",
        remat=run.loop.remat,
        attention=program.attention,
        accumulation_steps=run.data.accumulation_steps,
        num_params=program.lm.num_params,
        num_active_params=program.lm.num_active_params,
        num_learning=program.learning.size(program.lm.shapes),
        optimizer_bytes=bytes_of(program.abstract_state().opt_state),
        memory=step.memory,
        memory_available=available,
        flops_per_token=step.flops.model / run.data.batch_tokens,
        hardware_flops_per_token=step.flops.hardware / run.data.batch_tokens,
        tokens_per_step=run.data.batch_tokens,
        memory_traffic=traffic,
        collectives=None if sent is None else _together([c for c in sent if c.executions]),
        later_rounds=any(LATER_ROUNDS in c.name for c in sent or ()),
        time=time,
        mfu=mfu,
        remedies=remedies(program, step.memory, available) if too_large and available else [],
    )


def lines(result: CompileReport) -> Iterator[str]:
    """The report as text."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in result.mesh.items()) or "one device"
    yield f"{result.topology}: {result.num_devices} x {result.device_kind}; mesh {mesh}"
    active = f" ({result.num_active_params:,} active)" if result.num_active_params < result.num_params else ""
    yield (
        f"{result.num_params:,} parameters{active}; gather {result.gather}, remat {result.remat}, "
        f"{result.accumulation_steps} micro-batches"
    )
    yield learning_line(result.num_learning, result.num_params, result.optimizer_bytes)
    yield f"attention: {result.attention}"
    yield memory_line(result.memory, find(result.device_kind))
    yield (
        f"FLOPs: {result.flops_per_token:.3g} a token ({result.hardware_flops_per_token:.3g} with recomputation and "
        f"masked attention), {result.flops_per_token * result.tokens_per_step:.3g} a step of "
        f"{result.tokens_per_step:,} tokens"
    )
    if result.collectives is not None:
        yield "collectives of a step (bytes that a device sends):"
        for row in result.collectives:
            yield (
                f"  {row['kind']:<18} {'+'.join(row['axes']):<14} {'+'.join(row['dtypes']):<10} "
                f"loop depth {row['loop_depth']}  {row['count']:>3} x {row['executions']:<8g} {row['bytes']:.4g} B"
            )
    if result.time and result.mfu is not None:
        time = result.time
        yield (
            f"time at the peaks: {time.step_s:.4g} s (products {time.compute_s:.4g}, memory {time.memory_s:.4g}, "
            f"links in loops {time.links_in_loops_s:.4g}, links once a step {time.links_once_s:.4g}); "
            f"MFU by this bound {result.mfu:.1%}"
        )
    if result.later_rounds:
        yield f"counted for balanced routing: what a device gets beyond {ROOM:g} times the mean goes in further rounds"
    if result.fits is False:
        yield "does not fit; the cheapest remedies:"
        for remedy in result.remedies:
            changes = " ".join(f"--set {setting}" for setting in remedy.settings)
            yield f"  {changes}  (about {gib(remedy.predicted_bytes)}; {remedy.costs})"


def _together(found: list[Collective]) -> list[dict[str, Any]]:
    groups: dict[tuple, list[Collective]] = defaultdict(list)
    for c in found:
        groups[c.kind, c.axes, c.dtypes, c.loop_depth, c.executions].append(c)
    names = ("kind", "axes", "dtypes", "loop_depth", "executions")
    rows = [
        dict(zip(names, key, strict=True)) | {"count": len(group), "bytes": sum(c.step_bytes for c in group)}
        for key, group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])
