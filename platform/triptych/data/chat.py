"""Chats as the text of a tokenizer's template: what the engine is given, and what it has to write.

Every fault that a template finds in a chat is a ValueError: a property of the row.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from triptych.data.rows import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[Mapping[str, Any]]
Control = Literal["refuse", "escape"]

_LINKS = ("tool_call_id", "name")
"""Fields of a tool's turn that say which call it answers; templates that write the turns in order leave them out."""
_THOUGHTS = ("reasoning", "reasoning_content", "thinking")
"""Names under which templates look for thoughts."""
_PROBE = "x"
_BORDER = re.compile(r"(?<=\S)(?=\s)|(?<=>)")
"""Places behind a word, or behind a mark such as `<think>`."""
_PLACES = 16
"""Places of a text at which a letter more is tried."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the assistant: `prompt` is what the engine is given, `answer` what it has to write, end included."""

    prompt: str
    answer: str


class ChatTemplate:
    """A tokenizer's chat template, and the tokens that it ends turns with."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._added = any_of([token.content for token in added])
        self._controls = any_of([token.content for token in added if token.special])

    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The text that an engine is given to write the next turn.

        Raises:
            ValueError: the template refuses the chat, or loses a part of it.
        """
        text = self._render(messages, tools, generation=True)
        self._check_read(messages, tools, range(len(messages)), text, generation=True)
        return text

    def turns(self, messages: Sequence[Message], tools: Tools = ()) -> list[Turn]:
        """The assistant's turns that are learned, each with the prompt that an engine would be given for it.

        Raises:
            ValueError: the template refuses the chat, loses a part of it, or writes the turn otherwise than behind its
                own generation prompt.
        """
        learned = [index for index, m in enumerate(messages) if m.role == "assistant" and m.learned]
        whole = messages[: learned[-1] + 1] if learned else ()
        found = [self._turn(messages[: index + 1], tools) for index in learned]
        read = [index for index in range(len(whole)) if index not in learned]
        if found:
            text = self._render(whole, tools, generation=False)
            self._check_read(whole, tools, read, text, generation=False)
        return found

    def controls(self, text: str) -> list[str]:
        """Control tokens that the tokenizer would make of a text."""
        return self._controls.findall(text)

    def escaped(self, text: str) -> str:
        """The text with a space behind the first character of each control token, until none is left.

        Raises:
            ValueError: a control token of one character cannot be taken apart.
        """
        while found := self._controls.search(text):
            if len(found[0]) == 1:
                raise ValueError(f"the control token {found[0]!r} has one character, and cannot be escaped")
            text = f"{text[: found.start() + 1]} {text[found.start() + 1 :]}"
        return text

    def _turn(self, messages: Sequence[Message], tools: Tools) -> Turn:
        index = len(messages) - 1
        if index == 0:
            raise ValueError("messages[0]: the assistant speaks first, so no prompt asks for it; give it weight 0")
        before = self._render(messages[:-1], tools, generation=True)
        after = self._render(messages, tools, generation=False)
        if not after.startswith(before):
            shared = _shared(before, after)
            raise ValueError(
                f"messages[{index}]: the chat template rewrites earlier turns or its generation prompt once the answer "
                f"is there: {after[shared : shared + 40]!r} in place of {before[shared : shared + 40]!r}"
            )
        if messages[-1].content.strip() not in after[len(before) :]:
            self._check_content(messages, tools, index, after, _places(messages[-1].content), generation=False)
        self._check_extra(messages, tools, index, messages[-1].extra, after, generation=False)
        return Turn(before, self._ended(messages, tools, before, after[len(before) :]))

    def _ended(self, messages: Sequence[Message], tools: Tools, before: str, turn: str) -> str:
        """The turn through the token that ends it.

        That is the last token that the template writes behind the text; of several, the last that stays where the chat
        goes on: Phi-3's template, say, ends a turn with one token and a whole chat with one more.
        """
        text = turn.rstrip()
        ends = self._trailing(text)
        if not ends:
            raise ValueError(
                f"messages[{len(messages) - 1}]: the chat template ends the assistant's turn without a special token, "
                f"with {text[-20:]!r}"
            )
        if len(ends) > 1:
            try:
                longer = self._render([*messages, Message("user", _PROBE)], tools, generation=True)
            except ValueError:
                return text
            stays = _shared(before + turn, longer) - len(before)
            ends = [end for end in ends if end <= stays] or ends
        return turn[: ends[-1]]

    def _trailing(self, text: str) -> list[int]:
        """Ends of the added tokens that only white space and other such tokens follow."""
        ends: list[int] = []
        for found in self._added.finditer(text):
            if ends and text[ends[-1] : found.start()].strip():
                ends.clear()
            ends.append(found.end())
        return ends if ends and ends[-1] == len(text) else []

    def _check_read(
        self, messages: Sequence[Message], tools: Tools, indices: Iterable[int], text: str, *, generation: bool
    ) -> None:
        """ValueError where the rendered chat lacks one of the messages that are only read, or the tools."""
        if tools and text == self._render(messages, (), generation=generation):
            raise ValueError("tools: the chat template writes nothing of them")
        for index in indices:
            message = messages[index]
            # Templates leave out turns of roles that they do not know; what stands in the text may be another turn's.
            verbatim = message.content.strip() in text
            if message.role in ("system", "tool") or not verbatim:
                # Earlier thoughts are left out at inference too.
                whole = not verbatim and message.role != "assistant"
                places = _places(message.content) if whole else [len(message.content)]
                self._check_content(messages, tools, index, text, places, generation=generation)
            keys = [key for key in message.extra if not (key in _LINKS and message.role == "tool")]
            kept = [key for key in keys if message.role != "assistant" or key not in _THOUGHTS]
            self._check_extra(messages, tools, index, kept, text, generation=generation)

    def _check_content(
        self,
        messages: Sequence[Message],
        tools: Tools,
        index: int,
        text: str,
        places: Iterable[int],
        *,
        generation: bool,
    ) -> None:
        """ValueError where a letter more at one of the places of a message changes nothing of the rendered text."""
        message = messages[index]
        for place in places:
            probed = replace(message, content=f"{message.content[:place]}{_PROBE}{message.content[place:]}")
            if text == self._changed(messages, tools, index, probed, generation=generation):
                near = f", near {message.content[:place][-40:]!r}" if place < len(message.content) else ""
                raise ValueError(
                    f"messages[{index}].content: the chat template writes nothing of the {message.role}'s turn{near}"
                )

    def _check_extra(
        self, messages: Sequence[Message], tools: Tools, index: int, keys: Iterable[str], text: str, *, generation: bool
    ) -> None:
        message = messages[index]
        for key in keys:
            same = _THOUGHTS if key in _THOUGHTS else (key,)
            fewer = {name: value for name, value in message.extra.items() if name not in same}
            if text == self._changed(messages, tools, index, replace(message, extra=fewer), generation=generation):
                raise ValueError(f"messages[{index}].{key}: the chat template writes nothing of it")

    def _changed(
        self, messages: Sequence[Message], tools: Tools, index: int, message: Message, *, generation: bool
    ) -> str | None:
        """The chat with another message at `index`; None where the template refuses that."""
        try:
            return self._render([*messages[:index], message, *messages[index + 1 :]], tools, generation=generation)
        except ValueError:
            return None

    def _render(self, messages: Sequence[Message], tools: Tools, *, generation: bool) -> str:
        chat = [{"role": message.role, "content": message.content, **message.extra} for message in messages]
        given: Any = list(tools) or None
        try:
            render = self._tokenizer.apply_chat_template
            return str(render(chat, tools=given, tokenize=False, add_generation_prompt=generation))
        except Exception as error:  # a template is a program of its own, and raises what it likes
            roles = ", ".join(message.role for message in messages) or "none"
            raise ValueError(f"the chat template refuses a chat of the turns {roles}: {error}") from error


def _shared(one: str, other: str) -> int:
    """Number of characters that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _places(text: str) -> list[int]:
    """Some places of a text, spread over it, and its end."""
    found = [match.start() for match in _BORDER.finditer(text)]
    step = max(1, -(-len(found) // (_PLACES - 1)))
    return sorted({*found[::step], len(text)})


def any_of(tokens: list[str]) -> re.Pattern[str]:
    """A pattern of any of the tokens, longer ones first; one that matches nothing where there is none."""
    longest = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")
