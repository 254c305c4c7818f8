"""Shifter's udiRoot.conf, and what site.conf and modules make of it. Pure: a text in, texts and complaints out.

The format is that of Shifter's doc/config/udiRoot.conf.rst, as src/{utility,UdiRootConfig,VolumeMap}.c read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .foreign import shifter_pairs
from .site import is_name

_NOT_NEEDED = "sh-run needs none"
_TOOL = "sh-run starts no such program"
_GATEWAY = "sh-pull asks registries itself: convert the gateway's imagemanager.json, too"
_HOOK = "sh-run runs no hooks: what it mounts can be mounted, what it sets can be set"
_CACHE = "say it in mount.conf, see NODE CACHES in sh-mount(8), or as node-cache-on and node-cache-size in site.conf"
_EACH = "who wants a node cache asks for it: sh-run --node-cache"
_IDENTITY = "sh-run puts the user's line into the image's own passwd and group"
# Keys that say nothing to sh-run, and why, or what there is instead.
_ELSEWHERE = {
    "allowLibcPwdCalls": _IDENTITY,
    "allowLocalChroot": "whoever may read a directory may run it as an image",
    "autoLoadKernelModule": "sh-run loads no kernel modules; sh-doctor tells what a node lacks",
    "batchType": "sh-run knows job steps by their variables",
    "chmodPath": _TOOL,
    "cpPath": _TOOL,
    "ddPath": _TOOL,
    "defaultImageType": "a name is a docker reference unless it is a path",
    "etcPath": f"{_IDENTITY}; mount single files under [mounts] if they are to cover the image's",
    "gatewayTimeout": _GATEWAY,
    "imageGateway": _GATEWAY,
    "insmodPath": _TOOL,
    "kmodBasePath": "sh-run loads no kernel modules",
    "kmodCacheFile": "sh-run loads no kernel modules",
    "loopMount": _NOT_NEEDED,
    "maxGroupCount": _IDENTITY,
    "mkfsXfsPath": _CACHE,
    "modprobePath": _TOOL,
    "mountUdiRootWritable": "the root is read-only; a user may ask for --writable",
    "mvPath": _TOOL,
    "nodeContextPrefix": _NOT_NEEDED,
    "optionalSshdAsRoot": "there is no sshd inside",
    "perNodeCacheAllowedFsType": _CACHE,
    "perNodeCachePath": _CACHE,
    "perNodeCacheSizeLimit": _CACHE,
    "populateEtcDynamically": _IDENTITY,
    "rootfsType": _NOT_NEEDED,
    "sitePostMountHook": _HOOK,
    "sitePreMountHook": f"{_HOOK}; targets that an image lacks are made",
    "system": "nothing asks for the system's name",
    "udiMount": _NOT_NEEDED,
    "udiRootPath": _NOT_NEEDED,
}
_ENVIRONMENT = (
    ("siteEnv", ""),
    ("siteEnvPrepend", "prepend "),
    ("siteEnvAppend", "append "),
    ("siteEnvUnset", "unset "),
)
_HARMLESS = ("rec", "slave")  # flags of a mount that all of ours have
_MODULE = "module_"
_IN_IMAGE = "/opt/udiImage"


@dataclass
class Converted:
    """What came of it: site.conf's text, the modules' by name, and (key, why) of what stays behind."""

    site: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    left: list[tuple[str, str]] = field(default_factory=list)


def convert(text: str) -> Converted:
    """Convert a udiRoot.conf. Never fails: what is not understood is among what stays behind."""
    keys = _read(text)
    found = Converted()
    modules: dict[str, dict[str, str]] = {}
    own = {}
    for key, value in keys.items():
        name, _, what = key.removeprefix(_MODULE).partition("_")
        if key.startswith(_MODULE) and name and what:
            modules.setdefault(name, {})[what] = value
        elif key in ("siteFs", "optUdiImage", "defaultModules", *dict(_ENVIRONMENT)):
            own[key] = value
        else:
            _elsewhere(key, value, found.left)
    found.modules = {name: text for name in modules for text in [_module(name, modules[name], found.left)] if text}
    wanted = own.get("defaultModules", "").replace(",", " ").split()
    for name in wanted:
        if name not in found.modules:
            found.left.append(("defaultModules", f"there is no module {name!r}, or it is not enabled"))
    mounts = _mounts("siteFs", own.get("siteFs", ""), found.left)
    if own.get("optUdiImage"):
        mounts += _mounts("optUdiImage", f"{own['optUdiImage']}:{_IN_IMAGE}:ro", found.left)
        copied = [name for name in found.modules if modules[name].get("copyPath")]
        why = "make this directory on the host, where the module is to be mounted: {}/modules/{}"
        found.left += [(f"{_MODULE}{name}_copyPath", why.format(own["optUdiImage"], name)) for name in copied]
    settings = [f"modules = {' '.join(name for name in wanted if name in found.modules)}"] if wanted else []
    environment = _environment("", own, found.left)
    _rivals(environment, found)
    found.site = _file("site.conf", mounts, environment, settings)
    return found


def _read(text: str) -> dict[str, str]:
    """Return the keys; values of one that is there twice are joined where Shifter joins them, else the last counts."""
    keys: dict[str, str] = {}
    for key, value in shifter_pairs(text, "="):
        joined = key.endswith("siteFs") or key in dict(_ENVIRONMENT)
        between = "; " if key.endswith("siteFs") else " "
        keys[key] = f"{keys[key]}{between}{value}" if joined and key in keys else value
    return keys


def _elsewhere(key: str, value: str, left: list[tuple[str, str]]) -> None:
    """Say why a key is not carried over."""
    if key == "imagePath":
        left.append(
            (key, f"add it to SHOEBOX_PATH: sh-run finds an image of this store by id:ID, as {value}/ID.squashfs")
        )
    elif key == "mountPropagationStyle":
        if value != "slave":  # ours are
            left.append((key, "what is mounted on the host later shows inside: automounters need that"))
    else:
        left.append((key, _ELSEWHERE.get(key, "Shifter has no such key")))


def _module(name: str, keys: dict[str, str], left: list[tuple[str, str]]) -> str:
    """Return a module's file, "" if it is not to be used."""
    prefix = f"{_MODULE}{name}_"
    if not is_name(name) or name == "none":
        left.append((f"{prefix}*", f"{name!r} cannot be the name of a module here"))
        return ""
    if not re.match(r"[+-]?0*[1-9]", keys.get("enabled", "1")):  # strtol(3)'s 0, as Shifter asks
        left.append((f"{prefix}enabled", "the module is off, and left out"))
        return ""
    for key in keys.keys() - {"enabled", "conflict", "siteFs", "copyPath", *dict(_ENVIRONMENT)}:
        hook = key in ("userhook", "roothook")
        left.append((f"{prefix}{key}", _HOOK if hook else "Shifter has no such key (a module's name has no '_')"))
    mounts = _mounts(f"{prefix}siteFs", keys.get("siteFs", ""), left)
    if keys.get("copyPath"):  # which Shifter copies at each start, to the same effect
        target = f"{_IN_IMAGE}/modules/{name}"
        mounts += _mounts(f"{prefix}copyPath", f"{keys['copyPath']}:{target}:ro", left)
    settings = [f"description = {name}, of udiRoot.conf"]
    against = [word for word in keys.get("conflict", "").split() if is_name(word)]
    if against:
        settings.append(f"conflicts = {' '.join(against)}")
    return _file(f"modules.d/{name}.conf", mounts, _environment(prefix, keys, left), settings)


def _mounts(key: str, value: str, left: list[tuple[str, str]]) -> list[str]:
    """Return the lines for FROM[:TO[:FLAG...]], separated by semicolons or blanks."""
    lines = []
    for word in value.replace(";", " ").split():
        source, *more = word.strip('"').split(":")
        target, flags = more[0] if more else source, more[1:]
        lost = [flag for flag in flags if flag.lower() not in ("ro", *_HARMLESS)]
        if not all(_is_path(path) for path in (source, target)) or target.strip("/") == "":
            left.append((key, f"{word!r} is not FROM:TO with two absolute paths"))
        elif any(flag.lower().startswith("pernodecache") for flag in lost):
            left.append((key, f"{word!r}: {_EACH}"))
        else:
            lines.append(f"{source} {target} none bind{',ro' if 'ro' in [flag.lower() for flag in flags] else ''}")
            left += [(key, f"{word!r} is mounted without {flag!r}, which sh-run does not know") for flag in lost]
    return lines


def _is_path(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and not set(path) & set("$\\") and path.isprintable()


def _environment(prefix: str, keys: dict[str, str], left: list[tuple[str, str]]) -> list[str]:
    """Return the lines for the variables; a word is a variable, and no quotes are known."""
    lines = []
    for key, operator in _ENVIRONMENT:
        for word in keys.get(key, "").split():
            name, equals, _ = word.partition("=")
            if not name or bool(equals) == (key == "siteEnvUnset") or set(name) & set("[]$#"):
                left.append((f"{prefix}{key}", f"{word!r} is not {'NAME' if key == 'siteEnvUnset' else 'NAME=VALUE'}"))
            else:
                lines.append(f"{operator}{word}")
    return lines


def _rivals(own: list[str], found: Converted) -> None:
    """Say which variables a module now sets last, where in Shifter the site did."""
    ours = {_variable(line) for line in own}
    for name, text in found.modules.items():
        lines = text.partition("[environment]\n")[2].partition("\n\n")[0].split("\n")
        for variable in sorted(ours & {_variable(line) for line in lines if line}):
            why = f"both it and site.conf have {variable!r}: here the module comes last, in Shifter the site did"
            found.left.append((f"{_MODULE}{name}_siteEnv*", why))


def _variable(line: str) -> str:
    return line.partition("=")[0].rpartition(" ")[2]


def _file(name: str, mounts: list[str], environment: list[str], settings: list[str]) -> str:
    sections = (("mounts", mounts), ("environment", environment), ("settings", settings))
    parts = [f"# {name}, made of Shifter's udiRoot.conf by sh-convert. See site.conf(5); check with sh-doctor.\n"]
    parts += ["\n".join([f"[{title}]", *lines, ""]) for title, lines in sections if lines]
    return "\n".join(parts)
