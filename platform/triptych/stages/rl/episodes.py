"""Trajectories of an environment: the policy's turns and the replies to them, as tokens that are never made anew."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from triptych.data.replies import ReplyTokens
from triptych.engines.base import RolloutRecord, SampleRequest
from triptych.environments.base import Episode, MakeEpisode, Step
from triptych.errors import RunError
from triptych.recipe.environment import Replying
from triptych.rewards.asking import Asking, Failed, in_thread
from triptych.rewards.in_calls import score_of
from triptych.rollout.trajectory import Trajectory

Generate = Callable[[list[SampleRequest]], list[RolloutRecord]]
"""Answers to requests, in their order."""
MakeRequest = Callable[[list[int], str], SampleRequest]
"""A request for an answer to token ids, under a lease."""
SHOWN = 3
"""Failures that a message shows."""

log = logging.getLogger(__name__)


@dataclass
class _Running:
    """A trajectory on its way."""

    first: SampleRequest
    fields: dict[str, object]
    episode: Episode | None = None
    response: list[int] = field(default_factory=list)
    drawn: list[bool] = field(default_factory=list)
    records: list[RolloutRecord] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    earned: float = 0.0
    failed: str | None = None
    ended: bool = False

    def request(self, ask: MakeRequest) -> SampleRequest:
        """The request for the next turn: all tokens so far."""
        if not self.records:
            return self.first
        return ask([*self.first.prompt_ids, *self.response], f"{self.first.lease}+{len(self.records)}")

    def take(self, record: RolloutRecord) -> None:
        """Add a turn of the policy."""
        start = len(self.response)
        self.response += record.response_ids
        self.drawn += [True] * len(record.response_ids)
        self.turns.append((start, len(self.response)))
        self.records.append(record)

    def reply(self, ids: Sequence[int]) -> None:
        """Add tokens that the policy did not draw."""
        self.response += ids
        self.drawn += [False] * len(ids)

    def trajectory(self) -> Trajectory:
        last: Literal["stop", "length"] = self.records[-1].finish_reason
        return Trajectory(
            self.first.lease,
            self.first.prompt_ids,
            tuple(self.response),
            tuple(self.drawn),
            tuple(value for record in self.records for value in record.logprobs),
            tuple(value for record in self.records for value in record.versions),
            last,
            self.first.seed,
            tuple(self.turns),
            self.earned,
            self.failed,
        )


def checked(step: object) -> Step:
    """What an environment's step gave.

    Raises:
        TypeError, ValueError: it is no `Step`, or its reply is no text, or its reward no finite number.
    """
    if not isinstance(step, Step):
        raise TypeError(f"step gave {type(step).__name__}, not a Step")
    if not isinstance(step.reply, str | None):
        raise TypeError(f"step gave a reply that is {type(step.reply).__name__}, not a text or None")
    reward = score_of(step.reward)
    if not isinstance(reward, float):
        raise ValueError(f"step gave a reward: {'None is no number' if reward is None else reward.reason}")
    return Step(step.reply, reward)


@dataclass(frozen=True)
class Player:
    """Plays an environment's trajectories, all of a step turn by turn."""

    settings: Replying
    make: MakeEpisode
    replies: ReplyTokens
    text: Callable[[Sequence[int]], str]
    """A turn's tokens as text."""
    ask: MakeRequest
    field: str
    """The environment's field in the recipe, for messages."""

    def play(
        self, requests: Sequence[SampleRequest], fields: Sequence[dict[str, object]], generate: Generate
    ) -> list[Trajectory]:
        """A trajectory of each request, whose row has the columns `fields`.

        Raises:
            RunError: the environment failed for more of them than it may.
        """
        running = [_Running(request, own) for request, own in zip(requests, fields, strict=True)]
        for turn in range(1, self.settings.max_turns + 1):
            live = [one for one in running if not one.ended]
            if not live:
                break
            for one, record in zip(live, generate([one.request(self.ask) for one in live]), strict=True):
                one.take(record)
            asyncio.run(self._reply(live, last=turn == self.settings.max_turns))
        self._check([one.failed for one in running if one.failed is not None], len(running))
        return [one.trajectory() for one in running]

    async def _reply(self, live: Sequence[_Running], *, last: bool) -> None:
        asking = Asking(self.settings.calls)
        await asyncio.gather(*(self._reply_to(one, asking, last=last) for one in live))

    async def _reply_to(self, one: _Running, asking: Asking, *, last: bool) -> None:
        """Let the environment take the last turn, and append what it says."""
        drawn = one.records[-1].response_ids
        if not drawn or drawn[-1] != self.replies.end:
            one.ended = True  # it was cut, or ended for good: nothing can follow it
            return
        step = await self._step(one, asking, self.text(drawn))
        if isinstance(step, Failed):
            one.failed, one.ended = step.reason, True
            return
        one.earned += step.reward
        if last or step.reply is None:
            one.ended = True
        else:
            self._append(one, step.reply)

    def _append(self, one: _Running, reply: str) -> None:
        """Append a reply's tokens; one that cannot be written, or is too long, is a failure."""
        try:
            ids, most = self.replies.of(reply), self.settings.max_reply_tokens
        except ValueError as error:
            one.failed, one.ended = f"a reply that cannot be written: {error}", True
            return
        if len(ids) > most:
            one.failed, one.ended = f"a reply of {len(ids)} tokens, and max_reply_tokens is {most}", True
            return
        one.reply(ids)

    async def _step(self, one: _Running, asking: Asking, text: str) -> Step | Failed:
        """The environment's step; the first one makes the environment."""

        async def call() -> Step:
            if one.episode is None:
                one.episode = await in_thread(lambda: self.make(one.fields))
            return checked(await in_thread(partial(one.episode.step, text)))

        return await asking(call)

    def _check(self, reasons: Sequence[str], count: int) -> None:
        """RunError where too many failed; else the log names some reasons."""
        if not reasons:
            return
        share = f"{len(reasons)} of {count} trajectories failed"
        shown = "; ".join(dict.fromkeys(reasons[:SHOWN]))
        if len(reasons) > self.settings.calls.max_failed * count:
            raise RunError(
                f"{self.field}: {share}, and calls.max_failed allows a share of {self.settings.calls.max_failed:g}. "
                f"Nothing was learned from this step. {shown}"
            )
        log.warning("%s: %s, which are left out of the step: %s", self.field, share, shown)
