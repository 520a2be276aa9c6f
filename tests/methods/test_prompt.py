"""Prompts stand before every row, however rows are laid out, and as in plain peft."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.support.gradient_cases import assert_equal
from tests.support.soft_cases import (
    LAYOUTS,
    ROWS,
    assert_adds_what_the_table_says,
    assert_as_in_peft,
    assert_roles_differ,
    roles,
    states,
    states_and_gradients,
)
from triptych.errors import UserError
from triptych.models.base import load_tokenizer
from triptych.recipe.matrix import Lora
from triptych.recipe.virtual import PromptTuning, PTuning

TEXT = "The film is a warm and funny story."
METHODS_HERE: dict[str, Any] = {
    "random": PromptTuning(num_virtual_tokens=3, init="random"),
    "vocabulary": PromptTuning(num_virtual_tokens=3),
    "text": PromptTuning(num_virtual_tokens=9, init="text", init_text=TEXT),
    "mlp": PTuning(num_virtual_tokens=3, encoder_hidden_size=16),
    "lstm": PTuning(num_virtual_tokens=3, encoder_reparameterization_type="lstm", encoder_hidden_size=16),
}
each = pytest.mark.parametrize("method", METHODS_HERE.values(), ids=METHODS_HERE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vocabulary", "mlp", "lstm"])
def test_every_layout_gives_the_same_states_and_gradients(tiny_model_dir: Path, kind: str) -> None:
    first, *others = (states_and_gradients(tiny_model_dir, METHODS_HERE[kind], layout) for layout in LAYOUTS.values())
    for other in others:
        assert_equal(other, first, 1e-10)


@each
def test_plain_peft_gives_the_same_logits(tiny_model_dir: Path, tmp_path: Path, method: Any) -> None:
    assert_as_in_peft(tiny_model_dir, method, tmp_path)


def test_a_prompt_of_a_text_is_that_text(tiny_model_dir: Path) -> None:
    ids = load_tokenizer(tiny_model_dir)(TEXT)["input_ids"]
    for count in (4, len(ids) + 3):  # cut, repeated
        model = roles(tiny_model_dir)
        method = PromptTuning(num_virtual_tokens=count, init="text", init_text=TEXT)
        model.add("policy", method, trainable=True)
        text = [*ids, *ids][:count]
        expected = [states(model, "base", [text + row])[count:] for row in ROWS]
        assert (states(model, "policy", ROWS) - torch.cat(expected)).abs().max() < 1e-5


@each
def test_adds_what_the_table_says(tiny_model_dir: Path, method: Any) -> None:
    assert_adds_what_the_table_says(tiny_model_dir, method)


def test_roles_have_prompts_of_their_own(tiny_model_dir: Path) -> None:
    assert_roles_differ(tiny_model_dir, METHODS_HERE, "mlp")


def test_methods_of_linear_layers_do_not_see_the_encoder(tiny_model_dir: Path) -> None:
    model = roles(tiny_model_dir)
    model.add("mlp", METHODS_HERE["mlp"], trainable=True)
    model.add("both", (METHODS_HERE["mlp"], Lora(r=2)), trainable=True)
    alone = roles(tiny_model_dir)
    alone.add("lora", Lora(r=2), trainable=True)
    own = {name for name in model.parameters_of("both") if not name.startswith("p_tuning.")}
    assert {name.removeprefix("lora.") for name in own} == set(alone.parameters_of("lora"))


def test_dropout_of_the_lstm_acts_in_training_alone(tiny_model_dir: Path) -> None:
    method = PTuning(num_virtual_tokens=3, encoder_reparameterization_type="lstm", encoder_dropout=0.5)
    model = roles(tiny_model_dir)
    model.add("policy", method, trainable=True)
    still = states(model, "policy", ROWS)
    assert torch.equal(states(model, "policy", ROWS), still)
    model.train()
    assert not torch.equal(states(model, "policy", ROWS), still)


def test_in_16_bits_the_encoder_stays_in_32(tiny_model_dir: Path) -> None:
    model = roles(tiny_model_dir, torch.bfloat16)
    model.add("policy", METHODS_HERE["mlp"], trainable=True)
    with model.autocast(), model.use("policy"):
        prompt = model.attached["policy"][""].prompt
        assert prompt is not None
        assert prompt().dtype == torch.float32
        assert states(model, "policy", ROWS).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (PromptTuning, {"num_virtual_tokens": 0}, "greater than or equal to 1"),
        (PromptTuning, {"num_virtual_tokens": 1025}, "less than or equal to 1024"),
        (PromptTuning, {"init": "text"}, "init_text: the text of init: text"),
        (PromptTuning, {"init_text": TEXT}, "init_text: the text of init: text"),
        (PTuning, {"encoder_dropout": 0.1}, "encoder_num_layers and encoder_dropout are the LSTM's"),
        (PTuning, {"encoder_num_layers": 3}, "encoder_num_layers and encoder_dropout are the LSTM's"),
    ],
)
def test_refuses_what_cannot_be(kind: type[Any], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind(**wrong)


def test_a_text_needs_a_tokenizer(tiny_model_dir: Path) -> None:
    model = roles(tiny_model_dir)
    model.lm.config._name_or_path = ""
    model.lm.name_or_path = ""
    with pytest.raises(UserError, match=r"method.init: text needs the base model's tokenizer"):
        model.add("policy", METHODS_HERE["text"], trainable=True)
