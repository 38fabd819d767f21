"""What an accelerator can do, by the name that JAX gives it: data, not branches.

Figures are those of the makers' public data sheets: peak rate of dense bfloat16 matrix products with float32
accumulation (sheets that print the rate with 2:4 sparsity are halved), and memory. Both hold for one *JAX device*,
which is half a chip where a chip has two (TPU7x) or half a card (MI250X). No clock sustains the peak:
large matrix products were measured at 65 % of it (MI250X) to 80 % (H200).

Bandwidths are from the same sheets: of memory, and of the links between devices (NVLink and Infinity Fabric are sold by
the sum of both directions, half is taken; TPU links as in jax-ml.github.io/scaling-book, TPU7x as v5p since both are
sold with 1200 GB/s a chip). 0 stands for devices that are sold without links, or with links in pairs.

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
    hbm_bytes_per_s: float
    """Between memory and chip."""
    link_bytes_per_s: float
    """One way: of a link of the torus; without a torus, of all links of the device together. 0: no fast links."""
    torus: bool = False
    """Neighbours are linked along every dim of a torus, two links a dim; else all devices of a domain by a switch."""
    domain: int = 1
    """Devices that the links reach, without a torus; beyond there is the network."""
    devices_per_chip: int = 1
    """JAX devices of what is sold as one."""


def find(device_kind: str) -> Device | None:
    """The device of this name (`jax.devices()[0].device_kind`), or None if it is not known."""
    return next((device for kind, device in DEVICES if re.fullmatch(kind, device_kind)), None)


DEVICES: tuple[tuple[str, Device], ...] = (
    # cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; the names as in jax/_src/tpu_info.py. A v4 or v5p chip has two
    # cores that JAX shows as one device (megacore).
    (r"TPU v4", Device("TPU v4", 275e12, 32 * GIB, 1228e9, 45e9, torus=True)),
    (r"TPU v5 lite|TPU v5e", Device("TPU v5e", 197e12, 16 * GIB, 819e9, 45e9, torus=True)),
    (r"TPU v5|TPU v5p", Device("TPU v5p", 459e12, 95 * GIB, 2765e9, 90e9, torus=True)),
    (r"TPU v6 lite|TPU v6e", Device("TPU v6e", 918e12, 32 * GIB, 1638e9, 90e9, torus=True)),
    # A chip (2307 TFLOP/s, 192 GiB) is two chiplets, and each is a JAX device.
    (r"TPU7x", Device("TPU7x, half a chip", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 90e9, torus=True, devices_per_chip=2)),
    # NVIDIA A100 data sheet: 312 for every form; the 40 and 80 GB cards have names of their own.
    (r"NVIDIA A100-SXM4-40GB", Device("A100 SXM 40GB", 312e12, 40 * GIB, 1555e9, 300e9, domain=8)),
    (r"NVIDIA A100-PCIE-40GB", Device("A100 PCIe 40GB", 312e12, 40 * GIB, 1555e9, 0.0)),
    (r"NVIDIA A100-SXM4-80GB", Device("A100 SXM 80GB", 312e12, 80 * GIB, 2039e9, 300e9, domain=8)),
    (r"NVIDIA A100 80GB PCIe", Device("A100 PCIe 80GB", 312e12, 80 * GIB, 1935e9, 0.0)),
    # NVIDIA H100, H200 and GH200 data sheets, with sparsity: SXM 1979, PCIe 1513.
    (r"NVIDIA H100 80GB HBM3", Device("H100 SXM", 989.4e12, 80 * GIB, 3350e9, 450e9, domain=8)),
    (r"NVIDIA H100 PCIe", Device("H100 PCIe", 756e12, 80 * GIB, 2000e9, 0.0)),
    (r"NVIDIA H200", Device("H200 SXM", 989.4e12, 141 * GIB, 4800e9, 450e9, domain=8)),
    # 480GB is the memory of the Grace CPU; the GPU beside it has 96 GB.
    (r"NVIDIA GH200 480GB", Device("GH200 96GB", 989.4e12, 96 * GIB, 4000e9, 0.0)),
    (r"NVIDIA GH200 144G HBM3e", Device("GH200 144GB", 989.4e12, 144 * GIB, 4900e9, 0.0)),
    # NVIDIA HGX B200 (8 GPUs: 36 PFLOP/s with sparsity, 1.44 TB) and GB200 NVL72 (72 GPUs: 360 PFLOP/s, 13.4 TB).
    (r"NVIDIA B200", Device("B200", 2250e12, 180 * GIB, 8000e9, 900e9, domain=8)),
    (r"NVIDIA GB200", Device("GB200", 2500e12, 186 * GIB, 8000e9, 900e9, domain=72)),
    # NVIDIA Ada architecture white paper; with float16 accumulation a 4090 is twice as fast.
    (r"NVIDIA GeForce RTX 4090", Device("RTX 4090", 165.2e12, 24 * GIB, 1008e9, 0.0)),
    # AMD Instinct data sheets. A MI250X card (383 TFLOP/s, 128 GB) is two dies, and each is a JAX device.
    (r"AMD Instinct MI250X", Device("MI250X, half a card", 383e12 / 2, 64 * GIB, 3277e9 / 2, 0.0, devices_per_chip=2)),
    # Undivided (mode SPX, the default): in mode CPX a device is an eighth of this under the same name.
    (r"AMD Instinct MI300X( OAM)?", Device("MI300X", 1307.4e12, 192 * GIB, 5300e9, 448e9, domain=8)),
)
"""Pattern of the whole `device_kind`, and what it stands for."""

NETWORK_BYTES_PER_S = 50e9
"""Beyond the fast links, one way for each device: 400 Gb/s, what is built today."""
