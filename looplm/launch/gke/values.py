"""What a person says of a run on GKE: the values file, TOML, checked before anything is sent to a cluster."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from looplm.errors import UserError
from looplm.launch.gke.machines import GPUS, TPUS, Hosts, hosts_of

Name = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""Of a JobSet: with its suffixes it is a host name."""
Folder = Annotated[str, StringConstraints(pattern=r"^/.+[^/]$")]
Accelerator = Literal[(*TPUS, *GPUS)]  # type: ignore[valid-type]
SECRET = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+")
LOOKS_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)


class Part(BaseModel):
    """Of the file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Mount(Part):
    """A folder that every host sees: a bucket of Cloud Storage, or a claim of Kubernetes (Filestore, Lustre)."""

    path: Folder
    bucket: str | None = None
    folder: str | None = None
    """Of the bucket, when not all of it is wanted."""
    claim: str | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.bucket is None) == (self.claim is None):
            raise ValueError("give either bucket or claim")
        if self.folder is not None and self.bucket is None:
            raise ValueError("folder is one of a bucket")
        return self


class Values(Part):
    """The whole file."""

    name: Name
    image: str
    """With its tag or digest."""
    config: str
    """CONFIG[:NAME] of looplm train: a shipped name, or a path in the image or a mount."""
    workdir: Folder
    """Of the run, on a mount that every host sees."""
    options: tuple[str, ...] = ()
    """Of looplm train, e.g. ["--set", "num_steps=1000"]."""
    accelerator: Accelerator
    topology: str | None = None
    """Of a TPU slice, e.g. 4x4."""
    slices: PositiveInt = 1
    """TPU slices; give mesh.replica the same number."""
    nodes: PositiveInt | None = None
    """GPU nodes."""
    compiled: Folder | None = None
    """Where compiled programs are kept; beside the run when left out."""
    mounts: tuple[Mount, ...] = ()
    restarts: PositiveInt = 20
    """After so many crashes the run is left to a person; what was saved after a preemption does not count."""
    grace_s: PositiveInt = 300
    """From SIGTERM to SIGKILL: three steps and a save. Spot machines get 25 s, whatever this says."""
    user: NonNegativeInt = 1000
    """That the pod runs as; the image's. 0 where the nodes give their chips to no other."""
    memory: str | None = None
    """Of a pod, e.g. 300Gi."""
    spot: bool = False
    reservation: str | None = None
    service_account: str | None = None
    """Of Kubernetes, that may read and write the buckets."""
    queue: str | None = None
    """Of Kueue."""
    environment: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict)
    """Variable = "NAME/KEY" of a Secret that is in the cluster; never the value itself."""

    @property
    def is_tpu(self) -> bool:
        return self.accelerator in TPUS

    @property
    def hosts(self) -> Hosts:
        """Of a slice, or all GPU nodes."""
        if self.is_tpu:
            assert self.topology is not None
            return hosts_of(self.accelerator, self.topology)
        return Hosts(self.nodes or 1, GPUS[self.accelerator].chips)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.is_tpu:
            if self.topology is None:
                raise ValueError(f'topology is missing: accelerator={self.accelerator} is a TPU; e.g. topology = "4x4"')
            if self.nodes is not None:
                raise ValueError("nodes is for GPUs; the hosts of a slice follow from topology")
            _ = self.hosts
        elif self.topology is not None or self.slices > 1:
            raise ValueError(f"topology and slices are for TPUs; accelerator={self.accelerator} takes nodes")
        if not any(self.workdir.startswith(f"{mount.path}/") and not mount.read_only for mount in self.mounts):
            raise ValueError(
                f"workdir={self.workdir} is on no mount, so the run would be gone with its pod; add [[mounts]] with a "
                "path above it and a bucket or a claim"
            )
        for name, place in self.secrets.items():
            if not SECRET.fullmatch(place):
                raise ValueError(f"secrets.{name} is not NAME/KEY of a Secret; secrets are given by reference only")
        if shown := sorted(name for name in self.environment if LOOKS_SECRET.search(name)):
            raise ValueError(f"environment.{shown[0]} looks like a secret; name a Secret under [secrets]")
        return self


def read_values(path: Path) -> Values:
    """Read and check a values file. Raises UserError with one line that names file, key and remedy."""
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; launch/gke has examples") from None
    try:
        return Values.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        known = f"; there are {', '.join(Values.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{path}: {key + ': ' if key else ''}{reason}{known}") from None
