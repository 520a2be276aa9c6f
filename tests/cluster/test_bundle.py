"""What travels to a cluster, and what comes back."""

import base64
import json
import zipfile
from pathlib import Path

import pytest
import yaml

from triptych.cluster import bundle as bundles
from triptych.cluster import remote_call
from triptych.cluster.bundle import Bundle, archive, bundle_folder, bundle_recipe
from triptych.cluster.remote_call import (
    FILE,
    FOLDER,
    MARK,
    RECIPE,
    CallResult,
    RemoteCall,
    dump_call,
    fetch,
    parse_result,
    read_call,
    write_result,
)
from triptych.errors import RunError, UserError
from triptych.recipe import Data, Recipe, Source, load_recipe

CALL = RemoteCall(("run", RECIPE, "--set", 'name=it\'s "quoted"; $(rm -rf /)'), width=90)


@pytest.fixture
def recipe(three_stages: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Rows by a relative path, by an absolute one, by one that is not here, and a base that is a folder."""
    monkeypatch.chdir(three_stages.parent)
    Path("data").mkdir()
    for name in ("data/sft.jsonl", "pairs.jsonl"):
        Path(name).write_text('{"text": "warm"}\n' * 100)
    paths = ["sft=data/sft.jsonl", f"reward={Path('pairs.jsonl').absolute()}", "ppo=/mnt/shared/prompts.jsonl"]
    sets = [f"stages.{path.replace('=', '.data.train.path=')}" for path in paths]
    return load_recipe(three_stages, [*sets, f"model.base={tiny_model_dir}"])


def packed(bundle: Bundle) -> dict[str, bytes]:
    with archive(bundle) as path, zipfile.ZipFile(path) as content:
        return {name: content.read(name) for name in content.namelist()}


def test_local_files_travel_under_names_that_do_not_tell_where_they_lay(recipe: Recipe, tiny_model_dir: Path) -> None:
    content = packed(bundle_recipe(recipe, CALL))
    sent = yaml.safe_load(content[RECIPE])
    rows = {name: stage["data"]["train"]["path"] for name, stage in sent["stages"].items()}
    assert rows["sft"] == "data/sft.jsonl"
    assert rows["reward"].startswith("inputs/")
    assert rows["ppo"] == "/mnt/shared/prompts.jsonl", "it lies on the cluster"
    assert content["data/sft.jsonl"] == content[rows["reward"]] == b'{"text": "warm"}\n' * 100
    base = sent["model"]["base"]
    assert {name.removeprefix(f"{base}/") for name in content if name.startswith(base)} == {
        path.name for path in tiny_model_dir.iterdir()
    }
    assert str(tiny_model_dir.parent) not in content[RECIPE].decode()


def test_folders_of_tables_and_mixtures_travel(recipe: Recipe) -> None:
    Path("tables").mkdir()
    for name in ("b.parquet", "a.parquet", "notes.txt"):
        Path("tables", name).write_text(name)
    mix = Source.model_validate({"mix": [{"path": "tables"}, {"path": str(Path("pairs.jsonl").absolute())}]})
    stage = recipe.trained["sft"].model_copy(update={"data": Data(train=mix)})
    content = packed(bundle_recipe(recipe.model_copy(update={"stages": recipe.stages | {"sft": stage}}), CALL))
    sent = [part["path"] for part in yaml.safe_load(content[RECIPE])["stages"]["sft"]["data"]["train"]["mix"]]
    assert sent[0] == "tables"
    assert sent[1].startswith("inputs/")
    assert {name for name in content if name.startswith("tables")} == {"tables/a.parquet", "tables/b.parquet"}
    assert content[sent[1]] == Path("pairs.jsonl").read_bytes()


def test_a_base_with_python_files_travels_whole(recipe: Recipe, tiny_model_copy: Path) -> None:
    """Its code may import other files of the folder, and read any."""
    own = {path.name for path in tiny_model_copy.iterdir()} | {"modeling_own.py", "layers/norm.py", "own.tiktoken"}
    for name in (*own, "pytorch_model.bin", "zz-other.safetensors", ".git/config", "layers/__pycache__/norm.pyc"):
        file = tiny_model_copy / name
        file.parent.mkdir(exist_ok=True, parents=True)
        if not file.exists():
            file.write_text("x = 1")
    model = recipe.model.model_copy(update={"base": str(tiny_model_copy), "trust_remote_code": True})
    content = packed(bundle_recipe(recipe.model_copy(update={"model": model}), CALL))
    base = yaml.safe_load(content[RECIPE])["model"]["base"]
    assert {name.removeprefix(f"{base}/") for name in content if name.startswith(base)} == own


def test_the_same_content_is_the_same_archive(recipe: Recipe) -> None:
    with archive(bundle_recipe(recipe, CALL)) as first, archive(bundle_recipe(recipe, CALL)) as second:
        assert first.read_bytes() == second.read_bytes()


def test_a_relative_path_that_is_not_here_is_refused(recipe: Recipe) -> None:
    Path("data/sft.jsonl").unlink()
    with pytest.raises(UserError, match=r"data/sft\.jsonl: no such file on this machine"):
        bundle_recipe(recipe, CALL)


def test_too_much_is_refused_with_the_largest_files(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "LIMIT", 10_000)
    with pytest.raises(UserError, match=r"model\.safetensors .*allowed: 9\.8 KiB compressed\); put large files"):
        packed(bundle_recipe(recipe, CALL))


def test_a_call_arrives_as_it_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_bytes(dump_call(CALL))
    assert read_call() == CALL


def test_an_answer_comes_back_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / FOLDER / "deep").mkdir(parents=True)
    contents = {"a.bin": bytes(range(256)) * 10_000, "deep/empty": b""}
    for name, content in contents.items():
        (tmp_path / FOLDER / name).write_bytes(content)
    print("half a line", end="")
    write_result(CallResult(0, "table\n"))
    output = f"some log\n{capsys.readouterr().out}and more"
    answer = parse_result(output)
    assert answer is not None
    assert (answer.code, answer.stdout) == (0, "table\n")
    fetch(output, answer.sha256, tmp_path / "back")
    assert {name: (tmp_path / "back" / name).read_bytes() for name in contents} == contents


def test_too_much_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote_call, "MAX_BYTES", 10)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "a.bin").write_bytes(bytes(11))
    write_result(CallResult(0))
    printed = capsys.readouterr()
    assert parse_result(printed.out) == CallResult(2)
    assert printed.err.startswith("error: ")


def test_no_answer_is_none() -> None:
    assert parse_result("Traceback (most recent call last):\nKilled") is None


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "", "a//b"])
def test_a_name_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    output = MARK + json.dumps({"file": name, "part": base64.b64encode(b"x").decode()})
    with pytest.raises(RunError, match="unsafe name"):
        fetch(output, {name: "0" * 64}, tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    output = MARK + json.dumps({"file": "a", "part": base64.b64encode(b"x").decode()})
    with pytest.raises(RunError, match="came back damaged"):
        fetch(output, {"a": "0" * 64}, tmp_path / "back")


def test_a_folder_travels_whole(tiny_model_dir: Path) -> None:
    content = packed(bundle_folder(str(tiny_model_dir), CALL))
    assert content[f"{FOLDER}/config.json"] == (tiny_model_dir / "config.json").read_bytes()
    with pytest.raises(UserError, match="no such folder"):
        bundle_folder(str(tiny_model_dir / "none"), CALL)
