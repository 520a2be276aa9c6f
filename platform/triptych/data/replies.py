"""Replies between two turns of the assistant, as the tokens that the chat template writes there."""

from typing import TYPE_CHECKING, Literal

from triptych.data.chat import ChatTemplate
from triptych.data.end_tokens import end_of_turn
from triptych.data.rows import Message
from triptych.data.turn_tokens import TurnTokens
from triptych.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN, _THOUGHT = "Hello", "<think>\nThey greet me.\n</think>\n\nHello"
_REPLY = "And then?"


class ReplyTokens:
    """Tokens from behind the end of one turn of the assistant to the beginning of the next, a reply between them.

    They are appended to what an engine has drawn, of which nothing is tokenised again.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", role: Literal["user", "tool"]) -> None:
        """UserError: once a reply follows, the template writes a turn otherwise, or leaves the thoughts in it out."""
        self._template, self._tokens, self._role = ChatTemplate(tokenizer), TurnTokens(tokenizer), role
        self.end = end_of_turn(tokenizer)
        """The token that ends a turn; a turn that ends otherwise has no reply."""
        self._end_text = tokenizer.decode([self.end])
        for answer in (_PLAIN, _THOUGHT):
            try:
                self._behind(answer, _REPLY)
                self._check_later(answer)
            except ValueError as error:
                raise UserError(
                    f"environment.role: {role}: {error}; allowed: a role that the template writes"
                ) from None

    def of(self, reply: str) -> list[int]:
        """The tokens of a reply; control tokens in it are taken apart.

        Raises:
            ValueError: a control token cannot be taken apart, or the template refuses the reply.
            UserError: as at the start.
        """
        return self._behind(_PLAIN, reply)

    def _behind(self, answer: str, reply: str) -> list[int]:
        """The tokens that follow an answer's turn where there is a reply to it."""
        chat = (Message("user", "Hi"), Message("assistant", answer))
        [turn] = self._template.turns(chat)
        text = self._template.prompt((*chat, Message(self._role, self._template.escaped(reply))))
        # A template may mark the last turn alone, as Qwen3's does with empty thoughts before an answer that has none:
        # what an engine draws is the answer without them.
        for before in (turn.prompt + turn.answer, turn.prompt + answer + self._end_text):
            kept, ids = self._tokens.ids([before, text])
            if text.startswith(before) and ids[: len(kept)] == kept:
                return ids[len(kept) :]
        raise self._rewritten(answer)

    def _check_later(self, answer: str) -> None:
        """UserError: a turn is written otherwise once a further one follows the reply to it."""
        said = (Message("assistant", answer), Message(self._role, _REPLY))
        first = self._template.prompt((Message("user", "Hi"), *said))
        if not self._template.prompt((Message("user", "Hi"), *said, *said)).startswith(first):
            raise self._rewritten(answer)

    def _rewritten(self, answer: str) -> UserError:
        what = "leaves the thoughts of earlier turns out" if answer == _THOUGHT else "writes earlier turns otherwise"
        return UserError(
            f"model.base: its chat template {what} once a reply by the role {self._role} follows, so the tokens that "
            "were drawn would not be those of the chat; allowed: another environment.role, environment.name "
            "single_turn, or another template"
        )
