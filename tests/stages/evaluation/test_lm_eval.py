"""Tasks of lm-evaluation-harness, against the harness's own model of transformers; all of them are local files."""

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.stages.evaluation.conftest import likeliest, measured_here, numbers, register
from tests.stages.evaluation.test_measures import encoded
from triptych.data.table import Table
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm
from triptych.recipe.measures import LmEvalMeasure
from triptych.stages.context import StageContext, begin
from triptych.stages.evaluation import harness as harness_module
from triptych.stages.evaluation.comparison import check_gates, comparison, estimates, flat
from triptych.stages.evaluation.harness_tasks import figures
from triptych.stages.evaluation.stage import run
from triptych.stages.evaluation.table import MEASURES
from triptych.stages.evaluation.worker import commit_scores
from triptych.stages.preflight import check_plan, check_run
from triptych.train.batch import sample_batch
from triptych.train.tasks.forward import answer_logprob, answer_logprob_and_greedy

Evaluate = Callable[..., StageContext[Any]]

LONGEST = 96
"""Tokens of the longest row, which some requests exceed."""
WORDS = ("warm", "dull", "funny", "flat", "lovely", "slow", "great", "long")
ROWS: list[dict[str, Any]] = [
    {
        "question": f"What was film {i}?" + " The music is lovely and the cast does what it can." * (5 * (i == 3)),
        "choices": [f"{WORDS[(i + j) % 8]}{' and ' + WORDS[j] if j % 2 else ''}" for j in range(3)],
        "right": i % 3,
        "text": f"The film is {WORDS[i % 8]} and {WORDS[-i % 8]}. " * (1 + i % 4 * 3),
    }
    for i in range(12)
]
CHOICE = {
    "task": "films",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{right}}",
    "doc_to_choice": "{{choices}}",
    "metric_list": [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
    ]
    + [{"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}],
}
LAST_WORD = {
    "task": "last-word",
    "output_type": "loglikelihood",
    "doc_to_text": "{{text.split(' ')[:-2]|join(' ')}}",
    "doc_to_target": "{{' ' + text.split(' ')[-2]}}",
}
TEXT = {
    "task": "texts",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ],
}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness, which does not list this machine's packages for its reports: that takes longer than a test."""
    evaluator = pytest.importorskip("lm_eval.evaluator")
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)


@pytest.fixture
def write_tasks(tmp_path: Path) -> Callable[..., str]:
    """Writes tasks on `ROWS` as YAML; their folder."""

    def write(*tasks: dict[str, Any]) -> str:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        kwargs = {"data_files": {"test": str(rows), "train": str(rows)}, "cache_dir": str(tmp_path / "cache")}
        data = {"dataset_path": "json", "test_split": "test", "training_split": "train", "dataset_kwargs": kwargs}
        for task in tasks:
            (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(data | task))
        return str(folder)

    return write


def measure(folder: str, *tasks: str, **fields: Any) -> dict[str, Any]:
    """A set of tasks from a folder."""
    return {"harness": {"measure": {"name": "lm_eval", "tasks": list(tasks), "include_path": folder, **fields}}}


def by_transformers(base: Path, settings: dict[str, Any], adapter: Path | None = None) -> Any:
    """What the harness itself finds with transformers and peft."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(
        pretrained=str(base),
        peft=None if adapter is None else str(adapter),
        dtype="float32",
        device="cpu",
        batch_size=1,
        max_length=LONGEST - 1,
    )
    return simple_evaluate(
        model=model,
        tasks=settings["tasks"],
        limit=settings.get("limit"),
        num_fewshot=settings.get("num_fewshot"),
        task_manager=TaskManager(include_path=settings["include_path"], include_defaults=False),
        bootstrap_iters=0,
    )


def answers(found: Any, tasks: list[str]) -> dict[tuple[str, ...], Any]:
    """Request -> what the harness's model said."""
    return {
        tuple(asked): said[0]
        for task in tasks
        for sample in found["samples"][task]
        for asked, said in zip(sample["arguments"], sample["resps"], strict=True)
    }


@pytest.mark.slow
@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("fewshot", [None, 2])
def test_log_probabilities_and_figures_are_the_harnesss_own(
    evaluate: Evaluate, write_tasks: Callable[..., str], tmp_path: Path, fewshot: int | None
) -> None:
    more = {} if fewshot is None else {"num_fewshot": fewshot, "limit": 5}
    tasks = ["films", "last-word"] if fewshot else ["films", "last-word", "texts"]
    sets = measure(write_tasks(CHOICE, LAST_WORD, TEXT), *tasks, **more)
    compute = {"batch": {"max_length": LONGEST, "micro_tokens": 256}}
    version, _ = register(evaluate(["base"], sets, compute=compute), "tuned", tmp_path)
    ctx = evaluate(["base", version.ref], sets, compute=compute)
    rows = encoded(ctx)["harness"]
    assert rows.counts["truncated"] > 0, "the cut on the left is tested too"
    assert rows.counts["rows"] == len(tasks) * (5 if fewshot else 12)
    measured_here(ctx)
    values = flat(ctx.stage, estimates(ctx))
    for ref, adapter in (("base", None), (version.ref, tmp_path / "tuned")):
        found = by_transformers(ctx.base_dir, sets["harness"]["measure"], adapter)
        own: dict[tuple[str, ...], tuple[float, bool]] = {}
        said = numbers(ctx, "harness", ref)
        keys = zip(rows.columns["context"], rows.columns["continuation"], strict=True)
        for (context, text), logprob, greedy in zip(keys, said["logprob"], said["greedy"], strict=True):
            key: tuple[str, ...] = (text,) if context is None else (context, text)
            own[key] = own.get(key, (0.0, True))[0] + logprob, greedy
        expected = answers(found, tasks)
        assert own.keys() == expected.keys()
        for key, value in expected.items():
            logprob, greedy = value if isinstance(value, tuple) else (value, own[key][1])
            assert own[key][0] == pytest.approx(logprob, abs=1e-4, rel=1e-5)
            assert own[key][1] == greedy
        for task in tasks:
            for name, value in found["results"][task].items():
                if name.endswith(",none") and "stderr" not in name:
                    metric = f"harness.{ref}.{task}_{name.removesuffix(',none')}"
                    assert values.pop(metric) == pytest.approx(value, rel=1e-4)
    assert not values, "the harness gives no other"


@pytest.mark.usefixtures("harness")
def test_figures_have_rows_and_intervals_of_their_own_task(evaluate: Evaluate, write_tasks: Callable[..., str]) -> None:
    half = LAST_WORD | {"task": "half", "tag": "words"}
    sets = measure(write_tasks(CHOICE, half), "films", "words")
    gates = [{"set": "harness", "model": "base", "metric": "half_acc", "at_most": 1}]
    ctx = evaluate(["base", "x@1"], sets, gate=gates)
    rows = {name: MEASURES["lm_eval"].encode(ctx, name, []) for name in ctx.stage.sets}
    assert MEASURES["lm_eval"].encode(ctx, "harness", []) == rows["harness"], "the same rows each time"
    begin(ctx, {name: Table(one.columns, one.digest) for name, one in rows.items()}, {})
    count = len(rows["harness"].columns["prompt"])
    for shift, ref in enumerate(ctx.stage.models):
        logprobs = [-1.0 - (row * 7 + shift * row) % 5 for row in range(count)]
        commit_scores(ctx, "harness", ref, {"logprob": logprobs, "greedy": [row % 2 == 0 for row in range(count)]})
    found = comparison(ctx.stage, [], estimates(ctx))["sets"]["harness"]["figures"]
    assert {name: one["better"] for name, one in found.items()} == {
        "films_acc": "higher",
        "films_acc_norm": "higher",
        "films_brier_score": "lower",
        "half_perplexity": "lower",
        "half_acc": "higher",
    }
    assert {one["rows"] for one in found.values()} == {12}
    base, other = (found["films_acc"]["models"][ref] for ref in ctx.stage.models)
    assert base["low"] < base["value"] < base["high"]
    assert other["difference"]["value"] == pytest.approx(other["value"] - base["value"])
    brier = found["films_brier_score"]["models"]["base"]
    assert brier["low"] < brier["value"] < brier["high"]
    check_gates(ctx, estimates(ctx))


@pytest.mark.usefixtures("harness")
def test_a_stage_of_tasks_is_registered_with_the_numbers_of_each_request(
    evaluate: Evaluate, write_tasks: Callable[..., str]
) -> None:
    gate = [{"set": "harness", "model": "base", "at_least": 0}]
    ctx = evaluate(["base"], measure(write_tasks(CHOICE, TEXT), "films", "texts", limit=2), gate=gate)
    encoded(ctx)
    measured_here(ctx)
    version = run(ctx)
    assert version.metrics == pytest.approx(flat(ctx.stage, estimates(ctx)))
    rows = pq.read_table(Path(version.url) / "harness.parquet").to_pylist()
    assert [row["logprob"] for row in rows] == numbers(ctx, "harness", "base")["logprob"]
    summary = json.loads((Path(ctx.folder) / "summary.json").read_text())
    assert summary["data"] == {"harness": {"rows": 4, "requests": len(rows), "truncated": 0}}
    assert run(ctx) == version, "the second time from what is there"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"output_type": "generate_until"}, "tasks.0: `bad` has output_type generate_until, and lm_eval measures tasks"),
    ({"unsafe_code": True}, "tasks.0: `bad` runs code that a model wrote"),
    ({"dataset_kwargs": {"trust_remote_code": True}}, "tasks.0: `bad` has a data set that is code from the hub"),
    ({"metric_list": [{"metric": "accuracy", "hf_evaluate": True}]}, "tasks.0: `bad` has the metric accuracy, which"),
    ({"metric_list": [{"metric": "acuracy"}]}, "tasks.0: `bad` has the metric acuracy, which is code from the hub"),
    ({"doc_to_image": "{{image}}"}, "tasks.0: `bad` shows images or sounds"),
    ({"filter_list": [{"name": "first", "filter": []}]}, "tasks.0: `bad` has the filters first; allowed: none"),
    ({"class": "any.Task"}, "tasks.0: `bad` is a class in Python"),
    ({"num_fewshot": 0}, "tasks.0: `bad` is a task without examples"),
]


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(("fields", "told"), REFUSED, ids=[next(iter(fields)) for fields, _ in REFUSED])
def test_a_task_that_cannot_be_measured_is_refused_before_anything_starts(
    evaluate: Evaluate, write_tasks: Callable[..., str], fields: dict[str, Any], told: str
) -> None:
    ctx = evaluate(["base"], measure(write_tasks(CHOICE | {"task": "bad"} | fields), "bad", num_fewshot=2))
    place = r"^stages\.only\.sets\.harness\.measure\."
    with pytest.raises(UserError, match=place + re.escape(told)):
        check_plan(ctx.recipe, ["only"], pytest.fail)
    with pytest.raises(UserError, match=place + re.escape(told)):
        check_run(ctx.recipe, ["only"], ctx.base_dir)


@pytest.mark.usefixtures("harness")
def test_a_gate_names_a_figure_of_the_tasks(evaluate: Evaluate, write_tasks: Callable[..., str]) -> None:
    gate = {"set": "harness", "model": "base", "metric": "films_ac", "at_least": 0}
    ctx = evaluate(["base"], measure(write_tasks(CHOICE), "films"), gate=[gate])
    told = (
        r"^stages\.only\.gate\.0\.metric: `films_ac` is none of the tasks of set harness; did you mean `films_acc`.*; "
        "allowed: films_acc, films_acc_norm, films_brier_score$"
    )
    with pytest.raises(UserError, match=told):
        check_plan(ctx.recipe, ["only"], pytest.fail)


@pytest.mark.usefixtures("harness")
def test_a_metric_that_rows_do_not_give_is_refused_before_workers_start(
    evaluate: Evaluate, write_tasks: Callable[..., str]
) -> None:
    metrics = [{"metric": "word_perplexity", "aggregation": "mean", "higher_is_better": False}]
    ctx = evaluate(["base"], measure(write_tasks(CHOICE | {"metric_list": metrics}), "films"))
    with pytest.raises(
        UserError, match=r"measure\.tasks: `films` names metrics that it does not give: word_perplexity"
    ):
        encoded(ctx)


UNASKED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"num_fewshot": 40}, r"`films` cannot ask its rows with num_fewshot 40: ValueError: "),
    (
        {"doc_to_text": "{{' '}}", "target_delimiter": ""},
        {},
        r"`films`: a context has no token before its continuation ' warm",
    ),
    (
        {"metric_list": [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]},
        {},
        r"`films` needs a package that is not installed: .*sklearn",
    ),
]


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(("fields", "settings", "told"), UNASKED, ids=["examples", "context", "package"])
def test_rows_that_cannot_be_asked_name_their_task_before_workers_start(
    evaluate: Evaluate,
    write_tasks: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    settings: dict[str, Any],
    told: str,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    ctx = evaluate(["base"], measure(write_tasks(CHOICE | fields), "films", **settings))
    with pytest.raises(UserError, match=r"^stages\.only\.sets\.harness\.measure\.tasks: " + told):
        encoded(ctx)


@pytest.mark.usefixtures("harness")
def test_a_task_that_draws_draws_the_same_anew(
    evaluate: Evaluate, write_tasks: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tasks(CHOICE | {"process_docs": "!function drawn.shuffled"})
    text = (Path(folder) / "films.yaml").read_text().replace("'!function drawn.shuffled'", "!function drawn.shuffled")
    (Path(folder) / "films.yaml").write_text(text)
    code = "import random\n\ndef shuffled(rows):\n    return rows.select(random.sample(range(len(rows)), len(rows)))\n"
    (Path(folder) / "drawn.py").write_text(code)
    ctx = evaluate(["base"], measure(folder, "films"))
    digests = []
    for seed in (1, 2):
        random.seed(seed)
        before = random.getstate()
        harness_module._loaded.cache_clear()
        digests.append(MEASURES["lm_eval"].encode(ctx, "harness", []).digest)
        assert random.getstate() == before
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("harness")
def test_rows_that_are_not_there_name_their_task(evaluate: Evaluate, write_tasks: Callable[..., str]) -> None:
    folder = write_tasks(CHOICE | {"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}})
    ctx = evaluate(["base"], measure(folder, "films"))
    check_plan(ctx.recipe, ["only"], pytest.fail)
    with pytest.raises(UserError, match=r"^stages\.only\.sets\.harness\.measure\.tasks: `films` cannot be loaded: "):
        encoded(ctx)
    gone = evaluate(["base"], measure(f"{folder}/none", "films"))
    with pytest.raises(UserError, match=r"measure\.include_path: .*/none is no folder of this machine"):
        check_plan(gone.recipe, ["only"], pytest.fail)


def test_without_the_harness_a_plan_says_how_to_install_it(
    evaluate: Evaluate, write_tasks: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ctx = evaluate(["base"], measure(write_tasks(CHOICE), "films"))
    told = r"^stages\.only\.sets\.harness\.measure\.name: lm_eval .* install it by pip install 'triptych\[lm-eval\]'$"
    with pytest.raises(UserError, match=told):
        check_plan(ctx.recipe, ["only"], pytest.fail)
    with pytest.raises(UserError, match=told):
        check_run(ctx.recipe, ["only"], ctx.base_dir)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.usefixtures("harness")
def test_tasks_of_the_harness_itself_are_known_without_their_rows() -> None:
    def settings(*tasks: str) -> LmEvalMeasure:
        return LmEvalMeasure(name="lm_eval", tasks=tasks)

    assert figures(settings("arc_easy", "lambada_openai", "wikitext")) == {
        "arc_easy_acc": "higher",
        "arc_easy_acc_norm": "higher",
        "lambada_openai_perplexity": "lower",
        "lambada_openai_acc": "higher",
        "wikitext_word_perplexity": "lower",
        "wikitext_byte_perplexity": "lower",
        "wikitext_bits_per_byte": "lower",
    }
    for name, told in (
        ("arc_esy", "tasks.1: no task `arc_esy`; did you mean `arc_easy`"),
        ("gsm8k", "tasks.1: `gsm8k` has output_type generate_until, and lm_eval"),
        ("humaneval", "tasks.1: `humaneval` runs code that a model wrote"),
        ("mmlu", "tasks.1: `mmlu` is a group; allowed: tasks and tags, such as its mmlu_stem"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(told)}"):
            figures(settings("arc_easy", name))


def test_an_answer_is_greedy_if_each_of_its_tokens_is_the_likeliest(tiny_model_dir: Path) -> None:
    plain = load_causal_lm(tiny_model_dir, torch.float32)
    prompts = [[5, 9, 33, 71], [40, 12], [7, 7, 90]]
    said = [likeliest(plain, prompt, 4, []) for prompt in prompts]
    answers = [said[0], said[1][:2], [*said[2][:2], (said[2][2] + 1) % 400]]
    batch = sample_batch(prompts, answers, 0)
    for packing in (True, False):
        model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32), packing=packing, loss_chunk=2)
        with torch.no_grad():
            found = answer_logprob_and_greedy(model, batch)
            assert found[:, 1].tolist() == [1.0, 1.0, 0.0]
            assert torch.equal(found[:, :1], answer_logprob(model, batch))
