"""Every weight of the base itself is trained: the role has the base for itself, and comes out as a whole model."""

import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.methods.base import Attachment
from triptych.recipe.method import Full


class WholeBase(Attachment):
    """The base's parameters under their own names."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by the names of their files."""
        return dict(self._model.named_parameters())

    def activate(self, on: bool) -> None:
        """Do nothing: the base's weights are always a part of the model."""


def attach(model: PreTrainedModel, method: Full, role: str) -> WholeBase:
    """Train every weight of the base, in float32, or in float64 on a float64 base."""
    if model.dtype != torch.float64:
        model.float()
    return WholeBase(model)
