"""What an accelerator can do, by the name that JAX gives it: data, not branches.

Figures are those of the makers' public data sheets: peak rate of dense bfloat16 matrix products with float32
accumulation (sheets that print the rate with 2:4 sparsity are halved), and memory. Both hold for one *JAX device*,
which is half a chip where a chip has two (TPU7x) or half a card (MI250X). No clock sustains the peak:
large matrix products were measured at 65 % of it (MI250X) to 80 % (H200).

A name that is not in the table has no figures: an unknown device gets no MFU instead of a wrong one. Patterns match
the whole name, so partitions (`... MIG 1g.10gb`) and relatives with other clocks (`NVIDIA H100 NVL`) are unknown too.
"""

import re
from typing import NamedTuple

GIB = 2**30


class Device(NamedTuple):
    """One JAX device."""

    name: str
    peak_flops: float
    """Dense bfloat16 FLOP/s."""
    memory_bytes: int
    """On the device, as sold; a program gets 1-5 % less."""


def find(device_kind: str) -> Device | None:
    """The device of this name (`jax.devices()[0].device_kind`), or None if it is not known."""
    return next((device for kind, device in DEVICES if re.fullmatch(kind, device_kind)), None)


DEVICES: tuple[tuple[str, Device], ...] = (
    # cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; the names as in jax/_src/tpu_info.py. A v4 or v5p chip has two
    # cores that JAX shows as one device (megacore).
    (r"TPU v4", Device("TPU v4", 275e12, 32 * GIB)),
    (r"TPU v5 lite|TPU v5e", Device("TPU v5e", 197e12, 16 * GIB)),
    (r"TPU v5|TPU v5p", Device("TPU v5p", 459e12, 95 * GIB)),
    (r"TPU v6 lite|TPU v6e", Device("TPU v6e", 918e12, 32 * GIB)),
    # A chip (2307 TFLOP/s, 192 GiB) is two chiplets, and each is a JAX device.
    (r"TPU7x", Device("TPU7x, half a chip", 2307e12 / 2, 96 * GIB)),
    # NVIDIA A100 data sheet: 312 for every form; the 40 and 80 GB cards have names of their own.
    (r"NVIDIA A100-(SXM4|PCIE)-40GB", Device("A100 40GB", 312e12, 40 * GIB)),
    (r"NVIDIA A100-SXM4-80GB|NVIDIA A100 80GB PCIe", Device("A100 80GB", 312e12, 80 * GIB)),
    # NVIDIA H100, H200 and GH200 data sheets, with sparsity: SXM 1979, PCIe 1513.
    (r"NVIDIA H100 80GB HBM3", Device("H100 SXM", 989.4e12, 80 * GIB)),
    (r"NVIDIA H100 PCIe", Device("H100 PCIe", 756e12, 80 * GIB)),
    (r"NVIDIA H200", Device("H200 SXM", 989.4e12, 141 * GIB)),
    # 480GB is the memory of the Grace CPU; the GPU beside it has 96 GB.
    (r"NVIDIA GH200 480GB", Device("GH200 96GB", 989.4e12, 96 * GIB)),
    (r"NVIDIA GH200 144G HBM3e", Device("GH200 144GB", 989.4e12, 144 * GIB)),
    # NVIDIA HGX B200 (8 GPUs: 36 PFLOP/s with sparsity, 1.44 TB) and GB200 NVL72 (72 GPUs: 360 PFLOP/s, 13.4 TB).
    (r"NVIDIA B200", Device("B200", 2250e12, 180 * GIB)),
    (r"NVIDIA GB200", Device("GB200", 2500e12, 186 * GIB)),
    # NVIDIA Ada architecture white paper; with float16 accumulation a 4090 is twice as fast.
    (r"NVIDIA GeForce RTX 4090", Device("RTX 4090", 165.2e12, 24 * GIB)),
    # AMD Instinct data sheets. A MI250X card (383 TFLOP/s, 128 GB) is two dies, and each is a JAX device.
    (r"AMD Instinct MI250X", Device("MI250X, half a card", 383e12 / 2, 64 * GIB)),
    # Undivided (mode SPX, the default): in mode CPX a device is an eighth of this under the same name.
    (r"AMD Instinct MI300X( OAM)?", Device("MI300X", 1307.4e12, 192 * GIB)),
)
"""Pattern of the whole `device_kind`, and what it stands for."""
