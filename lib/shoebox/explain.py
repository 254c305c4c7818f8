"""A plan as people and programs read it, for sh-run --explain. Pure: a Plan in, text out."""

from __future__ import annotations

from .amounts import told_size
from .writable import CHANGES, MEMORY, OVERLAY, UPPER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .facts import Peers
    from .nodecache import Cache
    from .plan import Plan
    from .writable import Writable


def as_text(plan: Plan, peers: Peers) -> str:
    """Return a line for each decision: its kind, what it is, and after a # the reason."""
    return "".join(f"{kind:9} {_shown(what):42} # {_shown(why)}\n" for kind, what, why in _lines(plan, peers))


def as_json(plan: Plan, peers: Peers) -> str:
    """Return the plan as a JSON object; bytes that are not UTF-8 become surrogates, as Python reads them."""
    import json  # noqa: PLC0415 - nobody else needs it

    mounts = [
        {
            "source": mount.source or None,
            "cache": _cache(mount.cache) if mount.cache else None,
            "content": mount.content.decode(errors="replace") or None,
            "destination": mount.target,
            "real": mount.real,
            "readonly": mount.readonly,
            "why": mount.why,
        }
        for mount in plan.mounts
    ]
    return (
        json.dumps(
            {
                "image": plan.source.path,
                "offset": plan.source.offset,
                "join": {"why": peers.why, "key": peers.words, "members": peers.pids},
                "way": {"name": plan.source.way, "why": plan.source.why},
                "root": {
                    "overlay": plan.overlay,
                    "writable": plan.writable is not None,
                    "form": plan.writable.form if plan.writable else None,
                    "size": (plan.writable.size or None) if plan.writable else None,
                    "directory": (plan.writable.directory or None) if plan.writable else None,
                    "why": plan.writable.why if plan.writable else None,
                },
                "made": [{"path": path, "kind": kind} for path, kind in plan.made],
                "devices": [{"name": name, "why": why} for name, why in plan.devices],
                "mpi": [{"name": name, "why": why} for name, why in plan.mpi],
                "mounts": mounts,
                "links": [{"path": path, "to": to, "why": why} for path, to, why in plan.links],
                "env": {
                    v.name: {"value": v.value, "why": v.why} for v in plan.command.variables if v.value is not None
                },
                "unset": {v.name: v.why for v in plan.command.variables if v.value is None},
                "format": {"name": plan.form[0] or None, "why": plan.form[1] or None},
                "prefix": list(plan.command.prefix),
                "cwd": {"path": plan.command.cwd[0], "why": plan.command.cwd[1]},
                "args": {"words": plan.command.args[0], "why": plan.command.args[1]},
                "ids": {"uid": plan.uid, "gid": plan.gid},
                "descriptors": [0, 1, 2, *plan.descriptors],
                "filtered": plan.filtered,
                "usage": plan.usage or None,
                "skipped": [{"what": what, "why": why} for what, why in plan.skipped],
                "warnings": plan.warnings,
            },
            indent=2,
        )
        + "\n"
    )


def _lines(plan: Plan, peers: Peers) -> Iterator[tuple[str, str, str]]:
    source = plan.source
    yield "image", source.path + (f", from byte {source.offset}" if source.offset else ""), f"a {source.kind}"
    if plan.form[0]:
        yield "format", *plan.form
    yield "way", source.way, source.why
    if peers.words:
        members = f"the container of {', '.join(map(str, peers.pids))}" if peers.pids else "as the first"
        yield "join", members, f"{peers.why}: the same request shares one container on this node"
    else:
        yield "join", "nobody", peers.why
    for name, why in plan.devices:
        yield "device", name, why
    for name, why in plan.mpi:
        yield "mpi", name, why
    yield from _tree(plan)
    for variable in plan.command.variables:
        if variable.value is None:
            yield "unset", variable.name, variable.why
        else:
            yield "env", f"{variable.name}={variable.value}", variable.why
    yield "cwd", *plan.command.cwd
    groups = "other groups too" if source.way == "setuid" else "other groups keep access and show as 65534"
    yield "ids", f"uid {plan.uid}, gid {plan.gid}", f"as outside; {groups}"
    yield "open", ", ".join(map(str, [0, 1, 2, *plan.descriptors])), "stdin, stdout, stderr, and PMI_FD's"
    if plan.usage:
        where = f"{plan.usage}/{plan.uid}.log" if plan.usage.startswith("/") else f"syslog, {plan.usage}"
        yield "usage", where, "site.conf: a line with the time, uid, image's digest, job, node and way"
    if plan.filtered:
        yield "filter", "ioctl TIOCSTI, TIOCLINUX", "there is a terminal on which a program could type for you"
    if plan.command.prefix:
        what = "the image's scripts, then the args"
        yield "prefix", f"{plan.command.prefix[0]} -c ...", f"{what}; --explain=json has all of it"
    yield "args", " ".join(_quoted(word) for word in plan.command.args[0]), plan.command.args[1]


def _tree(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Give the lines about what is to be seen inside."""
    if plan.writable:
        yield "root", *_writable(plan.writable)
    elif plan.overlay:
        yield "root", "overlay, read-only", "the image lacks what the lines with 'make' and 'link' name"
    else:
        yield "root", "the image, read-only", "it has all that is mounted on"
    for path, kind in plan.made:
        yield "make", path, f"the image has no such {kind}"
    for mount in plan.mounts:
        arrow = mount.target if mount.target == mount.real else f"{mount.target} ({mount.real})"
        if mount.cache:
            where = mount.cache.place or "memory"
            yield "cache", f"{told_size(mount.cache.size)} {mount.cache.fs} in {where} -> {arrow}", mount.cache.why
            continue
        yield "mount", f"{mount.source or 'a file of ours'} -> {arrow}{' ro' if mount.readonly else ''}", mount.why
    for what, why in plan.skipped:
        yield "skip", what, why
    for path, to, why in plan.links:
        yield "link", f"{path} -> {to}", why


def _cache(cache: Cache) -> dict[str, str | int | None]:
    return {"by": cache.by, "format": cache.fs, "size": cache.size, "directory": cache.place or None}


def _writable(kept: Writable) -> tuple[str, str]:
    """Return what the root is, and why, where it may be written to."""
    size = kept.size or "half of the memory"
    if kept.form == MEMORY:
        return f"overlay, writable, at most {size}", "--writable; what is written is gone at the end"
    if kept.form == OVERLAY:
        why = f"--writable; {kept.why}" + ("; it has the size that the file system has" if kept.size else "")
        return f"overlay, writable, kept in {kept.directory}/{UPPER}", why
    where = f"{kept.directory}/{CHANGES}"
    return f"overlay, writable, at most {size}, in memory, saved as {where}", f"--writable; {kept.why}"


def _quoted(word: str) -> str:
    return (
        word if word and not set(word) & set(" '\"\\$`*?[]#&;|<>(){}~!\t\n") else "'" + word.replace("'", "'\\''") + "'"
    )


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
