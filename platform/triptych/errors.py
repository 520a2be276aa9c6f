"""Errors that end a command: the request is wrong (exit 2), or carrying it out failed (exit 1)."""


class UserError(Exception):
    """The request itself is wrong. The message names the field or file and what is allowed; exit code 2."""


class RunError(Exception):
    """A valid request that failed while it ran. The message says what to do next; exit code 1."""
