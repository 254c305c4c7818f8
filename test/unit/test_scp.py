"""Publishing by SFTP, with the server that sshd starts, and no connection."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from shoebox import scp, sidecar
from shoebox.fail import FAILED, Fail
from shoebox.image import Image
from shoebox.readers import UMASK
from shoebox.sftp import Sftp
from shoebox.systems import Place

if TYPE_CHECKING:
    from pathlib import Path

SERVER = shutil.which("sftp-server", path="/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh")


@pytest.mark.skipif(not SERVER, reason="no sftp-server on this machine")
def test_what_cannot_be_read_here_is_no_fault_of_the_other_end(tmp_path: Path) -> None:
    text = sidecar.dump(sha256=hashlib.sha256(b"").hexdigest(), size=9)
    (tmp_path / "image").mkdir()
    fd = os.open(tmp_path / "image", os.O_RDONLY)  # a directory: what a bad disk would say, too
    image = Image("x.sqfs", fd, 0, 9, text, sidecar.load(text, "x.json"), [])
    with subprocess.Popen([SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        with pytest.raises(Fail, match=rf"^cannot read '{tmp_path}/image': Is a directory$") as caught:
            scp._Store(Sftp(server.stdin, server.stdout), Place("here", f"{tmp_path}/store"), UMASK).take_in(image)
        assert caught.value.status == FAILED
        server.stdin.close()
    os.close(fd)
    assert os.listdir(tmp_path / "store") == []
