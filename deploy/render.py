"""Writes what is made from something else: `python deploy/render.py`; `--check` only says what is not up to date.

The endpoint's part of the chart's schema (from `triptych.recipe.serve`), the chart's table of values (from the comments
of values.yaml), the dashboards (from `triptych.observe.dashboards`), and plain manifests (from the chart).
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import helm_python
import yaml

from triptych.observe.dashboards import BOARDS, grafana
from triptych.recipe.serve import ServeConfig

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "triptych"
MANIFESTS = ROOT / "deploy" / "manifests"

OURS = {"registry", "artifacts", "host", "port"}
"""Arguments of the endpoint that the chart gives by itself."""


def sources() -> dict[Path, str]:
    """Path -> what belongs there, of what the chart itself is made of."""
    dashboards = CHART / "files" / "dashboards"
    made = {dashboards / f"{name}.json": json.dumps(grafana(name), indent=1) + "\n" for name in BOARDS}
    return made | {CHART / "values.schema.json": _schema(), CHART / "README.md": _readme()}


def manifests() -> dict[Path, str]:
    """The same of the plain manifests, rendered from the chart as it lies there."""
    recipe = (MANIFESTS / "recipe.yaml").read_text(encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "rayservice": {},
        "raycluster": {"service": {"enabled": False}, "cluster": {"enabled": True}},
        "rayjob": {"service": {"enabled": False}, "jobs": {"reviews": {"recipe": recipe}}},
    }
    return {MANIFESTS / f"{name}.yaml": _manifest(name, chosen) for name, chosen in values.items()}


def _schema() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    config = ServeConfig.model_json_schema()
    parts = config.pop("$defs") | {"ServeConfig": config}
    config["properties"] = {name: field for name, field in config["properties"].items() if name not in OURS}
    config["required"] = [name for name in config["required"] if name not in OURS]
    schema["$defs"] = {name: part for name, part in schema["$defs"].items() if name[0].islower()} | parts
    return json.dumps(schema, indent=2) + "\n"


def _readme() -> str:
    """README.md with its table of values written anew."""
    text = (CHART / "README.md").read_text(encoding="utf-8")
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    rows = ["| value | default | what it is |", "| --- | --- | --- |"]
    for path, comment in _comments((CHART / "values.yaml").read_text(encoding="utf-8")):
        default: Any = values
        for key in path:
            default = default[key]
        rows.append(f"| `{'.'.join(path)}` | `{json.dumps(default)}` | {comment} |")
    head, _, tail = text.partition("<!-- values -->\n")
    return f"{head}<!-- values -->\n" + "\n".join(rows) + "\n<!-- end -->\n" + tail.partition("<!-- end -->\n")[2]


def _comments(text: str) -> list[tuple[list[str], str]]:
    """Path of every value that has a comment `# -- ...`, and the comment."""
    found: list[tuple[list[str], str]] = []
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        if match := re.match(r" *# -- (.*)", line):
            comment = [match[1]]
        elif comment and (match := re.match(r" *# (.*)", line)):
            comment.append(match[1])
        elif match := re.match(r"( *)([\w-]+):", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if comment:
                found.append((path, " ".join(comment)))
            comment = []
    return found


def _manifest(name: str, values: dict[str, Any]) -> str:
    """The chart's objects but its test, for those who have no Helm."""
    rendered = helm_python.Chart.load(CHART).render(values, name="triptych", namespace="triptych")
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    objects = [found for text in texts for found in yaml.safe_load_all(text) if found]
    kept = [_plain(found) for found in objects if "helm.sh/hook" not in found["metadata"].get("annotations", {})]
    parts = [yaml.dump(found, Dumper=_Dumper, sort_keys=False, width=1000) for found in kept]
    apply = f"kubectl create namespace triptych && kubectl apply -f {name}.yaml"
    return "---\n".join([f"# Written by deploy/render.py from helm/triptych.\n# {apply}\n", *parts])


def _plain(value: Any) -> Any:
    """Without Helm's labels and annotations."""
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if not key.startswith("helm.sh/")}
        kept.pop("app.kubernetes.io/managed-by", None)
        return {key: item for key, item in kept.items() if key != "annotations" or item}
    return [_plain(item) for item in value] if isinstance(value, list) else value


class _Dumper(yaml.SafeDumper):
    """Text of several lines as text of several lines."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def main() -> None:
    stale = []
    for made in (sources, manifests):
        for path, text in made().items():
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(str(path.relative_to(ROOT)))
                if "--check" not in sys.argv:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text, encoding="utf-8")
    if "--check" in sys.argv and stale:
        raise SystemExit(f"run deploy/render.py: it would write {', '.join(stale)}")


if __name__ == "__main__":
    main()
