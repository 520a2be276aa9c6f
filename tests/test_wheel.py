"""The wheel holds the package and nothing else, and works where nothing else of this folder is."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "triptych"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy: setuptools would leave its own copy beside the sources, and take old files from there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(PACKAGE, folder / "platform" / "triptych", ignore=shutil.ignore_patterns("__pycache__"))
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow
def test_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == {
        name for name in files if "__pycache__" not in name
    }
    assert {"triptych/py.typed", "triptych/observe/report/page.html.j2"} <= set(wheel.namelist())


def test_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    [folder] = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    entries = wheel.read(f"{folder}/entry_points.txt").decode()
    assert "triptych = triptych.cli:main" in entries
    assert "triptych_cpu_lora = triptych.vllm_plugin:register" in entries


@pytest.mark.slow
def test_works_by_itself(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from triptych import cli; "
        "assert cli.__file__.startswith(sys.path[0]); cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path), "methods", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"lora"' in done.stdout
