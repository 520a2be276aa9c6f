"""The peers' own virtual environments, in build/peers; made when first needed, with the same torch as ours."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "build" / "peers"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""torch's CPU build is on PyTorch's own index only, unless the configured index mirrors it."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment: `packages` with their dependencies, then `alone` without, less the files `removed`."""

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    """Glob patterns in site-packages."""

    def python(self) -> Path:
        """Its interpreter; the environment is made if it is missing or was made from other packages."""
        folder = FOLDER / self.name
        python, mark = folder / "bin" / "python", folder / "installed"
        wanted = "\n".join([self._torch, *self.packages, *self.alone, *self.removed])
        if not mark.is_file() or mark.read_text() != wanted:
            _call([sys.executable, "-m", "venv", "--clear", str(folder)])
            self._install(python)
            for pattern in self.removed:
                for file in folder.glob(f"lib/*/site-packages/{pattern}"):
                    file.unlink()
            mark.write_text(wanted)
        return python

    @property
    def _torch(self) -> str:
        return f"torch=={version('torch')}"

    def _install(self, python: Path) -> None:
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        try:
            _call([*pip, "--no-deps", self._torch])
        except RuntimeError:
            _call([*pip, "--no-deps", "--extra-index-url", TORCH_CPU_INDEX, self._torch])
        _call([*pip, *self.packages, self._torch])
        if self.alone:
            _call([*pip, "--no-deps", *self.alone])


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


TRL = Environment("trl", ("trl==1.16.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0", "rich"))

LLAMAFACTORY = Environment(
    "llamafactory",
    packages=(
        "accelerate>=1.3.0,<=1.11.0",
        "av>=10.0.0,<=16.0.0",
        "datasets>=2.16.0,<=4.0.0",
        "einops",
        "fastapi",
        "fire",
        "hf-transfer",
        "matplotlib>=3.7.0",
        "numpy",
        "omegaconf",
        "peft>=0.18.0,<=0.18.1",
        "pandas",
        "protobuf",
        "rich",
        "scipy",
        "sentencepiece",
        "sse-starlette",
        "tiktoken",
        "torchdata>=0.10.0,<=0.11.0",
        "transformers==5.6.0",
        "trl>=0.18.0,<=0.24.0",
        "tyro<0.9.0",
        "uvicorn",
    ),
    alone=("llamafactory==0.9.5", "torchaudio==2.11.0"),
    removed=("torchaudio/lib/*.so",),
)
"""Its requirements but for the web pages and torchvision.

torchvision's and torchaudio's builds on the package index are for CUDA and do not load beside a CPU build of torch.
LLaMA-Factory imports torchaudio for sound, which is not trained here: without its compiled part it loads.
"""
LLAMAFACTORY_NOTE = (
    "LLaMA-Factory 0.9.5 wants transformers <= 5.6, peft <= 0.18.1 and datasets <= 4.0, so it has its own "
    "environment; torch is ours. torchvision is left out and torchaudio's compiled part removed: both need CUDA"
)
