"""Environments of reinforcement learning: who answers the policy, and for how many turns."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from triptych.recipe.base import Closed, Count, NoEffect, TagAt
from triptych.recipe.functions import FunctionName
from triptych.recipe.reward import Calls


class EnvironmentBase(Closed):
    """What all environments have."""

    name: str
    """Kind of the environment."""

    @property
    def turns(self) -> int:
        """Most turns of the policy."""
        return 1

    @property
    def reply_tokens(self) -> int:
        """Most tokens between two turns of the policy."""
        return 0

    def longest(self, max_new_tokens: int) -> int:
        """Tokens behind a prompt in the longest trajectory, with turns of at most `max_new_tokens`."""
        return self.turns * max_new_tokens + (self.turns - 1) * self.reply_tokens


class SingleTurn(EnvironmentBase):
    """The policy answers a prompt, and that is all."""

    name: Literal["single_turn"] = "single_turn"
    """Kind of the environment."""


class Replying(EnvironmentBase):
    """An environment that replies to the policy's turns."""

    max_turns: Count = 4
    """Turns of the policy after which a trajectory ends; each has at most `max_new_tokens`."""
    max_reply_tokens: Count = 64
    """Tokens of a reply with the chat template's marks around it; a longer one is a failure."""
    role: Literal["user", "tool"] = "user"
    """Role under which the chat template writes a reply."""
    calls: NoEffect[Calls] = Calls(retries=0)
    """Time limit of a reply, attempts, and the share of a step's trajectories that may fail. A further attempt is made
    on the same object, which may have moved: 0 unless the environment bears it."""

    @property
    def turns(self) -> int:
        return self.max_turns

    @property
    def reply_tokens(self) -> int:
        return self.max_reply_tokens


class Calculator(Replying):
    """Results of the arithmetic that a turn asks for as `<calc>6 * 7</calc>`; a turn that asks for none is the last."""

    name: Literal["calculator"] = "calculator"
    """Kind of the environment."""


class FunctionEnvironment(Replying):
    """A Python class, which the workers can import, of which each trajectory has an object of its own.

    It is made with the columns of the prompt's row by name, and `arguments`. Its method `step`, which may be async, is
    given the text of a turn and returns a `Step` (`triptych.environments.base`).
    """

    name: Literal["function"] = "function"
    """Kind of the environment."""
    function: FunctionName
    """The class, or a function that gives such an object, as `module:name`."""
    arguments: dict[str, Any] = {}
    """Further arguments by name; a column of the same name goes before."""


EnvironmentSettings = Annotated[
    Annotated[SingleTurn, Tag("single_turn")]
    | Annotated[Calculator, Tag("calculator")]
    | Annotated[FunctionEnvironment, Tag("function")],
    Discriminator(TagAt("name", default="single_turn")),
]
"""An environment, told by its name; a single turn where it has none."""
