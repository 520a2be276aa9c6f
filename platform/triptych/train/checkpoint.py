"""Checkpoints of a stage: every rank writes its share beside the training, and rank 0 commits the whole.

`<folder>/step-N` holds `state.json`: numbers, and the digests of the shares, `<folder>/shares/step-N-R-of-W`, which are
safetensors files. A step counts once it is committed, and it is committed once all shares are. Tensors are stored by
name as flat pieces, so that any strategy on any number of ranks can go on from them.
"""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych import storage
from triptych.errors import RunError
from triptych.train.group import Group
from triptych.train.strategies import Slice

KEEP = 2
"""Newest checkpoints that stay; a reader may still hold the one before the last."""
SHARE_TIMEOUT_S = 900.0
"""Seconds that rank 0 waits for the other ranks' shares."""

_FILE = "tensors.safetensors"
_SHARES = "shares"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a stage needs to go on after `step` optimiser steps."""

    step: int
    tensors: Mapping[str, Tensor]
    state: dict[str, Any]


class Writer:
    """Writes one checkpoint at a time, in a thread; training goes on meanwhile."""

    def __init__(self, folder: str, group: Group) -> None:
        self._folder = folder
        self._group = group
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if group.rank == 0:
            _drop(folder, keep=set(_steps(folder)))  # shares of steps that were never committed
        group.barrier()

    def save(self, step: int, slices: list[Slice], state: Mapping[str, Any], *, best: int | None = None) -> None:
        """Copy the tensors and return; every rank calls it. `best` is a step to keep beside the newest."""
        self.wait()
        if step in _steps(self._folder):
            return  # a replay after a failure: the same step holds the same state
        copies = [Slice(s.name, s.shape, s.start, s.values.detach().to("cpu", copy=True)) for s in slices]
        arguments = (step, copies, json.loads(json.dumps(dict(state))), best)
        self._thread = threading.Thread(target=self._guarded, args=arguments, name=f"checkpoint-{step}")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint under way is committed, or at least this rank's share of it.

        Raises:
            RunError, UserError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _guarded(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:  # noqa: BLE001 - `wait` raises it
            self._error = error

    def _write(self, step: int, slices: list[Slice], state: dict[str, Any], best: int | None) -> None:
        shares = storage.join(self._folder, _SHARES)
        names = [f"{_name(step)}-{rank}-of-{self._group.size}" for rank in range(self._group.size)]
        with storage.committed(storage.join(shares, names[self._group.rank])) as staging:
            places = {piece.name: [list(piece.shape), piece.start] for piece in slices}
            tensors = {piece.name: piece.values.contiguous() for piece in slices}
            save_file(tensors, staging / _FILE, metadata={"places": json.dumps(places)})
        if self._group.rank != 0:
            return
        digests = {name: _await_share(storage.join(shares, name)) for name in names}
        with storage.committed(storage.join(self._folder, _name(step))) as staging:
            (staging / "state.json").write_text(json.dumps({"shares": digests, "state": state}))
        _drop(self._folder, keep={*_steps(self._folder)[-KEEP:], *([] if best is None else [best])})


def latest(folder: str) -> Checkpoint | None:
    """The newest committed checkpoint; None before the first."""
    steps = _steps(folder)
    return load(folder, steps[-1]) if steps else None


def load(folder: str, step: int) -> Checkpoint:
    """A committed checkpoint. Tensors are read, and assembled, when they are asked for.

    Raises:
        RunError: a share is missing or is not the one that was committed with it.
    """
    content = json.loads(storage.read_bytes(storage.join(folder, _name(step), "state.json")))
    shares = []
    for name, digest in content["shares"].items():
        url = storage.join(folder, _SHARES, name)
        manifest = storage.read_manifest(url)
        if manifest is None or manifest.digest != digest:
            raise RunError(f"{url}: missing, or not the share that step {step} was committed with")
        shares.append(str(storage.local_copy(url) / _FILE))
    return Checkpoint(step, _Tensors(shares), content["state"])


def copy(source: str, target: str, step: int) -> None:
    """The same committed checkpoint in another folder of checkpoints; one that is there already stays."""
    content = json.loads(storage.read_bytes(storage.join(source, _name(step), "state.json")))
    folders = [*((_SHARES, share) for share in content["shares"]), (_name(step),)]
    for names in folders:
        if storage.read_manifest(storage.join(target, *names)) is None:
            with storage.committed(storage.join(target, *names)) as staging:
                shutil.copytree(storage.local_copy(storage.join(source, *names)), staging, dirs_exist_ok=True)


class _Tensors(Mapping[str, Tensor]):
    """Whole tensors out of the pieces in several files."""

    def __init__(self, files: list[str]) -> None:
        self._pieces: dict[str, list[tuple[Any, int]]] = {}
        self._shapes: dict[str, list[int]] = {}
        for file in files:
            reader = safe_open(file, framework="pt")
            for name, (shape, start) in json.loads(reader.metadata()["places"]).items():
                self._pieces.setdefault(name, []).append((reader, start))
                self._shapes[name] = shape

    def __getitem__(self, name: str) -> Tensor:
        pieces = [(reader.get_tensor(name), start) for reader, start in self._pieces[name]]
        whole = torch.empty(self._shapes[name], dtype=pieces[0][0].dtype)
        for piece, start in pieces:
            whole.view(-1)[start : start + piece.numel()] = piece
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def _await_share(url: str) -> str:
    """Digest of a share, once its rank has committed it."""
    deadline = time.monotonic() + SHARE_TIMEOUT_S
    while (manifest := storage.read_manifest(url)) is None:
        if time.monotonic() > deadline:
            raise RunError(f"{url}: not written within {SHARE_TIMEOUT_S:g} s; can every worker write there?")
        time.sleep(0.05)
    return manifest.digest


def _steps(folder: str) -> list[int]:
    """Steps that are committed, in order."""
    return sorted(int(name.removeprefix("step-")) for name in storage.list_committed(folder))


def _drop(folder: str, keep: set[int]) -> None:
    """Remove all other steps, and then the shares of steps that are not there."""
    for step in set(_steps(folder)) - keep:
        storage.remove(storage.join(folder, _name(step)))
    names = {_name(step) for step in keep}
    for share in storage.list_folders(storage.join(folder, _SHARES)):
        if share[: len(_name(0))] not in names:
            storage.remove(storage.join(folder, _SHARES, share))


def _name(step: int) -> str:
    return f"step-{step:08d}"
