"""Prompt tuning and P-tuning: embeddings of virtual tokens that stand before every row.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691) trains the embeddings themselves, P-tuning (Liu et al. 2021, arXiv
2103.10385) an encoder that makes them. Whoever runs the model calls the prompt and puts it before the rows.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PromptEncoderConfig, PromptLearningConfig, PromptTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods.base import Attachment, Export
from triptych.methods.layers import linear
from triptych.models.base import plain_tokenizer
from triptych.recipe.virtual import PromptTuning, PTuning

EMBEDDINGS = "prompt_embeddings"
"""The only tensor of peft's file."""


class Prompt(nn.Module):
    """Embeddings [P, d] of virtual tokens, trained as they are."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(start)

    def forward(self) -> Tensor:
        return self.prompt_embeddings.clone()  # ZeRO-3 takes the parameter's memory back after this call


class PromptEncoder(nn.Module):
    """The embeddings [P, d] of virtual tokens through an MLP, or a two-way LSTM and an MLP; named as peft's."""

    def __init__(self, method: PTuning, hidden: int) -> None:
        super().__init__()
        width = method.encoder_hidden_size or hidden
        self.embedding = nn.Embedding(method.num_virtual_tokens, hidden)
        self.lstm_head: nn.LSTM | None = None
        if method.encoder_reparameterization_type == "lstm":
            self.lstm_head = nn.LSTM(
                hidden,
                width,
                method.encoder_num_layers,
                dropout=method.encoder_dropout,
                bidirectional=True,
                batch_first=True,
            )
            self.mlp_head = nn.Sequential(linear(2 * width, 2 * width), nn.ReLU(), linear(2 * width, hidden))
        else:
            self.mlp_head = nn.Sequential(
                linear(hidden, width), nn.ReLU(), linear(width, width), nn.ReLU(), linear(width, hidden)
            )

    def forward(self) -> Tensor:
        device = self.embedding.weight.device
        with torch.autocast(device.type, enabled=False):
            x = self.embedding(torch.arange(self.embedding.num_embeddings, device=device))
            if self.lstm_head is not None:
                x = self.lstm_head(x[None])[0][0]
            return self.mlp_head(x)


class PromptAttachment(Attachment):
    """A prompt, on the decoder."""

    prompt: nn.Module

    def __init__(self, model: PreTrainedModel, role: str, prompt: nn.Module) -> None:
        hold(getattr(model, model.base_model_prefix), "prompts", role, prompt)
        self.prompt = prompt

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by the names of their files."""
        return dict(self.prompt.named_parameters())

    def activate(self, on: bool) -> None:
        """The prompt acts where it is called."""


def attach(model: PreTrainedModel, method: PromptTuning | PTuning, role: str) -> PromptAttachment:
    """The prompt of a role, new.

    Raises:
        UserError: `init: text` and no tokenizer beside the model.
    """
    if isinstance(method, PTuning):
        return PromptAttachment(model, role, PromptEncoder(method, _width(model)))
    return PromptAttachment(model, role, Prompt(_start(model, method)))


def export(method: PromptTuning | PTuning, state: Mapping[str, Tensor]) -> Export:
    """The embeddings alone, which load as prompt tuning; peft's file tells the two methods apart."""
    embeddings = fold(method, state)
    plain = method
    if isinstance(method, PTuning):
        plain = PromptTuning(num_virtual_tokens=method.num_virtual_tokens, init="random", lr=method.lr)
    return Export(plain, {EMBEDDINGS: embeddings}, _peft_config(method, embeddings.shape[1]))


def fold(method: PromptTuning | PTuning, state: Mapping[str, Tensor]) -> Tensor:
    """The embeddings [P, d] that a trained state stands for."""
    if isinstance(method, PromptTuning):
        return state[EMBEDDINGS]
    table = state["embedding.weight"]
    encoder = PromptEncoder(method, table.shape[1]).to(table)
    encoder.load_state_dict(dict(state))
    with torch.no_grad():
        folded: Tensor = encoder.eval()()
    return folded


def token_ids(model: PreTrainedModel, text: str, count: int) -> list[int]:
    """The tokens of a text, from the tokenizer beside the model; repeated or cut to `count`.

    Raises:
        UserError: no tokenizer, or a text of no token.
    """
    folder = Path(model.name_or_path)
    if not model.name_or_path or not folder.is_dir():
        raise UserError("method.init: text needs the base model's tokenizer, and this model comes from no folder")
    ids = plain_tokenizer(folder)(text)["input_ids"]
    if not ids:
        raise UserError("method.init_text: a text of at least one token")
    return list(itertools.islice(itertools.cycle(ids), count))


def hold(parent: Any, kind: str, role: str, module: nn.Module) -> None:
    """Make the module of a role a part of a model's, where its parameters are; in float32, or float64 as they are."""
    if kind not in dict(parent.named_children()):
        parent.add_module(kind, nn.ModuleDict())
    near = next(parent.parameters())
    dtype = torch.float64 if near.dtype == torch.float64 else torch.float32
    getattr(parent, kind)[role] = module.to(near.device, dtype).train(parent.training)


def _start(model: PreTrainedModel, method: PromptTuning) -> Tensor:
    count, table = method.num_virtual_tokens, model.get_input_embeddings()
    if method.init == "random":
        return torch.randn(count, _width(model))
    if method.init == "text":
        ids = torch.tensor(token_ids(model, method.init_text or "", count))
    else:
        ids = torch.randint(model.config.vocab_size, (count,))
    with torch.no_grad():
        return table(ids.to(model.device)).detach()


def _width(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().embedding_dim)


def _peft_config(method: PromptTuning | PTuning, hidden: int) -> PromptLearningConfig:
    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": method.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "token_dim": hidden,
    }
    if isinstance(method, PromptTuning):
        return PromptTuningConfig(**common)
    return PromptEncoderConfig(
        **common,
        encoder_reparameterization_type=method.encoder_reparameterization_type.upper(),
        encoder_hidden_size=method.encoder_hidden_size or hidden,
        encoder_num_layers=method.encoder_num_layers,
        encoder_dropout=method.encoder_dropout,
    )
