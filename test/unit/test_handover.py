"""What Slurm's tasks are told to do."""

from __future__ import annotations

from shoebox import environment, usage


def applied(host, unset, changed):
    """Do as sh-join does."""
    prefixes = tuple(name[:-1] for name in unset if name.endswith("*"))
    kept = {name: value for name, value in host.items() if name not in unset and not name.startswith(prefixes)}
    return kept | dict(text.split("=", 1) for text in changed)


def test_changes_make_of_the_hosts_variables_what_build_says():
    host = {
        "A": "1",
        "LD_PRELOAD": "x",
        "PATH": "/host",
        "TMPDIR": "/no",
        "HOME": "/h",
        "MODULEPATH": "m",
        "B": "a\nb=c",
    }
    settings = [("LD_PRELOAD", None, ""), ("C", "", ""), ("MODULEPATH", "n", "")]
    rules = [("unset", "A", "", ""), ("prepend", "D", "d", "")]
    built = environment.build(
        host, {"PATH": "/image"}, settings, rules=rules, clear=False, fixed={"HOME": "/h"}, tmpdir_visible=False
    )
    unset, changed = environment.changes(host, built)
    assert applied(host, unset, changed) == {v.name: v.value for v in built if v.value is not None}
    assert "HOME=/h" in changed  # it is sh-run's, whatever a task's prolog makes of it
    assert not [text for text in changed if text.startswith("B=")]


def test_what_only_a_task_has_stays_unless_it_is_the_hosts():
    built = environment.build({}, {}, [], clear=False, fixed={}, tmpdir_visible=False)
    unset, changed = environment.changes({}, built)
    task = {"SLURM_PROCID": "3", "LD_LIBRARY_PATH": "/site"}
    assert applied(task, unset, changed).keys() == {"SLURM_PROCID", "PATH", "PYTHONNOUSERSITE"}


def test_options_behind_others_come_later():
    text = "usage: x\n\n      --env NAME...   a\n      --all          b\n"
    options = usage.parse(text, ["--env", "B", "--all", "word"]).behind({"env": ["A"], "volume": ["/a:/b"]})
    assert (options.all("env"), options.all("volume"), options.flag("all"), options.operands) == (
        ["A", "B"],
        ["/a:/b"],
        True,
        ["word"],
    )
