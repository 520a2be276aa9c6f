"""Tokens of the assistant's turns: of the prompt as an engine is given it, and of the answer behind it.

A run of turns whose prompts go on from one another is tokenised once, as one text, and cut at its control tokens: what
stands between two of them is tokenised by itself, so a text that ends with one has the tokens that it has within a
longer text. Where the answer would merge into the prompt, the prompt's tokens stand and the answer's follow.
"""

import bisect
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from triptych.data.chat import Turn, any_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptAndAnswer = tuple[list[int], list[int]]
"""Tokens of a prompt, and of the answer to it."""


class TurnTokens:
    """A tokenizer for turns."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._ids_of = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        self._added = any_of(list(self._ids_of))
        self._short = lru_cache(maxsize=256)(lambda text: self.ids([text])[0])

    def of(self, chats: list[list[Turn]]) -> Iterator[list[PromptAndAnswer]]:
        """Tokens of the turns of each chat, all tokenised in one call."""
        runs = [(number, run) for number, chat in enumerate(chats) for run in _runs(chat)]
        texts = [run[-1].prompt + run[-1].answer for _, run in runs]
        found = [
            (number, [self._cut(turn, ids, starts) for turn in run])
            for (number, run), (ids, starts) in zip(runs, self._encoded(texts), strict=True)
        ]
        by_chat = {number: list(group) for number, group in groupby(found, key=itemgetter(0))}
        for number in range(len(chats)):
            yield [tokens for _, run in by_chat.get(number, []) for tokens in run]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, none added."""
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _encoded(self, texts: list[str]) -> Iterable[tuple[list[int], list[int]]]:
        """The tokens of each text, and the character that each begins at; none for a tokenizer that does not tell."""
        if not texts or not self._tokenizer.is_fast:
            return [(ids, []) for ids in self.ids(texts)]
        found: Any = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        starts = [[start for start, _ in offsets] for offsets in found["offset_mapping"]]
        return zip(found["input_ids"], starts, strict=True)

    def _cut(self, turn: Turn, ids: list[int], starts: list[int]) -> PromptAndAnswer:
        """The tokens of a turn out of those of a longer text."""
        text = turn.prompt + turn.answer
        end = bisect.bisect_left(starts, len(text))
        last = self._last(text)
        exact = last is not None and end > 0 and self._is_at(last, ids, starts, end - 1)
        whole = ids[:end] if exact else self.ids([text])[0]
        prompt = self._prompt(turn.prompt, ids, starts)
        return prompt, self._answer(prompt, whole, turn.answer)

    def _prompt(self, prompt: str, ids: list[int], starts: list[int]) -> list[int]:
        """The prompt's tokens: those of the longer text up to its last control token, and what follows that."""
        last = self._last(prompt)
        if last is not None:
            place = bisect.bisect_left(starts, last[0])
            if self._is_at(last, ids, starts, place):
                return [*ids[:place], *self._short(prompt[last[0] :])]
        return self.ids([prompt])[0]

    def _last(self, text: str) -> tuple[int, str] | None:
        """The last control token that the text writes, and the character it begins at."""
        found = deque(self._added.finditer(text), maxlen=1)
        return (found[0].start(), found[0][0]) if found else None

    def _is_at(self, token: tuple[int, str], ids: list[int], starts: list[int], place: int) -> bool:
        """Whether the tokenizer made that token there: not all that are written are read."""
        return place < len(starts) and starts[place] == token[0] and ids[place] == self._ids_of[token[1]]

    def _answer(self, prompt: list[int], whole: list[int], answer: str) -> list[int]:
        """The answer's tokens behind those of its prompt: of the whole text where it begins so, else on their own."""
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        # Tokenised alone, an answer may get a space at its beginning, so it is put behind what does not merge with it.
        anchors = ["\n", "0", ".", self._tokenizer.eos_token]
        before, both = (self.ids([anchor + text for anchor in anchors]) for text in ("", answer))
        for left, joined in zip(before, both, strict=True):
            if joined[: len(left)] == left:
                return joined[len(left) :]
        return self.ids([answer])[0]


def _runs(chat: list[Turn]) -> Iterator[list[Turn]]:
    """Stretches of turns whose prompts go on from one another."""
    run: list[Turn] = []
    for turn in chat:
        if run and not turn.prompt.startswith(run[-1].prompt + run[-1].answer):
            yield run
            run = []
        run.append(turn)
    if run:
        yield run
