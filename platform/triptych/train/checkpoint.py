"""Checkpoints of a stage: tensors in safetensors, counters in JSON, committed whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych import storage

_KEEP = 2
"""Committed checkpoints that stay; a reader may still hold the one before the last."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a stage needs to go on after `step` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Commit a checkpoint as `<folder>/step-NNNNNNNN` and drop the ones before the last two."""
    url = storage.join(folder, _name(step))
    if storage.read_manifest(url) is not None:
        return  # a replay after a failure: the same step holds the same state
    with storage.committed(url) as staging:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging / "state.safetensors")
        (staging / "state.json").write_text(json.dumps(dict(state)))
    for name in storage.list_committed(folder)[:-_KEEP]:
        storage.remove(storage.join(folder, name))


def latest(folder: str) -> Checkpoint | None:
    """The newest committed checkpoint, verified; None before the first."""
    names = storage.list_committed(folder)
    if not names:
        return None
    url = storage.join(folder, names[-1])
    local = storage.local_copy(url)
    return Checkpoint(
        step=int(names[-1].removeprefix("step-")),
        tensors=load_file(local / "state.safetensors"),
        state=json.loads((local / "state.json").read_text()),
    )


def _name(step: int) -> str:
    return f"step-{step:08d}"
