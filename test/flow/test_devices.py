"""sh-run --device and --gpu: specifications and drivers that the tests make, and a real GPU where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fixtures.rootfs import make_tree, one_line, squash

from shoebox.glibc import VERSIONED

LAUNCHER = """\
#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {lib!r})
from shoebox import paths
paths.CDI = {cdi!r}
from shoebox.fail import main
from shoebox.run import run
main(run, 125)
"""
LOADER = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int count = -1, (*init)(unsigned), (*get)(int *);
    for (int i = 1; i < argc; i++) {
        void *library = dlopen(argv[i], RTLD_NOW);
        if (!library) { puts(dlerror()); return 1; }
        *(void **)&init = dlsym(library, "cuInit");
        *(void **)&get = dlsym(library, "cuDeviceGetCount");
        if (init && get) { int status = init(0); get(&count); printf("cuInit %d, devices %d\n", status, count); }
        else printf("%s loaded\n", argv[i]);
    }
    return 0;
}
"""
CUDA = "int cuInit(unsigned flags) { return (int)flags; }\nint cuDeviceGetCount(int *count) { *count = 3; return 0; }\n"
LIBS = "/usr/lib/x86_64-linux-gnu"
HOOK = {"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook"}


def cc(source, out, *words):
    """Compile C."""
    out.parent.mkdir(parents=True, exist_ok=True)
    words = ["gcc", "-x", "c", "-", "-x", "none", "-o", out, *words]
    subprocess.run(words, input=source, text=True, check=True)
    return out


@pytest.fixture(scope="session")
def glibc(tmp_path_factory):
    """Return a root file system of busybox and this machine's C library; its /bin/load calls a CUDA driver."""
    made = make_tree(tmp_path_factory.mktemp("glibc") / "root")
    cc(LOADER, made / "bin/load", "-ldl")
    for line in subprocess.run(
        ["ldd", made / "bin/load"], check=True, capture_output=True, text=True
    ).stdout.splitlines():
        path = next((word for word in line.split() if word.startswith("/")), "")
        if path:
            for found in [Path(path), *map(Path(path).with_name, VERSIONED)]:  # nvidia-smi needs more of it
                if found.exists():
                    (made / str(found.parent)[1:]).mkdir(parents=True, exist_ok=True)
                    shutil.copy(found, made / str(found)[1:])
    return made


@pytest.fixture
def at(cmd, prefix, tmp_path):
    """Return a shell whose sh-run looks for specifications in two directories of the test's own, and their parent."""
    (tmp_path / "bin").mkdir()
    for name in ("etc", "run"):
        (tmp_path / "cdi" / name).mkdir(parents=True)
    launcher = tmp_path / "bin/sh-run"
    lib = str(next(prefix.glob("lib/shoebox/*/lib")))
    launcher.write_text(LAUNCHER.format(lib=lib, cdi=f"{tmp_path}/cdi/etc:{tmp_path}/cdi/run"))
    launcher.chmod(0o755)
    cmd.env["PATH"] = f"{tmp_path}/bin:{cmd.env['PATH']}"
    return cmd, tmp_path / "cdi"


@pytest.fixture
def driver(tmp_path):
    """Return a directory with a driver as NVIDIA installs it: a library of three devices, one that it loads, a tool."""
    made = tmp_path / "driver"
    cc(CUDA, made / "libcuda.so.550.67", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    cc("int ptx;", made / "libnvidia-ptxjitcompiler.so.550.67", "-shared", "-Wl,-soname,libnvidia-ptxjitcompiler.so.1")
    (made / "nvidia-smi").write_text("#!/bin/sh\necho smi\n")
    (made / "nvidia-smi").chmod(0o755)
    return made


def nvidia(driver):
    """Return a specification as nvidia-ctk writes it, of a driver that lies elsewhere."""
    libraries = ["libcuda.so.550.67", "libnvidia-ptxjitcompiler.so.550.67"]
    mounts = [(driver / name, f"{LIBS}/{name}") for name in libraries] + [
        (driver / "nvidia-smi", "/usr/bin/nvidia-smi")
    ]
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}},
            {"name": "9", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-gpu"}]}},
            {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}},
        ],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "hooks": [
                HOOK | {"args": ["nvidia-cdi-hook", "create-symlinks", "--link", f"libcuda.so.1::{LIBS}/libcuda.so"]},
                HOOK | {"args": ["nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=550.67"]},
                HOOK | {"args": ["nvidia-cdi-hook", "update-ldcache", "--folder", LIBS]},
                HOOK | {"args": ["nvidia-cdi-hook", "chmod", "--mode", "755", "--path", "/dev/dri"]},
            ],
            "mounts": [
                {"hostPath": str(path), "containerPath": inside, "options": ["ro", "nosuid", "nodev", "bind"]}
                for path, inside in mounts
            ],
        },
    }


def small(**edits):
    return {"cdiVersion": "0.6.0", "kind": "x.org/c", "devices": [{"name": "0", "containerEdits": edits}]}


def write(path, spec):
    path.write_text(json.dumps(spec))
    return path


@pytest.mark.parametrize("words", [(), ("--writable",), ("--mount=fuse",), ("--mount=unpack", "--writable")])
def test_programs_find_the_driver_of_a_specification_by_every_name(at, glibc, driver, words, tmp_path):
    cmd, cdi = at
    image = squash(glibc, tmp_path / "glibc.sqfs") if "--mount" in "".join(words) else glibc
    write(cdi / "etc/nvidia.json", nvidia(driver))
    script = f"load libcuda.so.1 libcuda.so libnvidia-ptxjitcompiler.so.1 {LIBS}/libcuda.so && nvidia-smi && env"
    out = cmd.ok("sh-run", *words, "--device=nvidia.com/gpu=0", image, "sh", "-c", script).splitlines()
    cuda = "cuInit 0, devices 3"
    assert out[:5] == [cuda, cuda, "libnvidia-ptxjitcompiler.so.1 loaded", cuda, "smi"]
    assert {"NVIDIA_VISIBLE_DEVICES=void", "LD_LIBRARY_PATH=/.shoebox/lib"} <= set(out)
    assert not (glibc / ".shoebox").exists()
    assert "cannot open shared object" in cmd("sh-run", image, "load", "libcuda.so.1").stdout


def test_gpu_means_all_of_nvidias_specification_if_there_is_one(at, glibc, driver):
    cmd, cdi = at
    write(cdi / "run/nvidia.json", nvidia(driver))
    assert cmd.ok("sh-run", "--gpu", glibc, "load", "libcuda.so.1") == "cuInit 0, devices 3"
    plan = json.loads(cmd.ok("sh-run", "--gpu", "--explain=json", glibc))
    assert plan["devices"] == [{"name": "nvidia.com/gpu=all", "why": f"{cdi}/run/nvidia.json"}]
    assert {"path": "/.shoebox/lib/libcuda.so.1", "to": f"{LIBS}/libcuda.so.550.67"}.items() <= plan["links"][1].items()
    assert "hook chmod" in [skip["what"] for skip in plan["skipped"]]


def test_gpu_finds_the_driver_by_ldconfig_where_there_is_no_specification(at, glibc, driver, tmp_path):
    cmd, _ = at
    listed = "".join(
        f"\\t{name} (libc6,x86-64) => {driver}/{name}.550.67\\n"
        for name in ("libcuda.so.1", "libnvidia-ptxjitcompiler.so.1")
    )
    for path in driver.iterdir():
        if ".so." in path.name:
            path.rename(path.with_name(path.name.replace(".so.550", ".so.1.550")))
    shutil.copy(driver / "nvidia-smi", tmp_path / "bin")
    (tmp_path / "bin/ldconfig").write_text(f"#!/bin/sh\nprintf '{listed}'\n")
    (tmp_path / "bin/ldconfig").chmod(0o755)
    done = cmd("sh-run", "--gpu", glibc, "sh", "-c", "load libcuda.so.1 libnvidia-ptxjitcompiler.so.1 && nvidia-smi")
    assert done.stdout.splitlines() == ["cuInit 0, devices 3", "libnvidia-ptxjitcompiler.so.1 loaded", "smi"]
    assert os.path.exists("/dev/nvidiactl") or "there is no '/dev/nvidiactl'" in done.stderr
    assert "device    NVIDIA's driver" in cmd.ok("sh-run", "--gpu", "--explain", glibc)


def test_without_a_driver_gpu_says_so(at, glibc, tmp_path):
    cmd, _ = at
    (tmp_path / "bin/ldconfig").write_text("#!/bin/sh\n")
    (tmp_path / "bin/ldconfig").chmod(0o755)
    if os.path.exists("/dev/kfd"):
        assert "AMD's" in cmd.ok("sh-run", "--gpu", "--explain", glibc)
    else:
        assert one_line(cmd("sh-run", "--gpu", glibc, "true"), "cannot find a GPU's driver", "no libcuda.so.1")


def test_a_driver_that_is_too_new_for_the_image_is_refused_before_anything_starts(at, glibc, tree, driver, tmp_path):
    cmd, cdi = at
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "map").write_text("GLIBC_9.9 { newer; };\n")
    cc("int newer(void) { return 1; }", fake / "libc.so.6", "-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libc.so.6",
       f"-Wl,--version-script={fake}/map")  # fmt: skip
    source = "int newer(void);\n" + CUDA.replace("(int)flags", "newer()")
    words = ("-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libcuda.so.1", fake / "libc.so.6")
    cc(source, driver / "libcuda.so.550.67", *words)
    write(cdi / "etc/nvidia.json", nvidia(driver))
    done = cmd("sh-run", "--gpu", glibc, "echo", "started")
    assert one_line(done, "libcuda.so.550.67'", "it needs GLIBC_9.9 of libc.so.6", "older glibc", "newer distribution")
    done = cmd("sh-run", "--gpu", tree, "echo", "started")  # no glibc at all: a static program may go on
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert "no glibc was found in the image" in done.stderr


def test_yaml_is_read_and_only_then_imported(at, tree, prefix, tmp_path):
    cmd, cdi = at
    (cdi / "etc/x.yaml").write_text(
        "---\ncdiVersion: 0.6.0\nkind: x.org/c\ndevices:\n- name: '0'\n  containerEdits:\n    env: [A=b c]\n"
    )
    assert cmd.ok("sh-run", "--device", "x.org/c=0", tree, "sh", "-c", "echo $A") == "b c"
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-o", trace, "-e", "trace=openat,open")
    cmd.ok(*strace, "sh-run", "--device=x.org/c=0", "--explain", tree)
    assert "/yaml/" in trace.read_text()
    write(cdi / "etc/x.json", small())
    (cdi / "etc/x.yaml").unlink()
    cmd.ok(*strace, "sh-run", "--device=x.org/c=0", "--explain", tree)
    assert "/yaml/" not in trace.read_text()
    cmd.ok(*strace, "sh-run", "--explain", tree)
    assert str(cdi) not in trace.read_text()


@pytest.mark.parametrize("text", ["{", "a: [", "- 1", "a: &a [*a]", "!!python/object/apply:os.system [true]"])
def test_a_file_that_cannot_be_read_is_named_if_its_devices_are_missed(at, tree, text):
    cmd, cdi = at
    (cdi / "etc/bad.yaml").write_text(text)
    assert one_line(cmd("sh-run", "--device", "x.org/c=0", tree, "true"), "no such device: 'x.org/c=0'", "etc/bad.yaml")
    write(cdi / "etc/good.json", small(env=["A=1"]))
    assert cmd.ok("sh-run", "--device", "x.org/c=0", tree, "sh", "-c", "echo $A") == "1"
    assert "etc/bad.yaml" in cmd.ok("sh-run", "--device", "x.org/c=0", "--explain", tree)


def test_the_later_directory_counts_and_two_files_of_one_are_a_conflict(at, tree):
    cmd, cdi = at
    write(cdi / "etc/a.json", small(env=["A=etc"]))
    write(cdi / "run/b.json", small(env=["A=run"]))
    assert cmd.ok("sh-run", "--device", "x.org/c=0", tree, "sh", "-c", "echo $A") == "run"
    write(cdi / "run/c.json", small(env=["A=other"]))
    assert one_line(cmd("sh-run", "--device", "x.org/c=0", tree, "true"), "run/b.json and", "run/c.json both have it")


def test_mounts_are_as_the_options_say_and_a_missing_one_is_an_error(at, tree, tmp_path):
    cmd, cdi = at
    (tmp_path / "tool").mkdir()
    mounts = [
        {"hostPath": f"{tmp_path}/tool", "containerPath": "/opt/ro", "options": ["ro", "rbind"]},
        {"hostPath": f"{tmp_path}/tool", "containerPath": "/opt/rw", "options": ["nosuid", "bind"]},
    ]
    spec = write(cdi / "etc/x.json", small(mounts=mounts))
    done = cmd("sh-run", "--device", "x.org/c=0", tree, "sh", "-c", "touch /opt/rw/a; ls /opt/ro; touch /opt/ro/b")
    assert done.stdout == "a\n"
    assert "Read-only" in done.stderr
    write(spec, small(mounts=[{"hostPath": f"{tmp_path}/gone", "containerPath": "/opt/x"}]))
    done = cmd("sh-run", "--device", "x.org/c=0", tree, "true")
    assert one_line(done, "cannot mount", "gone'", "there is no such file", str(spec))


def test_device_nodes_are_looked_at_and_one_of_another_name_is_mounted(at, tree, driver):
    cmd, cdi = at
    node = {"path": "/opt/zero", "hostPath": "/dev/zero"}
    write(cdi / "etc/x.json", small(deviceNodes=[node, {"path": "/dev/no-such"}]))
    done = cmd("sh-run", "--device", "x.org/c=0", tree, "sh", "-c", "head -c 2 /opt/zero | od -An -tx1")
    assert done.stdout.split() == ["00", "00"]
    assert "there is no '/dev/no-such'" in done.stderr
    write(cdi / "etc/nvidia.json", nvidia(driver))
    assert one_line(cmd("sh-run", "--device", "nvidia.com/gpu=9", tree, "true"), "gpu=9'", "/dev/no-such-gpu")


def test_hooks_are_not_run(at, tree, tmp_path):
    cmd, cdi = at
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    write(cdi / "etc/x.json", small(hooks=[{"hookName": "prestart", "path": str(hook), "args": ["hook", "on"]}]))
    done = cmd("sh-run", "--device", "x.org/c=0", tree, "true")
    assert done.returncode == 0
    assert "is left out: no hook is run" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_links_cover_what_the_image_has_there(at, glibc, driver, tmp_path):
    cmd, cdi = at
    image = tmp_path / "image"
    shutil.copytree(glibc, image, symlinks=True)
    stub = cc("int cuInit(unsigned f) { return 99; } int cuDeviceGetCount(int *c) { return 99; }",
              image / LIBS[1:] / "libcuda.so.450", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")  # fmt: skip
    stub.with_name("libcuda.so.1").symlink_to("libcuda.so.450")
    stub.with_name("libcuda.so").symlink_to("libcuda.so.1")
    write(cdi / "etc/nvidia.json", nvidia(driver))
    out = cmd.ok("sh-run", "--gpu", image, "load", f"{LIBS}/libcuda.so", f"{LIBS}/libcuda.so.1", "libcuda.so.1")
    assert out.splitlines() == ["cuInit 0, devices 3"] * 3


def test_this_machines_root_as_the_image_needs_no_overlay(at, driver):
    cmd, cdi = at
    write(cdi / "etc/nvidia.json", nvidia(driver))
    out = cmd.ok("sh-run", "--gpu", "--explain", "/", "true")
    assert "this machine's own root" in out
    assert "overlay" not in out
    assert cmd.ok("sh-run", "--gpu", "/", "sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES") == "void"


def test_who_joins_has_the_devices_and_their_variables_and_reads_no_specification(at, glibc, driver, tmp_path):
    cmd, cdi = at
    spec = write(cdi / "etc/nvidia.json", nvidia(driver))
    os.mkfifo(tmp_path / "end")
    run = f"sh-run --join --device nvidia.com/gpu=0 {glibc}"
    script = f"""
        {run} sh -c 'touch {tmp_path}/up; read x <{tmp_path}/end' &
        until [ -e {tmp_path}/up ]; do sleep 0.02; done
        rm {spec}
        {run} sh -c 'load libcuda.so.1; echo $NVIDIA_VISIBLE_DEVICES'
        echo >{tmp_path}/end
        wait"""
    with cmd.start("sh", "-c", script) as process:
        out, err = process.communicate(timeout=60)
    assert out.decode().splitlines() == ["cuInit 0, devices 3", "void"], err
    assert cmd("sh-run", "--join", "--device=nvidia.com/gpu=0", glibc, "true").returncode == 125


@pytest.mark.parametrize("words", [(), ("--mpi=image",)])
def test_whose_mpi_it_is_changes_nothing_for_devices(at, tree, words):
    cmd, cdi = at
    hook = HOOK | {"args": ["nvidia-cdi-hook", "create-symlinks", "--link", "release::/etc/linked"]}
    write(cdi / "etc/x.json", small(hooks=[hook], env=["A=1"], additionalGids=[44]))
    run = ("sh-run", "--device=x.org/c=0", *words)
    assert cmd.ok(*run, tree, "sh", "-c", "readlink /etc/linked; echo $A") == "/etc/release\n1"
    lines = [line.split() for line in cmd.ok(*run, "--explain", tree).splitlines()]
    starts = {("device", "x.org/c=0"), ("link", "/etc/linked"), ("skip", "additionalGids"), ("env", "A=1")}
    assert starts <= {tuple(line[:2]) for line in lines}
    assert (["mpi", "the", "image's"] in [line[:3] for line in lines]) == bool(words)


@pytest.mark.parametrize("words", [("--device", "gpu0"), ("--device", "/dev/null"), ("--device=x.org/c",)])
def test_other_names_of_devices_are_wrong(at, tree, words):
    cmd, _ = at
    assert one_line(cmd("sh-run", *words, tree, "true"), "no such device", "VENDOR/CLASS=NAME")


@pytest.mark.skipif(
    not Path("/dev/nvidia0").exists(), reason="no NVIDIA GPU on this machine: /dev/nvidia0 is not there"
)
def test_a_real_gpu_works_inside(cmd, glibc):
    outside = subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, text=True).stdout.strip()
    assert cmd.ok("sh-run", "--gpu", glibc, "nvidia-smi", "-L") == outside
    status, count = cmd.ok("sh-run", "--gpu", glibc, "load", "libcuda.so.1").split(", devices ")
    assert (status, int(count)) == ("cuInit 0", len(outside.splitlines()))
    assert cmd.ok("sh-run", "--gpu", "/", "nvidia-smi", "-L") == outside
