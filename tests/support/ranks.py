"""Processes that train together in the tests, without Ray; they stay, for to start takes longer than a case."""

import gc
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

PATIENCE_S = 240


class Ranks:
    """Two ranks of one gloo group, of a thread each. They start with the first case, and anew after a failure."""

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def run(self, work: Callable[..., Any], *arguments: object) -> list[Any]:
        """What `work(*arguments)` returns on each rank; `work` is a function of a module that both can import.

        Errors: RuntimeError with a rank's own traceback, or that none answered within `PATIENCE_S`.
        """
        if not self._pipes:
            self._start()
        try:
            for pipe in self._pipes:
                pipe.send((work, arguments))
            return self._answers()
        except BaseException:
            self.stop()  # the other rank may wait for ever
            raise

    def _answers(self) -> list[Any]:
        found: dict[Any, Any] = {}
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < len(self._pipes):
            ready = wait([pipe for pipe in self._pipes if pipe not in found], deadline - time.monotonic())
            if not ready:
                raise RuntimeError(f"no answer within {PATIENCE_S} s")
            for pipe in self._pipes:
                if pipe in ready:
                    found[pipe], error = pipe.recv()
                    if error:
                        raise RuntimeError(f"rank {self._pipes.index(pipe)}: {error}")
        return [found[pipe] for pipe in self._pipes]

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def stop(self) -> None:
        """End both at once."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._processes, self._pipes = [], []


def _serve(rank: int, port: int, pipe: Connection) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage when it starts, which takes long with all modules among it
    dist.init_process_group("gloo")
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:  # the tests have ended
            return
        try:
            pipe.send((work(*arguments), None))
        except Exception:  # noqa: BLE001 - it is raised again in the test
            pipe.send((None, traceback.format_exc()))
