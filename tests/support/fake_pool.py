"""A rollout pool in this process: one engine that samples from the tiny model, in whatever precision a test needs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from tests.support.gradient_cases import in_float64
from triptych.engines.base import BASE_VERSION, Digested, Logprobs, RolloutRecord, SampleRequest, adapter_digest
from triptych.engines.merging import lora_pairs, lora_scale
from triptych.models.base import load_causal_lm
from triptych.recipe import Sampling
from triptych.rollout.coordinator import SyncReport

GREEDY = 1e-6
"""A temperature at which the likeliest token is drawn."""
STOP_TOKENS = range(40)
"""Token ids that end an answer: enough of them that a model with random weights stops now and then."""


class FakePool:
    """The methods of `RolloutPool` that a training worker calls; keeps what it was asked and what it answered."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        model: Any = load_causal_lm(folder, dtype)
        self._tied = bool(model.config.tie_word_embeddings)
        self._model = in_float64(model) if dtype == torch.float64 else model
        self._base = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self.version = BASE_VERSION
        self.seconds = 0.0
        self.requests: list[list[SampleRequest]] = []
        self.records: list[list[RolloutRecord]] = []
        self.buckets: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def sync(self, adapter: bytes, adapter_config: dict[str, Any], version: int) -> SyncReport:
        """Merge a LoRA into the base's weights."""
        weights = dict(self._base)
        for name, (a, b) in lora_pairs(adapter, adapter_config).items():
            scale = lora_scale(adapter_config, name.removesuffix(".weight"))
            weights[name] = self._base[name] + scale * (b @ a).to(self._base[name])
        return self._loaded(weights, version, adapter_digest(adapter, adapter_config))

    @torch.no_grad()
    def replace(self, buckets: Iterable[bytes], version: int) -> SyncReport:
        """Take new weights in place of the base's."""
        passing = Digested(buckets)
        self.buckets = [load(bucket) for bucket in passing]
        replaced = {name: value for bucket in self.buckets for name, value in bucket.items()}
        weights = self._base | {name: value.to(self._base[name]) for name, value in replaced.items()}
        if self._tied:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        return self._loaded(weights, version, passing.digest)

    def _loaded(self, weights: dict[str, Tensor], version: int, digest: str) -> SyncReport:
        self._model.load_state_dict(weights)
        self.version = version
        return SyncReport(0.0, digest, "merged")

    def weights(self) -> dict[str, Tensor]:
        """What it samples with."""
        found: dict[str, Tensor] = self._model.state_dict()
        return found

    def generate(self, requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        """One record for each request, in their order; each answer is drawn from a stream of its own."""
        records = self._sampled(requests, sampling)
        self.requests.append(list(requests))
        self.records.append(records)
        return records

    def logprobs(self, sequences: list[list[int]], prompt_lens: list[int]) -> list[Logprobs]:
        """[engine][sequence][response token] at temperature 1."""
        found = []
        for row, sequence, start in zip(self._logits(sequences), sequences, prompt_lens, strict=True):
            answer = torch.tensor(sequence[start:])[:, None]
            table = row[start - 1 : len(sequence) - 1].log_softmax(dim=1)
            found.append(table.gather(1, answer)[:, 0].tolist())
        return [found]

    def judged(self, sequences: list[list[int]], prompt_lens: list[int]) -> Logprobs:
        """[sequence][response token] at temperature 1."""
        return self.logprobs(sequences, prompt_lens)[0]

    def stats(self) -> dict[str, Any]:
        """No engine was ever restarted; both sampled for as long as `seconds` says."""
        return {"restarts": 0, "engines": [{"seconds": self.seconds}, {"seconds": self.seconds}]}

    def _sampled(self, requests: Sequence[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        answers: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        streams = [torch.Generator().manual_seed(request.seed) for request in requests]
        unfinished = list(range(len(requests)))
        for _ in range(sampling.max_new_tokens):
            texts = [[*requests[index].prompt_ids, *answers[index]] for index in unfinished]
            for row, text, index in zip(self._logits(texts), texts, unfinished, strict=True):
                scaled = (row[len(text) - 1] / (sampling.temperature or GREEDY)).log_softmax(dim=0)
                token = _draw(scaled.exp(), streams[index])
                answers[index].append(token)
                logprobs[index].append(float(scaled[token]))
            unfinished = [index for index in unfinished if answers[index][-1] not in STOP_TOKENS]
            if not unfinished:
                break
        return [
            self._record(request, answer, values)
            for request, answer, values in zip(requests, answers, logprobs, strict=True)
        ]

    def _record(self, request: SampleRequest, answer: list[int], logprobs: list[float]) -> RolloutRecord:
        return RolloutRecord(
            lease=request.lease,
            prompt_ids=request.prompt_ids,
            response_ids=tuple(answer),
            logprobs=tuple(logprobs),
            versions=(self.version,) * len(answer),
            finish_reason="stop" if answer[-1] in STOP_TOKENS else "length",
            seed=request.seed,
            engine=0,
        )

    @torch.no_grad()
    def _logits(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[N, T, V]; padding stands on the right, where causal attention does not see it."""
        longest = max(map(len, sequences))
        ids = torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences])
        logits: Tensor = self._model(ids).logits
        return logits


def _draw(probabilities: Tensor, stream: torch.Generator) -> int:
    """Inverse of the cumulative distribution: rounding elsewhere changes no token."""
    uniform = torch.rand((), generator=stream, dtype=torch.float64)
    drawn = torch.searchsorted(probabilities.double().cumsum(dim=0), uniform)
    return min(int(drawn), len(probabilities) - 1)
