"""Models in the harness's sense: one that writes its requests down as tokens, one that knows the answers.

Tokens are those of the harness's own class for transformers (`lm_eval.models.huggingface.HFLM`), whose `max_length` is
one less than the longest row here: it leaves out a row's last token, and we do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM, TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from triptych.errors import RunError, UserError

HarnessRequest = tuple[str | None, str]
"""A context and its continuation; None: a text whose own log-probability is asked."""


class Asked(TemplateLM):
    """Writes down what it is asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        """`longest`: tokens of the longest row; longer ones lose tokens on the left."""
        super().__init__()
        self.tokenizer: Any = tokenizer
        self.longest = longest
        self.cut = 0
        self.found: dict[HarnessRequest, list[tuple[list[int], list[int]]]] = {}

    def columns(self) -> dict[str, list[Any]]:
        """Each row's request, and its tokens: `prompt`, and `answer`, whose log-probability is asked."""
        flat = [(key, pair) for key, pairs in self.found.items() for pair in pairs]
        return {
            "context": [context for (context, _), _ in flat],
            "continuation": [continuation for (_, continuation), _ in flat],
            "prompt": [prompt for _, (prompt, _) in flat],
            "answer": [answer for _, (_, answer) in flat],
        }

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **given)
        return ids

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.longest - 1, 1)
            self.found[None, text] = [self._fit(*make_disjoint_window(window)) for window in windows]
        return [0.0] * len(requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        raise RunError("tasks that generate are refused before")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for key, prompt, answer in requests:
            if key not in self.found:
                self.found[key] = [self._fit(prompt, answer)]
        return [(0.0, False)] * len(requests)

    def _fit(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """The tokens, cut on the left to the longest row. UserError: nothing is left before the answer, or in it."""
        if not prompt:
            raise UserError(f"a context has no token before its continuation {self.tokenizer.decode(answer)!r}")
        if not 0 < len(answer) < self.longest:
            raise UserError(
                f"a continuation has {len(answer)} tokens, and a row of the stage's compute.batch.max_length "
                f"{self.longest} takes 1 to {self.longest - 1} behind at least one other"
            )
        self.cut += len(prompt) + len(answer) > self.longest
        return prompt[-(self.longest - len(answer)) :], answer


class Answered(LM):
    """Answers what was measured."""

    def __init__(self, answers: Mapping[HarnessRequest, tuple[float, bool]]) -> None:
        super().__init__()
        self.answers = answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        return [self._answer(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        return [self._answer(None, *request.args)[0] for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        raise RunError("tasks that generate are refused before")

    def _answer(self, context: str | None, continuation: str) -> tuple[float, bool]:
        if context is None and not continuation:
            return 0.0, True  # a text without a token
        if (context, continuation) not in self.answers:
            raise RunError(
                f"a task asks what was not measured: {continuation[:80]!r}; its rows are drawn anew each time"
            )
        return self.answers[context, continuation]
