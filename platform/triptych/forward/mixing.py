"""Ways in which a model's layers let one token see another, and so whether rows may be laid end to end.

Attention is told by its layout which tokens belong together. A convolution, a recurrence or a state space is not: laid
end to end, one row would run into the next. Such a model is padded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.forward.attention import lay_out
from triptych.forward.masks import PROBED

_KINDS = frozenset({"full_attention", "sliding_attention", "attention"})
"""Kinds of layers (`layer_types`) that see what a layout says: the tokens before, or the last of them."""
_ROWS = ([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8])
"""Token ids of two rows that share no beginning."""


def padded_because(model: PreTrainedModel) -> str | None:
    """The reason why the model's rows cannot be laid end to end; None if they can.

    Looks at the modules and, where the weights are there, at the gradient of one row's hidden states by the
    embeddings of another, which stood beside it: it is zero, unless something other than attention mixes tokens.
    """
    return _by_modules(model) or (_by_gradient(model) if has_values(model) else None)


def has_values(model: PreTrainedModel) -> bool:
    """False for a model that has shapes alone: on the meta device, or of fake tensors."""
    return not any(weight.is_meta or isinstance(weight, FakeTensor) for weight in model.parameters())


def check_causal(model: PreTrainedModel) -> None:
    """UserError where tokens see those after them: what is trained here predicts the next token."""
    if not getattr(model.config, "is_causal", True):
        raise UserError(
            f"model.base: {type(model).__name__} lets tokens see later ones (is_causal: false in config.json); "
            "allowed: causal language models"
        )


def _by_modules(model: PreTrainedModel) -> str | None:
    if model._is_stateful:
        return "it has layers with a state (recurrence or state space)"
    kinds = {str(kind) for kind in getattr(model.config, "layer_types", None) or ()}
    if odd := sorted(kinds - _KINDS):
        return f"it has layers of the kind {odd[0]}"
    for name, module in _decoder(model).named_modules():
        if isinstance(module, nn.Conv1d):
            return f"it mixes tokens by a convolution ({name})"
    if not (model._supports_attention_backend and model._can_set_attn_implementation()):
        return "its attention cannot be replaced"
    return None


def _by_gradient(model: PreTrainedModel) -> str | None:
    leaks: list[bool] = []
    refused = refused_by_layers(model, lambda: leaks.append(_leaks(model)))
    return refused or ("its hidden states depend on what stands beside a row" if leaks[0] else None)


def refused_by_layers(model: PreTrainedModel, look: Callable[[], object] | None = None) -> str | None:
    """The reason why the model's layers do not compute rows laid end to end; None if they do. Needs no values.

    `look`: the passes that are to show it; None: one of two rows.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(PROBED)
    try:
        _states_of_rows(model) if look is None else look()
    except (UserError, TypeError) as error:  # attention does not compute an argument, or a layer does not take it
        if isinstance(error, TypeError) and not has_values(model):
            raise  # fake tensors have errors of their own
        return str(error).removeprefix("model.base: ").partition(";")[0]
    finally:
        model.set_attn_implementation(before)
    return None


def _leaks(model: PreTrainedModel) -> bool:
    """True if hidden states of one row depend on the tokens of another in the same layout."""
    with torch.enable_grad(), _embedded(model) as embedded:
        states, lengths = _states_of_rows(model)
        found = [
            torch.autograd.grad(rows.double().sum(), embedded, retain_graph=True)[0][0]
            for rows in states.split(lengths)
        ]
    first, second = (gradient.split(lengths) for gradient in found)
    return bool(first[1].any() or second[0].any())


def _states_of_rows(model: PreTrainedModel) -> tuple[Tensor, list[int]]:
    """Hidden states [N, d] of two rows laid end to end, and the tokens of each."""
    ids = torch.zeros(2, max(map(len, _ROWS)), dtype=torch.long, device=model.device)
    for line, row in zip(ids, _ROWS, strict=True):
        line[: len(row)] = torch.tensor(row)
    layout = lay_out(ids, (ids > 0).long())
    output = _decoder(model)(
        input_ids=layout.ids[None] % model.config.vocab_size,
        attention_mask=torch.ones_like(layout.ids[None]),  # not told, transformers would look for rows itself
        position_ids=layout.positions[None],
        use_cache=False,
        layout=layout,
    )
    return output.last_hidden_state[0], layout.new


@contextmanager
def _embedded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The embeddings of the passes inside, which take gradients."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def _decoder(model: PreTrainedModel) -> Any:
    return getattr(model, model.base_model_prefix)
