"""The memory allocator of processes that train, as environment variables: it is chosen where a process begins.

A step frees and asks for tensors of many sizes. glibc either maps each large one afresh, so that every page is faulted
in again (half as much time again for a step), or keeps freed memory in pieces that the next tensors do not fit in (up
to four times what is alive). jemalloc joins what is freed and takes the piece that fits best.
"""

import importlib.util
from pathlib import Path

JEMALLOC = "narenas:1,oversize_threshold:0,lg_extent_max_active_fit:10,dirty_decay_ms:60000,muzzy_decay_ms:0"
"""One arena, for large tensors too: what one thread freed serves another. A large piece may be split. What was not used
for a minute, longer than a step, goes back to the system."""
CUDA = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""A GPU's memory grows by pages in place of pieces of fixed sizes, which kept 2% to 38% more than its tensors need."""
GLIBC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""Settings of glibc for machines without jemalloc, the driver's or a worker's: keep freed memory."""


def allocator_variables() -> dict[str, str]:
    """Environment variables of a process that trains. jemalloc is the copy that Ray brings for its own on Linux."""
    ray = importlib.util.find_spec("ray")
    library = Path(ray.origin).parent / "core" / "libjemalloc.so" if ray and ray.origin else None
    if library is None or not library.is_file():
        return GLIBC | CUDA
    return GLIBC | CUDA | {"LD_PRELOAD": str(library), "MALLOC_CONF": JEMALLOC}
