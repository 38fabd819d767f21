"""The results of tasks at several depths as a table: what every depth reaches, and what it changes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from looplm.eval.bootstrap import interval, resampled_means

Results = Mapping[str, Any]
"""What the harness gives of an evaluation."""


class Metric(NamedTuple):
    """A number that the harness gives of a task."""

    task: str
    name: str
    filter: str
    """Of the model's texts, before they are judged; `none` for all of them."""

    @property
    def key(self) -> str:
        """What the harness calls it in the results of a task."""
        return f"{self.name},{self.filter}"

    @property
    def error_key(self) -> str:
        """What it calls the standard error."""
        return f"{self.name}_stderr,{self.filter}"


class Change(NamedTuple):
    """Mean of a metric minus that at another depth, over the same examples, with its 95 % interval."""

    mean: float
    low: float
    high: float


def metrics_of(results: Results) -> Iterator[Metric]:
    """Yield all numbers of an evaluation, task by task."""
    for task, found in results["results"].items():
        for key, value in found.items():
            name, _, kind = key.partition(",")
            if kind and not name.endswith("_stderr") and isinstance(value, int | float):
                yield Metric(task, name, kind)


def paired_change(metric: Metric, results: Results, other: Results) -> Change | None:
    """Return the change from `other` to `results`, paired by example; None for what is no mean over examples."""
    values, others = (_by_example(metric, each) for each in (results, other))
    if values is None or others is None or len(values) != len(others):
        return None
    difference_G = values - others
    low, high = interval(resampled_means(difference_G[:, None], np.ones(len(difference_G))))
    return Change(float(difference_G.mean()), float(low[0]), float(high[0]))


def table_of(results: Mapping[int, Results], trained: int) -> Table:
    """Make a table: of every metric a row for every depth, and how it differs from that at the trained depth, or at the
    deepest where that was not asked for.

    results: by depth.
    """
    depths = sorted(results)
    base = trained if trained in results else depths[-1]
    table = Table("task", "metric", "depth", "value", f"vs depth {base}{' (trained)' * (base == trained)}, 95 %")
    for metric in metrics_of(results[base]):
        for depth in depths:
            found = results[depth]["results"][metric.task]
            error = found.get(metric.error_key)
            spread = f" ± {error:.3f}" if isinstance(error, int | float) else ""
            change = paired_change(metric, results[depth], results[base]) if depth != base else None
            table.add_row(
                metric.task if depth == depths[0] else "",
                f"{metric.name}{'' if metric.filter == 'none' else f' ({metric.filter})'}" * (depth == depths[0]),
                str(depth),
                f"{found[metric.key]:.3f}{spread}",
                "" if change is None else f"{change.mean:+.3f} {change.low:+.3f}..{change.high:+.3f}",
                end_section=depth == depths[-1],
            )
    return table


def _by_example(metric: Metric, results: Results) -> np.ndarray | None:
    samples = [s for s in results.get("samples", {}).get(metric.task, ()) if s["filter"] == metric.filter]
    values = [sample.get(metric.name) for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    if not values or not all(isinstance(value, int | float | np.number) for value in values):
        return None
    values_G = np.array(values, float)
    return values_G if np.isclose(values_G.mean(), results["results"][metric.task][metric.key]) else None
