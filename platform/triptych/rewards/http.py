"""Reward of a server: answers as JSON to it, scores back."""

from collections.abc import Sequence
from typing import Any

from triptych.recipe.reward import HttpReward
from triptych.rewards.asking import Asking
from triptych.rewards.base import Answer, Given
from triptych.rewards.client import JsonClient, ServedScore
from triptych.rewards.in_calls import in_calls


class HttpScore(ServedScore[HttpReward]):
    """What a server says of answers; docs/rewards.md has the protocol."""

    async def score(self, answers: Sequence[Answer], asking: Asking) -> Sequence[Given]:
        """The server's scores, by requests of as many answers as the recipe says."""
        async with JsonClient(self.settings, self.headers) as client:

            async def call(some: Sequence[Answer]) -> Any:
                return _scores(await client.post(self.settings.url, _asked(some)))

            return await in_calls(answers, self.settings.per_call, asking, call)


def _asked(answers: Sequence[Answer]) -> dict[str, list[Any]]:
    return {
        "prompts": [[dict(message) for message in answer.prompt] for answer in answers],
        "answers": [answer.text for answer in answers],
        "fields": [dict(answer.fields) for answer in answers],
    }


def _scores(found: Any) -> Any:
    if not isinstance(found, dict) or "scores" not in found:
        raise ValueError("the server answered no mapping with `scores`")
    return found["scores"]
