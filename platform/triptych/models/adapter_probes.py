"""Token sequences that probe an adapter, and the probes of one that was trained elsewhere, by plain peft in float32."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triptych.errors import UserError
from triptych.models.adapter_effect import Probes, candidates, choose, weights_digest
from triptych.models.base import load_causal_lm, plain_tokenizer
from triptych.models.lora_fit import check_lora_fit
from triptych.models.peft_files import ADAPTER_CONFIG


def probes_by_peft(adapter: Path, base: Path) -> Probes:
    """Probes of an adapter in peft's format on the base in a folder; both are loaded, in float32.

    Raises:
        UserError: it is not in peft's format, or does not fit the base.
    """
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise UserError(f"{ADAPTER_CONFIG} is missing: only adapters in peft's format are measured here")
    check_lora_fit(adapter, base)
    tokenizer = plain_tokenizer(base)
    model = load_causal_lm(base, torch.float32)
    asked = probe_candidates(model, tokenizer)
    alone = _logprobs(model, asked)
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UserError(f"peft does not load the adapter: {error}") from None
    return replace(choose(asked, alone, _logprobs(adapted, asked), "float32"), weights=weights_digest(adapter))


def probe_candidates(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token sequences to choose probes from, of tokens that both the tokenizer and the model know."""
    config = model.config.get_text_config()
    rows = int(config.vocab_size)
    plain = [token for token in tokenizer.get_vocab().values() if token < rows]
    return candidates(plain, tokenizer.all_special_ids, int(getattr(config, "max_position_embeddings", None) or rows))


@torch.no_grad()
def _logprobs(model: nn.Module, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probabilities of all tokens of equally long sequences but the first of each."""
    ids = torch.tensor(sequences)
    logprobs = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    found: list[list[float]] = logprobs.gather(2, ids[:, 1:, None])[:, :, 0].double().tolist()
    return found
