"""udiRoot.conf: all that it can mean to sh-run arrives, what cannot is named, and what comes out is always read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoebox import site, udiroot

# The keys of Shifter's udiRoot.conf.example and doc/config/udiRoot.conf.rst, and those that src/UdiRootConfig.c reads.
KEYS = re.findall(
    r"\w+",
    """
    udiMount loopMount imagePath udiRootPath sitePreMountHook sitePostMountHook optUdiImage etcPath allowLocalChroot
    autoLoadKernelModule mountUdiRootWritable maxGroupCount modprobePath insmodPath cpPath mvPath chmodPath ddPath
    mkfsXfsPath rootfsType gatewayTimeout siteFs siteEnv siteEnvAppend siteEnvPrepend siteEnvUnset imageGateway
    batchType system defaultModules perNodeCachePath perNodeCacheSizeLimit perNodeCacheAllowedFsType
    allowLibcPwdCalls optionalSshdAsRoot populateEtcDynamically mountPropagationStyle kmodBasePath kmodCacheFile
    defaultImageType nodeContextPrefix
    """,
)
CARRIED = {"siteFs", "siteEnv", "siteEnvAppend", "siteEnvPrepend", "siteEnvUnset", "optUdiImage", "defaultModules"}


def parts(made):
    """Read what came out with our own parser."""
    files = {name: site.parse(text, name, name) for name, text in made.modules.items()}
    return site.parse(made.site, "site.conf"), files


def converted(text):
    made = udiroot.convert(text)
    own, modules = parts(made)
    return own, modules, made.left


def mounts(part):
    return [(entry.source, entry.target, entry.readonly) for entry in part.mounts]


def rules(part):
    return [rule[:3] for rule in part.rules]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_shifters_is_carried_over_or_named_with_what_there_is_instead(key):
    value = {"siteFs": "/a", "optUdiImage": "/a", "siteEnvUnset": "A", "defaultModules": ""}.get(key, "A=b")
    _, _, left = converted(f"{key}={value}\n")
    assert [name for name, _ in left] == ([] if key in CARRIED else [key])
    assert "no such key" not in str(left)


def test_an_unknown_key_is_named():
    assert converted("strange=1\nmodule_x=1\nmodule_a_b_siteFs=/x\n")[2] == [
        ("strange", "Shifter has no such key"),
        ("module_x", "Shifter has no such key"),
        ("module_a_b_siteFs", "Shifter has no such key (a module's name has no '_')"),
    ]


def test_mounts_go_over_several_lines_and_in_every_spelling():
    text = "siteFs=/home:/home;\\\n  /global:/global:slave:rec; /opt/site:/s:ro;\\\n# no\n/c\nsiteFs=/d:/d\n"
    own, _, left = converted(text)
    want = [("/home", "/home"), ("/global", "/global"), ("/opt/site", "/s"), ("/c", "/c"), ("/d", "/d")]
    assert mounts(own) == [(source, target, target == "/s") for source, target in want]
    assert left == []
    assert mounts(converted("siteFs=/a /b:/c\n")[0]) == [("/a", "/a", False), ("/b", "/c", False)]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("x:/x", "is not FROM:TO with two absolute paths"),
        ("/x:/../y", "is not FROM:TO"),
        ("/x:/", "is not FROM:TO"),
        ("/x:", "is not FROM:TO"),
        ("/x$A:/x", "is not FROM:TO"),
        ("/x:/y:perNodeCache=size=10G,fs=xfs", "--node-cache"),
    ],
)
def test_a_mount_that_cannot_be_is_named(word, told):
    own, _, [(key, why)] = converted(f"siteFs={word};/ok\n")
    assert mounts(own) == [("/ok", "/ok", False)]
    assert key == "siteFs"
    assert repr(word) in why
    assert told in why


def test_a_flag_that_means_nothing_here_is_named_and_the_mount_is_made():
    own, _, [(key, why)] = converted("siteFs=/x:/y:private:ro\n")
    assert mounts(own) == [("/x", "/y", True)]
    assert (key, why) == ("siteFs", "'/x:/y:private:ro' is mounted without 'private', which sh-run does not know")


def test_the_environment_keeps_values_to_the_character():
    own, _, left = converted(
        'siteEnv=A=b=c \\\nB="x"\nsiteEnv=C=\nsiteEnvPrepend=PATH=/p\nsiteEnvAppend=PATH=/a:/b\nsiteEnvUnset=D  E\n'
    )
    assert rules(own) == [
        ("set", "A", "b=c"),
        ("set", "B", '"x"'),
        ("set", "C", ""),
        ("prepend", "PATH", "/p"),
        ("append", "PATH", "/a:/b"),
        ("unset", "D", ""),
        ("unset", "E", ""),
    ]
    assert left == []
    assert [why for _, why in converted("siteEnv=A\nsiteEnvUnset=B=c\n")[2]] == [
        "'A' is not NAME=VALUE",
        "'B=c' is not NAME",
    ]


MODULES = """\
defaultModules=mpich,gone
optUdiImage=/opt/udi
siteEnv=SITE=x
module_mpich_siteEnvPrepend=LD_LIBRARY_PATH=/opt/udiImage/modules/mpich/lib64
module_mpich_siteEnv=SITE=y
module_mpich_copyPath=/usr/lib/shifter/mpich
module_mpich_conflict=openmpi
module_mpich_userhook=/x
module_off_enabled=0
module_cvmfs_siteFs=/cvmfs:/cvmfs:rec
module_cvmfs_enabled=1
"""


def test_modules_become_files_and_what_they_cannot_have_is_named():
    own, modules, left = converted(MODULES)
    assert modules.keys() == {"mpich", "cvmfs"}
    assert mounts(modules["mpich"]) == [("/usr/lib/shifter/mpich", "/opt/udiImage/modules/mpich", True)]
    assert rules(modules["mpich"])[1] == ("prepend", "LD_LIBRARY_PATH", "/opt/udiImage/modules/mpich/lib64")
    assert modules["mpich"].words("conflicts") == ["openmpi"]
    assert mounts(modules["cvmfs"]) == [("/cvmfs", "/cvmfs", False)]
    assert own.words("modules") == ["mpich"]
    assert mounts(own) == [("/opt/udi", "/opt/udiImage", True)]
    assert dict(left) == {
        "defaultModules": "there is no module 'gone', or it is not enabled",
        "module_mpich_userhook": "sh-run runs no hooks: what it mounts can be mounted, what it sets can be set",
        "module_mpich_copyPath": "make this directory on the host, where the module is to be mounted: "
        "/opt/udi/modules/mpich",
        "module_mpich_siteEnv*": "both it and site.conf have 'SITE': here the module comes last, "
        "in Shifter the site did",
        "module_off_enabled": "the module is off, and left out",
    }


def test_the_image_path_is_told_as_a_store():
    assert converted("imagePath=/images\n")[2] == [
        ("imagePath", "add it to SHOEBOX_PATH: sh-run finds an image of this store by id:ID, as /images/ID.squashfs")
    ]


WORDS = st.text(alphabet="ab/:;= \\#$[]\"'.,-_\t\r\x0b\n=", max_size=30)


@given(st.lists(st.tuples(st.sampled_from([*KEYS, "module_a_siteEnv", "module_b_siteFs", "module_c_conflict"]), WORDS)))
def test_whatever_stands_there_what_comes_out_is_read(pairs):
    parts(udiroot.convert("".join(f"{key}={value}\n" for key, value in pairs)))


@given(st.text())
def test_no_text_breaks_it(text):
    parts(udiroot.convert(text))


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("01", True), ("2x", True), ("0", False), ("yes", False), ("", False)]
)
def test_a_module_is_on_as_strtol_says(value, on):
    assert ("a" in converted(f"module_a_enabled={value}\nmodule_a_siteFs=/a\n")[1]) == on
