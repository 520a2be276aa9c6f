"""Reward of a Python function, called as TRL calls its reward functions."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.recipe.functions import imported
from triptych.recipe.reward import FunctionReward
from triptych.rewards.asking import Asking, in_thread
from triptych.rewards.base import Answer, Given
from triptych.rewards.in_calls import in_calls


@dataclass(frozen=True)
class FunctionScore:
    """What a function says of prompts, completions and the other columns."""

    settings: FunctionReward
    function: Callable[..., Any]

    @classmethod
    def of(cls, settings: FunctionReward) -> "FunctionScore":
        """The reward whose function the recipe names. UserError: it cannot be imported."""
        return cls(settings, imported(settings.function, "function"))

    async def score(self, answers: Sequence[Answer], asking: Asking) -> Sequence[Given]:
        """The function's scores, by calls of as many answers as the recipe says."""
        return await in_calls(answers, self.settings.per_call, asking, self._asked)

    async def _asked(self, answers: Sequence[Answer]) -> Sequence[Any]:
        given = _arguments(answers, conversational=self.settings.conversational)
        named = inspect.signature(self.function).parameters
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in named.values()):
            given = {name: value for name, value in given.items() if name in named}
        return await in_thread(lambda: self.function(**given))


def _arguments(answers: Sequence[Answer], *, conversational: bool) -> dict[str, list[Any]]:
    """Arguments of a reward function of TRL; a row without a column has None in it."""
    if conversational:
        prompts: list[Any] = [[dict(message) for message in answer.prompt] for answer in answers]
        written: list[Any] = [[{"role": "assistant", "content": answer.text}] for answer in answers]
    else:
        prompts, written = [answer.prompt_text for answer in answers], [answer.text for answer in answers]
    columns = dict.fromkeys(name for answer in answers for name in answer.fields)
    others = {name: [answer.fields.get(name) for answer in answers] for name in columns}
    own = {"prompts": prompts, "completions": written, "completion_ids": [list(one.response_ids) for one in answers]}
    return others | own
