"""Tokens and keys of this machine: reading them, and telling whether a URL would send them unencrypted."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from triptych.errors import UserError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def how_to_give(variable: str) -> str:
    """Advice for a message about a token or key that is wrong or missing."""
    return f"set {variable}_PATH to a file that holds it, or {variable}"


def read(variable: str, wanted: str, default: Path | None = None) -> str:
    """Read a token or key from `variable`, from the file that `variable`_PATH names, or from the default file.

    Args:
        variable: environment variable.
        wanted: who asks for it, for the error message.
        default: file to read if neither variable is set.

    Raises:
        UserError: it was not found, or is malformed. The message never contains what was found.
    """
    if secret := os.environ.get(variable):
        where = variable
    else:
        named = os.environ.get(f"{variable}_PATH")
        path = Path(named).expanduser() if named else default
        if path is None:
            raise UserError(f"{wanted}; {how_to_give(variable)}")
        where = f"{variable}_PATH ({path})" if named else str(path)
        try:
            secret = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{wanted}, and there is none in {where}; {how_to_give(variable)}") from None
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{wanted}, and {where} cannot be read; {how_to_give(variable)}") from None
    secret = secret.strip()
    if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise UserError(
            f"{wanted}, and {where} does not hold one: empty, or with spaces or control characters in it; "
            f"{how_to_give(variable)}"
        )
    return secret


def sends_in_clear(url: str) -> bool:
    """True if the URL sends unencrypted over a network; a loopback address does not."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _LOOPBACK
