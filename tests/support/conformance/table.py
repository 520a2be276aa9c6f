"""The conformance table: every method under every strategy, on a tiny model. `make conformance` prints it.

Two processes of torchrun go through all cells (rank.py), because starting them takes longer than a cell.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.conformance.cells import HALF, STRATEGIES, Cell, all_cells, cases, refusal

ROOT = Path(__file__).parents[3]
LOADED = 1e-5
GRADIENTS = {"float64": 1e-10, "float32": 3e-5}
"""float64 shows that gradients are the same; float32 rounds: a gate's bias, summed over all tokens, was 1.7e-5 off."""
IN_FLOAT32 = ("c3a",)
"""Cases that compute in float32 whatever the model's precision."""

OTHERS = {"plain": "plain peft or transformers", "merged": "merged"}
"""What else loads what is saved: the largest difference of answers, relative to the largest answer."""

Found = dict[str, Any]


def run(cells: Sequence[Cell], out: Path) -> dict[str, Found]:
    """What the checks found, by cell; or why a recipe with it is refused."""
    refused = {str(cell): {"refused": reason} for cell in cells if (reason := refusal(cell))}
    out.mkdir(parents=True, exist_ok=True)
    given = json.dumps([[cell.case, cell.task, cell.strategy] for cell in cells if str(cell) not in refused])
    _torchrun(out / "log.txt", str(tiny_model(out / "base")), str(out), given)
    lines = [line for path in out.glob("cells-*.jsonl") for line in path.read_text().splitlines()]
    found = refused | {entry.pop("cell"): entry for entry in map(json.loads, lines)}
    ended = {"error": f"the processes ended before it, see {out / 'log.txt'}"}
    return {str(cell): found.get(str(cell), ended) for cell in cells}


def _torchrun(log: Path, *arguments: str) -> None:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, "-m", *launcher, "-m", "tests.support.conformance.rank"]
    with log.open("w") as file:
        process = subprocess.Popen([*command, *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        process.wait()
    finally:
        process.terminate()  # torchrun ends its processes; killed, it would leave them
        process.wait()


def tiny_model(folder: Path) -> Path:
    """A Llama with random weights and tied embeddings, and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    template = "{{ messages[0]['content'] }}"
    specials = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    PreTrainedTokenizerFast(tokenizer_object=core, **specials).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.2,  # larger than usual, so that logits of random weights differ visibly
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def faults(cell: Cell, found: Found) -> list[str]:
    """What a cell does not hold to."""
    if "refused" in found:
        return []
    if "error" in found:
        return [found["error"]]
    if cell.task == "gradients":
        return [
            f"{layout}: gradient of {name} off by {error:.1e}"
            for layout, (error, name) in found["errors"].items()
            if not error <= GRADIENTS["float32" if cell.case in IN_FLOAT32 else layout.split()[0]]
        ]
    wrong = _rising(found["losses"])
    if cell.task in HALF:
        return wrong
    if found["resumed"] != 0:
        wrong.append(f"after a checkpoint losses differ by {found['resumed']:.1e}")
    wrong += [f"{kind}: {', '.join(found[kind])}" for kind in ("undeclared", "unchanged") if found[kind]]
    for kind in ("loaded", "plain", "merged"):
        if not found.get(kind, 0) <= LOADED:
            wrong.append(f"{kind}: answers differ by {found[kind]:.1e} of the largest")
    return wrong


def _rising(losses: list[float]) -> list[str]:
    fell = all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0]
    return [] if fell else [f"loss does not fall: {', '.join(f'{loss:.3f}' for loss in losses)}"]


def table(cells: Sequence[Cell], found: dict[str, Found]) -> str:
    """Markdown: a row for each case; below, what is refused and why, and what is wrong."""
    columns = [*STRATEGIES, "layouts", *HALF]
    heads = ["method", *columns, *OTHERS.values()]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for case in dict.fromkeys(cell.case for cell in cells):
        own = {cell: found[str(cell)] for cell in cells if cell.case == case}
        words = [" / ".join(_word(c, f) for c, f in own.items() if _column(c) == column) or "-" for column in columns]
        for kind in OTHERS:
            distances = [f[kind] for f in own.values() if kind in f]
            words.append(f"{max(distances):.0e}" if distances else "-")
        lines.append(f"| {case} | {' | '.join(words)} |")
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if reason := found[str(cell)].get("refused"):
            reasons.setdefault(reason, []).append(str(cell))
    legend = "A strategy: language modeling / classification; 16 bits: on one process / under fsdp."
    refused = [f"- refused: {reason} ({', '.join(names)})" for reason, names in reasons.items()]
    wrong = [f"- {cell}: {fault}" for cell in cells for fault in faults(cell, found[str(cell)])]
    return "\n".join([*lines, "", legend, "", *refused, *wrong])


def _word(cell: Cell, found: Found) -> str:
    return "refused" if "refused" in found else "WRONG" if faults(cell, found) else "ok"


def _column(cell: Cell) -> str:
    if cell.task in HALF:
        return cell.task
    return "layouts" if cell.task == "gradients" else cell.strategy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/conformance"))
    parser.add_argument("--cases", nargs="*", default=cases())
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--strategies", nargs="*")
    options = parser.parse_args()
    cells = [
        cell
        for cell in all_cells()
        if cell.case in options.cases
        and (not options.tasks or cell.task in options.tasks)
        and (not options.strategies or cell.strategy in options.strategies)
    ]
    shutil.rmtree(options.out, ignore_errors=True)
    found = run(cells, options.out)
    print(table(cells, found))
    sys.exit(any(faults(cell, found[str(cell)]) for cell in cells))


if __name__ == "__main__":
    main()
