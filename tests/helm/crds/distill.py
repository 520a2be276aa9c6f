"""Writes the JSON schemas beside it from custom resource definitions: `python distill.py OUT.json CRD.yaml ...`.

Kept is what a rendered object is checked against: types, enums, patterns, required fields. Every object is closed, for
a field that the definition does not know would be dropped by Kubernetes without a word. Pod templates and the like are
left open here: `kubernetes-validate` knows them for every version of Kubernetes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KEPT = {"type", "properties", "items", "required", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems"}
KEPT |= {"minLength", "maxLength", "additionalProperties", "anyOf", "oneOf", "allOf", "not"}
BUILT_IN = {"template", "submitterPodTemplate", "serveService", "headService"}
"""Fields that hold Kubernetes' own types."""


def distill(paths: list[Path]) -> dict[str, Any]:
    """Kind -> JSON schema, of each definition's stored version."""
    schemas = {}
    for path in paths:
        crd = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]
        [version] = [version for version in crd["versions"] if version["storage"]]
        schema = _shape(version["schema"]["openAPIV3Schema"])
        schema["properties"].pop("status", None)
        group = f"{crd['group']}/{version['name']}"
        schema["properties"] |= {"apiVersion": {"const": group}, "kind": {"const": crd["names"]["kind"]}}
        schema["properties"]["metadata"] = {"type": "object"}
        schemas[crd["names"]["kind"]] = schema
    return schemas


def _shape(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {key: value for key, value in schema.items() if key in KEPT}
    for key in ("anyOf", "oneOf", "allOf"):
        if key in kept:
            kept[key] = [{k: v for k, v in part.items() if k in KEPT} for part in kept[key]]
    if "properties" in kept:
        kept["properties"] = {
            name: {"type": "object"} if name in BUILT_IN else _shape(value)
            for name, value in kept["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _shape(kept[key])
    return kept


if __name__ == "__main__":
    out, *sources = map(Path, sys.argv[1:])
    lines = (f'"{kind}": {json.dumps(schema, sort_keys=True)}' for kind, schema in distill(sources).items())
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
