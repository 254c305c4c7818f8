"""From a registry to an image on the distributed file system: our pipeline, and others', each as one shell command."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Room, remove
from fixtures import images
from fixtures.registry import Place, certificates, docker_registry

JOBS = str(len(os.sched_getaffinity(0)))
PARTS, SIZE = 100, 50_000  # files of a top layer, and the bytes of each

# All have: $HOST/app:1, the image; $TLS, the same registry with TLS; $KEEP, a local directory for what is kept for the
# next time; $ROOM, one for what is not; $STORE, on the distributed file system.
OURS = 'sh-pull "$HOST/app:1" | sh-flatten | sh-stage -d "$STORE"'
UMOCI = f"""
set -e
skopeo --insecure-policy copy -q --src-tls-verify=false "docker://$HOST/app:1" "oci:$KEEP/layout:app"
umoci unpack $ROOTLESS --image "$KEEP/layout:app" "$ROOM/bundle"
mksquashfs "$ROOM/bundle/rootfs" "$ROOM/app.sqfs" -noappend -quiet -no-progress -b 131072 -processors {JOBS} \\
    -comp zstd -Xcompression-level 3
cp "$ROOM/app.sqfs" "$STORE/app.sqfs"
"""
CHARLIECLOUD = """
set -e
ch-image pull -s "$KEEP/ch-image" --no-cache --tls-no-verify "$TLS/app:1" app
CH_IMAGE_STORAGE="$KEEP/ch-image" ch-convert -i ch-image -o squash app "$ROOM/app.sqfs" >/dev/null
cp "$ROOM/app.sqfs" "$STORE/app.sqfs"
"""
PODMAN = """
podman --root="$KEEP/podman" --runroot="$XDG_RUNTIME_DIR/run" --tmpdir="$XDG_RUNTIME_DIR/tmp" --events-backend=none \\
    pull -q --tls-verify=false "$HOST/app:1" >/dev/null
"""
SCRIPTS = {
    "": f'export SHOEBOX_CACHE="$KEEP"; {OURS}',
    "skopeo, umoci, mksquashfs, cp": UMOCI,
    "ch-image pull, ch-convert, cp": CHARLIECLOUD,
    "podman pull": PODMAN,
}


def with_top(layout: Path, number: int) -> images.Image:
    """Return a layout's image with another top layer in the place of its last one; its other blobs are left out."""

    def blob(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]["digest"]))
    config = json.loads(blob(manifest["config"]["digest"]))
    some = random.Random(number)
    top = images.tar({f"opt/app/{part}": some.randbytes(SIZE) for part in range(PARTS)})
    packed = gzip.compress(top, 1, mtime=0)
    config["rootfs"]["diff_ids"][-1] = images.digest_of(top)
    config["history"] = [
        {"created_by": "a layer"} for _ in manifest["layers"]
    ]  # without it ch-image ends with an error
    said = json.dumps(config).encode()
    manifest["mediaType"] = images.MANIFEST
    manifest["layers"][-1] = images.descriptor(packed, images.LAYER)
    manifest["config"] = images.descriptor(said, images.CONFIG)
    document = json.dumps(manifest).encode()
    return images.Image(document, images.MANIFEST, {images.digest_of(data): data for data in (said, packed)})


@dataclass(frozen=True)
class Registry:
    """A registry with a layout's image, whose top layer changes."""

    plain: Place
    tls: Place
    layout: Path

    def change(self, number: int) -> None:
        """Give the image another top layer."""
        images.push(self.plain.url, "app", "1", with_top(self.layout, number))


@contextmanager
def registry(room: Room, layout: Path, where: Path) -> Iterator[Registry]:
    """Run a registry: plain, for all who take that, and with TLS, of the same files, for ch-image, which wants it."""
    where.mkdir()
    (where / "tls").mkdir()
    (where / "tls/data").symlink_to(where / "data")
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
    with docker_registry(where) as plain, docker_registry(where / "tls", ca=certificates(where / "ca")) as tls:
        room.run([*copy, f"oci:{layout}:real:1", f"docker://{plain.host}/app:0"])
        yield Registry(plain, tls, layout)


@dataclass(frozen=True)
class Pipeline:
    """One way, with a place of its own; store: on the distributed file system; short: a directory with a short name."""

    name: str
    room: Room
    where: Path
    store: Path
    registry: Registry
    short: Path

    @property
    def command(self) -> list[str]:
        return ["/bin/sh", "-c", SCRIPTS[self.name]]

    @property
    def inside(self) -> Room:
        """Return the room with the pipeline's environment."""
        given = {"KEEP": self.where / "keep", "ROOM": self.where / "room", "STORE": self.store}
        more = {name: str(path) for name, path in given.items()}
        more |= {"HOST": self.registry.plain.host, "TLS": self.registry.tls.host, "XDG_RUNTIME_DIR": str(self.short)}
        more["ROOTLESS"] = "--rootless" if os.geteuid() else ""
        return Room(self.room.path, {**self.room.env, **more})

    def forget(self) -> None:
        """Let there be nothing of it anywhere."""
        for path in (self.where, self.store):
            remove(path)
        (self.where / "keep").mkdir(parents=True)
        self.clear()

    def clear(self) -> None:
        """Remove what is not kept for the next time, and let the disk be at rest."""
        remove(self.where / "room")
        (self.where / "room").mkdir()
        self.store.mkdir(exist_ok=True)
        os.sync()

    def run(self) -> None:
        """Run it to its end."""
        self.inside.run(self.command)
