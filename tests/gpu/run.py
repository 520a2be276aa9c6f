"""The check of training on a GPU: are gradients right there, does every strategy run, how fast, in how much memory.

    PYTHONPATH=platform python tests/gpu/run.py [--parts speed ...] [--rounds 2] [--steps 6] [--out build/gpu.json]
    PYTHONPATH=platform python tests/gpu/run.py --device cpu --shape tiny      the same code without a GPU

Needs Python 3.11, torch, transformers, peft, safetensors and pydantic, and what these bring: no Ray, no vLLM, no
network and no weights, for models are made at random from their configuration. ZeRO is checked where DeepSpeed is.

Parts:
    properties    gradients on the device in float64 and float32: the same however a batch is cut, padded, packed,
                  chunked or checkpointed; packed attention in bfloat16 (on a GPU, flash attention) against float32
    planned       memory and seconds of many configurations, for triptych.plan's predictions of them
    speed         tokens a second, MFU and peak memory against transformers' Trainer with peft on the same rows, in turn
    together      trials side by side on one base against one after another
    every_method  each one's gradient against the CPU's in float64; each learns in bfloat16
    levers        bases in 8 and 4 bits, and the optimizers
    strategies    single, ddp, fsdp, ZeRO on one rank under torchrun: one loss, with every method and checkpointing
Exit code 1 if a property does not hold or a check breaks off; all others are reported all the same.
"""

import argparse
import importlib
import importlib.util
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers.utils.logging import disable_progress_bar

from result import BAD, Result, broken, table
from shapes import SHAPES, Setup, save_tiny
from triptych.forward import attention

PARTS = ("properties", "planned", "speed", "together", "every_method", "levers", "strategies")
"""Modules beside this one, in the order in which they run; each imports what it alone needs."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "pydantic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["135m", "1b"])
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--rounds", type=int, default=2, help="of the comparison with Trainer")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each of its arms that are counted")
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU that torch sees; without one: --device cpu --shape tiny")

    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests.parent), str(tests / "bench")]  # the cases of the tests, and the peers of the benchmarks
    torch.set_float32_matmul_precision("highest")  # no TF32
    disable_progress_bar()
    fit_attention()
    device = torch.device(options.device)
    machine = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"} | {
        name: version(name) for name in PACKAGES if importlib.util.find_spec(name)
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        shapes = tuple(SHAPES[name] for name in options.shape)
        setup = Setup(device, shapes, save_tiny(Path(folder)), options.rounds, options.steps)
        for result in results_of(options.parts, setup):
            results.append(result)
            print(f"{time.perf_counter() - started:5.0f} s", *result.cells(), sep="  ", file=sys.stderr, flush=True)
            document = {"machine": machine, "results": [vars(one) for one in results]}
            options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(table(results))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    sys.exit(any(result.verdict in BAD for result in results))


def fit_attention() -> None:
    """Make do with torch before 2.12, where heads share keys unasked, and asking for it is an error."""
    if "enable_gqa" not in inspect.signature(varlen_attn).parameters:

        def unasked(*arguments: Any, enable_gqa: bool, **options: Any) -> Any:
            return varlen_attn(*arguments, **options)

        attention.__dict__["varlen_attn"] = unasked


def results_of(parts: Sequence[str], setup: Setup) -> Iterator[Result]:
    """The results of one part after the other; a part that breaks off takes no other with it."""
    for part in parts:
        try:
            yield from importlib.import_module(part).check(setup)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other parts go on
            yield broken(part, "all that follows", error)


if __name__ == "__main__":
    main()
