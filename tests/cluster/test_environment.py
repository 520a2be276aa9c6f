"""Which code a cluster runs: its image's, or what travels from here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.cluster.environment import Environment, is_from_wheel


def test_without_a_word_nothing_travels() -> None:
    assert Environment({"pip": ["x"]}).resolve() == {"pip": ["x"]}
    assert Environment().resolve(working_dir=Path("bundle.zip")) == {"working_dir": "bundle.zip"}


def test_a_working_tree_is_no_package() -> None:
    assert not is_from_wheel()


@pytest.mark.slow
def test_what_travels_of_a_package_is_its_code_with_its_version_and_its_plugin(packaged: Path) -> None:
    """As on a cluster's node: each folder that travels is found beside what has no triptych."""
    code = (
        "import json; from triptych.cluster.environment import Environment, is_from_wheel\n"
        "print(json.dumps([is_from_wheel(), Environment(sends_code=True).resolve()['py_modules']]))"
    )

    def out(code: str, *folders: str) -> str:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
        return subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)

    from_wheel, folders = json.loads(out(code, str(packaged)))
    assert from_wheel
    assert [Path(folder).name for folder in folders] == ["triptych", "triptych-9.9.9.dist-info"]
    code = (
        "from importlib.metadata import entry_points, version\nimport triptych\n"
        "print(version('triptych'), triptych.__version__, entry_points(name='triptych_cpu_lora').names)"
    )
    assert out(code, *(str(Path(folder).parent) for folder in folders)) == "9.9.9 9.9.9 {'triptych_cpu_lora'}\n"
