"""Partial tuning: some of the base's own weights are trained, and the others are frozen.

Only what is trained becomes float32. The role has the base for itself, and comes out as a whole model. Where the output
head shares the embeddings' weights, what is trained of one is trained of both.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods.hooked import HookedAttachment
from triptych.methods.parameters.base_weights import trained_parameters
from triptych.models.weights import read_weight, read_weights
from triptych.recipe.method import Freeze, Full

ROWS = ".rows"
"""Suffix of the name of a weight of which some rows are trained."""


class Trained(HookedAttachment):
    """Parameters of the base itself, under their own names, and rows of tables under `<name>.rows`."""

    def __init__(self, role: str, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__(role)
        self._model = model
        self._names = frozenset(names)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by the names of their files."""
        shared: dict[nn.Parameter, str] = {}
        own = {name: parameter for name, parameter in self._model.named_parameters() if name in self._names}
        for name, parameter in (own | super().parameters()).items():
            shared.setdefault(parameter, name)
        return {name: parameter for parameter, name in shared.items()}


class EmbeddingRows(nn.Module):
    """Token ids [...] and their embeddings [..., d] -> these with the rows of some tokens in place of the table's."""

    place: Tensor

    def __init__(self, rows: nn.Parameter, tokens: Tensor, vocab: int) -> None:
        """`rows` [k, d] of `tokens` [k]."""
        super().__init__()
        self.rows = rows
        place = torch.full((vocab,), -1, device=tokens.device)
        place[tokens] = torch.arange(len(tokens), device=tokens.device)
        self.register_buffer("place", place, persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        place = self.place[x]
        own = F.embedding(place.clamp(min=0), self.rows).to(y.dtype)
        return torch.where((place >= 0)[..., None], own, y)


class HeadRows(nn.Module):
    """Hidden states [..., d] and logits [..., V] -> these with some tokens' logits from rows of their own."""

    tokens: Tensor

    def __init__(self, rows: nn.Parameter, tokens: Tensor) -> None:
        """`rows` [k, d] of `tokens` [k]."""
        super().__init__()
        self.rows = rows
        self.register_buffer("tokens", tokens, persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.rows.dtype)
        return y.index_copy(-1, self.tokens, F.linear(x, self.rows).to(y.dtype))


def attach(model: PreTrainedModel, config: Freeze, role: str) -> Trained:
    """Train the chosen weights of the base, in float32, or in float64 on a float64 base.

    Raises:
        UserError: a pattern matches no parameter, a chosen one is quantized, or a token is not in the vocabulary.
    """
    named = dict(model.named_parameters())
    names = trained_parameters(config, named)
    for name in names:
        parameter = named[name]
        if not parameter.is_floating_point():
            raise UserError(f"method.name: freeze trains {name}, which is quantized; allowed: no model.quantization")
        if parameter.dtype != torch.float64:
            parameter.data = parameter.data.float()
    attachment = Trained(role, model, names)
    if config.tokens:
        _add_rows(model, config, attachment)
    return attachment


def whole(method: Freeze | Full, base: Path, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder, with what was trained in their place. A tied head's copy is left out.

    Buffers, such as the bias that balances a router's experts, come from the folder: no method trains them.
    """
    found = read_weights(base)
    if json.loads((base / "config.json").read_text()).get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)
    for name, value in trained.items():
        table = name.removesuffix(ROWS)
        found[table] = value if table == name else _with_rows(method, found[table], value)
    return found


def whole_tables(
    method: Freeze | Full, base: Path, trained: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """What was trained, one tensor at a time, with the folder's tables around the rows of tokens."""
    for name, value in trained:
        table = name.removesuffix(ROWS)
        yield table, value if table == name else _with_rows(method, read_weight(base, table), value)


def _with_rows(method: Freeze | Full, table: Tensor, rows: Tensor) -> Tensor:
    """A table [V, d] in the rows' precision, with the rows [k, d] of the method's tokens in their places."""
    tokens = torch.tensor(token_ids(method) if isinstance(method, Freeze) else [], dtype=torch.long)
    return table.to(rows.dtype).index_copy(0, tokens, rows)


def token_ids(config: Freeze) -> list[int]:
    """Token ids of the trained rows, in their order."""
    return sorted(set(config.tokens))


def _add_rows(model: PreTrainedModel, config: Freeze, attachment: Trained) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    tokens = torch.tensor(token_ids(config), device=embedding.weight.device)
    vocab = len(embedding.weight)
    if tokens[-1] >= vocab:
        raise UserError(f"method.tokens: {int(tokens[-1])} is no token of this model; allowed: 0 to {vocab - 1}")
    rows = _rows(embedding, tokens)
    attachment.put(embedding, "rows", names[embedding] + ".weight", EmbeddingRows(rows, tokens, vocab))
    own = rows if head.weight is embedding.weight else _rows(head, tokens)
    attachment.put(head, "rows", names[head] + ".weight", HeadRows(own, tokens))


def _rows(table: nn.Module, tokens: Tensor) -> nn.Parameter:
    weight: Tensor = table.weight.detach()  # type: ignore[operator]
    rows = weight[tokens]
    return nn.Parameter(rows if rows.dtype == torch.float64 else rows.float())
