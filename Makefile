# Shoebox. `make help` tells what can be made; README.md is the place to begin.

PREFIX = /usr/local
DESTDIR =
SYSCONFDIR = /etc/shoebox
HELPER = /usr/libexec/shoebox/sh-mount
NODEDIR =
SLURM = /usr
GROUP =
PYTHON = /usr/bin/python3
WHEELS =
VERSION := $(shell sed -n 's/^VERSION = "\(.*\)"$$/\1/p' lib/shoebox/__init__.py)
SETUP = "$(PYTHON)" .ci/install.py
SHELL_SCRIPTS = .ci/need .ci/demo .ci/test .ci/run .ci/setuid .ci/spank lib/wlm/epilog \
    $(filter-out %.py,$(wildcard lib/wlm/*/*))
C_SOURCES = $(wildcard lib/c/*.c) test/c/fuzz.c
C_WARNINGS = -std=c11 -O2 -Werror -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wcast-align=strict \
    -Wcast-qual -Wformat=2 -Wformat-signedness -Wmissing-prototypes -Wstrict-prototypes -Wold-style-definition -Wundef -Wvla \
    -Walloca -Wwrite-strings -Wpointer-arith -Wswitch-enum -Wdouble-promotion -Wnull-dereference -Wredundant-decls \
    -Wbad-function-cast -Wduplicated-cond -Wduplicated-branches -Wlogical-op -Wjump-misses-init -Warith-conversion \
    -Wstack-usage=65536 -Wunused-macros -Wdate-time

help:
	@sed -n 's/^#: //p' Makefile

#: make demo                  the main job, shown: a registry, an image, pull, flatten, stage, run
demo:
	@.ci/need demo
	@$(MAKE) --no-print-directory .venv/stamp
	@.ci/demo

#: make test                  every test, as an ordinary user, and as root those that need it
test:
	@.ci/need test
	@$(MAKE) --no-print-directory .venv/stamp
	@.ci/test

#: make drill                 [SEED=] the failure drills of make test at full length (half an hour), and their figures
drill:
	@.ci/need test
	@$(MAKE) --no-print-directory .venv/stamp
	@.ci/test --drill=full --timeout=0 $(if $(SEED),--seed=$(SEED)) test/drill

#: make check                 linters, types, the rooms of the house
check:
	@.ci/need test
	@$(MAKE) --no-print-directory .venv/stamp
	.venv/bin/ruff format --check lib test .ci bin/*
	.venv/bin/ruff check lib test .ci bin/*
	.venv/bin/mypy
	.venv/bin/mypy --strict .ci/install.py
	PYTHONPATH=lib .venv/bin/lint-imports --no-cache --no-logo
	shellcheck $(SHELL_SCRIPTS)
	mandoc -T lint -W warning $(wildcard doc/*.[1578])
	for file in lib/c/*.c; do gcc $(C_WARNINGS) -c -o /dev/null $$file && \
	    gcc $(C_WARNINGS) -fanalyzer -c -o /dev/null $$file || exit; done
	cppcheck --quiet --enable=warning,style,performance,portability --std=c11 --error-exitcode=1 lib/c/*.c
	clang-format --style=file:.ci/clang-format --dry-run --Werror $(C_SOURCES)
	.venv/bin/python -m pytest -q test/unit/test_rooms.py

#: make check-evil            [PREFIX=] [HELPER=] hostile cases, tried on what is installed there, else on a copy: SAFE or UNSAFE
EVIL = -qq -rN --tb=short -o console_output_style=classic --evil
given = $(if $(filter command environment,$(firstword $(origin $1))),$($1))
check-evil:
	@.ci/need evil
	@$(MAKE) --no-print-directory .venv/stamp
	@SHOEBOX_TEST_PREFIX="$(call given,PREFIX)" SHOEBOX_TEST_HELPER="$(call given,HELPER)" .ci/test $(EVIL)

#: make bench                 [SHORT=1] speed, side by side with other tools; the long form renews doc/performance.*
bench:
	@.ci/need bench
	@$(MAKE) --no-print-directory .venv/stamp $(if $(SHORT)$(SHOEBOX_BENCH_LAYOUT),,build/real/index.json)
	@mkdir -p build/bench
	.venv/bin/python -m pytest -q --timeout=0 --benchmark-quiet --benchmark-json=build/bench/pytest-benchmark.json \
	    test/bench $(if $(SHORT),--short)

#: make install               [PREFIX=/usr/local] [PYTHON=/usr/bin/python3] [WHEELS=folder: no network] [DESTDIR=]
#:                            [SYSCONFDIR=/etc/shoebox: where the commands look for the site's files; nothing is written there]
#:                            [HELPER=/usr/libexec/shoebox/sh-mount: where they look for sh-mount] [NODEDIR=: where the ranks
#:                            of a node meet, before $XDG_RUNTIME_DIR]
install:
	@$(SETUP) install --prefix "$(PREFIX)" --destdir "$(DESTDIR)" --sysconfdir "$(SYSCONFDIR)" --helper "$(HELPER)" \
	    --nodedir "$(NODEDIR)" --wheels "$(WHEELS)"

#: make install-shifter       [PREFIX=] [DESTDIR=] then: shifter and shifterimg too; never over a real Shifter
install-shifter:
	@$(SETUP) install-shifter --prefix "$(PREFIX)" --destdir "$(DESTDIR)"

#: make uninstall             [PREFIX=] [DESTDIR=] what make install of this version put there
uninstall:
	@$(SETUP) uninstall --prefix "$(PREFIX)" --destdir "$(DESTDIR)"

#: make install-setuid        [HELPER=] [SYSCONFDIR=] [GROUP=: for its members only] [DESTDIR=] sh-mount, set-user-ID root: optional
#: make uninstall-setuid      [HELPER=] [DESTDIR=]
install-setuid uninstall-setuid:
	@HELPER="$(HELPER)" SYSCONFDIR="$(SYSCONFDIR)" GROUP="$(GROUP)" DESTDIR="$(DESTDIR)" .ci/setuid $(@:-setuid=)

#: make install-spank         [PREFIX=/usr/local] [SLURM=/usr: where its include/ lies] [DESTDIR=] Slurm's plugin: optional
#: make uninstall-spank       [PREFIX=] [DESTDIR=]
install-spank uninstall-spank:
	@PREFIX="$(PREFIX)" SLURM="$(SLURM)" DESTDIR="$(DESTDIR)" .ci/spank $(@:-spank=)

#: make wheels                the folder of wheels that an install without network takes: build/wheels
wheels: build/wheels/stamp
build/wheels/stamp: .venv/stamp
	.venv/bin/python -m pip --disable-pip-version-check wheel -q -w build/wheels -r .venv/runtime.txt
	@touch $@

#: make rpm                   [WHEELS=] [PYTHON=] an RPM of what is committed, in build/
rpm:
	@.ci/need rpm
	mkdir -p build
	top=$$(mktemp -d) && trap 'rm -rf "$$top"' EXIT && mkdir "$$top/SOURCES" && \
	git archive --prefix=shoebox-$(VERSION)/ -o "$$top/SOURCES/shoebox-$(VERSION).tar" HEAD && \
	rpmbuild --quiet -bb --nodeps -D "_topdir $$top" -D "_tmppath $$top" -D "version $(VERSION)" -D "python $(PYTHON)" \
	    $(if $(WHEELS),-D "wheels $(abspath $(WHEELS))") .ci/shoebox.spec && \
	mv "$$top"/RPMS/*/*.rpm build/

# A real image of 50,000 files, for the tests and for make bench.
build/real/index.json: test/fixtures/realimage.py | .venv/stamp
	rm -rf build/real
	.venv/bin/python test/fixtures/realimage.py build/real

# The image of doc/recipes.md, in the files of a registry, made when the Dockerfile there has changed; as root.
build/recipes: build/real/index.json
	@PYTHONPATH=test .venv/bin/python test/fixtures/recipes.py build/real build/recipes

#: make clean                 removes what make made here
clean:
	rm -rf .venv build .mypy_cache .ruff_cache .hypothesis .benchmarks
	find bin lib test .ci -name __pycache__ -exec rm -rf {} +

# For development, and for the launchers in bin/: the packages that the commands and the tests import.
.venv/stamp: pyproject.toml
	"$(PYTHON)" -m venv .venv
	$(SETUP) requirements >.venv/runtime.txt
	$(SETUP) requirements --extra test >.venv/test.txt
	.venv/bin/python -m pip --disable-pip-version-check install -q -r .venv/runtime.txt -r .venv/test.txt
	touch $@

.PHONY: help demo test drill check check-evil bench install install-shifter uninstall install-setuid uninstall-setuid \
    install-spank uninstall-spank wheels rpm build/recipes clean
