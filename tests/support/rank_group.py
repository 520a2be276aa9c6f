"""Two ranks that know different names."""

from typing import Any

import torch

from triptych.train.group import Group


def what_each_gets() -> dict[str, Any]:
    group, cpu = Group(), torch.device("cpu")
    rank = group.rank
    messages: list[str] = []
    gather = group.gather

    def counted(value: object) -> list[object]:
        messages.append("names")
        return gather(value)

    group.gather = counted  # type: ignore[method-assign, assignment]
    own: list[dict[str, list[float]]] = [
        {"loss": [rank + 1.0, 2.0], **({"only_one": [5.0, 1.0]} if rank else {})},
        {"loss": [10.0, 3.0]} if rank else {},
        {"late": [1.0, 1.0]},
    ]
    found = [
        {name: total.tolist() for name, total in group.sum_by_name(tensors, 2, cpu).items()}
        for tensors in ({name: torch.tensor(value) for name, value in values.items()} for values in own)
    ]
    return {
        "sums": found,
        "messages": len(messages),
        "table": group.table([rank, 2.5], cpu),
        "all": [group.all(True, cpu), group.all(rank == 0, cpu)],
    }
