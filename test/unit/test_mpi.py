"""mpi: whose library it is, whether the host's can take the place of the image's, and what that takes."""

from __future__ import annotations

import pytest

from shoebox import environment, glibc, mpi, paths, site
from shoebox.cdi import Shared
from shoebox.fail import Fail

GLIBC = {"libc.so.6": {"GLIBC_2.17", "GLIBC_2.28"}}


def library(real, name="", libraries=()):
    return mpi.Library(f"/lib/{name or real}", name or ".".join(real.split(".")[:3]), real, libraries)


@pytest.mark.parametrize(
    ("real", "libraries", "family", "version"),
    [
        ("libmpi.so.12.1.8", (), mpi.MPICH, (12, 1, 8)),
        ("libmpich.so.12.2.2", ("libc.so.6",), mpi.MPICH, (12, 2, 2)),
        ("libmpi.so.40.30.4", ("libopen-rte.so.40",), mpi.OPEN, (40, 30, 4)),
        ("libmpi.so.40.40.7", ("libopen-pal.so.80",), mpi.OPEN, (40, 40, 7)),
        ("libmpi.so.12.0.3", ("libopen-rte.so.12", "libopen-pal.so.13"), mpi.OPEN, (12, 0, 3)),  # Open MPI 1.10
        ("libmpi_gnu_91.so.12.0.0", (), mpi.MPICH, (12, 0, 0)),  # Cray's
    ],
)
def test_whose_a_library_is_and_its_version(real, libraries, family, version):
    found = library(real, "libmpi.so.12" if "gnu" in real else "", libraries)
    assert (found.family, found.version) == (family, version)


def test_a_library_whose_file_has_no_version_has_that_of_its_name():
    assert library("libmpi_intel.so", "libmpi.so.12").version == (12,)


@pytest.mark.parametrize(
    ("host", "image", "problem", "said"),
    [
        ("libmpi.so.12.2.2", "libmpi.so.12.1.8", "", "the same major, not older"),
        ("libmpich.so.12.2.2", "libmpi.so.12.2.9", "", "the same major, not older"),
        ("libmpi.so.12.1.8", "libmpi.so.12.2.0", "", "the same major, but older: a program that"),
        ("libmpi.so.12", "libmpi.so.12.2.0", "", "the same major, and no more is known"),
        ("libmpi.so.40.30.4", "libmpi.so.20.10.1", "another major", ""),
        (
            "libmpi.so.40.30.4",
            "libmpi.so.12.1.8",
            "the image has MPICH, ABI 12.1.8, the host Open MPI, ABI 40.30.4",
            "",
        ),
    ],
)
def test_the_verdict(host, image, problem, said):
    found = mpi.verdict(library(host), library(image))
    assert (problem in found[0], bool(found[0])) == (True, bool(problem))
    assert said in found[1]


def test_which_names_are_an_mpis():
    assert [
        n
        for n in ("libmpi.so.12", "libmpich.so.12", "libmpi.so", "libmpi.so.12.1.8", "libmpi_cxx.so.40")
        if mpi.is_main(n)
    ] == [
        "libmpi.so.12",
        "libmpich.so.12",
    ]
    assert mpi.is_own("libmpi_mpifh.so.40", mpi.OPEN)
    assert mpi.is_own("libopen-pal.so.80", mpi.OPEN)
    assert mpi.is_own("libmpifort.so.12", mpi.MPICH)
    assert not mpi.is_own("libmpi.so.40.30.4", mpi.OPEN)
    assert not mpi.is_own("libmpi.so.40", mpi.MPICH)
    assert mpi.names("libmpichfort.so.12") == ("libmpifort.so.12", "libmpichfort.so.12")
    assert mpi.names("libz.so.1") == ("libz.so.1",)
    text = "\tlibmpich.so.12 (libc6,x86-64) => /lib/libmpich.so.12\n\tlibmpich.so (libc6) => /lib/libmpich.so\n"
    assert mpi.listed(text) == ["/lib/libmpich.so.12"]


def shared(name, needs=None, *, vital=True):
    return Shared(name, f"/host/{name}.9", "", needs or {"libc.so.6": {"GLIBC_2.17"}}, "--mpi", vital=vital)


def settle(*libraries, covered=None, has=GLIBC, present=None, image="libmpi.so.12.1.8"):
    ours = mpi.Host(library("libmpich.so.12.2.2"), libraries, ["/host/ucx"])
    return mpi.settle(ours, mpi.Image([library(image)], covered or {}, has, present or {}))


def targets(made):
    return {wish.target: wish.source for wish in made.wishes}


def test_the_hosts_files_cover_the_images_and_have_all_their_names():
    made = settle(shared("libmpich.so.12"), covered={"/opt/a/libmpi.so.12": "libmpi.so.12"})
    source = "/host/libmpich.so.12.9"
    assert targets(made) == {
        "/host/ucx": "/host/ucx",
        "/opt/a/libmpi.so.12": source,
        "/.shoebox/mpi/libmpi.so.12": source,
        "/.shoebox/mpi/libmpich.so.12": source,
    }
    assert all(wish.readonly and wish.asked for wish in made.wishes)
    assert [rule[:3] for rule in made.rules] == [("prepend", "LD_LIBRARY_PATH", "/.shoebox/mpi")]
    assert made.mpi[0][0] == "the host's /lib/libmpich.so.12.2.2 for /lib/libmpi.so.12.1.8"


def test_what_the_image_has_in_all_versions_asked_for_stays_but_not_what_knows_the_network():
    asks = shared("libmpich.so.12", {"libz.so.1": {"ZLIB_1.2"}, "libfabric.so.1": {"F_1"}, "libx.so.1": {"X_2"}})
    has = {
        "libz.so.1": {"ZLIB_1.2", "ZLIB_1.3"},
        "libfabric.so.1": {"F_1"},
        "libx.so.1": {"X_1"},
        "libhwloc.so.15": set(),
    }
    made = settle(asks, *map(shared, has), present=has)
    names = {target.rpartition("/")[2] for target in targets(made)}
    assert {"libfabric.so.1", "libx.so.1", "libhwloc.so.15"} <= names  # without versions nobody knows
    assert "libz.so.1" not in names
    assert made.skipped == [("/host/libz.so.1.9", "the image's own has all versions that are asked for")]


def test_a_newer_glibc_is_refused_for_what_is_vital_and_leaves_out_what_only_plugins_need():
    newer = {"libc.so.6": {"GLIBC_2.38"}}
    made = settle(shared("libmpich.so.12"), shared("libplug.so.1", newer, vital=False))
    assert made.skipped == [
        ("/host/libplug.so.1.9", "it needs GLIBC_2.38 of libc.so.6, and the image has an older glibc")
    ]
    with pytest.raises(Fail, match=r"/host/libmpich\.so\.12\.9: it needs GLIBC_2\.38 of libc\.so\.6"):
        settle(shared("libmpich.so.12", newer))
    with pytest.raises(Fail, match="no glibc was found in the image"):
        settle(shared("libmpich.so.12"), has={})


def test_what_the_host_lacks_and_an_older_host_are_warnings():
    made = settle(
        shared("libmpich.so.12"), covered={"/a/libmpifort.so.12": "libmpifort.so.12"}, image="libmpi.so.12.9.0"
    )
    assert len(made.warnings) == 2
    assert "the host's MPI has no libmpifort.so.12" in made.warnings[0]
    assert "but older" in made.warnings[1]


def test_where_an_mpi_was_moved_to_is_the_hosts_word():
    assert mpi.moved({}, {}) == []
    assert [rule[:3] for rule in mpi.moved({"OPAL_PREFIX": "/h"}, {"OPAL_PREFIX": "/i", "PMIX_PREFIX": "/i"})] == [
        ("set", "OPAL_PREFIX", "/h"),
        ("unset", "PMIX_PREFIX", ""),
    ]
    assert environment.known({"OPAL_PREFIX": "/h", "OMPI_MCA_btl": "self"}) == {"OMPI_MCA_btl": "self"}


def test_the_c_library_is_never_the_hosts():
    names = ("libc.so.6", "ld-linux-x86-64.so.2", "libm.so.6", "libpthread.so.0", "libresolv.so.2", "libnss_files.so.2")
    assert all(map(glibc.is_part, names))
    assert not any(map(glibc.is_part, ("libcxi.so.1", "libmpi.so.40", "libstdc++.so.6", "libmunge.so.2")))


def test_where_pmix_meets_its_clients():
    env = {
        "PMIX_SERVER_TMPDIR": "/var/spool/slurmd/pmix.1.0/",
        "PMIX_DSTORE_21_BASE_PATH": "/var/spool/slurmd/pmix.1.0//pmix_dstor_ds21_9",
        "PMIX_SYSTEM_TMPDIR": "/tmp",
        "PMIX_SERVER_URI2": "/x",
        "TMPDIR": "/y",
    }
    assert paths.pmix(env) == ["/tmp", "/var/spool/slurmd"]
    assert paths.pmix({"PMIX_SERVER_TMPDIR": "/local/ompi.n1.1/pid.2"}) == ["/local/ompi.n1.1/pid.2"]
    assert paths.pmix({"PMIX_SERVER_TMPDIR": "/", "PMIX_SYSTEM_TMPDIR": "here"}) == []


def test_the_last_that_names_an_mpi_counts():
    files = {
        "/s/site.conf": "[settings]\nmpi = /opt/a/lib, /opt/b/lib\n",
        "/s/modules.d/m.conf": "[settings]\nmpi = /opt/c/lib\n",
        "/s/modules.d/n.conf": "[environment]\nA=1\n",
    }
    assert site.load("/s", "", files.get).mpi == ["/opt/a/lib", "/opt/b/lib"]
    assert site.load("/s", "m,n", files.get).mpi == ["/opt/c/lib"]
    with pytest.raises(Fail, match="absolute path"):
        site.load("/s", "", {"/s/site.conf": "[settings]\nmpi = lib\n"}.get)
