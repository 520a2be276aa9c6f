"""From a base's name to its folder, tokenizer, frozen model and fingerprint."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from triptych.errors import UserError
from triptych.models import base
from triptych.models.identity import difference
from triptych.recipe.model import Model


def test_a_folder_is_taken_as_it_is(tiny_model_dir: Path) -> None:
    assert base.resolve_base(Model(base=str(tiny_model_dir))) == tiny_model_dir.resolve()


@pytest.mark.parametrize("name", ["smollm2-135m", "./nowhere", "a/b/c", "~/nowhere"])
def test_unknown_names_list_what_is_allowed(name: str) -> None:
    with pytest.raises(UserError, match=r"smollm2-135m-instruct.*Hugging Face id.*local folder"):
        base.resolve_base(Model(base=name))


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(UserError, match="Did you mean 'smollm2-135m-instruct'"):
        base.resolve_base(Model(base="SmolLM2-135M"))


def test_an_id_out_of_reach_says_so() -> None:
    with pytest.raises(UserError, match=r"'nobody/no-such-model' at revision 'v1'.*cannot be reached.*local folder"):
        base.resolve_base(Model(base="nobody/no-such-model", revision="v1"))


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        base.resolve_base(Model(base=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never unpickled")
    with pytest.raises(UserError, match="safetensors"):
        base.resolve_base(Model(base=str(tmp_path)))


def test_a_tokenizer_without_chat_template_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="no chat template"):
        base.load_tokenizer(folder)


def test_a_given_chat_template_replaces_the_tokenizers_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    for given in (template, str(file)):
        model = Model(base=str(tiny_model_dir), chat_template=given)
        assert model.chat_template == template, "workers and other nodes have no such file"
        assert base.model_tokenizer(tiny_model_dir, model).chat_template == template
    assert base.model_tokenizer(tiny_model_dir, Model(base="b")).chat_template != template
    file.write_text("no template")
    for wrong, reason in ((str(tmp_path / "none.jinja"), "neither a file"), (str(file), "holds no Jinja template")):
        with pytest.raises(ValidationError, match=reason):
            Model(base="b", chat_template=wrong)


def test_the_end_token_pads_where_there_is_no_other(tiny_model_dir: Path, tmp_path: Path) -> None:
    core = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<|endoftext|>"))
    only = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", chat_template="{{ messages }}")
    only.save_pretrained(tmp_path)
    loaded = base.load_tokenizer(tmp_path)
    assert (loaded.pad_token_id, loaded.eos_token_id, len(loaded)) == (0, 0, 2)


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_padding_differs_from_the_end_and_adds_no_token(tiny_model_dir: Path, tmp_path: Path, pad: str | None) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
    loaded = base.load_tokenizer(folder)
    assert loaded.pad_token == "<|endoftext|>"
    assert loaded.pad_token_id != loaded.eos_token_id
    assert len(loaded) == len(tokenizer)


def test_a_folder_without_tokenizer_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tiny_model_dir / "config.json", folder)
    with pytest.raises(UserError, match="tokenizer"):
        base.load_tokenizer(folder)


def test_the_model_is_frozen_and_quiet(tiny_model_dir: Path) -> None:
    model = base.load_causal_lm(tiny_model_dir, torch.bfloat16)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert model.config.use_cache is False


def test_fingerprint_follows_the_weights_not_the_place(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    first = base.fingerprint(tiny_model_dir)
    copy = Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))
    assert base.fingerprint(copy) == first

    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "9", "dtype": "float32"}))
    assert base.fingerprint(copy) == first, "what a library's version writes is no part of it"
    (copy / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    assert base.fingerprint(copy) != first
    (copy / "config.json").write_text(json.dumps(config))

    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(0, 0))
    assert difference(first, base.fingerprint(copy)) == "another base"
    assert base.fingerprint(copy) != first
    assert base.fingerprint(copy) == base.fingerprint(copy)
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in tiny_model_dir.iterdir())


def test_fingerprint_follows_tokenizer_and_template(tiny_model_dir: Path, tmp_path: Path) -> None:
    first = base.fingerprint(tiny_model_dir)
    copy = Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))
    template = (copy / "chat_template.jinja").read_text()
    assert base.fingerprint(copy, template) == first, "the same template, given by the recipe"
    given = base.fingerprint(copy, template.upper())
    (copy / "chat_template.jinja").write_text(template.upper())
    assert base.fingerprint(copy) == given != first
    (copy / "chat_template.jinja").write_text(template)
    assert base.fingerprint(copy) == first

    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"transformers_version": "9"}))
    assert base.fingerprint(copy) == first, "what a library's version writes is no part of it"
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    assert base.fingerprint(copy) != first
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text().replace("warm", "WARM"))
    assert "another tokenizer" in str(difference(first, base.fingerprint(copy)))


def test_fingerprints_of_earlier_versions_match_by_their_weights(tiny_model_dir: Path) -> None:
    now = base.fingerprint(tiny_model_dir)
    before = now.partition("-")[0]
    assert len(before) == 64
    assert difference(before, now) is None
    assert difference(now, before) is None
    assert difference("0" * 64, now) == "another base"
