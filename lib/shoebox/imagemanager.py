"""Shifter's imagemanager.json, and what registries.toml makes of it. Pure: a text in, a text and complaints out.

The format is that of Shifter's doc/install/imagegw.rst, as imagegw/shifter_imagegw/{imageworker,dockerv2}.py read it.
"""

from __future__ import annotations

import json
import re

from .fail import Fail
from .reference import DOCKER_HUB, parse

_HEAD = "# registries.toml, made of Shifter's imagemanager.json by sh-convert. See sh-pull(1), FILES.\n"
_ALONE = "# Shifter's users pull from its Locations only. Without these two lines they may pull from anywhere.\n"
_HUB_NAMES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
_URL = re.compile(r"(?:(https?)://)?([A-Za-z0-9.:\[\]-]+)(/.*)?", re.DOTALL)
_KINDS = ("token", "basic")
_NOT_HERE = "it says nothing of registries"


def is_one(text: str) -> bool:
    """Tell whether a text is meant to be an imagemanager.json."""
    return text.lstrip().startswith("{")


def convert(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Convert an imagemanager.json; return registries.toml's text, and (key, why) of what stays behind. Raises Fail."""
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Fail("cannot read it as imagemanager.json", str(error)[:200]) from error
    keys = document if isinstance(document, dict) else {}
    left = [(str(key), _NOT_HERE) for key in keys if key not in ("Locations", "DefaultImageLocation")]
    parts = [_HEAD]
    default = keys.get("DefaultImageLocation", DOCKER_HUB)
    host = _registry(default)
    if not host:
        left.append(("DefaultImageLocation", f"{str(default)[:200]!r} is no registry"))
    elif host != DOCKER_HUB:
        parts.append(f"search = [{_quoted(host)}]\n")
    locations = keys.get("Locations")
    found: dict[str, list[str]] = {}
    for name, said in locations.items() if isinstance(locations, dict) else ():
        where, host = f"Locations.{name}", _registry(name)
        if not host or not isinstance(said, dict):
            left.append((where, "it is no registry that a reference could name"))
        elif said.get("remotetype") != "dockerv2":
            left.append((where, f"Shifter itself knows no remotetype {str(said.get('remotetype'))[:200]!r} any more"))
        else:
            found.setdefault(host, []).extend(_entry(name, host, said, left))
    if not found:
        left.append(("Locations", "there is none that Shifter could pull from"))
    else:
        parts.append(f'{_ALONE}[registry."*"]\nblocked = true\n')
    parts += ["\n".join([f"[registry.{_quoted(host)}]", *dict.fromkeys(lines), ""]) for host, lines in found.items()]
    return "\n".join(parts), left


def _entry(name: str, host: str, said: dict[str, object], left: list[tuple[str, str]]) -> list[str]:
    """Return the lines for one location."""
    lines = []
    for key, value in said.items():
        where = f"Locations.{name}.{key}"
        text = value if isinstance(value, str) else ""
        if key == "url":
            lines += _url(where, host, text, left)
        elif key == "sslcacert" and text.startswith("/") and text.isprintable():
            lines.append(f"ca = {_quoted(text)}")
        elif key == "sslcacert":
            left.append(
                (where, f"{text[:200]!r} is found from the gateway's own directory: write an absolute path as ca")
            )
        elif key == "authMethod" and text in _KINDS:
            lines.append(f"authentication = {_quoted(text)}")
        elif key == "authMethod":
            left.append((where, f"{text[:200]!r} is none of {', '.join(_KINDS)}"))
        elif key not in ("remotetype", "authentication"):  # which Shifter does not read
            left.append((where, "Shifter has no such key"))
    return lines


def _url(where: str, host: str, text: str, left: list[tuple[str, str]]) -> list[str]:
    """Return the line for where a location is, if it is not where its name says. Shifter does not use a URL's path."""
    match = _URL.fullmatch(text)
    if not match or not _registry(match[2]):
        left.append((where, f"{text[:200]!r} is no URL of a registry"))
        return []
    scheme, netloc, path = match[1] or "https", match[2], match[3] or ""
    if path.strip("/") not in ("", "v2"):
        left.append(
            (where, f"its path {path[:200]!r} is left out, as Shifter does not use it: write it if it is needed")
        )
    if scheme == "http":
        left.append((where, "it is plain http, to which Shifter sends no passwords: sh-pull does, when it is asked to"))
    if scheme == "https" and (netloc == host or (host == DOCKER_HUB and netloc in _HUB_NAMES)):
        return []
    return [f"url = {_quoted(f'{scheme}://{netloc}')}"]


def _registry(name: object) -> str:
    """Return the registry that a location means, as references write it; "" for none."""
    try:
        reference = parse(f"{name}/x")
    except Fail:
        return ""
    return reference.registry if name in (reference.registry, *_HUB_NAMES) else ""


def _quoted(text: str) -> str:
    """Return a printable text as a basic string of TOML."""
    return json.dumps(text, ensure_ascii=False)
