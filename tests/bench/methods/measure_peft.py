"""The same cell by peft's own implementation, in a plain loop: transformers' classifier, padded batches, autocast.

    python -m methods.measure_peft JOB.json

Same rows in the same order, same learning rates, optimizer and schedule as `methods.measure`.
"""

import sys
import time
from typing import Any

from harness import emit
from methods.measure import WARMUP, Job, Row, figures
from methods.tasks import TASKS

METHODS = ("lora", "prompt_tuning", "prefix_tuning")
HELDOUT_ROWS = 16
"""Of one forward pass."""


def config(method: dict[str, Any]) -> Any:
    """peft's configuration; fields that the recipe leaves out have the recipe's defaults."""
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType

    from triptych.methods import METHODS as KNOWN

    ours = KNOWN[method["name"]].config(**method)
    if method["name"] == "lora":
        return LoraConfig(task_type=TaskType.SEQ_CLS, r=ours.r, lora_alpha=int(ours.alpha), target_modules=ours.targets)
    if method["name"] == "prompt_tuning":
        return PromptTuningConfig(
            task_type=TaskType.SEQ_CLS,
            num_virtual_tokens=ours.num_virtual_tokens,
            prompt_tuning_init="SAMPLE_VOCAB",  # as ours: tokens drawn from the vocabulary
        )
    return PrefixTuningConfig(
        task_type=TaskType.SEQ_CLS,
        num_virtual_tokens=ours.num_virtual_tokens,
        prefix_projection=ours.prefix_projection,
        encoder_hidden_size=ours.encoder_hidden_size,
    )


def padded(rows: list[Row], pad: int) -> dict[str, Any]:
    """Padding on the left: behind virtual tokens transformers reads the class at the last position, whatever it is."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    ids = [[pad] * (width - len(row["input_ids"])) + row["input_ids"] for row in rows]
    mask = [[0] * (width - len(row["input_ids"])) + [1] * len(row["input_ids"]) for row in rows]
    labels = torch.tensor([row["label"] for row in rows])
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": labels}


def measure(job: Job) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    torch.manual_seed(job.seed)
    pad = AutoTokenizer.from_pretrained(job.model).pad_token_id
    base = AutoModelForSequenceClassification.from_pretrained(
        job.model, dtype=torch.bfloat16, num_labels=len(TASKS[job.data].labels)
    )
    base.config.pad_token_id = pad
    model = get_peft_model(base, config(job.method))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    head = [parameter for name, parameter in trained.items() if ".score." in name]
    own = [parameter for name, parameter in trained.items() if ".score." not in name]
    optimizer = torch.optim.AdamW(
        [{"params": own, "lr": job.method["lr"]}, {"params": head, "lr": job.learning_rate}], weight_decay=0.0
    )
    steps = list(job.steps())
    schedule = get_linear_schedule_with_warmup(optimizer, round(WARMUP * len(steps)), len(steps))

    model.train()
    ends, tokens, loss = [], [], 0.0
    for rows in steps:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**padded(rows, pad))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss = output.loss.item()
        ends.append(time.perf_counter())
        tokens.append(sum(len(row["input_ids"]) for row in rows))
    trainable, of_head = (sum(parameter.numel() for parameter in part) for part in (own, head))
    found = figures({"loss": loss}, trainable, of_head, ends, tokens)
    if job.only_steps:
        return emit(found)

    model.eval()
    rows = sorted(job.rows("heldout"), key=lambda row: len(row["input_ids"]))
    right, total = 0, 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(rows), HELDOUT_ROWS):
            batch = padded(rows[start : start + HELDOUT_ROWS], pad)
            output = model(**batch)
            right += int((output.logits.argmax(dim=1) == batch["labels"]).sum())
            total += output.loss.item() * len(batch["labels"])
    return emit(found | {"accuracy": right / len(rows), "loss": total / len(rows)})


if __name__ == "__main__":
    measure(Job.load(sys.argv[1]))
