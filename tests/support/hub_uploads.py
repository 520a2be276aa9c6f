"""What the hub answers to one who makes a model repository and uploads files: small ones inline, others as LFS."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

_PLACE = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
OBJECT = "/lfs/"


@dataclass
class Uploads:
    """Model repositories by name: their files, and whether they are private."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by their sha256."""
    full: bool = False
    """True: no repository can be made."""

    def put(self, path: str, body: bytes) -> None:
        """Take a large file."""
        oid = hashlib.sha256(body).hexdigest()
        assert path == OBJECT + oid
        self.objects[oid] = body

    def answer(self, url: str, path: str, body: bytes) -> tuple[int, dict[str, Any]] | None:
        """Status and content of an answer to a POST; None for any other place."""
        if path == "/api/repos/create":
            return self._made(url, json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if match := _BATCH.fullmatch(path):
            asked = json.loads(body)["objects"]
            hrefs = [one | {"actions": {"upload": {"href": f"{url}{OBJECT}{one['oid']}"}}} for one in asked]
            return 200, {"transfer": "basic", "objects": hrefs}
        if (match := _PLACE.fullmatch(path)) is None:
            return None
        return self._modes(json.loads(body)) if match[2] == "preupload" else self._committed(url, match[1], body)

    def _made(self, url: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.full:
            return 403, {"error": "the quota is used up"}
        name = f"{asked['organization']}/{asked['name']}"
        self.files.setdefault(name, {})
        self.private[name] = asked.get("visibility") == "private"
        return 200, {"url": f"{url}/{name}", "id": name, "name": name}

    def _modes(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        large = ".safetensors"
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(large) else "regular",
                "shouldIgnore": False,
            }
            for one in asked["files"]
        ]
        return 200, {"files": modes}

    def _committed(self, url: str, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        for line in body.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "header":
                self.messages.append(value["summary"])
            elif told["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                self.files[name][value["path"]] = self.objects[value["oid"]]
        oid = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{url}/{name}/commit/{oid}"}
