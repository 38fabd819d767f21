"""From the words of `--topology` to devices that are described, not there."""

import importlib.util
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jax
from jax.experimental import topologies

from looplm.errors import UserError

EXAMPLES = "v5e:8x8, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4 (two devices a chip), or cpu:8"


def described_devices(topology: str) -> Sequence[Any]:
    """The devices of a TPU slice by its physical shape, or N pretended CPU devices.

    Raises UserError when the words are not understood, or the TPU compiler is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu" and shape.isdigit() and int(shape):
        return _cpu_devices(int(shape))
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {topology} needs the TPU compiler (package libtpu; no TPU is needed): "
            "pip install 'looplm[tpu]'; without it there is --topology cpu:8"
        )
    # There is no machine to ask about itself, and a lock for a device that is not used.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {topology} is not known to the compiler ({reason}); use e.g. {EXAMPLES}") from None


def _cpu_devices(count: int) -> Sequence[Any]:
    with suppress(RuntimeError):  # jax has its devices already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology cpu:{count}: this process has {len(devices)} CPU devices; start a new one")
    return devices[:count]
