"""A repository wherever it may be had: at the registry's mirrors, in the order of the table, then at the registry.

A mirror is believed by digest only: what it sends is compared with what was asked for, and a tag means what the
registry says, unless the table believes its mirrors in that, too (`mirror-tags`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

from .access import Absent
from .fail import Fail, say
from .registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from .credentials import Finder
    from .oci import Descriptor
    from .reference import Reference
    from .registries import Table
    from .web import Web

T = TypeVar("T")


class Sources:
    """A repository, open for reading by several threads at once."""

    def __init__(self, through: Web, table: Table, reference: Reference, find: Finder, given_up: set[str]) -> None:
        """Send nothing yet. find: whose credentials.

        given_up: mirrors not to ask (any more), shared by all names of one command line. Raises Fail when the
        registry, or a mirror that is named for it, is blocked.
        """
        host = reference.registry
        self.own = Registry(through, table.place(host), reference.repository, find)
        self._mirrors = [Registry(through, at, reference.repository, find, tries=1) for at in table.mirrors(host)]
        self._tags = table.mirrors_tags(host)
        self._given_up = given_up

    def has(self, name: str) -> bool:
        """Tell whether a tag or digest is there for us to pull. Raises Fail when the registry cannot be asked."""

        def look(source: Registry) -> bool:
            there = source.has(name)
            if not there and source is not self.own:
                raise Absent(f"{source.host!r} does not have it")
            return there

        return self._ask(look, by_tag=":" not in name)

    def manifest(self, name: str) -> tuple[bytes, str]:
        """Return a manifest or index by tag or digest, as it came, and its Content-Type. Raises Fail.

        The registry's own answer is the caller's to check.
        """

        def fetch(source: Registry) -> tuple[bytes, str]:
            data, kind = source.manifest(name)
            if source is not self.own and ":" in name and name != f"sha256:{hashlib.sha256(data).hexdigest()}":
                raise Fail(f"{source.host!r} sent something else for {name!r}")
            return data, kind

        return self._ask(fetch, by_tag=":" not in name)

    def digest(self, name: str) -> str:
        """Return the digest that is told for a tag, "" if none is. Raises Fail."""
        return self._ask(lambda source: source.digest(name), by_tag=True)

    @property
    def authority(self) -> Registry | Sources:
        """Who says what somebody may have: the registry itself, unless its mirrors are believed in what tags mean."""
        return self if self._tags else self.own

    def prove(self, descriptor: Descriptor) -> None:
        """Make sure that a blob is in the repository, for us. Raises Fail."""
        if self._tags:
            self.each(lambda source: source.prove(descriptor))
        else:
            self.own.prove(descriptor)

    def private(self, digest: str) -> bool:
        """Tell whether what we have been given is not for everybody: it took credentials, and does without them not.

        The registry itself is asked. When it does not say, nothing is for everybody.
        """
        if not any(source.known for source in (self.own, *self._mirrors)):
            return False
        try:
            return not self.own.public(digest)
        except Fail as error:
            say(f"nobody says whether everybody may have {digest!r}, so it is kept private: {error}")
            return True

    def each(self, fetch: Callable[[Registry], T]) -> T:
        """Do what is checked by digest at one source after the other, until it works. Raises the last Fail."""
        return self._ask(fetch, by_tag=False)

    def _ask(self, act: Callable[[Registry], T], *, by_tag: bool) -> T:
        for mirror in self._mirrors if self._tags or not by_tag else ():
            if mirror.host in self._given_up:
                continue
            try:
                return act(mirror)
            except Absent:
                continue
            except Fail as error:
                cause = error.__cause__
                if isinstance(cause, OSError) and not isinstance(cause, ConnectionError):
                    raise  # of this machine's: the disk is full
                if mirror.host not in self._given_up:
                    self._given_up.add(mirror.host)
                    say(f"going on without the mirror {mirror.host!r}: {error}")
        return act(self.own)
