"""Rewards of sampled answers, each with the settings that it alone has."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from triptych.recipe.base import Closed, Count, NoEffect, Positive, TagAt, unreserved
from triptych.recipe.functions import FunctionName
from triptych.recipe.stage import REWARD

RUNNING_TASKS = frozenset(
    [
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    ]
)
"""Tasks of reasoning-gym whose rules give the answer to `eval`, or to sympy's parser, which does."""
RESERVED = ("failed", "std")
"""Labels that would give a metric the name of another."""


Label = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$"), unreserved(RESERVED, "names another metric")]
"""Name of a reward in logs and in the record of rollouts: lower case letters, digits, underscores."""


class RewardBase(Closed):
    """What all rewards have."""

    verifies: ClassVar[bool] = False
    """True if its scores are 1 for right and 0 for wrong."""

    name: str
    """Kind of the reward."""
    label: Label | None = None
    """Name in logs, where its mean is `reward_<label>`; None: `name`, and a number behind it from the second one on."""
    weight: float = 1.0
    """Factor of its scores in the sum that is learned from; 0: they are recorded alone."""

    @property
    def column(self) -> str | None:
        """Column that every prompt's row must have; None: it reads none, or any."""
        return None


class ModelReward(RewardBase):
    """Score of a reward model: the mean over its members, to mean 0 and variance 1 of known answers."""

    name: Literal["model"] = "model"
    """Kind of the reward."""
    stage: str
    """The reward stage, or a registered reward model."""
    normalized_by: Literal["pairs", "policy"] = "pairs"
    """The known answers: of the pairs that it learned from, or of the policy before it learns, to a step's prompts."""


class Calls(Closed):
    """How a reward is asked, and what happens where it gives no score."""

    timeout_s: Positive = 60.0
    """Seconds that one call may take."""
    retries: int = Field(2, ge=0)
    """Further attempts at a call that raises, or takes too long."""
    backoff_s: float = Field(1.0, ge=0)
    """Seconds before the first of them; each further wait is twice as long."""
    concurrency: Count = 8
    """Calls at once."""
    max_failed: float = Field(0.1, ge=0, lt=1)
    """Share of a step's answers that may be left without a score; the run stops above it. An answer without one is left
    out of the step."""


class CalledReward(RewardBase):
    """A reward that is asked outside the learner, by its first rank alone."""

    calls: NoEffect[Calls] = Calls()
    """Time limit, attempts, and the share of answers that may be left without a score."""

    def refuses(self, fields: Mapping[str, Any]) -> str | None:
        """Why it does not score answers to a row of these columns; None: it may."""
        return None


class FunctionReward(CalledReward):
    """Score of a Python function, which the workers can import.

    It is called as TRL's reward functions are: `prompts`, `completions`, `completion_ids` and the other columns of the
    prompts' rows, each a list with an entry an answer. One without `**` gets those that it names. It returns as many
    numbers; None where it does not judge an answer. It may be async.
    """

    name: Literal["function"] = "function"
    """Kind of the reward."""
    function: FunctionName
    """The function, as `module:function`."""
    conversational: bool = False
    """True: each prompt and completion is a list of messages, as TRL has it for conversational data; False: a text."""
    per_call: Count | None = None
    """Answers of one call; None: all of a step."""


class Gsm8kReward(CalledReward):
    """1 where the answer's number is the right one's, else 0: the number behind `####`, or the last.

    Cobbe et al. 2021 (arXiv 2110.14168) end their answers with `#### 72`.
    """

    verifies = True

    name: Literal["gsm8k"] = "gsm8k"
    """Kind of the reward."""
    answer: str = Field("answer", min_length=1)
    """Column of the right answer: a number, a text that has one, or a list of such."""

    @property
    def column(self) -> str | None:
        return self.answer


class ReasoningGymReward(CalledReward):
    """Score of a task of reasoning-gym by the task's own rule, mostly from 0 to 1.

    Rows are those of `triptych data reasoning-gym`: `question`, `answer`, `metadata`, perhaps `config`. What stands
    between `<answer>` and `</answer>` is scored, or the whole answer where there are no such tags. The extra
    `reasoning` has the library.
    """

    name: Literal["reasoning_gym"] = "reasoning_gym"
    """Kind of the reward."""
    partial: bool = True
    """False: 1 where the task's score is 1, else 0."""
    run_answers: bool = False
    """True: also tasks whose rule runs the answer as Python, with all that the worker may do."""

    @property
    def column(self) -> str | None:
        return "metadata"

    def refuses(self, fields: Mapping[str, Any]) -> str | None:
        metadata = fields.get("metadata")
        task = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
        if self.run_answers or task not in RUNNING_TASKS:
            return None
        return f"the rule of {task} runs what the policy writes as Python; allowed: other tasks, or run_answers: true"


class EnvironmentReward(CalledReward):
    """Sum of the rewards that the environment gave for the turns of a trajectory."""

    name: Literal["environment"] = "environment"
    """Kind of the reward."""


class FormatReward(CalledReward):
    """1 where a regular expression matches the whole answer, else 0."""

    verifies = True

    name: Literal["format"] = "format"
    """Kind of the reward."""
    pattern: str = Field(min_length=1)
    """Regular expression; `(?s)` at its beginning lets `.` match line breaks too."""

    @model_validator(mode="after")
    def _pattern_is_one(self) -> "FormatReward":
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        return self


class LengthReward(CalledReward):
    """A penalty on the tokens of an answer, from 0 to -1: for those over a limit, or for the distance from a target."""

    name: Literal["length"] = "length"
    """Kind of the reward."""
    limit: Count | None = None
    """Tokens above which the penalty is whole (L_max of Yu et al. 2025, arXiv 2503.14476, equation 13)."""
    cache: Count | None = None
    """Tokens below the limit over which the penalty grows from 0 to 1 (L_cache there)."""
    target: Count | None = None
    """Tokens without penalty."""
    tolerance: Count | None = None
    """Distance from the target at which the penalty is whole; it grows in proportion."""

    @property
    def unpunished(self) -> int:
        """Tokens of the longest answer that the limit leaves alone; 0 where there is a target."""
        return 0 if self.limit is None or self.cache is None else self.limit - self.cache

    @model_validator(mode="after")
    def _one_form(self) -> "LengthReward":
        overlong, soft = (self.limit, self.cache), (self.target, self.tolerance)
        whole = [pair for pair in (overlong, soft) if None not in pair]
        if len(whole) != 1 or any(value is not None for pair in (overlong, soft) if None in pair for value in pair):
            raise ValueError("give `limit` and `cache`, or `target` and `tolerance`")
        if self.limit is not None and self.cache is not None and self.cache > self.limit:
            raise ValueError(f"cache: {self.cache}, and the limit is {self.limit}; allowed: up to {self.limit}")
        return self


Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""
Url = Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")]
"""Address without a user, a password or a query, where secrets would stand."""


class ServedReward(CalledReward):
    """A reward that a server gives."""

    url: Url
    """Address of the server; no user, password or query stands in it."""
    token_env: Variable | None = None
    """Environment variable of the workers that has the token, or with `_PATH` behind it the file of one; None: the
    server asks for none."""


class HttpReward(ServedReward):
    """Score of a server that is sent answers as JSON."""

    name: Literal["http"] = "http"
    """Kind of the reward."""
    per_call: Count = 16
    """Answers of one request."""


class JudgeReward(ServedReward):
    """Score of a language model behind an OpenAI-compatible endpoint, from 0 to 1.

    Zheng et al. 2023 (arXiv 2306.05685): single answers are rated; of pairs the better one is named, in both orders.
    """

    name: Literal["judge"] = "judge"
    """Kind of the reward."""
    model: str = Field(min_length=1)
    """Model that the endpoint is asked for."""
    mode: Literal["rating", "pairs"] = "rating"
    """`rating`: each answer by itself, from `lowest` to `highest`; `pairs`: the share of comparisons with the other
    answers to its prompt that it wins, ties counted half, each pair asked in both orders."""
    criteria: str = Field("Judge how helpful, correct and clear the answer is.", min_length=1)
    """What the judge is told to look at."""
    lowest: float = 1.0
    """Worst rating, a score of 0."""
    highest: float = 10.0
    """Best rating, a score of 1."""
    max_tokens: Count = 512
    """Tokens that the judge may write."""
    requests_per_minute: Positive | None = None
    """Requests that begin within a minute; None: as many as there are."""

    @model_validator(mode="after")
    def _range_is_one(self) -> "JudgeReward":
        if self.lowest >= self.highest:
            raise ValueError(f"lowest: {self.lowest:g}; allowed: below highest ({self.highest:g})")
        return self


RewardTerm = Annotated[
    Annotated[ModelReward, Tag("model")]
    | Annotated[FunctionReward, Tag("function")]
    | Annotated[Gsm8kReward, Tag("gsm8k")]
    | Annotated[ReasoningGymReward, Tag("reasoning_gym")]
    | Annotated[EnvironmentReward, Tag("environment")]
    | Annotated[FormatReward, Tag("format")]
    | Annotated[LengthReward, Tag("length")]
    | Annotated[HttpReward, Tag("http")]
    | Annotated[JudgeReward, Tag("judge")],
    Discriminator(TagAt("name", default="model")),
]
"""A reward, told by its name; a reward model where it has none."""


def labels(rewards: Sequence[RewardBase]) -> tuple[str, ...]:
    """The name of each reward in logs."""
    before: Counter[str] = Counter()
    found = []
    for reward in rewards:
        before[reward.name] += 1
        number = f"_{before[reward.name]}" if before[reward.name] > 1 else ""
        found.append(reward.label or f"{reward.name}{number}")
    return tuple(found)


def role_of(number: int, first: str = REWARD) -> str:
    """Name of the role of the first member of the reward model `number`, counted from 0; `first`: that of number 0."""
    return first if number == 0 else f"{first}_{number + 1}"
