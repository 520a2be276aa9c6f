"""The tokens that end an answer, for training, sampling and serving alike."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.data.encode import encode_sft
from triptych.data.rows import Message, SftRow
from triptych.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHAT = SftRow((Message("user", "Hi"), Message("assistant", "Hello")))


def end_tokens(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that end an answer: the last one that is learned of it, then the tokenizer's and the model's own.

    The model's own are those of generation_config.json or, without that file, of config.json, as in transformers.

    Raises:
        UserError: the chat template cannot write a question and its answer, or the file names no ids.
    """
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([end_of_turn(tokenizer), *own, *_of_model(folder)]))


def learned_ends(folder: Path) -> list[int]:
    """`end_tokens` of a model's folder; none where its tokenizer writes no chats."""
    from triptych.models.base import load_tokenizer

    try:
        return end_tokens(folder, load_tokenizer(folder))
    except UserError:
        return []


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The last token that is learned of an answer. UserError: the chat template cannot write an answer."""
    try:
        return encode_sft([_CHAT], tokenizer, 1 << 30).items[0].input_ids[-1]
    except UserError as error:
        raise UserError(
            f"model.base: its chat template cannot write a plain question and its answer: {error}"
        ) from error


def answer_texts(
    tokenizer: "PreTrainedTokenizerBase", ends: Collection[int], sequences: Sequence[Sequence[int]]
) -> list[str]:
    """Token ids as text, without their end, special tokens, and white space at either end.

    `ends`: tokens that end an answer; some tokenizers do not call them special.
    """
    answers = [list(ids[:-1] if ids and ids[-1] in ends else ids) for ids in sequences]
    texts: list[str] = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [text.strip() for text in texts]


def _of_model(folder: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        if file.is_file():
            found = _settings(file).get("eos_token_id")
            ids = found if isinstance(found, list) else [] if found is None else [found]
            if not all(isinstance(token, int) for token in ids):
                raise UserError(
                    f"model.base: eos_token_id in {file} is {found!r}; allowed: a number, or a list of them"
                )
            return ids
    return []


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"model.base: {file} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"model.base: {file} holds no mapping")
    return found
