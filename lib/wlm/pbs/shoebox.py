"""OpenPBS's hook: an image's name becomes its path when a job is queued, and nothing is left when it ends.

See shoebox-pbs(7), and pbs_module(7B), pbs_hook_attributes(7B) of OpenPBS. Python 3.6, as a PBS may have.
"""

import os
import pwd
import subprocess

import pbs

SH_RUN = "/usr/local/bin/sh-run"


def resolve(event):
    """Put the path that SHOEBOX_IMAGE has for the user into the job's environment; reject the job if there is none."""
    given = event.job.Variable_List
    if not given.get("SHOEBOX_IMAGE"):
        return
    try:
        user = pwd.getpwnam(event.requestor)
    except KeyError:
        event.reject(f"sh-run: the server does not know {event.requestor!r}, and cannot look up an image")
    env = {"HOME": given.get("PBS_O_HOME", user.pw_dir), "PATH": "/usr/bin:/bin"}
    env.update({name: given[name] for name in ("SHOEBOX_PATH", "SHOEBOX_CACHE") if given.get(name)})

    def become():  # for good: what a user names, root does not open
        if os.getuid() != user.pw_uid:
            os.initgroups(user.pw_name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)

    words = [SH_RUN, "--resolve", "--image", given["SHOEBOX_IMAGE"]]
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:  # a short time: the server does nothing else meanwhile
        done = subprocess.run(words, env=env, cwd="/", preexec_fn=become, timeout=5, check=False, **files)
    except (OSError, subprocess.SubprocessError) as error:
        event.reject(f"sh-run: cannot look for the image: {error}")
    said = os.fsdecode(done.stdout)[:-1]
    if done.returncode:
        event.reject(said)
    if not said.isprintable():
        event.reject(f"sh-run: a character that is not to be printed in {said!r}")
    given["SHOEBOX_IMAGE"] = said


def main():
    """Do what the event is for."""
    event = pbs.event()
    if event.type == pbs.QUEUEJOB:
        resolve(event)
    elif event.type == pbs.EXECJOB_EPILOGUE:  # as the job's user: `set hook ... user = pbsuser`
        try:
            subprocess.run([SH_RUN, "--sweep"], stdin=subprocess.DEVNULL, timeout=20, check=False)
        except (OSError, subprocess.SubprocessError) as error:  # the job is over: no reason to hold the node back
            pbs.logmsg(pbs.LOG_WARNING, f"sh-run --sweep: {error}")


main()
