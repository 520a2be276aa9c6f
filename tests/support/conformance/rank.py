"""Run by torchrun on two ranks, goes through cells of the conformance table, one JSON line each.

Arguments: the folder of a model, an output folder, and the cells as JSON. Cells of one rank are shared out; what the
checks of a cell found stands in `<output>/cells-<rank>.jsonl`.
"""

import gc
import json
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.conformance.cells import Cell
from tests.support.conformance.checks import CHECKS
from triptych.train.group import Group


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    cells = [Cell(*fields) for fields in json.loads(sys.argv[3])]
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage when it starts, which takes long with all modules among it
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    apart, together = [c for c in cells if c.strategy == "single"], [c for c in cells if c.strategy != "single"]
    with (out / f"cells-{rank}.jsonl").open("w") as file:
        for cell in (*apart[rank::2], *together):
            found = tried(cell, folder, out, alone() if cell.strategy == "single" else Group())
            if rank == 0 or cell.strategy == "single":
                file.write(json.dumps({"cell": str(cell), **found}) + "\n")
                file.flush()
    dist.barrier()
    dist.destroy_process_group()


def alone() -> Group:
    """This rank by itself."""
    group = Group()
    group.together, group.rank, group.size = False, 0, 1
    return group


def tried(cell: Cell, folder: Path, out: Path, group: Group) -> dict[str, Any]:
    """What a cell found, or its error."""
    started = time.monotonic()
    try:
        place = out / str(cell)
        if group.rank == 0:
            place.mkdir()
        group.barrier()
        found = CHECKS[cell.task](cell, folder, place, group)
    except Exception as error:  # noqa: BLE001 - the table shows it
        found = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return found | {"seconds": round(time.monotonic() - started, 2)}


main()
