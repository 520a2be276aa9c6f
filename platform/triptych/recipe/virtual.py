"""Methods that put virtual tokens, or their keys and values, before every row."""

from typing import Literal, Self

from pydantic import Field, model_validator

from triptych.recipe.part import Dropout, Part


class _VirtualTokens(Part):
    """Trained tokens or keys and values before every row."""

    family = "soft"
    merges = False

    num_virtual_tokens: int = Field(20, ge=1, le=1024)
    """They take so many positions of the model's context before every row."""


class PromptTuning(_VirtualTokens):
    """Trained embeddings before every row (Lester et al. 2021, arXiv 2104.08691)."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    init: Literal["random", "text", "vocabulary"] = "vocabulary"
    """The embeddings start as noise, as those of a text, or as those of tokens drawn from the vocabulary."""
    init_text: str | None = None
    """Repeated or cut to the number of virtual tokens."""

    @model_validator(mode="after")
    def _text(self) -> "PromptTuning":
        if (self.init == "text") != bool(self.init_text):
            raise ValueError("init_text: the text of init: text; allowed: both, or neither")
        return self


class PTuning(_VirtualTokens):
    """Embeddings before every row, made by a trained encoder (Liu et al. 2021, arXiv 2103.10385)."""

    name: Literal["p_tuning"] = "p_tuning"
    encoder_reparameterization_type: Literal["mlp", "lstm"] = "mlp"
    """Network that makes the virtual tokens in training."""
    encoder_hidden_size: int | None = Field(None, ge=1, le=65536)
    """None: the model's."""
    encoder_num_layers: int = Field(2, ge=1, le=16)
    """Layers of the LSTM; the MLP always has the same number."""
    encoder_dropout: Dropout = 0.0
    """Dropout between the LSTM's layers."""

    @model_validator(mode="after")
    def _lstm(self) -> "PTuning":
        if self.encoder_reparameterization_type == "mlp" and (self.encoder_num_layers != 2 or self.encoder_dropout):
            raise ValueError(
                "encoder_num_layers and encoder_dropout are the LSTM's; allowed: encoder_reparameterization_type lstm, "
                "or neither of them"
            )
        return self


class _Prefix(_VirtualTokens):
    prefix_projection: bool
    """An encoder of two layers makes the keys and values; it is folded when training ends."""
    encoder_hidden_size: int = Field(512, ge=1, le=65536)
    """Hidden size of that encoder."""
    init: Literal["text", "random"] = "text"
    """The keys and values start as those of a text, or as noise, which ruins the model at first."""
    init_text: str | None = Field(None, min_length=1)
    """Repeated or cut to the number of virtual tokens; None: a neutral one."""

    @model_validator(mode="after")
    def _text(self) -> Self:
        if self.init == "random" and self.init_text:
            raise ValueError("init_text: the text of init: text, not of init: random; allowed: one of the two")
        return self


class PrefixTuning(_Prefix):
    """Trained keys and values before every row in every layer (Li & Liang 2021, arXiv 2101.00190)."""

    name: Literal["prefix_tuning"] = "prefix_tuning"
    prefix_projection: bool = True
    """Make the keys and values by a two-layer network in training."""


class PTuningV2(_Prefix):
    """Trained keys and values before every row in every layer (Liu et al. 2022, arXiv 2110.07602)."""

    name: Literal["p_tuning_v2"] = "p_tuning_v2"
    prefix_projection: bool = False
    """Make the keys and values by a two-layer network in training."""


class GatedPrefix(_Prefix):
    """A prefix that a gate in each layer scales for each token (Mao et al. 2022, arXiv 2110.07577)."""

    name: Literal["gated_prefix"] = "gated_prefix"
    prefix_projection: bool = True
    """Make the keys and values by a two-layer network in training."""
