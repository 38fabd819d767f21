"""Services that follow many runs (W&B, MLflow, trackio), each behind the sink that files have.

Nothing leaves the machine unless its own variables say so: W&B writes below the run directory until WANDB_MODE=online,
MLflow until MLFLOW_TRACKING_URI names a server, trackio into its folder until TRACKIO_SPACE_ID names a space. A run
keeps its name there over restarts; steps that it does again are sent again, with the same numbers. A service that fails
is said once, and the run goes on.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from looplm.errors import UserError, warn
from looplm.metrics.sinks import Sink

LONGEST_PARAM = 500
"""Characters that MLflow takes of a setting."""
MAX_PARAMS = 100
"""That it takes in one call."""


class Tracked(NamedTuple):
    """What a service is told of a run."""

    project: str
    key: str
    """The same in every start of the run, and no other run's."""
    workdir: Path
    settings: Mapping[str, Any]
    """Every leaf of the config, secrets masked."""


class WandbSink:
    """A run of Weights & Biases, in WORKDIR/wandb; `wandb sync` sends it later."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=run.project,
            name=run.workdir.name,
            id=run.key,
            resume="allow",
            dir=str(run.workdir),
            config=dict(run.settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own count of calls only rises; a run that is resumed goes back.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step} | {name: float(value) for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()


class MlflowSink:
    """A run of MLflow, in WORKDIR/mlruns or on the server of MLFLOW_TRACKING_URI."""

    def __init__(self, run: Tracked) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        # Its own word for plain files, which it would refuse without.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._metric: Any = Metric
        folder = (run.workdir / "mlruns").resolve().as_uri()
        self._client: Any = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", folder))
        known = self._client.get_experiment_by_name(run.project)
        experiment = known.experiment_id if known else self._client.create_experiment(run.project)
        found = self._client.search_runs([experiment], filter_string=f"tags.looplm_run = '{run.key}'")
        if found:
            self._id = found[0].info.run_id
            self._client.set_terminated(self._id, status="RUNNING")
        else:
            tags = {"looplm_run": run.key}
            self._id = self._client.create_run(experiment, tags=tags, run_name=run.workdir.name).info.run_id
            params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in run.settings.items()]
            for first in range(0, len(params), MAX_PARAMS):
                self._client.log_batch(self._id, params=params[first : first + MAX_PARAMS])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        values = [self._metric(name, float(value), now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=values)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class TrackioSink:
    """A run of trackio, in its own folder (TRACKIO_DIR); `trackio show` draws it."""

    def __init__(self, run: Tracked) -> None:
        import trackio

        with redirect_stdout(sys.stderr):  # it speaks
            self._run: Any = trackio.init(
                project=run.project,
                name=f"{run.workdir.name}-{run.key}",
                config=dict(run.settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({name: float(value) for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


TRACKERS: Mapping[str, Callable[[Tracked], Sink]] = {
    "wandb": WandbSink,
    "mlflow": MlflowSink,
    "trackio": TrackioSink,
}


class Tolerant:
    """A sink whose failures do not end the run. The first is said; after it the service is left alone."""

    def __init__(self, name: str, opens: Callable[[], Sink]) -> None:
        self._name = name
        self._sink: Sink | None = None
        self._sink = self._try(opens)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if (sink := self._sink) is not None and metrics:
            self._try(lambda: sink.write(step, metrics))

    def close(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            self._try(sink.close)

    def _try(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # whatever a service raises
            self._sink = None
            reason = (str(error).splitlines() or [""])[0]
            warn(f"{self._name} fails ({type(error).__name__}: {reason}); the run goes on without it")
            return None


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError when one is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log.trackers={name} needs the package {name}: pip install 'looplm[{name}]'")


def open_trackers(names: Sequence[str], run: Tracked) -> list[Sink]:
    """Open a sink a service."""
    return [Tolerant(name, lambda name=name: TRACKERS[name](run)) for name in names]  # type: ignore[misc]
