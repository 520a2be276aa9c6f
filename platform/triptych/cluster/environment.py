"""Runtime environment of a job on a cluster: what is added to the cluster's image."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml

import triptych
from triptych.errors import UserError

_PACKAGE = Path(triptych.__file__).resolve().parent

OURS = ("working_dir", "py_modules")
"""Fields of Ray's runtime environment that only `resolve` sets."""


@dataclass(frozen=True)
class Environment:
    """Additions to the cluster's image for a job."""

    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's own, without `working_dir` and `py_modules`."""
    sends_code: bool = False
    """Send this machine's triptych, which runs there in place of the image's."""

    def resolve(self, working_dir: Path | None = None) -> dict[str, Any]:
        """Ray's whole runtime environment, with paths of this machine.

        Args:
            working_dir: zip file for the job's working folder.
        """
        code = {"py_modules": [str(_PACKAGE), *map(str, _metadata())]} if self.sends_code else {}
        folder = {} if working_dir is None else {"working_dir": str(working_dir)}
        return self.runtime_env | folder | code


def is_from_wheel() -> bool:
    """True if this machine's triptych was installed as a package, False if it is a working tree."""
    try:
        files = distribution("triptych").files or ()
    except PackageNotFoundError:
        return False
    return any(Path(str(file.locate())).resolve() == _PACKAGE / "__init__.py" for file in files)


def _metadata() -> list[Path]:
    """Metadata folder of the package: its version, and the entry points by which vLLM finds the plugin."""
    try:
        files = distribution("triptych").files or ()
    except PackageNotFoundError:
        return []
    return [Path(str(file.locate())).parent for file in files if file.name == "METADATA"]


def read_runtime_env(path: Path | None) -> dict[str, Any]:
    """Read Ray's runtime environment from a YAML or JSON file; UserError if malformed, or if it sets one of OURS."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--runtime-env {path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"--runtime-env {path}: allowed is a mapping, as `pip: [...]` or `env_vars: {{...}}`")
    for name in OURS:
        if name in content:
            raise UserError(f"--runtime-env {path}: {name} is not allowed: recipe, data and (--dev) code travel anyway")
    return content
