"""Known devices have figures, unknown ones have none."""

import re
import subprocess
import sys

import pytest

from looplm.hardware import DEVICES, GIB, find

KINDS = {
    "TPU v4": (275, 32),
    "TPU v5 lite": (197, 16),
    "TPU v5p": (459, 95),
    "TPU v5": (459, 95),
    "TPU v6 lite": (918, 32),
    "TPU7x": (1153.5, 96),
    "NVIDIA A100-SXM4-40GB": (312, 40),
    "NVIDIA A100-SXM4-80GB": (312, 80),
    "NVIDIA A100 80GB PCIe": (312, 80),
    "NVIDIA H100 80GB HBM3": (989.4, 80),
    "NVIDIA H100 PCIe": (756, 80),
    "NVIDIA H200": (989.4, 141),
    "NVIDIA GH200 480GB": (989.4, 96),
    "NVIDIA B200": (2250, 180),
    "NVIDIA GB200": (2500, 186),
    "NVIDIA GeForce RTX 4090": (165.2, 24),
    "AMD Instinct MI250X": (191.5, 64),
    "AMD Instinct MI300X": (1307.4, 192),
}
"""Names as JAX reports them: TFLOP/s, GiB."""


@pytest.mark.parametrize("kind", KINDS)
def test_known_devices(kind: str) -> None:
    device = find(kind)
    assert device is not None
    assert (device.peak_flops / 1e12, device.memory_bytes / GIB) == pytest.approx(KINDS[kind])


@pytest.mark.parametrize(
    "kind",
    [
        "", "cpu", "TPU", "TPU v3", "TPU v4 lite", "TPU v50", "TPU7", "NVIDIA H100 NVL", "NVIDIA H20",
        "NVIDIA H200 NVL", "NVIDIA GeForce RTX 4090 D", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA GB300",
        "AMD Instinct MI300A",
    ],
)  # fmt: skip
def test_unknown_devices_are_not_guessed(kind: str) -> None:
    assert find(kind) is None


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_entries_know_the_same_device(kind: str) -> None:
    assert sum(re.fullmatch(pattern, kind) is not None for pattern, _ in DEVICES) == 1


def test_the_table_needs_no_jax() -> None:
    command = "import sys, looplm.hardware; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
