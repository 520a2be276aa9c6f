"""Replies between two turns of the assistant, as the tokens that the chat template writes there."""

from typing import TYPE_CHECKING, Literal

from triptych.data.chat import ChatTemplate
from triptych.data.end_tokens import end_of_turn
from triptych.data.rows import Message
from triptych.data.turn_tokens import TurnTokens
from triptych.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHAT = (Message("user", "Hi"), Message("assistant", "Hello"))


class ReplyTokens:
    """Tokens from behind the end of one turn of the assistant to the beginning of the next, a reply between them.

    They are appended to what an engine has drawn, of which nothing is tokenised again.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", role: Literal["user", "tool"]) -> None:
        """UserError: the template writes other tokens before a reply than it has written without it."""
        self._template, self._tokens, self._role = ChatTemplate(tokenizer), TurnTokens(tokenizer), role
        self.end = end_of_turn(tokenizer)
        """The token that ends a turn; a turn that ends otherwise has no reply."""
        [turn] = self._template.turns(_CHAT)
        self._before = turn.prompt + turn.answer
        self._ids = self._tokens.ids([self._before])[0]
        self.of("And then?")

    def of(self, reply: str) -> list[int]:
        """The tokens of a reply; control tokens in it are taken apart. UserError: as at the start."""
        said = Message(self._role, self._template.escaped(reply))
        try:
            text = self._template.prompt((*_CHAT, said))
        except ValueError as error:
            raise UserError(
                f"environment.role: {self._role}: {error}; allowed: a role that the template writes"
            ) from None
        ids = self._tokens.ids([text])[0]
        if not text.startswith(self._before) or ids[: len(self._ids)] != self._ids:
            raise UserError(
                "model.base: its chat template writes earlier turns otherwise once a reply follows, so the tokens "
                "that were drawn would not be those of the chat; allowed: environment.name single_turn, or another "
                "template"
            )
        return ids[len(self._ids) :]
