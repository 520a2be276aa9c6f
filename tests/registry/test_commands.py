"""`triptych adapters` and `triptych keys`: what they print, and how they fail."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.scraping import free_port
from triptych import storage
from triptych.cli import main
from triptych.models.base import fingerprint
from triptych.registry import Registry
from triptych.registry.keys import make_key

Write = Callable[..., Path]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run("adapters", "list")`: the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIPTYCH_REGISTRY", raising=False)
    monkeypatch.delenv("TRIPTYCH_ARTIFACTS", raising=False)

    def run_command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["triptych", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        assert code is None or isinstance(code, int)
        return Result(code or 0, *capsys.readouterr())

    return run_command


@pytest.fixture
def noted(lora: Path) -> Path:
    """An adapter folder as a stage leaves it."""
    note = {"kind": "lora", "base": "tiny", "base_fingerprint": "f1"}
    (lora / "triptych.json").write_text(json.dumps(note))
    return lora


Run = Callable[..., Result]


@pytest.mark.slow
def test_from_register_to_export(run: Run, noted: Path, tmp_path: Path) -> None:
    assert run("adapters", "register", "reviews", noted, "--for-serving") == Result(0, "reviews@1\n", "")
    assert run("adapters", "register", "reviews", noted, "--parent", "reviews@1").out == "reviews@2\n"
    assert run("adapters", "alias", "reviews@1", "default").out == "reviews@default -> reviews@1\n"
    assert run("adapters", "alias", "reviews@2", "default").out == "reviews@default -> reviews@2\n"

    listing = run("adapters", "list").out.splitlines()
    assert listing[0].split() == ["name", "means", "kind", "base", "servable", "aliases"]
    assert listing[1].split() == ["reviews", "reviews@2", "policy", "tiny", "yes", "default=2"]
    assert [line.split()[0] for line in run("adapters", "list", "reviews").out.splitlines()[1:]] == [
        "reviews@1",
        "reviews@2",
    ]
    assert run("adapters", "rollback", "reviews").out == "reviews@default -> reviews@1\n"
    exported = run("adapters", "export", "reviews", "out")
    assert (exported.code, exported.out) == (0, "reviews@1 -> out\n")
    assert "its files do not name the base: tiny is a name of this machine" in exported.err
    assert storage.verify(str(tmp_path / "out")).files.keys() >= {"adapter_config.json", "triptych.json"}


def test_show(run: Run, noted: Path) -> None:
    run("adapters", "register", "reviews", noted)
    run("adapters", "register", "ppo", noted, "--parent", "reviews")
    facts = json.loads(run("adapters", "show", "reviews", "--json").out)
    assert facts["ref"] == "reviews@1"
    assert (facts["base"], facts["base_fingerprint"], facts["kind"]) == ("tiny", "f1", "policy")
    assert (facts["descendants"], facts["used_by"], facts["ancestors"]) == (["ppo@1"], ["ppo@1"], [])
    assert facts["lineage"]["source"] == str(noted)
    text = run("adapters", "show", "ppo").out
    assert 'ancestors         ["reviews@1"]' in text
    assert f"sha256            {facts['sha256']}" in text


def test_json_wherever_there_is_a_table(run: Run, noted: Path) -> None:
    run("adapters", "register", "reviews", noted)
    (adapter,) = json.loads(run("adapters", "list", "--json").out)
    assert (adapter["name"], adapter["versions"], adapter["plain"]) == ("reviews", [1], 1)
    (version,) = json.loads(run("adapters", "list", "reviews", "--json").out)
    assert (version["ref"], version["servable"]) == ("reviews@1", True)
    assert json.loads(run("adapters", "register", "reviews", noted, "--json").out)["ref"] == "reviews@2"


def test_the_registry_is_an_option_or_a_variable(
    run: Run, noted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("adapters", "register", "one", noted)
    assert Registry(f"sqlite:///{tmp_path}/runs/registry.db").get("one").version == 1
    url = f"sqlite:///{tmp_path}/else/where.db"
    run("adapters", "register", "two", noted, "--registry", url)
    assert "two@1" in run("adapters", "list", "--registry", url).out
    monkeypatch.setenv("TRIPTYCH_REGISTRY", url)
    assert "two@1" in run("adapters", "list").out
    assert "one@1" not in run("adapters", "list").out


def test_artifacts_elsewhere(run: Run, noted: Path, tmp_path: Path) -> None:
    run("adapters", "register", "reviews", noted, "--artifacts", "kept")
    assert len(storage.list_committed(str(tmp_path / "kept/reviews"))) == 1


def test_an_adapter_from_elsewhere_needs_its_base(
    run: Run, tmp_path: Path, write_lora: Write, tiny_model_dir: Path
) -> None:
    lora = write_lora(tmp_path / "wide", hidden=128)
    refused = run("adapters", "register", "reviews", lora)
    assert (refused.code, refused.out) == (2, "")
    assert "--base: the folder's triptych.json does not say which base model" in refused.err
    assert run("adapters", "register", "reviews", lora, "--base", tiny_model_dir).out == "reviews@1\n"
    facts = json.loads(run("adapters", "show", "reviews", "--json").out)
    assert facts["base"] == str(tiny_model_dir)
    assert facts["base_fingerprint"] == fingerprint(tiny_model_dir)


def test_an_adapter_that_its_base_has_no_place_for_is_refused(run: Run, lora: Path, tiny_model_dir: Path) -> None:
    """vLLM would copy the narrower matrices into a corner, and answer with neither model's text."""
    refused = run("adapters", "register", "reviews", lora, "--base", tiny_model_dir)
    assert (refused.code, refused.out) == (2, "")
    assert "q_proj.lora_A.weight has 8 inputs, and the base's model.layers.0.self_attn.q_proj has 128" in refused.err
    assert run("adapters", "list", "--json").out.strip() == "[]"


def test_a_base_that_is_not_the_adapters_is_refused(run: Run, noted: Path, tiny_model_dir: Path) -> None:
    refused = run("adapters", "register", "reviews", noted, "--base", tiny_model_dir)
    assert refused.code == 2
    assert "triptych.json: base_fingerprint is 'f1'" in refused.err


def test_what_cannot_be_served_is_kept_with_a_word(run: Run, tmp_path: Path, write_lora: Write) -> None:
    folder = write_lora(tmp_path / "dora", use_dora=True)
    (folder / "triptych.json").write_text('{"base": "tiny", "base_fingerprint": "f1"}')
    refused = run("adapters", "register", "reviews", folder, "--for-serving")
    assert (refused.code, refused.out) == (2, "")
    assert f"error: {folder} cannot be served: it uses DoRA" in refused.err
    kept = run("adapters", "register", "reviews", folder)
    assert (kept.code, kept.out) == (0, "reviews@1\n")
    assert "cannot be served: it uses DoRA" in kept.err
    assert "no: it uses DoRA" in run("adapters", "list").out


def test_rank_above_the_largest_allowed(run: Run, tmp_path: Path, write_lora: Write) -> None:
    folder = write_lora(tmp_path / "wide", r=128)
    (folder / "triptych.json").write_text('{"base": "tiny", "base_fingerprint": "f1"}')
    assert run("adapters", "register", "reviews", folder, "--for-serving").code == 2
    assert run("adapters", "register", "reviews", folder, "--for-serving", "--max-rank", "128").code == 0


def test_remove_wants_to_be_told_what_it_breaks(run: Run, noted: Path) -> None:
    run("adapters", "register", "reviews", noted)
    run("adapters", "alias", "reviews", "canary")
    refused = run("adapters", "remove", "reviews")
    assert refused.code == 2
    assert "reviews@1 is used by reviews@canary; to remove it still: --force reviews@1" in refused.err
    wrong = run("adapters", "remove", "reviews@1", "--force", "reviews@2")
    assert wrong.code == 2
    assert "--force names reviews@2, but what would be removed is reviews@1" in wrong.err
    assert run("adapters", "show", "reviews@canary").code == 0
    assert run("adapters", "remove", "reviews", "--force", "reviews@1") == Result(0, "removed reviews@1\n", "")
    assert run("adapters", "show", "reviews").code == 2


def test_an_alias_can_be_removed(run: Run, noted: Path) -> None:
    run("adapters", "register", "reviews", noted)
    run("adapters", "alias", "reviews", "canary")
    assert run("adapters", "alias", "reviews", "canary", "--delete").out == "removed reviews@canary\n"
    assert run("adapters", "remove", "reviews@1").out == "removed reviews@1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adapters", "show", "review"), "there is no adapter 'review'; did you mean reviews?"),
        (("adapters", "show", "reviews@7"), "has no version or alias '7'; it has 1"),
        (("adapters", "list", "nobody"), "there is no adapter 'nobody'"),
        (("adapters", "register", "Bad Name", "lora"), "adapter name 'Bad Name'"),
        (("adapters", "register", "reviews", "nowhere"), "there is no folder nowhere"),
        (("adapters", "register", "reviews", "lora", "--parent", "x@1"), "there is no adapter 'x'"),
        (("adapters", "alias", "reviews", "3"), "alias '3': numbers are versions"),
        (("adapters", "rollback", "reviews"), "nothing to roll back to"),
        (("adapters", "export", "reviews", "lora"), "lora exists already"),
        (
            ("adapters", "export", "reviews", "out", "--drop-layers", "1"),
            "has no bottleneck adapters; allowed for",
        ),
        (("adapters", "list", "--registry", "mysql://u:secret@h/d"), "sqlite and postgresql"),
        (("keys", "revoke", "nobody"), "there is no key with id 'nobody'"),
        (("keys", "create", "--label", " "), "1 to 100 printable characters"),
    ],
)
def test_what_is_wrong_goes_to_stderr_with_exit_2(
    run: Run, noted: Path, arguments: tuple[str, ...], message: str
) -> None:
    run("adapters", "register", "reviews", noted)
    failed = run(*arguments)
    assert (failed.code, failed.out) == (2, "")
    assert failed.err.startswith("error: ")
    assert message in failed.err
    assert "secret" not in failed.err
    assert "Traceback" not in failed.err


@pytest.mark.parametrize("arguments", [("adapters", "list"), ("adapters", "remove", "x"), ("keys", "list")])
def test_looking_makes_no_registry(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    failed = run(*arguments)
    assert failed.code == 2
    assert "there is no registry at sqlite:///" in failed.err
    assert not (tmp_path / "runs").exists()


def test_a_tampered_artifact_fails_with_exit_1(run: Run, noted: Path, tmp_path: Path) -> None:
    run("adapters", "register", "reviews", noted)
    url = json.loads(run("adapters", "show", "reviews", "--json").out)["url"]
    Path(url, "adapter_config.json").write_text("{}")
    failed = run("adapters", "export", "reviews", "out")
    assert failed.code == 1
    assert "adapter_config.json has 2 bytes" in failed.err
    assert not (tmp_path / "out").exists()


def test_keys(run: Run, tmp_path: Path) -> None:
    made = run("keys", "create", "--label", "ada's laptop")
    key = made.out.strip()
    assert (made.code, made.out.count("\n")) == (0, 1)
    assert key.startswith("tk-")
    assert "cannot be shown again" in made.err
    registry = Registry(f"sqlite:///{tmp_path}/runs/registry.db")
    assert registry.check_key(key)

    listed = run("keys", "list")
    assert key not in listed.out
    assert "ada's laptop" in listed.out
    assert "valid" in listed.out
    (facts,) = json.loads(run("keys", "list", "--json").out)
    assert facts["label"] == "ada's laptop"
    assert "sha256" not in facts
    assert run("keys", "revoke", facts["id"]) == Result(0, f"revoked {facts['id']}\n", "")
    assert registry.check_key(key) is None
    assert "revoked" in run("keys", "list").out

    elsewhere, sha256 = make_key()
    assert run("keys", "create", "--label", "x", "--admin", "--sha256", sha256) == Result(0, "", "")
    known = registry.check_key(elsewhere)
    assert known is not None
    assert known.admin


@pytest.mark.parametrize("verb", ["list", "show", "register", "alias", "rollback", "remove", "export"])
def test_every_verb_has_help(run: Run, verb: str) -> None:
    assert "Usage:" in run("adapters", verb, "--help").out


@pytest.mark.parametrize("verb", ["canary", "promote"])
def test_a_verb_is_absent_until_it_works(run: Run, verb: str) -> None:
    assert run("adapters", verb, "reviews").code == 2
    assert verb not in run("adapters", "--help").out


@pytest.mark.slow
def test_looking_at_the_registry_loads_no_torch(run: Run, noted: Path, tmp_path: Path) -> None:
    run("adapters", "register", "reviews", noted)
    script = (
        "import sys; sys.argv = ['triptych', 'adapters', 'list']\n"
        "from triptych.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules))"
    )
    out: Any = subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path, text=True)
    assert out.splitlines()[-1] == "set()"


def test_a_model_card_has_the_figures_of_evaluations(run: Run, noted: Path, tmp_path: Path) -> None:
    for _ in range(2):
        run("adapters", "register", "reviews", noted)
    base = {"value": 2.5, "low": 2.25, "high": 2.75}
    own = {"value": 2.0, "low": 1.5, "high": 2.5, "difference": {"value": -0.5, "low": -0.75, "high": -0.25}}
    figures = {
        "models": ["base", "sft"],
        "versions": {"sft": "reviews@2"},
        "sets": {"chats": {"measure": "loss", "rows": 12, "figures": {"loss": {"better": "lower", "models": {}}}}},
    }
    figures["sets"]["chats"]["figures"]["loss"]["models"] = {"base": base, "sft": own}  # type: ignore[index]
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "figures.json").write_text(json.dumps(figures))
    registry = Registry(f"sqlite:///{tmp_path}/runs/registry.db", str(tmp_path / "runs/artifacts"))
    lineage = {"parents": ["reviews@2"]}
    registry.register(
        "films", folder, kind="evaluation", base="tiny", base_fingerprint="f1", lineage=lineage, metrics={}
    )
    card = exported_card(run, "reviews@2", tmp_path / "second")
    _, facts, text = card.split("---\n", 2)
    (result,) = yaml.safe_load(facts)["model-index"][0]["results"]
    assert result["dataset"] == {"name": "chats", "type": "films@1"}
    assert result["metrics"] == [{"type": "loss", "value": 2.0, "args": {"interval_95": [1.5, 2.5]}}]
    assert "## Measured by films@1" in text.splitlines()
    line = "| chats | 12 | loss | 2.5 (2.25 to 2.75) | 2 (1.5 to 2.5) | -0.5 (-0.75 to -0.25) |"
    assert line in text.splitlines()
    assert "films@1" not in exported_card(run, "reviews@1", tmp_path / "first"), "another version was measured"
    assert run("adapters", "show", "films").code == 0


def exported_card(run: Run, ref: str, folder: Path) -> str:
    assert run("adapters", "export", ref, str(folder)).code == 0
    return (folder / "README.md").read_text(encoding="utf-8")


def test_verify_measures_what_came_without_values_and_says_what_it_cannot_ask(
    run: Run, write_lora: Write, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = write_lora(tmp_path / "made-elsewhere", hidden=128)
    assert run("adapters", "register", "reviews", folder, "--base", tiny_model_dir).code == 0
    nowhere = ("--endpoint", f"http://127.0.0.1:{free_port()}")
    refused = run("adapters", "verify", "reviews", *nowhere)
    assert (refused.code, "reviews@1 came without measured values: give its base" in refused.err) == (2, True)
    measured = run("adapters", "verify", "reviews", "--base", tiny_model_dir)
    assert (measured.code, f"reviews@1 was measured on {tiny_model_dir}" in measured.err) == (0, True)
    unreachable = run("adapters", "verify", "reviews", *nowhere)
    assert (unreachable.code, f"{nowhere[1]} cannot be reached" in unreachable.err) == (2, True)
    assert run("adapters", "verify", "revews", *nowhere).code == 2


def test_verify_measures_on_no_other_base(run: Run, noted: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert run("adapters", "register", "reviews", noted).code == 0
    refused = run("adapters", "verify", "reviews", "--base", tiny_model_dir)
    assert (refused.code, "reviews@1 was trained on tiny, another base" in refused.err) == (2, True)
