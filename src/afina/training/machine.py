"""What this machine can do: cores, memory, GPUs, bf16, bitsandbytes, disk.

Nothing comes in but a folder to measure the disk of; a frozen `Machine` goes out. It decides nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from afina.core.progress import size


@dataclass(frozen=True)
class Gpu:
    """One CUDA device. capability: (major, minor)."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """What there is. cores: usable by this process. Memory honours the container's limit.

    bf16: the device that trains multiplies bfloat16 in hardware. bitsandbytes: 4 and 8 bit can be used.
    """

    cores: int
    memory_bytes: int
    available_bytes: int
    disk_free_bytes: int
    cpu: str
    cpu_features: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    bf16: bool
    bitsandbytes: bool
    system: str

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def training_bytes(self) -> int:
        """Free memory of the device that trains."""
        return self.gpus[0].free_bytes if self.gpus else self.available_bytes

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For the screen."""
        found = [
            f"system      {self.system}",
            f"CPU         {self.cpu}, {self.cores} cores usable; {', '.join(self.cpu_features) or 'no AVX-512 or AMX'}",
            f"memory      {size(self.available_bytes)} free of {size(self.memory_bytes)}",
            f"disk        {size(self.disk_free_bytes)} free",
        ]
        found += [
            f"GPU         {g.name}, {size(g.free_bytes)} free of {size(g.memory_bytes)}, "
            f"compute {g.capability[0]}.{g.capability[1]}"
            for g in self.gpus
        ] or ["GPU         none: training runs on the CPU"]
        found.append(f"bf16        {'in hardware' if self.bf16 else 'not in hardware: float32 is used'}")
        found.append(f"4/8 bit     {'bitsandbytes is usable' if self.bitsandbytes else 'bitsandbytes is not usable'}")
        room = self.training_bytes * ROOM
        reach = [f"{name} {_billions(room / cost)}" for name, cost in BYTES_PER_PARAMETER.items()]
        found.append(
            f"fits about  {', '.join(reach if self.bitsandbytes else reach[:2])} (`afina plan` counts exactly)"
        )
        return found


# Weights, gradients and two moments in float32; bfloat16 weights under an adapter; 4-bit weights and their scales.
BYTES_PER_PARAMETER = {"all weights of a model of": 16, "LoRA on": 2.2, "QLoRA on": 0.7}
ROOM = 0.7  # of the free memory; activations and the runtime take the rest


def _billions(num_parameters: float) -> str:
    return f"{num_parameters / 1e9:.1f} B" if num_parameters >= 1e9 else f"{num_parameters / 1e6:.0f} M"


CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def machine(folder: Path | None = None) -> Machine:
    """Look at this machine. folder: whose disk is measured; the current one when not given."""
    total, available = _memory()
    cpu, features = _cpu()
    gpus = tuple(_gpu(i) for i in range(torch.cuda.device_count())) if torch.cuda.is_available() else ()
    bf16 = gpus[0].capability >= (8, 0) if gpus else bool({"avx512_bf16", "amx_bf16"} & set(features))
    return Machine(
        cores=_cores(),
        memory_bytes=total,
        available_bytes=available,
        disk_free_bytes=_disk_free(folder or Path.cwd()),
        cpu=cpu,
        cpu_features=features,
        gpus=gpus,
        bf16=bf16,
        bitsandbytes=importlib.util.find_spec("bitsandbytes") is not None,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
    )


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def _memory() -> tuple[int, int]:
    """(total, available) bytes: the machine's, or the container's limit where it is lower."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit_file, used_file, stat_file in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        with suppress(OSError, ValueError):
            root = Path("/sys/fs/cgroup")
            limit, used = int((root / limit_file).read_text()), int((root / used_file).read_text())
            stat = dict(line.split()[:2] for line in (root / stat_file).read_text().splitlines())
            used -= int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))  # the kernel gives it back
            if limit < total:
                total, available = limit, min(available, max(0, limit - used))
    return total, available


def _cpu() -> tuple[str, tuple[str, ...]]:
    """(name, those of CPU_FEATURES it has). Only Linux tells the features; elsewhere none are assumed."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    return name, tuple(f for f in CPU_FEATURES if f in flags)


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(properties.name, total, free, (properties.major, properties.minor))


def _disk_free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
