"""Tables in TOML: the site's and the user's files of one name. sh-run imports this when there is a registries.toml."""

from __future__ import annotations

import sys

from .fail import Fail


def load(path: str, todo: str) -> dict[str, object]:
    """Read a file; {} when it is not there. todo: where to read of it. Raises Fail."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise Fail(f"cannot read {path!r}", error) from error
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 # novm - costs sh-run 10 ms, and only a table needs it
    else:
        try:
            import tomli as tomllib  # noqa: PLC0415
        except ImportError as error:
            todo = "write names with their registry, or install tomli"
            raise Fail(f"cannot read {path!r}", "Python before 3.11 knows no TOML", todo) from error
    try:
        document: dict[str, object] = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise Fail(f"cannot use {path!r}", str(error), todo) from error
    return document
