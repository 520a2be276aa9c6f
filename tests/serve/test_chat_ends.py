"""A chat at the endpoint is written as in training, and ends where training ends an answer."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

pytestmark = pytest.mark.slow  # Ray Serve LLM and vLLM are imported


@pytest.mark.parametrize(
    ("fields", "stops"), [({}, [5, 2]), ({"stop_token_ids": [7, 2]}, [7, 2, 5]), ({"ignore_eos": True}, [])]
)
def test_a_chat_stops_at_the_end_of_a_turn(fields: dict[str, Any], stops: list[int]) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    from triptych.serve.engine import ended

    request = ChatCompletionRequest(messages=[{"role": "user", "content": "Hi"}], **fields)
    found = ended(request, [5, 2])
    assert found.to_sampling_params(8, {}).stop_token_ids == stops


def test_the_engine_is_given_the_chat_template() -> None:
    from triptych.recipe.serve import ServeConfig
    from triptych.serve.engine import llm_config

    template = "{{ messages[0].content }}"
    config = ServeConfig.model_validate({"model": {"base": "b", "chat_template": template}, "registry": "r.db"})
    assert llm_config(config).get_engine_config().frontend_kwargs == {"chat_template": template}
    plain = config.model_copy(update={"model": config.model.model_copy(update={"chat_template": None})})
    assert llm_config(plain).get_engine_config().frontend_kwargs == {}


def test_parts_of_a_content_are_the_text_that_training_makes_of_them() -> None:
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.renderers.chat_utils import parse_chat_messages

    from triptych.data.dialogues import turns
    from triptych.serve.engine import content_format

    given = [{"role": "user", "content": [{"type": "text", "text": text} for text in ("Which city?", "Please.")]}]
    found: Any = FrontendArgs(**content_format(takes_text=True)).chat_template_content_format
    config: Any = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False)
    assert parse_chat_messages(cast("Any", given), config, found)[0] == turns(given, "messages")
    assert FrontendArgs(**content_format(takes_text=False)).chat_template_content_format == "auto"
