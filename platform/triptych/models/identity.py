"""The tokenizer's part of a base's fingerprint, and the comparison of fingerprints of all versions."""

import json
from pathlib import Path
from typing import Any

from triptych.storage import digest_of

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json")
"""Files that say how text becomes tokens. The first alone counts where it is there, as for transformers."""
_SETTINGS = ("bos_token", "eos_token", "unk_token", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
_CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")
_BETWEEN = "-"


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of `TOKENIZER_FILES` that count."""
    found = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return found[:1] if found and found[0].name == TOKENIZER_FILES[0] else found


def tokenizer_digest(folder: Path, files: dict[str, str], chat_template: str | None) -> str:
    """The sha256 over a tokenizer and its chat template: that which is given, else the folder's own.

    `files`: name -> sha256 of `tokenizer_files`. What a library's version writes beside them is no part of it.
    """
    settings: dict[str, Any] = {}
    for name in _CONFIGS:
        if (folder / name).is_file():
            settings |= json.loads((folder / name).read_text(encoding="utf-8"))
    own = folder / "chat_template.jinja"
    template = own.read_text(encoding="utf-8") if own.is_file() else settings.get("chat_template")
    told = {key: _content(settings[key]) for key in _SETTINGS if settings.get(key) is not None}
    return digest_of({"files": files, "settings": told, "template": chat_template or template})


def joined(weights: str, tokenizer: str) -> str:
    """The fingerprint of a base whose weights and tokenizer have these digests."""
    return f"{weights}{_BETWEEN}{tokenizer[:32]}"


def difference(recorded: str, found: str) -> str | None:
    """What differs between two bases by their fingerprints, for a message; None where they are one base.

    Earlier versions recorded the weights alone: they match whatever tokenizer is there now.
    """
    (weights, _, tokenizer), (now, _, there) = recorded.partition(_BETWEEN), found.partition(_BETWEEN)
    if weights != now:
        return "another base"
    if tokenizer and there and tokenizer != there:
        return "the same weights with another tokenizer or chat template (model.chat_template)"
    return None


def _content(token: Any) -> Any:
    """A special token's text, in either of the forms in which transformers writes it."""
    return token.get("content") if isinstance(token, dict) else token
