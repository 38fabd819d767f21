"""From the words of `--chips` to devices that are described, not there: no driver and no compiler is asked."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from looplm.errors import UserError
from looplm.hardware import DEVICES, Device, find

TPUS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}
"""Words of a slice, as `looplm compile --topology` has them, and what JAX calls the devices."""
EXAMPLES = "32xH100, 8xA100 SXM 80GB, v5e:8x8 or v5p:4x4x4"


@dataclass(frozen=True)
class Described:
    """What a mesh asks of a device."""

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, ...] = ()
    process_index: int = 0
    slice_index: int = 0
    core_on_chip: int = 0
    num_cores: int = 1

    @property
    def client(self) -> None:
        """Of a process that has the device; there is none."""
        return None


@dataclass(frozen=True)
class Chips:
    """Chips of one kind."""

    words: str
    device: Device
    """One JAX device; a chip may be several."""
    device_kind: str
    platform: str
    count: int
    """Chips."""
    shape: tuple[int, ...] = ()
    """Of a torus."""

    @property
    def num_devices(self) -> int:
        """How many devices JAX shows."""
        return self.count * self.device.devices_per_chip

    @cached_property
    def devices(self) -> list[Any]:
        """Return the devices, in the order of their places."""
        cores = self.device.devices_per_chip
        places = (
            product(*map(range, self.shape), range(cores)) if self.shape else ((n,) for n in range(self.num_devices))
        )
        return [
            Described(
                number, self.platform, self.device_kind, self._coords(place), core_on_chip=place[-1], num_cores=cores
            )
            if self.shape
            else Described(number, self.platform, self.device_kind)
            for number, place in enumerate(places)
        ]

    def some(self, count: int) -> list[Any]:
        """Return any number of such devices, one beside the other."""
        return [Described(number, self.platform, self.device_kind, (number, 0, 0)) for number in range(count)]

    def _coords(self, place: tuple[int, ...]) -> tuple[int, ...]:
        return (*place[:-1], 0, 0)[:3]

    def __str__(self) -> str:
        """Return a line for the console."""
        one = self.device
        links = f"{one.link_bytes_per_s / 1e9:g} GB/s to {one.domain} devices, " if one.domain > 1 else ""
        links = f"{one.link_bytes_per_s / 1e9:g} GB/s a link of the torus, " if one.torus else links
        what = f"{self.count} chips, {self.num_devices} devices" if one.devices_per_chip > 1 else f"{self.count}"
        return (
            f"{what} x {one.name}: {one.peak_flops / 1e12:g} TFLOP/s, {one.memory_bytes / 2**30:g} GiB, {links}"
            f"{one.hbm_bytes_per_s / 1e9:g} GB/s of memory"
        )


def parse_chips(words: str) -> Chips:
    """Read e.g. `32xH100`, or a TPU slice by its shape, `v5p:4x4x4`.

    A name may be the beginning of one in `hardware.DEVICES`; the first that fits is taken. Raises UserError for a name
    or a shape that is not known.
    """
    if match := re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", words):
        return _slice(words, match[1], tuple(map(int, match[2].split("x"))))
    match = re.fullmatch(r"(\d+)\s*[xX]\s*(.+)", words)
    if not match or not int(match[1]):
        raise UserError(f"--chips {words} is not understood; use e.g. {EXAMPLES}")
    count, name = int(match[1]), match[2]
    if name.lower() in TPUS:
        dims = 2 if name.lower() in ("v5e", "v6e") else 3
        raise UserError(
            f"--chips {words}: the links of a TPU depend on the shape of its slice; give that, {name.lower()}:"
            f"{_cubic(count, dims)}"
        )
    found = [
        (kind, device) for kind, device in DEVICES if _plain(device.name).startswith(_plain(name)) and not device.torus
    ]
    if not found:
        known = ", ".join(device.name.partition(",")[0] for _, device in DEVICES if not device.torus)
        raise UserError(
            f"--chips {words}: no figures are known of {name}; known are {known}, and TPU slices (v5p:4x4x4)"
        )
    pattern, device = found[0]
    return Chips(words, device, kind_of(pattern), "gpu", count)


def kind_of(pattern: str) -> str:
    """Return a name that a pattern of `hardware.DEVICES` matches: its first one."""
    return re.sub(r"\([^)]*\)\?", "", pattern).partition("|")[0]


def _slice(words: str, name: str, shape: tuple[int, ...]) -> Chips:
    dims = 2 if name in ("v5e", "v6e") else 3
    if name not in TPUS or len(shape) != dims or not all(shape):
        raise UserError(f"--chips {words} is no TPU slice; use e.g. v5e:8x8, v6e:16x16, v5p:4x4x4 or tpu7x:4x4x4")
    device = find(TPUS[name])
    assert device is not None, "TPUS names devices of the table"
    return Chips(words, device, TPUS[name], "tpu", math.prod(shape), shape)


def _cubic(count: int, dims: int) -> str:
    """A shape of so many chips, as near to a cube as divisors let it."""
    shape = []
    for left in range(dims, 0, -1):
        side = max(n for n in range(1, count + 1) if count % n == 0 and n**left <= count)
        shape.append(side)
        count //= side
    return "x".join(map(str, shape))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
