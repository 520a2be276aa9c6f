"""Rows of several answers to one prompt, ranked by scores, as RRHF learns from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from triptych.data.chat import ChatTemplate, Turn
from triptych.data.encode import Encoded, turns_of_rows
from triptych.data.ratings import scored
from triptych.data.rows import RANKED, Message, PromptRow, parse_pair, parse_prompt
from triptych.data.shapes import shaped
from triptych.data.turn_tokens import TurnTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class RankingRow(PromptRow):
    """A prompt and several answers to it, the best first."""

    answers: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    """Higher is better; answers with equal scores are not compared."""


@dataclass(frozen=True, slots=True)
class RankingExample:
    """The whole chats of a prompt with each of its answers, one behind the other, the best answer first."""

    input_ids: list[int]
    lengths: list[int]
    """Tokens of each chat."""
    start: int
    """Number of tokens of the prompt, after which the answer begins in each chat."""
    scores: list[float]


def parse_ranking(record: Mapping[str, Any], most: int = RANKED) -> RankingRow:
    """Parse `{prompt, answers, scores}` or a shape like it; a pair is a ranking of two, of scores 1 and 0.

    Raises:
        ValueError: what is wrong, such as more than `most` answers, or no two scores that differ.
    """
    shape = shaped(record, "rankings")
    if not shape.get("answers"):
        if shape.get("rated") is not None:
            raise ValueError("one answer with its rating; allowed: the answers to a prompt in one row, with `scores`")
        pair = parse_pair(record)
        return RankingRow(pair.prompt, tools=pair.tools, answers=(pair.chosen, pair.rejected), scores=(1.0, 0.0))
    if shape.get("scores") is None and shape.get("ranks") is None:
        raise ValueError(f"no 'scores' (or 'ranks'); the row has: {', '.join(sorted(map(str, record)))}")
    scores, answers = zip(*scored(shape), strict=True)
    if len(answers) > most:
        raise ValueError(f"answers: {len(answers)}; allowed: up to {most}")
    if len(set(scores)) == 1:
        raise ValueError("scores: no two differ, so there is nothing to prefer")
    asked = parse_prompt({name: shape[name] for name in ("prompt", "tools") if name in shape})
    return RankingRow(asked.messages, tools=asked.tools, answers=answers, scores=scores)


def ranked_turns(template: ChatTemplate, row: RankingRow) -> list[Turn]:
    """The assistant's turn with each answer; ValueError as of `ChatTemplate.turns`."""
    asked = [replace(message, learned=False) for message in row.messages]
    return [turn for text in row.answers for turn in template.turns((*asked, Message("assistant", text)), row.tools)]


def encode_rankings(
    rows: Iterable[RankingRow], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Encoded[RankingExample]:
    """Encode rankings. One with an answer that is longer than `max_length` is dropped: it was ranked as a whole."""
    rows, template = list(rows), ChatTemplate(tokenizer)
    chats = TurnTokens(tokenizer).of(
        [[t] for turns in turns_of_rows(lambda r: ranked_turns(template, r), rows) for t in turns]
    )
    items = []
    for row in rows:
        turns = [next(chats)[0] for _ in row.answers]
        whole = [prompt + answer for prompt, answer in turns]
        if max(map(len, whole)) <= max_length:
            ids = [token for one in whole for token in one]
            items.append(RankingExample(ids, [len(one) for one in whole], len(turns[0][0]), list(row.scores)))
    return Encoded(items, dropped=len(rows) - len(items))


def apart(ids: list[int], lengths: list[int]) -> list[list[int]]:
    """The chats of a ranking, each by itself."""
    return [ids[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
