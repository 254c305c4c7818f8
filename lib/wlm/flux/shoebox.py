"""Flux's plugin for flux-run, -submit, -batch and -alloc: SHOEBOX_IMAGE of the job becomes the image's path.

It runs as the user where the job is submitted: shoebox-flux(7). The interface: flux.cli.plugin of flux-core.
"""

import subprocess

from flux.cli.plugin import CLIPlugin

SH_RUN = "/usr/local/bin/sh-run"


class Shoebox(CLIPlugin):
    """Resolves the image of a job when it is submitted: --env=SHOEBOX_IMAGE=app:1.1."""

    def modify_jobspec(self, args, jobspec):  # noqa: ARG002 - the interface's
        """Put the image's path in the place of its name. Raises ValueError if there is no such image."""
        env = jobspec.environment
        if not env or not env.get("SHOEBOX_IMAGE"):
            return
        words = [SH_RUN, "--resolve", "--image", env["SHOEBOX_IMAGE"]]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            raise ValueError(done.stderr.strip())
        env["SHOEBOX_IMAGE"] = done.stdout[:-1]
