"""The hardware that a plan is made for: presets, this machine, or the nodes of a cluster."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from triptych.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, by its data sheet (no sparsity), and the share of a usual cloud node that comes with it."""

    name: str
    memory: int
    """Bytes of GPU memory that a process sees."""
    flops: Mapping[str, float]
    """Peak FLOP/s by dtype; float32 as it is, not as TF32."""
    bandwidth: float
    """Memory bandwidth, bytes a second."""
    link: float
    """Bytes a second to another GPU of the node, one way: NVLink, or else PCIe."""
    node_cpus: int
    node_memory: int
    """Bytes of host memory."""


_USABLE = 0.98
"""Share of a GPU's nominal memory that a process sees; the rest is the driver's."""


def _gpu(name: str, gb: int, bf16: float, fp32: float, bandwidth: float, link: float, cpus: int, host_gb: int) -> Gpu:
    return Gpu(
        name,
        int(gb * _USABLE * GIB),
        {"bfloat16": bf16, "float16": bf16, "float32": fp32},
        bandwidth,
        link,
        cpus,
        host_gb * GIB,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("b200-180", 180, 2.25e15, 7.5e13, 8.0e12, 9e11, 24, 240),
        _gpu("h200-141", 141, 9.89e14, 6.7e13, 4.8e12, 4.5e11, 24, 240),
        _gpu("h100-80", 80, 9.89e14, 6.7e13, 3.35e12, 4.5e11, 24, 240),
        _gpu("a100-80", 80, 3.12e14, 1.95e13, 2.04e12, 3e11, 12, 140),
        _gpu("a100-40", 40, 3.12e14, 1.95e13, 1.56e12, 3e11, 12, 140),
        _gpu("l40s-48", 48, 3.62e14, 9.16e13, 8.64e11, 3.2e10, 16, 128),
        _gpu("a10g-24", 24, 7.0e13, 3.12e13, 6.0e11, 3.2e10, 8, 32),
        _gpu("l4-24", 24, 1.21e14, 3.03e13, 3.0e11, 3.2e10, 8, 32),
        _gpu("rtx4090-24", 24, 1.65e14, 8.26e13, 1.01e12, 3.2e10, 16, 64),
    )
}
_PRESET = re.compile(r"([1-9][0-9]{0,3})x(.+)")
_NODE_GPUS = 8


@dataclass(frozen=True)
class Node:
    """One computer of a cluster. `cpus` are logical: what Ray gives out."""

    cpus: float
    gpus: int
    memory: int


@dataclass(frozen=True)
class Machine:
    """Hardware that a recipe may use."""

    name: str
    nodes: tuple[Node, ...]
    gpu: Gpu | None = None
    """The kind of all its GPUs."""

    @property
    def cpus(self) -> float:
        """Logical CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Number of GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        nodes = f"{len(self.nodes)} nodes, " if len(self.nodes) > 1 else ""
        gpus = f", {self.gpus} GPUs {self.gpu.name}" if self.gpu else ""
        memory = sum(node.memory for node in self.nodes) / GIB
        return f"{self.name} ({nodes}{self.cpus:g} CPUs{gpus}, {memory:.0f} GiB)"


def peak_flops(gpu: str, dtype: str) -> float | None:
    """Peak FLOP/s of a GPU that calls itself `gpu`; None where its data sheet is not among those here.

    Variants with other clocks or a part of the chip are not: PCIe and NVL boards of Hopper, laptops, MIG instances.
    """
    name = gpu.lower().replace("rtx ", "rtx")
    words = set(re.split(r"[^a-z0-9]+", name))
    if words & {"laptop", "mig", "nvl", "d"} or ("pcie" in words and words & {"h100", "h200"}):
        return None
    known = [found for found in GPUS.values() if found.name.partition("-")[0] in words]
    return known[0].flops.get(dtype) if known else None


def machine(name: str) -> Machine:
    """The machine called `name`: `local`, or a preset `<count>x<gpu>`; more than eight GPUs are nodes of eight.

    Raises:
        UserError: no such preset.
    """
    if name == "local":
        return local()
    match = _PRESET.fullmatch(name)
    if match is None or match[2] not in GPUS:
        presets = [f"{count}x{gpu}" for gpu in GPUS for count in (1, 8)]
        near = get_close_matches(name, presets, n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise UserError(
            f"machine: `{name}` is not known{hint}; allowed: local, or a count, `x` and one of {', '.join(GPUS)}"
        )
    count, gpu = int(match[1]), GPUS[match[2]]
    if count > _NODE_GPUS and count % _NODE_GPUS:
        raise UserError(f"machine: `{name}`: more than {_NODE_GPUS} GPUs come in whole nodes of {_NODE_GPUS}")
    each = min(count, _NODE_GPUS)
    node = Node(cpus=each * gpu.node_cpus, gpus=each, memory=each * gpu.node_memory)
    return Machine(name, (node,) * (count // each), gpu)


def local() -> Machine:
    """This machine: the cores that this process may use, memory within its control group, NVIDIA GPUs."""
    gpus = _local_gpus()
    node = Node(cpus=_local_cores(), gpus=len(gpus), memory=_local_memory())
    return Machine("local", (node,), gpus[0] if gpus else None)


def cluster(nodes: Sequence[Mapping[str, Any]], name: str = "cluster") -> Machine:
    """The cluster that `ray.nodes()` describes; CPUs and GPUs as Ray counts them."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    kinds = [key.partition(":")[2] for node in alive for key in node if key.startswith("accelerator_type:")]
    found = tuple(
        Node(
            cpus=float(node.get("CPU", 0.0)),
            gpus=int(node.get("GPU", 0)),
            memory=int(node.get("memory", 0) + node.get("object_store_memory", 0)),
        )
        for node in alive
    )
    gpu = _by_name(kinds[0], None) if kinds else None
    return Machine(name, found, gpu if any(node.gpus for node in found) else None)


def _local_cores() -> int:
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _control_group("cpu.max").partition(" ")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


def _local_memory() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _control_group("memory.max")
    return min(memory, int(limit)) if limit.isdigit() else memory


def _control_group(file: str) -> str:
    try:
        return (Path("/sys/fs/cgroup") / file).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _local_gpus() -> list[Gpu]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return [_by_name(name, int(mib) * 2**20) for name, _, mib in rows]


def _by_name(name: str, memory: int | None) -> Gpu:
    """The known GPU whose name appears in `name` and whose memory is closest; else one as slow as an L4."""
    words = name.lower().replace(" ", "")
    known = [gpu for gpu in GPUS.values() if gpu.name.partition("-")[0] in words]
    if memory is None:
        return min(known, key=lambda gpu: gpu.memory) if known else GPUS["l4-24"]
    close = min(known, key=lambda gpu: abs(gpu.memory - memory)) if known else GPUS["l4-24"]
    return Gpu(name.strip(), memory, close.flops, close.bandwidth, close.link, close.node_cpus, close.node_memory)
