"""What a job on a cluster runs in: its image, and what was asked for beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import triptych
from triptych.errors import UserError

OURS = ("working_dir", "py_modules")
"""Parts of a runtime environment that are made here."""


@dataclass(frozen=True)
class Environment:
    """What a job runs in beside the cluster's image."""

    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's own, without `working_dir` and `py_modules`."""
    dev: bool = False
    """This machine's triptych travels, and runs there in place of the image's."""

    def resolve(self, working_dir: Path | None = None) -> dict[str, Any]:
        """The whole of Ray's runtime environment; its paths are of this machine."""
        code = {"py_modules": [str(Path(triptych.__file__).parent)]} if self.dev else {}
        folder = {} if working_dir is None else {"working_dir": str(working_dir)}
        return self.runtime_env | folder | code


def read_runtime_env(path: Path | None) -> dict[str, Any]:
    """A YAML or JSON file of Ray's runtime environment; UserError where it is none, or names what travels anyway."""
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
