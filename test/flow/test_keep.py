"""The task that sh-stage --nodes starts on a node, without Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fixtures.rootfs import until

from shoebox import keep, nodes

SENT = b"what sbcast sends"


def test_told_to_end_after_its_input_did_it_still_takes_in_what_is_on_its_way(tmp_path: Path) -> None:
    given = {"directory": str(tmp_path), "token": os.urandom(8).hex(), "path": "/no/image", "size": str(len(SENT))}
    given |= {"mtime": "0", "sha256": "", "offset": "0", "length": "0"}
    with subprocess.Popen([sys.executable, "-IS", "-c", nodes._TASK], stdin=-1, stdout=-1, bufsize=0) as task:
        assert task.stdin
        assert task.stdout
        task.stdin.write(keep.request(given, b""))
        link = Path(task.stdout.readline().decode().split()[2])
        link.write_bytes(SENT)
        task.stdin.close()
        began = time.monotonic()
        assert until(lambda: link.stat().st_size == 0)  # it has seen that
        task.send_signal(signal.SIGTERM)
        assert task.wait(30) == 0
        took = time.monotonic() - began
    assert took > 1.9  # a block that comes without the link would make a file
    assert not link.is_symlink()
