"""What was measured, as tables to be read and pasted."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from looplm.metrics.answers import Answers
from looplm.metrics.classes import LoopsByClass
from looplm.metrics.exit_sweep import ExitSweep
from looplm.metrics.first_states import FirstStates
from looplm.metrics.kv_loss import KVLosses
from looplm.metrics.memory_loss import MemoryLosses
from looplm.metrics.restarts import Restarts
from looplm.metrics.sweep import Gain, Sweep


def print_sweep(result: Sweep, console: Console) -> None:
    """The table of all depths, what they are worth against the trained one, the gain of looping, and the yardstick."""
    table = Table("depth", "loss (nats)", "95 % interval", "bits/byte", "accuracy")
    for row in result.rows:
        name = f"{row.depth} (trained)" if row.depth == result.trained_depth else str(row.depth)
        bits = "" if row.bits_per_byte is None else f"{row.bits_per_byte:.3f}"
        table.add_row(name, f"{row.loss:.4f}", f"{row.low:.4f} .. {row.high:.4f}", bits, f"{row.accuracy:.3f}")
    weights = f"step {result.step}{', averaged weights' * result.ema}"
    console.print(f"held-out data: {result.num_documents} documents, {result.num_tokens} tokens, {weights}")
    console.print(table)
    if result.trained is not None and result.num_documents > 1 and len(result.depths) > 1:
        console.print(f"against depth {result.trained_depth}, paired by document (95 % intervals):")
        console.print(_paired(result))
    _print_gain(result, console)
    if result.solve is not None:
        _print_solved(result, console)
    if result.exit_histogram is not None:
        shares = ", ".join(f"{t}: {share:.1%}" for t, share in enumerate(result.exit_histogram, start=1))
        console.print(
            f"exit gate at {result.exit_threshold}: mean depth {result.expected_depth:.2f} with loss "
            f"{result.exit_loss:.4f}; tokens that leave after loop {shares}",
            soft_wrap=True,
        )
    if result.xz_bits_per_byte is not None:
        console.print(f"xz -9 on the same bytes: {result.xz_bits_per_byte:.3f} bits/byte")


def _paired(result: Sweep) -> Table:
    """Changes against the trained depth, raw and calibrated."""
    found = result.calibrated
    headers = ["depth", "change", "95 % interval"]
    headers += ["T", "calibrated", "change", "95 % interval"] if found else []
    table = _table(*headers)
    last = result.depths.index(result.trained_depth)
    for i, depth in enumerate(result.depths):
        row = [str(depth), *_change(result.loss[i] - result.loss[last], result.change_low[i], result.change_high[i])]
        if found:
            change = _change(found.loss[i] - found.loss[last], found.change_low[i], found.change_high[i])
            row += [f"{found.temperature[i]:.2f}", f"{found.loss[i]:.4f}", *change]
        table.add_row(*row)
    return table


def _change(change: float, low: float, high: float) -> tuple[str, str]:
    return (f"{change:+.3f}", f"{low:+.3f} .. {high:+.3f}") if low or high else ("0", "")


def _print_gain(result: Sweep, console: Console) -> None:
    gain = result.gain
    if gain is None:
        return
    told = f"depth {gain.to_depth} against depth {gain.from_depth}: {_gain(gain, result.num_documents)}"
    if result.calibrated is not None and result.calibrated.gain is not None:
        told += f"; calibrated: {_gain(result.calibrated.gain, result.num_documents)}"
    console.print(told, soft_wrap=True)


def _gain(gain: Gain, num_documents: int) -> str:
    direction, sign = ("lower", 1) if gain.nats >= 0 else ("higher", -1)
    low, high = sorted((sign * gain.low, sign * gain.high))
    interval = f"95 % interval {low:.4f} .. {high:.4f}, bootstrap over documents"
    return f"{abs(gain.nats):.4f} nats {direction} ({interval if num_documents > 1 else 'one document: no interval'})"


def _print_solved(result: Sweep, console: Console) -> None:
    solve = result.solve
    assert solve is not None
    table = _table("depth", "solved", "95 % interval", "solved by then", "95 % interval", "lost again")
    for i, depth in enumerate(solve.depths):
        if depth in result.depths:
            table.add_row(
                str(depth), f"{solve.at[i]:.1%}", f"{solve.at_low[i]:.1%} .. {solve.at_high[i]:.1%}",
                f"{solve.by[i]:.1%}", f"{solve.by_low[i]:.1%} .. {solve.by_high[i]:.1%}", f"{solve.lost[i]:.1%}",
            )  # fmt: skip
    console.print(f"of {solve.num_examples} examples, those whose answers are all right:")
    console.print(table)
    needs = ", ".join(f"{name[1:]} % after {loops}" for name, loops in solve.needs.items() if loops is not None)
    if needs:
        console.print(f"loops that solved examples needed: {needs}", soft_wrap=True)


def print_answers(result: Answers, console: Console) -> None:
    """Print when a reasoner's gate says that it may halt, whether its answer is right then, and what votes solve."""
    console.print(
        f"segments of {result.segment_loops} loops; examples that may halt by then, and of those the right answers:",
        soft_wrap=True,
    )
    table = _table("segment", "halted", "right then", "solved")
    for segment, (halted, right, solved) in enumerate(zip(result.halted, result.right, result.solved, strict=True), 1):
        table.add_row(str(segment), f"{halted:.1%}", "-" if right is None else f"{right:.1%}", f"{solved:.1%}")
    console.print(table)
    if result.attempts is not None:
        of = result.attempts
        console.print(
            f"{of.count} attempts by votes over augmentations: {of.solved:.1%} of {of.num_tasks} tasks solved"
        )


def print_exits(result: ExitSweep, console: Console) -> None:
    """Every rule's thresholds beside the controls, and what is safe."""
    console.print(
        f"exit rules on {result.num_tokens} tokens of {result.num_documents} documents; all {result.num_loops} loops: "
        f"loss {result.full_loss:.4f}. Beside them, at the same mean depth, the loss of one depth for all (fixed), of "
        "the same shares for tokens at random, of exits shuffled within documents, and of the best possible (oracle)",
        soft_wrap=True,
    )
    for rule in result.rules:
        table = _table(rule.name, "depth", "p99", "loss", "excess, 95 %", "fixed", "random", "shuffled", "oracle")
        for point in rule.points:
            controls = point.controls
            losses = (controls.fixed, controls.random, controls.shuffled, controls.oracle)
            table.add_row(
                point.rule.partition(":")[2] or point.rule, f"{point.mean_depth:.2f}", str(point.depth_p99),
                f"{point.loss:.3f}", f"{point.excess_low:+.3f}..{point.excess_high:+.3f}",
                *(f"{loss:.3f}" for loss in losses),
            )  # fmt: skip
        console.print(table)
        # The tightest tolerance says the most of a threshold.
        for safe in reversed({safe.rule: safe for safe in reversed(rule.safe)}.values()):
            console.print(
                f"{safe.rule}: costs at most {safe.tolerance:g} nats with {safe.confidence:.0%} confidence (bound "
                f"{safe.excess_upper:+.4f}), mean depth {safe.mean_depth:.2f} of {result.num_loops}; at most "
                f"{safe.disagreement_upper:.1%} of a document's tokens have another likeliest successor",
                soft_wrap=True,
            )
        if not rule.safe and result.num_documents > 1:
            console.print(f"{rule.name}: no threshold is safe at the tolerances that were asked for", soft_wrap=True)


def print_kv(result: KVLosses, console: Console) -> None:
    """What KV policies cost."""
    console.print(
        f"KV policies on {result.num_tokens} tokens of {result.num_documents} documents, one at a time; each: loss "
        f"{result.loss:.4f}",
        soft_wrap=True,
    )
    table = _table("policy", "exit", "loss", "change", "95 % interval", "agree", "depth", "bytes", "share")
    for policy in result.policies:
        table.add_row(
            policy.policy, policy.exit or "", f"{policy.loss:.3f}", f"{policy.change:+.3f}",
            f"{policy.change_low:+.3f}..{policy.change_high:+.3f}", f"{policy.agreement:.1%}",
            f"{policy.mean_depth:.2f}", str(policy.bytes_per_token), f"{policy.share:.0%}",
        )  # fmt: skip
    console.print(table)


def print_first_states(result: FirstStates, console: Console) -> None:
    """How far passes from several first states agree."""
    console.print(
        f"{result.num_states} first states for each of {result.num_tokens} tokens; how far two passes agree:",
        soft_wrap=True,
    )
    table = _table("depth", "states apart", "KL (nats)", "same token", "loss", "its spread")
    columns = (
        result.depths, result.state_distance, result.divergence, result.agreement, result.loss, result.loss_spread
    )  # fmt: skip
    for depth, distance, divergence, agreement, loss, spread in zip(*columns, strict=True):
        table.add_row(
            str(depth), f"{distance:.2e}", f"{divergence:.2e}", f"{agreement:.2%}", f"{loss:.4f}", f"{spread:.1e}"
        )
    console.print(table)


def print_restarts(result: Restarts, console: Console) -> None:
    """How many examples are solved by the best of several tries."""
    console.print(
        f"{result.num_documents} examples, {result.depth} loops a try; one try solves {result.single:.1%}. Solved by "
        f"the try that moved least over the last {result.settling_loops} loops, by vote, and by any:",
        soft_wrap=True,
    )
    table = _table("tries", "settled", "vote", "any")
    for count, *shares in zip(result.tries, result.settled, result.vote, result.any_of_them, strict=True):
        table.add_row(str(count), *(f"{share:.1%}" for share in shares))
    console.print(table)


def print_memory(result: MemoryLosses, console: Console) -> None:
    """What memories of several lengths are worth, and losses by context length under each."""
    console.print(
        f"tokens remembered before windows of {result.window} ({result.trained_length} in training), depth "
        f"{result.num_loops}; change against none, paired by document:",
        soft_wrap=True,
    )
    table = _table("memory", "loss", "change", "95 % interval")
    for one in result.memories:
        table.add_row(str(one.length), f"{one.loss:.4f}", *_change(one.change, one.change_low, one.change_high))
    console.print(table)
    console.print("loss by how many tokens of its document were read before a token:")
    table = _table("from", "tokens", *(f"memory {one.length}" for one in result.memories))
    losses = zip(*(one.loss_by_context for one in result.memories), strict=True)
    for least, count, row in zip(result.context, result.context_tokens, losses, strict=True):
        table.add_row(str(least), str(count), *(f"{loss:.4f}" for loss in row))
    console.print(table)


def print_classes(result: LoopsByClass, console: Console) -> None:
    """Where a model spends its loops."""
    console.print(f"loops of a token ({result.of}), of at most {result.num_loops}: {result.mean_loops:.2f} on average")
    for classing in result.classings:
        table = _table(classing.name, "tokens", "loops", "95 % interval", "loss")
        for one in classing.classes:
            bounds = f"{one.loops_low:.2f} .. {one.loops_high:.2f}"
            table.add_row(one.name, str(one.tokens), f"{one.loops:.2f}", bounds, f"{one.loss:.4f}")
        console.print(table)


def _table(*headers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=True)
    return table
