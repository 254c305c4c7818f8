"""The settings of site.conf that no run needs."""

from __future__ import annotations

import pytest

from shoebox import paths, siteconf
from shoebox.fail import Fail


def test_a_setting_that_cannot_be_understood_is_told_with_its_line_whichever_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SITE", str(tmp_path))
    assert siteconf.one("grace") == ""
    conf = tmp_path / "site.conf"
    conf.write_text("[settings]\ngrace = 30d\nimport-size = 100G\nimport = bob, @hpc42\n")
    assert [siteconf.one(key) for key in ("grace", "import-size", "import")] == ["30d", "100G", "bob, @hpc42"]
    for line in (
        "grace = soon",
        "expire = never",
        "turn-limit = short",
        "import-size = much",
        "pull-size = -1",
        "import = @",
        *(f"account = {text}" for text in ("", "-u", "a b", "a@", "a@-oX=y", "a@b@c")),
        *(f"conversions = {text}" for text in ("0", "x", "65", "-1", "", "0064123")),
    ):
        conf.write_text(f"[settings]\nway = fuse\n{line}\n")
        with pytest.raises(Fail, match=f"^cannot use '{conf}:3': "):
            siteconf.one("way")
