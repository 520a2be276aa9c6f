import os

import pytest

from triptych.errors import UserError
from triptych.plan import Node, cluster, machine
from triptych.plan.machines import GIB, peak_flops


def test_presets() -> None:
    one, eight, sixteen = (machine(name) for name in ("1xh100-80", "8xa100-80", "16xh100-80"))
    assert one.gpu is not None
    assert (one.gpus, one.gpu.name) == (1, "h100-80")
    assert 76 * GIB < one.gpu.memory < 80 * GIB
    assert (eight.gpus, len(eight.nodes), eight.cpus) == (8, 1, 96)
    assert (sixteen.gpus, len(sixteen.nodes)) == (16, 2)


def test_local_is_this_machine() -> None:
    found = machine("local")
    assert len(found.nodes) == 1
    assert 1 <= found.cpus <= len(os.sched_getaffinity(0))
    assert 0.5 * GIB < found.nodes[0].memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "8xh100",
            "machine: `8xh100` is not known; did you mean `8xh100-80`?; allowed: local, or a count, `x` and one",
        ),
        ("0xh100-80", "machine: `0xh100-80` is not known"),
        ("laptop", "machine: `laptop` is not known; allowed: local"),
        ("12xh100-80", "machine: `12xh100-80`: more than 8 GPUs come in whole nodes of 8"),
    ],
)
def test_unknown_machine(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        machine(name)
    assert str(caught.value).startswith(message)


def test_cluster_as_ray_describes_it() -> None:
    dead = {"Alive": False, "Resources": {"CPU": 64.0}}
    head = {"Alive": True, "Resources": {"CPU": 2.0, "memory": 7.0 * GIB, "object_store_memory": 3.0 * GIB}}
    worker = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0, "memory": 64.0 * GIB, "accelerator_type:L4": 1.0}}
    found = cluster([dead, head, worker], "mine")
    assert found.nodes == (Node(2.0, 0, 10 * GIB), Node(16.0, 2, 64 * GIB))
    assert found.gpu is not None
    assert found.gpu.name == "l4-24"
    assert cluster([head]).gpu is None


@pytest.mark.slow
@pytest.mark.cluster
def test_cluster_of_a_real_ray(ray_cluster: None) -> None:
    import ray

    found = cluster(ray.nodes())
    assert (found.cpus, found.gpus, len(found.nodes)) == (2, 0, 1)
    assert found.nodes[0].memory > GIB


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 9.89e14),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-80GB", 3.12e14),
        ("NVIDIA A100-PCIE-40GB", 3.12e14),
        ("NVIDIA L40S", 3.62e14),
        ("NVIDIA L40", None),
        ("NVIDIA L4", 1.21e14),
        ("NVIDIA GeForce RTX 4090", 1.65e14),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA T4", None),
    ],
)
def test_peaks_are_known_by_name_or_not_at_all(name: str, peak: float | None) -> None:
    assert peak_flops(name, "bfloat16") == peak
    assert peak_flops(name, "float16") == peak


def test_peaks_depend_on_precision() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 6.7e13
