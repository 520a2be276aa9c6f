"""peft's published memory of Llama-3.2-3B (accelerator_memory_max, one L40S, batch 4), from the model's config alone.

    PYTHONPATH=tests/bench .venv/bin/python -m plan.peft_table

Traced at two and three blocks: transformers' model and loss, peft's adapters, AdamW; tensors only, no allocator. Their
results do not say how long the longest batch was: that is fitted on the first method, and the others check it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from triptych.measure.fake_memory import LiveMemory, Moments, converting, peak_at

OUT = Path(__file__).with_name("peft_table.json")
BATCH, LAYERS, DEPTHS = 4, 28, (2, 3)
LENGTHS = (700, 900)
"""Between which the length is sought; the peak is linear in it."""
SHAPE: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
Attach = Callable[[PreTrainedModel], Any]


def adapted(config: Callable[[], peft.PeftConfig]) -> Attach:
    return lambda base: peft.get_peft_model(base, config())


def whole(base: PreTrainedModel) -> PreTrainedModel:
    return base.requires_grad_(True)


TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
METHODS: dict[str, tuple[float, Attach]] = {
    "LoRA r32": (20.76, adapted(lambda: peft.LoraConfig(r=32, **TASK))),
    "LoRA r64": (21.00, adapted(lambda: peft.LoraConfig(r=64, **TASK))),
    "LoRA r10, MLP": (
        23.00,
        adapted(lambda: peft.LoraConfig(r=10, target_modules=["gate_proj", "up_proj", "down_proj"], **TASK)),
    ),
    "DoRA r32": (22.85, adapted(lambda: peft.LoraConfig(r=32, use_dora=True, **TASK))),
    "IA3": (21.64, adapted(lambda: peft.IA3Config(**TASK))),
    "BEFT": (18.79, adapted(lambda: peft.BeftConfig(target_modules=["v_proj"], **TASK))),
    "MiSS": (18.88, adapted(lambda: peft.MissConfig(r=64, **TASK))),
    "prompt tuning, 200": (22.72, adapted(lambda: peft.PromptTuningConfig(num_virtual_tokens=200, **TASK))),
    "VeRA": (20.14, adapted(lambda: peft.VeraConfig(**TASK))),
    "prefix tuning, 200": (20.45, adapted(lambda: peft.PrefixTuningConfig(num_virtual_tokens=200, **TASK))),
    "full": (36.20, whole),
}
"""Published GiB at the peak, and how the method is attached."""


def moments(attach: Attach, depth: int, length: int) -> Moments:
    """Of the second step: the optimizer's state is there."""
    live = LiveMemory()
    with converting(), live:
        live.vocab = SHAPE["vocab_size"]
        config = LlamaConfig(num_hidden_layers=depth, use_cache=False, attn_implementation="sdpa", **SHAPE)
        base = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).requires_grad_(False)
        model = attach(base).train()
        live.own("weights", [*model.parameters(), *model.buffers()])
        live.watch(base.model.layers)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        ids = torch.randint(1, SHAPE["vocab_size"], (BATCH, length))
        for _ in range(2):
            live.forget()
            live.mark("begin")
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)  # lives on, with its logits
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return dict(live.peaks)


def peak(attach: Attach, length: int) -> float:
    """GiB of tensors, of the whole model."""
    low, high = (moments(attach, depth, length) for depth in DEPTHS)
    return peak_at(low, high, (LAYERS - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])).total() / 2**30


def fitted_length() -> int:
    """At which the first method needs what was published."""
    published, attach = next(iter(METHODS.values()))
    low, high = (peak(attach, length) for length in LENGTHS)
    return round(LENGTHS[0] + (LENGTHS[1] - LENGTHS[0]) * (published - low) / (high - low))


def main() -> None:
    length = fitted_length()
    table = Table(title=f"Peak GiB of Llama-3.2-3B, batch {BATCH} x {length} tokens, as peft published it")
    for column in ("method", "published", "traced", "error"):
        table.add_column(column, justify="left" if column == "method" else "right")
    rows: list[dict[str, Any]] = []
    for name, (published, attach) in METHODS.items():
        found = peak(attach, length)
        rows.append({"method": name, "published": published, "traced": round(found, 2)})
        table.add_row(name, f"{published:.2f}", f"{found:.2f}", f"{found / published - 1:+.1%}")
        OUT.write_text(json.dumps({"length": length, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    errors = [abs(row["traced"] / row["published"] - 1) for row in rows[1:]]
    Console().print(table, f"mean error {sum(errors) / len(errors):.1%}, worst {max(errors):.1%}", sep="\n")


if __name__ == "__main__":
    main()
