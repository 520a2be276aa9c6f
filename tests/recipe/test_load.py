from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import UserError
from triptych.recipe import Full, Lora, Recipe, RecipeError, Rl, dump_recipe, load_recipe, load_yaml
from triptych.recipe.base import Closed
from triptych.recipe.document import parse, write
from triptych.recipe.kinds import Reward, Sft

REVIEWS = """\
name: reviews
seed: 7
model:
  base: smollm2-135m-instruct
  dtype: float32
stages:
  sft:
    kind: sft
    data: {train: {path: data/sft.jsonl}}
    train:
      epochs: 1
      optimizer: {lr: 1e-4}
  reward:
    kind: reward
    method: {r: 8, targets: [q_proj, v_proj]}
    data:
      train: {path: data/pairs.jsonl, columns: {margin: gap}}
      heldout: {path: data/pairs-heldout.jsonl}
    train: {steps: 1_00}
  ppo:
    kind: ppo
    policy: sft
    reward: reward
    data: {train: {path: data/prompts.jsonl}}
    steps: 24
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(REVIEWS)
    return path


def load_text(tmp_path: Path, text: str, overrides: list[str] | None = None) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides or [])


def complaint(tmp_path: Path, text: str, overrides: list[str] | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        load_text(tmp_path, text, overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_values_and_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    sft, reward = recipe.stages["sft"], recipe.stages["reward"]
    assert isinstance(sft, Sft)
    assert sft.train.optimizer.lr == 1e-4
    assert sft.train.batch.rows == 16
    assert isinstance(reward, Reward)
    assert reward.train.steps == 100
    assert isinstance(reward.method, Lora)
    assert reward.method.targets == ("q_proj", "v_proj")


ALL_STAGES = "classification, dpo, evaluation, kto, question_answering, reward, rl, rrhf, sft, token_classification"
TRAINING = (
    "auto, batch, checkpoint_every, early_stopping, epochs, evaluate_every, log_every, max_bad_steps, memory, "
    "optimizer, steps, workers"
)
NAME = "1 to 64 lower case letters, digits, `.`, `_`, `-`, first and last a letter or digit"

MALFORMED = [
    # (text replaced, replacement, the whole message)
    ("seed: 7", "sed: 7",
     "2: sed: unknown key; did you mean `seed`?; allowed: machine, memory, model, name, seed, stages, storage, sweep, "
     "trackers"),
    ("epochs: 1", "epoch: 1", None),
    ("seed: 7", "seed: -1", "2: seed: cannot be -1; allowed: a whole number >= 0"),
    ("seed: 7", "seed: seven", '2: seed: cannot be "seven"; allowed: a whole number'),
    ("seed: 7", 'seed: "7"', '2: seed: cannot be "7"; allowed: a whole number >= 0'),
    ("seed: 7", "seed: true", "2: seed: cannot be true; allowed: a whole number >= 0"),
    ("seed: 7", "seed: 7.0", "2: seed: cannot be 7.0; allowed: a whole number >= 0"),
    ("name: reviews", "name: Reviews", f'1: name: cannot be "Reviews"; allowed: {NAME}'),
    ("name: reviews", "name: ../etc", f'1: name: cannot be "../etc"; allowed: {NAME}'),
    ("name: reviews\n", "", f"1: name: missing; allowed: {NAME}"),
    ("dtype: float32", "dtype: flaot32",
     '5: model.dtype: cannot be "flaot32"; did you mean `float32`?; allowed: float32, bfloat16'),
    ("base: smollm2-135m-instruct", 'base: ""', '4: model.base: cannot be ""; allowed: text, not empty'),
    ("kind: sft", "kind: stf", f'8: stages.sft.kind: cannot be "stf"; did you mean `sft`?; allowed: {ALL_STAGES}'),
    ("    kind: sft\n", "", f"7: stages.sft.kind: missing; allowed: {ALL_STAGES}"),
    ("  ppo:\n", "  PPO 2:\n", f'20: stages.PPO 2: cannot be called "PPO 2"; allowed: {NAME}'),
    ("lr: 1e-4", "lr: 0", "12: stages.sft.train.optimizer.lr: cannot be 0; allowed: a number > 0"),
    ("lr: 1e-4", "lr: .inf", "12: stages.sft.train.optimizer.lr: cannot be Infinity; allowed: a number > 0, finite"),
    ("lr: 1e-4", "betas: [0.9]",
     "12: stages.sft.train.optimizer.betas.1: missing; allowed: a number >= 0 and <= 1"),
    ("lr: 1e-4", "betas: [0.9, 2]",
     "12: stages.sft.train.optimizer.betas.1: cannot be 2; allowed: a number >= 0 and <= 1"),
    ("r: 8", "r: 513", "15: stages.reward.method.r: cannot be 513; allowed: a whole number >= 1 and <= 512"),
    ("[q_proj, v_proj]", "[q_proj, 3]", "15: stages.reward.method.targets.1: cannot be 3; allowed: text"),
    ("[q_proj, v_proj]", "all-liner",
     '15: stages.reward.method.targets: cannot be "all-liner"; did you mean `all-linear`?; '
     "allowed: all-linear or a list, each text"),
    ("columns: {margin: gap}", "columns: {margin: 2}",
     "17: stages.reward.data.train.columns.margin: cannot be 2; allowed: text"),
    ("steps: 24", "steps: 24\n    judge: vadr",
     '26: stages.ppo.judge: cannot be "vadr"; did you mean `vader`?; allowed: vader or null'),
    ("train: {steps: 1_00}", "train: {}", "19: stages.reward.train: give exactly one of `epochs` and `steps`"),
    ("train: {steps: 1_00}", "train: 3",
     f"19: stages.reward.train: cannot be 3; allowed: a mapping with the keys {TRAINING}"),
    # References between stages
    ("policy: sft", "policy: stf",
     "22: stages.ppo.policy: no stage `stf`; did you mean `sft`?; allowed: sft, or an adapter version as `name@3`"),
    ("policy: sft", "policy: reward",
     "22: stages.ppo.policy: `reward` is a stage of kind reward, whose output is a reward model; "
     "allowed: sft, or an adapter version as `name@3`"),
    ("reward: reward", "reward: sft",
     "23: stages.ppo.reward: `sft` is a stage of kind sft, whose output is a policy; "
     "allowed: reward, or an adapter version as `name@3`"),
    ("policy: sft", "policy: sft@latest",
     "22: stages.ppo.policy: `sft@latest` is no adapter version; allowed: a name, `@` and a number, as `name@3`"),
    ("    kind: sft\n", "    kind: sft\n    needs: [rewad]\n",
     "9: stages.sft.needs.0: no stage `rewad`; did you mean `reward`?; allowed: reward, ppo"),
    ("    kind: sft\n", "    kind: sft\n    needs: [ppo]\n",
     "9: stages.sft.needs.0: stages wait for each other: sft -> ppo -> sft"),
    ("    kind: sft\n", "    kind: sft\n    needs: [sft]\n",
     "9: stages.sft.needs.0: stages wait for each other: sft -> sft"),
    # YAML
    ("seed: 7", "seed: [7", None),
    ("seed: 7", "seed: 7\nname: again", "3: YAML: `name` is given twice, first in line 1"),
    ("seed: 7", "seed: !!python/object:os.system 7",
     "2: YAML: refused tag 'tag:yaml.org,2002:python/object:os.system'"),
    ("seed: 7", "seed: !!binary aGk=", "2: YAML: refused tag 'tag:yaml.org,2002:binary'"),
    ("seed: 7", "\tseed: 7", "2: YAML: found character '\\t' that cannot start any token"),
    ("seed: 7", "seed: *none", "2: YAML: found undefined alias 'none'"),
    ("seed: 7", "? [1]\n: 7", "2: YAML: a key must be text"),
    ("seed: 7", "seed: &a [*a]", "YAML: an alias that contains itself"),
    ("seed: 7", "seed: \x07", "2: YAML: special characters are not allowed: #x0007"),
    ("seed: 7", "seed: " + "9" * 5000, "2: YAML: a number too long to read"),
    ("seed: 7", "seed: " + "[" * 2000 + "]" * 2000, "YAML: nested too deeply"),
    ("seed: 7", "seed: 7\n---\nseed: 8", "3: YAML: but found another document"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new", "message"), MALFORMED)
def test_malformed_recipe(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    assert old in REVIEWS
    said = complaint(tmp_path, REVIEWS.replace(old, new, 1))
    assert said.startswith("recipe.yaml:")
    assert "\n" not in said or message is None
    if message is not None:
        assert message in said


def test_all_errors_of_a_file_in_one_message_in_the_order_of_its_lines(tmp_path: Path) -> None:
    text = REVIEWS.replace("seed: 7", "seed: x").replace("epochs: 1", "epoch: 1").replace("steps: 24", "steps: 0")
    lines = complaint(tmp_path, text).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["recipe.yaml:2", "seed"],
        ["recipe.yaml:11", "stages.sft.train.epoch"],
        ["recipe.yaml:25", "stages.ppo.steps"],
    ]
    assert f"unknown key; did you mean `epochs`?; allowed: {TRAINING}" in lines[1]


def test_error_has_file_line_and_field(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_text(tmp_path, REVIEWS.replace("steps: 24", "steps: 0"))
    error = caught.value
    assert isinstance(error, RecipeError)
    assert (error.file, error.line, error.field) == (str(tmp_path / "recipe.yaml"), 25, "stages.ppo.steps")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "recipe.yaml: is empty; allowed: a mapping of keys to values"),
        (b"# nothing\n", "recipe.yaml: is empty; allowed: a mapping of keys to values"),
        (b"- a\n- b\n", "recipe.yaml:1: the file holds a list; allowed: a mapping of keys to values"),
        (b"\nhello", "recipe.yaml:2: the file holds text; allowed: a mapping of keys to values"),
        (b"\xff\xfe\x00", "recipe.yaml: is not UTF-8 text"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: no such file$"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"cannot be read: Is a directory$"):
        load_recipe(tmp_path)


@pytest.mark.slow
def test_nested_aliases_are_refused_before_they_fill_memory(tmp_path: Path) -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    text = "\n".join(["l0: &l0 [x]", *levels, REVIEWS])
    assert "more than 4,000,000 characters once its aliases are written out" in complaint(tmp_path, text)


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = REVIEWS.replace("{lr: 1e-4}", "&adam {lr: 1e-4, eps: 1e-6}").replace(
        "train: {steps: 1_00}", "train: {steps: 100, optimizer: {<<: *adam, lr: 3e-4}}"
    )
    recipe = load_text(tmp_path, text, ["stages.sft.train.optimizer.eps=1e-7"])
    sft, reward = recipe.stages["sft"], recipe.stages["reward"]
    assert isinstance(sft, Sft)
    assert isinstance(reward, Reward)
    assert (reward.train.optimizer.lr, reward.train.optimizer.eps) == (3e-4, 1e-6)
    assert (sft.train.optimizer.lr, sft.train.optimizer.eps) == (1e-4, 1e-7)


# Overrides


def test_overrides_reach_everywhere(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "seed=3",
            "model.revision='1234567'",
            "stages.sft.train.epochs=null",
            "stages.sft.train.steps=4",
            "stages.sft.train.batch.rows=2",
            "stages.reward.method.targets.0=o_proj",
            "stages.reward.data.train.columns.chosen=better=1",
            "stages.ppo.ppo.kl={coef: 2e-1, kind: k3}",
            "stages.second={kind: sft, data: {train: {path: x}}, train: {steps: 1}}",
        ],
    )
    sft, reward, ppo = (recipe.stages[name] for name in ("sft", "reward", "ppo"))
    assert isinstance(sft, Sft)
    assert isinstance(reward, Reward)
    assert isinstance(ppo, Rl)
    assert recipe.seed == 3
    assert recipe.model.revision == "1234567"
    assert (sft.train.epochs, sft.train.steps, sft.train.batch.rows) == (None, 4, 2)
    assert isinstance(reward.method, Lora)
    assert reward.method.targets == ("o_proj", "v_proj")
    assert reward.data.train.columns == {"margin": "gap", "chosen": "better=1"}
    assert (ppo.kl.coef, ppo.kl.kind) == (0.2, "k3")
    assert recipe.stages["second"].kind == "sft"


def test_a_method_without_a_name_is_lora(tmp_path: Path) -> None:
    text = REVIEWS.replace("    kind: sft\n", "    kind: sft\n    method: {r: 4}\n", 1)
    assert text != REVIEWS
    for recipe in (load_text(tmp_path, text), load_text(tmp_path, REVIEWS, ["stages.sft.method.r=4"])):
        sft = recipe.stages["sft"]
        assert isinstance(sft, Sft)
        assert sft.method == Lora(r=4)
    sft = load_text(tmp_path, REVIEWS, ["stages.sft.method.name=full", "stages.ppo.policy=other@1"]).stages["sft"]
    assert isinstance(sft, Sft)
    assert sft.method == Full(name="full")
    with pytest.raises(RecipeError, match=r'method.name: cannot be "lorra"; did you mean `lora` or `vblora`\?'):
        load_text(tmp_path, text.replace("{r: 4}", "{name: lorra}"))
    with pytest.raises(RecipeError, match=r"stages.sft.method.r: unknown key.*allowed: name"):
        load_text(tmp_path, text.replace("{r: 4}", "{name: full, r: 4}"))


def test_override_of_a_stage_with_dots_in_its_name(tmp_path: Path) -> None:
    recipe = load_text(tmp_path, REVIEWS.replace("  sft:", "  sft-1.5:").replace("y: sft", "y: sft-1.5"), [
        "stages.sft-1.5.train.epochs=2"
    ])  # fmt: skip
    stage = recipe.stages["sft-1.5"]
    assert isinstance(stage, Sft)
    assert stage.train.epochs == 2


WRONG_OVERRIDES = [
    ("stages.sft.train.epoch=2",
     f"stages.sft.train.epoch: unknown key; did you mean `epochs`?; allowed: {TRAINING}"),
    ("stages.sfx.train.epochs=2", "stages.sfx: no such entry; did you mean `sft`?; allowed: sft, reward, ppo"),
    ("sead=2",
     "sead: unknown key; did you mean `seed`?; allowed: machine, memory, model, name, seed, stages, storage, sweep, "
     "trackers"),
    ("seed.deep=2", "seed.deep: nothing can stand below this; allowed here: a whole number >= 0"),
    ("stages.reward.method.targets.2=x", "stages.reward.method.targets.2: no such item; allowed: 0 to 1"),
    ("stages.sft.train.epochs=-1", "stages.sft.train.epochs: cannot be -1; allowed: a number > 0 or null"),
    ("seed=", "seed: cannot be null; allowed: a whole number >= 0"),
    ("stages.ppo.policy=stf",
     "stages.ppo.policy: no stage `stf`; did you mean `sft`?; allowed: sft, or an adapter version as `name@3`"),
    ("seed", "allowed: a dotted path, `=` and a value, such as `seed=1`"),
    ("=3", "allowed: a dotted path, `=` and a value, such as `seed=1`"),
    ("stages.new={kind: sfft}",
     f'stages.new.kind: cannot be "sfft"; did you mean `sft`?; allowed: {ALL_STAGES}'),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), WRONG_OVERRIDES)
def test_wrong_override(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [override])
    assert str(caught.value) == f"--set {override}: {message}"
    assert caught.value.line == f"--set {override}"


def test_override_that_is_no_yaml(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"^--set seed=\[1: YAML: expected ',' or '\]'"):
        load_recipe(recipe_file, ["seed=[1"])


def test_override_that_makes_its_parent_wrong_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path, REVIEWS, ["stages.sft.train.steps=3"]) == (
        "recipe.yaml:10: stages.sft.train: give exactly one of `epochs` and `steps` "
        "(with --set stages.sft.train.steps=3)"
    )


# Writing


def test_dump_loads_back_equal(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.sft.train.optimizer.eps=1e-12", "stages.sft.data.train.path='1e-4'"])
    assert load_text(tmp_path, dump_recipe(recipe)) == recipe
    assert "eps: 1.0e-12" in dump_recipe(recipe)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
words = st.text(min_size=1) | st.sampled_from(
    ["1e-4", "on", "no", "1_000", "010", "0x1F", ".5", "~", "null", "1:30", "<<", "a\x85b", "\u2028"]
)


@given(trees | words)
def test_written_data_reads_back_equal(data: object) -> None:
    back = parse(write(data), "x")[1]
    assert back == data
    assert type(back) is type(data)


@pytest.mark.slow
@given(
    path=words, column=words, lr=st.floats(1e-12, 1e12), limit=st.none() | st.integers(1, 2**63), seed=st.integers(0)
)
def test_any_recipe_dumps_and_loads_back(
    tmp_path_factory: pytest.TempPathFactory, path: str, column: str, lr: float, limit: int | None, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    recipe = load_text(folder, REVIEWS).model_dump(mode="json")
    recipe["seed"] = seed
    recipe["stages"]["sft"]["train"]["optimizer"]["lr"] = lr
    recipe["stages"]["sft"]["data"]["train"] |= {"path": path, "columns": {column: path}, "limit": limit}
    checked = Recipe.model_validate(recipe)
    assert load_text(folder, dump_recipe(checked)) == checked


# Other models


class Endpoint(Closed):
    port: int = 8000
    models: tuple[str, ...] = ()


def test_load_yaml_reads_any_model(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 80\nmodels: [a, b]\n")
    assert load_yaml(path, Endpoint, ["port=81"]) == Endpoint(port=81, models=("a", "b"))
    path.write_text("prt: 80\n")
    with pytest.raises(
        RecipeError, match=r"serve\.yaml:1: prt: unknown key; did you mean `port`\?; allowed: models, port"
    ):
        load_yaml(path, Endpoint)
