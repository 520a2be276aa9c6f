"""A quantised base as engines get it: the values that the learner computes with."""

from pathlib import Path

import pytest
import torch

from triptych import storage
from triptych.engines.base import EnginePlan
from triptych.errors import UserError
from triptych.models.base import load_causal_lm, load_tokenizer
from triptych.models.rounded import rounded_base
from triptych.recipe.model import Model
from triptych.recipe.rollout import Engines


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))


def test_the_rounded_base_computes_what_the_quantised_one_does(tiny_model_dir: Path) -> None:
    ids = torch.arange(5, 25)[None]
    folder = rounded_base(tiny_model_dir, "int8")
    learner = load_causal_lm(tiny_model_dir, torch.float32, quantization="int8")
    engine = load_causal_lm(folder, torch.float32)
    torch.testing.assert_close(engine(ids).logits, learner(ids).logits, rtol=1e-5, atol=1e-6)
    assert not torch.equal(engine(ids).logits, load_causal_lm(tiny_model_dir, torch.float32)(ids).logits)
    assert load_tokenizer(folder)("a b").input_ids == load_tokenizer(tiny_model_dir)("a b").input_ids


def test_it_is_made_once_and_committed(tiny_model_dir: Path) -> None:
    folder = rounded_base(tiny_model_dir, "int8")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert rounded_base(tiny_model_dir, "int8") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    storage.verify(str(folder))


def test_a_base_that_is_not_quantised_is_its_own_folder(tiny_model_dir: Path) -> None:
    assert rounded_base(tiny_model_dir, None) == tiny_model_dir


def test_nf4_is_refused_with_what_is_allowed(tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match="engines sample no base rounded by nf4; allowed with engines: int8, or none"):
        rounded_base(tiny_model_dir, "nf4")


def test_an_engine_is_given_the_rounded_base_of_its_recipe(tiny_model_dir: Path) -> None:
    model = Model(base=str(tiny_model_dir), quantization="int8")
    plan = EnginePlan(str(tiny_model_dir), "float32", Engines(), "merged", 64, 1, (2,), model)
    assert plan.here().model_dir == str(rounded_base(tiny_model_dir, "int8"))
    elsewhere = EnginePlan("/not/here", "float32", Engines(), "merged", 64, 1, (2,), model)
    assert elsewhere.here().model_dir == plan.here().model_dir
