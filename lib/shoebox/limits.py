"""What the image account does for nobody: images for other machines, of ports of this host, too large ones. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import amounts, platforms
from .fail import Fail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .oci import Manifest
    from .platforms import Platform
    from .registries import Table
    from .systems import System

MOST = "100G"  # bytes of an image, unless site.conf says otherwise


def platform(wanted: Platform, native: Platform, systems: Mapping[str, System]) -> None:
    """Raise Fail for a platform that no machine of the site runs: an image's name means one image, for everybody.

    native: this host's, which is the site's if it names no systems.
    """
    machines = [system.platform or native for system in systems.values()]
    if not (any(platforms.runs_on(wanted, one) for one in machines) if systems else wanted == native):
        they = ", ".join(sorted(set(map(str, machines or [native]))))
        raise Fail(f"no machine of this site runs {wanted}", f"they are {they}", "see sh-gateway(8)")
    takes_all = next((system.name for system in systems.values() if not system.platform), "")
    if takes_all and wanted != native:
        why = f"the system {takes_all!r} would take it, too: it has no 'platform' in systems.toml"
        raise Fail(f"cannot make images for {wanted}", why, "ask those who run this site")


def registry(table: Table, host: str) -> None:
    """Raise Fail for a registry that is believed by its port alone, which is anybody's on this host; blocked ones, too.

    table: the account's, which may name it.
    """
    if table.place(host).url.startswith("http:") and not table.names(host):
        why = "it is reached by plain http, and registries.toml does not name it"
        raise Fail(f"the image account does not ask {host!r}", why, "ask those who run this site")


def size(manifest: Manifest, most: str) -> None:
    """Raise Fail for an image of which more would be fetched. most: as in site.conf."""
    there = sum(length for _, length in {(blob.digest, blob.size) for blob in (manifest.config, *manifest.layers)})
    if there > amounts.parse_size(most):
        raise Fail(f"its blobs have {amounts.told_size(there)}", f"this site makes images of {most} at most")


def readers(named: tuple[str, ...], *, private: bool) -> None:
    """Raise Fail where readers are named for what the registry gives to anybody: its name would be theirs alone."""
    if named and not private:
        raise Fail("everybody may have it", todo="leave --user and --group out")
