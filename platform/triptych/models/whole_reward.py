"""A whole reward model: a Hugging Face folder that transformers scores with, and what normalises its scores.

The head is `score.weight` among the model's weights, where transformers' sequence classifiers have it: without a bias,
which shifts all scores alike, so that the mean in triptych.json takes it in.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from triptych.errors import UserError
from triptych.models.adapter import Normalization, adapter_facts, dumped, parsed_method
from triptych.models.full import save_model
from triptych.models.heads import ScalarHead
from triptych.models.peft_files import MODEL_WEIGHTS, SCORE, WHOLE, is_whole
from triptych.recipe.method import Freeze, Full, Method, names_of

_TOKENIZER_CONFIG = "tokenizer_config.json"


def save_whole_reward(
    folder: Path,
    base: Path,
    method: Method,
    weights: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    normalization: Normalization,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    about: Mapping[str, Any],
) -> None:
    """Write a reward model that is whole.

    Args:
        folder: where.
        base: folder of the model that it was trained from.
        method: that by which it was trained.
        weights: all of its weights, by the names of the base's files; they are written in `dtype`.
        head: weight [1, d] and bias [1], written in the precision that they have.
        normalization: of its scores, bias included.
        dtype: precision of the weights.
        tokenizer: by whose padding token others find the last token of a row.
        about: facts of its origin.
    """
    constants = Normalization(normalization.mean - float(head["bias"]), normalization.std)
    facts = dict(about) | {WHOLE: True, "trained": dumped(method), "normalization": asdict(constants)}
    exact = {SCORE: head["weight"]}
    changes = _classifier_fields(base, tokenizer)
    save_model(folder, base, weights, dtype, facts, changes, kind="reward_model", exact=exact)
    if changes["pad_token_id"] is not None and (folder / _TOKENIZER_CONFIG).is_file():
        settings = json.loads((folder / _TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        settings["pad_token"] = tokenizer.pad_token
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / _TOKENIZER_CONFIG).write_text(text, encoding="utf-8")


def scoring_head(folder: Path) -> ScalarHead:
    """The head of a whole reward model, which gives normalised scores.

    Raises:
        UserError: the folder holds none.
    """
    facts = adapter_facts(folder)
    if not is_whole(folder) or "normalization" not in facts:
        raise UserError(f"{folder}: no whole reward model, or one without its normalisation; train it again")
    with safe_open(folder / MODEL_WEIGHTS, framework="pt") as tensors:
        weight = tensors.get_tensor(SCORE)
    head = ScalarHead(weight.shape[1])
    head.load(weight, torch.zeros(1))
    head.standardize(**facts["normalization"])
    return head


def trained_method(folder: Path) -> Full | Freeze:
    """The method by which the whole reward model in a folder was trained. UserError: its files name none."""
    method = parsed_method(folder, adapter_facts(folder).get("trained"))
    if not isinstance(method, Full | Freeze):
        raise UserError(f"{folder}: trained by {names_of(method)}, which makes no whole model; train it again")
    return method


def _classifier_fields(base: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Fields of config.json by which transformers loads the model as a classifier with one output.

    It scores the last token that is no padding token, so one that may end a text is not named as such, though the base
    names it; transformers then refuses batches of several rows.
    """
    config = json.loads((base / "config.json").read_text())
    fields: dict[str, Any] = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    if classifier := MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config["model_type"]):
        fields["architectures"] = [classifier]
    pad = tokenizer.pad_token_id
    fields["pad_token_id"] = None if pad == tokenizer.eos_token_id else pad
    return fields
