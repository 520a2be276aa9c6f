"""From the learner to the verdict: a stage's registered adapter, and a vLLM endpoint that serves it, or another."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.scraping import free_port
from triptych.cli import main
from triptych.forward.roles import RoleModel
from triptych.models.adapter_effect import judge
from triptych.models.adapter_probes import probes_by_peft
from triptych.models.base import load_causal_lm
from triptych.recipe import Lora
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_role, finish
from triptych.stages.context import StageContext
from triptych.train.learner import Learner

Make = Callable[[dict[str, Any]], StageContext[Any]]
LORA = Lora(r=4, alpha=8)
NAME = "opinions"
STAGE = {"kind": "sft", "method": {"name": "lora", "r": 4, "alpha": 8}, "data": {"train": {"path": "x"}}}
STAGE |= {"train": {"steps": 2}, "register_as": NAME}
ERRORS = {
    "base": "the base alone answers",
    "older": f"{NAME}@1 answers",
    "changed": "with a changed tensor",
    "half": "at another scale, about 0.",
}
KEY = "sk-only-for-this-test"


def trained(ctx: StageContext[Any], run: str, seed: int) -> tuple[StageContext[Any], AdapterVersion]:
    """The registered output of a stage whose adapter has random weights."""
    ctx = replace(ctx, run=f"{ctx.run}-{run}")
    model = RoleModel(load_causal_lm(ctx.base_dir, torch.float32))
    model.add("policy", LORA, trainable=True)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.parameters_of("policy").items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.03)
    commit_role(ctx, Learner(model, {"policy": ctx.stage.train.optimizer}, {"policy": 2}), "policy", {})
    return ctx, finish(ctx, {"parents": {}}, {})


def changed(artifact: str, folder: Path, factor: float, *names: str) -> Path:
    """A copy of an adapter in which the tensors whose names have any of `names` are multiplied."""
    shutil.copytree(artifact, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    hit = {key: tensor * factor for key, tensor in tensors.items() if any(name in key for name in names)}
    assert hit
    save_file(tensors | hit, file)
    return folder


@contextmanager
def vllm(model: Path, dtype: str, adapters: dict[str, Path], folder: Path) -> Iterator[str]:
    """URL of a plain vLLM endpoint; its base answers as `tiny` and as `opinions@base`, too."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "128", "--enforce-eager"]
    command += [
        "--api-key",
        KEY,
        "--served-model-name",
        "tiny",
        f"{NAME}@base",
        "--enable-lora",
        "--max-lora-rank",
        "8",
    ]
    command += ["--max-loras", "2", "--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    command += ["--distributed-executor-backend", "uni"]  # one process: it starts in half the time
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_API_KEY": KEY}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "vllm.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 400
        while not _answers(url):
            assert server.poll() is None, (folder / "vllm.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield url
    finally:
        server.kill()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.exhaustive)])
def test_verify_passes_the_right_adapter_alone(
    make_context: Make,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dtype: str,
) -> None:
    first, before = trained(make_context(STAGE), "first", 1)
    ctx, version = trained(first, "second", 2)
    registry = ctx.registry()
    assert (before.ref, version.ref) == (f"{NAME}@1", f"{NAME}@2")
    for alias in (*ERRORS, "right"):
        registry.alias(NAME, alias, 2)
    served = {
        f"{NAME}@right": Path(version.url),
        f"{NAME}@older": Path(before.url),
        f"{NAME}@changed": changed(version.url, tmp_path / "changed", -1, "layers.0.self_attn.q_proj.lora_B"),
        f"{NAME}@half": changed(version.url, tmp_path / "half", 0.5, "lora_B"),
    }

    def verify(name: str, *options: str) -> tuple[int, str, str]:
        arguments = ["adapters", "verify", name, "--registry", ctx.registry_url, "--endpoint", url, *options]
        monkeypatch.setattr(sys, "argv", ["triptych", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), *capsys.readouterr()

    capsys.readouterr()
    with vllm(tiny_model_dir, dtype, served, tmp_path) as url:
        monkeypatch.setenv("TRIPTYCH_KEY", KEY)
        code, out, err = verify(f"{NAME}@right")
        assert (code, err) == (0, "")
        assert out.startswith(f"{NAME}@right is {NAME}@2: it answers as it was trained (")
        for name, message in ERRORS.items():
            code, out, err = verify(f"{NAME}@{name}", "--json")
            assert (code, message in err) == (1, True), err
            told = json.loads(out)
            assert told["looks_like"] != "right"
            assert told["gap"] > 0.05
            assert name != "half" or told["share"] == pytest.approx(0.5, abs=0.05)
        code, _, err = verify(f"{NAME}@2")
        assert (code, f"serves no {NAME}@2; it serves {NAME}@" in err) == (2, True), err
        monkeypatch.setenv("TRIPTYCH_KEY", "sk-wrong")
        code, _, err = verify(f"{NAME}@right")
        assert (code, "TRIPTYCH_KEY_PATH" in err, "sk-wrong" in err) == (2, True, False), err


def test_a_stage_registers_what_its_learner_measured(make_context: Make, tmp_path: Path) -> None:
    """The values are those of plain peft on the files; other files beside them are refused."""
    ctx, version = trained(make_context(STAGE), "run", 1)
    registry = ctx.registry()
    probes = registry.facts(version.ref).probes
    assert probes is not None
    assert (len(probes.sequences), probes.dtype) == (16, "float32")
    by_peft = probes_by_peft(Path(version.url), ctx.base_dir)
    assert by_peft.sequences == probes.sequences
    report = judge(probes, by_peft.adapter, by_peft.base)
    assert report.looks_like == "right"
    assert report.gap == pytest.approx(0, abs=1e-4)
    assert report.effect > 0.1
