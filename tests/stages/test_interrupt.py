"""Ctrl-C ends a run with its own exit code, whatever its stages' threads are doing inside Ray, and leaves nothing."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

RUN = """
import os, signal, sys, threading
import ray
from ray._private.worker import Worker
from triptych import cli
from triptych.recipe.kinds import Sft

class Pool:
    def interrupt(self, driver):
        os.kill(driver, signal.SIGINT)
        threading.Event().wait()

    def close(self):
        pass

def stage(ctx):
    # As PPO does: wait for what never comes, then close what was started.
    pool = ray.remote(num_cpus=0)(Pool).remote()
    try:
        ray.get(pool.interrupt.remote(os.getpid()))
    finally:
        pool.close.remote()

def stages_go_first(worker, name):
    # Ray shuts its core down, then forgets it. In between, a call ends the process with exit code 1.
    if name == "core_worker":
        for thread in set(threading.enumerate()) - {threading.current_thread()}:
            thread.join(20)
    object.__delattr__(worker, name)

Worker.__delattr__ = stages_go_first
Sft.runner = "__main__:stage"
sys.argv = ["triptych", "run", sys.argv[1], "--stage", "sft", "--cpus", "1", "--metrics-port", sys.argv[2]]
cli.main()
"""


@pytest.mark.timeout(240)
def test_a_stage_that_closes_what_it_started_does_not_change_the_exit_code(recipe_file: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(recipe_file), str(port)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("stopped; the same command goes on from the last checkpoint\n")
    assert done.stdout == ""
    # The same command at once again wants its port: no process of Ray may hold it any longer.
    deadline = time.monotonic() + 10
    while _listening(port):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
