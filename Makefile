# SPDX-License-Identifier: GPL-2.0-only
# make mount | umount | build | clean
# make test | test-vm [KERNEL=6.12] | test-boot [RELEASE=trixie] | kernel | test-kernel [VARIANT=native-kasan] [TREE=~/linux]
# make measure-kernel
# make bench [CASES="read lookup"] | bench-quick
# make wheel | deb

MOUNTPOINT ?= /cgstat
KERNEL ?=
# Of `make bench`; default: all.
CASES ?=
# Of Debian, whose systemd is booted.
RELEASE ?= all
# Of the kernel that is built, see tests/vm/build.py; TREE: a source tree of one's own to build.
TREE ?=
export CGSTATFS_TREE := $(or $(TREE),$(CGSTATFS_TREE))
VARIANT ?= $(if $(CGSTATFS_TREE),tree,native)

# What is built, and what runs it: clang and bpftool compile the BPF programs, llvm strips
# them, libfuse3-dev and the Python headers are for building pyfuse3.
PACKAGES = clang llvm libbpf-dev bpftool libfuse3-dev pkg-config gcc python3-venv python3-dev
# What the tests drive the mount with, compile with as others do, and boot.
TEST_PACKAGES = bpftrace busybox debian-archive-keyring diffutils e2fsprogs file kmod procps \
	python3-bpfcc qemu-system-x86 rsync strace tar tree util-linux
# What `make bench` measures beside it, and draws plots with. (lxcfs comes with a service, so
# `make bench-quick` does without.)
BENCH_PACKAGES = bpftrace libbpf-tools lxcfs python3-matplotlib
# What machines are made and booted with.
BOOT_PACKAGES = debian-archive-keyring e2fsprogs mmdebstrap qemu-system-x86 util-linux
# What a kernel is built with; bpftool writes down its types.
KERNEL_PACKAGES = bc bison bpftool dwarves flex gcc libc6-dev libelf-dev make patch python3 \
	xz-utils
# What a Debian package is built with, and what looks it over.
DEB_PACKAGES = debhelper dh-python dpkg-dev lintian pybuild-plugin-pyproject python3-setuptools

VENV = .venv
PYTHON = $(VENV)/bin/python
OBJECTS = $(patsubst bpf/%.bpf.c,cgstatfs/objects/%.bpf.o,$(wildcard bpf/*.bpf.c))
# What `cgstatfs build` and `cgstatfs new` need of bpf/.
INCLUDES = $(patsubst bpf/%,cgstatfs/include/%,$(wildcard bpf/*.h))
TEMPLATES = $(patsubst bpf/templates/%,cgstatfs/templates/%,$(wildcard bpf/templates/*))
PACKAGE_DATA = $(OBJECTS) $(INCLUDES) $(TEMPLATES)
# One to a case of that source.
HOSTILE = tests/bpf/hostile/cases.bpf.c
HOSTILE_OBJECTS = $(patsubst case_%,build/tests/hostile/%.bpf.o,\
	$(sort $(shell sed -n 's/^.ifdef case_/case_/p' $(HOSTILE))))
EXAMPLES = $(patsubst bpf/examples/%.bpf.c,build/examples/%.bpf.o,$(wildcard bpf/examples/*.bpf.c))
TEST_OBJECTS = $(EXAMPLES) $(patsubst tests/bpf/%.bpf.c,build/tests/%.bpf.o,$(wildcard tests/bpf/*.bpf.c)) \
	$(HOSTILE_OBJECTS)
# What tests the series itself, compiled against the kernel that it is in.
KERNEL_TESTS = $(patsubst tests/kernel/%.c,build/tests/kernel/%,\
		$(filter-out %.bpf.c,$(wildcard tests/kernel/*.c))) \
	$(patsubst tests/kernel/%.bpf.c,build/tests/kernel/%.bpf.o,$(wildcard tests/kernel/*.bpf.c))
BENCH_PROGRAMS = $(patsubst bench/peers/%.c,build/bench/%,$(wildcard bench/peers/*.c)) \
	$(patsubst bench/bpf/%.bpf.c,build/bench/%.bpf.o,$(wildcard bench/bpf/*.bpf.c))
ARCH = $(patsubst aarch64,arm64,$(patsubst x86_64,x86,$(shell uname -m)))
BPF_CFLAGS = -O2 -g -target bpf -mcpu=v3 -D__TARGET_ARCH_$(ARCH) -Wall -Werror \
	-fms-extensions -Wno-microsoft-anon-tag -ffile-prefix-map=$(CURDIR)=. \
	-Ibuild -Ibpf

.DELETE_ON_ERROR:
# apt and the kernel's build are in a lock each, and use what cpus there are.
.NOTPARALLEL:
.PHONY: mount umount build test test-vm test-boot kernel kernel-tests test-kernel measure-kernel bench bench-quick wheel deb package-data clean \
	root packages test-packages boot-packages bench-packages kernel-packages deb-packages

mount: build
	@# Where that fails (a file, a dead mount), what follows knows better why.
	@mkdir -p $(MOUNTPOINT) 2>/dev/null || true
	@if findmnt -n -t fuse.cgstatfs $(MOUNTPOINT) >/dev/null && \
			stat $(MOUNTPOINT)/. >/dev/null 2>&1; then \
		echo "$(MOUNTPOINT) is mounted already; make umount ends it"; \
	else \
		$(PYTHON) -m cgstatfs mount $(MOUNTPOINT); \
	fi
	@echo "try:  cat $(MOUNTPOINT)/proc.events"
	@echo "      grep -r . $(MOUNTPOINT) --include=mm.reclaim"
	@echo "      $(VENV)/bin/cgstatfs list"

umount: root
	@if findmnt -n -t fuse.cgstatfs $(MOUNTPOINT) >/dev/null; then \
		if [ -x $(PYTHON) ]; then $(PYTHON) -m cgstatfs umount $(MOUNTPOINT); \
		else umount $(MOUNTPOINT); fi; \
	elif [ -x $(PYTHON) ] && $(PYTHON) -m cgstatfs list | grep -q '^$(MOUNTPOINT): '; then \
		: "a daemon was killed, and left its collectors"; \
		$(PYTHON) -m cgstatfs umount $(MOUNTPOINT); \
	else echo "$(MOUNTPOINT) is not mounted"; fi

build: root packages $(VENV)/installed package-data

package-data: $(PACKAGE_DATA)

TESTING = build test-packages $(VENV)/installed-for-tests $(TEST_OBJECTS) $(BENCH_PROGRAMS)

# The kernel, too, beside the tests that do not need it; see tests/t5_guests/conftest.py.
test: $(TESTING) deb-packages kernel-packages
	$(PYTHON) -m pytest $(PYTEST_ARGS)

test-vm: $(TESTING) $(if $(filter 6.1 6.12 newest,$(KERNEL)),,kernel-packages)
	$(PYTHON) -m pytest tests/t5_guests $(if $(KERNEL),--kernel $(KERNEL))

# In machines of their own, with the package of this tree. They take too long for `make test`.
test-boot: build boot-packages $(VENV)/installed-for-tests deb
	$(PYTHON) -m pytest tests/t6_boot --release $(RELEASE) $(PYTEST_ARGS)

# Nothing is built that the cache has.
kernel: kernel-packages
	@/usr/bin/python3 -m tests.vm.build --link build/kernel $(VARIANT)

kernel-tests: kernel $(KERNEL_TESTS)

test-kernel: $(TESTING) kernel-tests
	CGSTATFS_CHURN_SECONDS=$${CGSTATFS_CHURN_SECONDS-600} \
		$(PYTHON) -m pytest tests/t5_guests --kernel $(VARIANT)

# In instructions, not in time.
measure-kernel: $(TESTING) kernel-packages
	@for variant in native-fast unpatched-fast; do \
		/usr/bin/python3 -m tests.vm.build $$variant || exit 1; done
	$(PYTHON) -m tests.kernel.measure

bench: $(TESTING) bench-packages kernel-packages
	@/usr/bin/python3 -m tests.vm.build native-fast
	$(PYTHON) -m bench $(CASES)

# Fails where a ratio is far above what is usual; in `make test`, too.
bench-quick: build test-packages $(BENCH_PROGRAMS)
	$(PYTHON) -m bench --quick $(CASES)

# copy-source DIRECTORY,NAME...: made anew
define copy-source
	@rm -rf $(1) && mkdir -p $(1) && cp -a $(2) $(1) && find $(1) -name __pycache__ -prune -exec rm -r {} +
endef

# In a copy, so that nothing is in it which an earlier build has left, or a __pycache__.
WHEEL_SOURCE = LICENSE MANIFEST.in README.md bpf cgstatfs pyproject.toml setup.py
wheel: package-data $(VENV)/installed
	$(call copy-source,build/wheel/source,$(WHEEL_SOURCE))
	@rm -f build/wheel/*.whl
	@$(PYTHON) -m pip wheel -q --disable-pip-version-check --no-deps -w build/wheel build/wheel/source
	@ls build/wheel/*.whl

# dpkg-buildpackage writes beside the source. It compiles the objects itself, as it does elsewhere,
# and wants the system's Python.
DEB_SOURCE = $(WHEEL_SOURCE) Makefile debian docs $(wildcard systemd)
deb: deb-packages packages
	$(call copy-source,build/deb/source,$(DEB_SOURCE))
	@cd build/deb/source && rm -rf $(sort $(dir $(PACKAGE_DATA)))
	@rm -f build/deb/*.*
	@cd build/deb/source && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage -b -us -uc >../build.log 2>&1 || \
		{ tail -n 20 ../build.log >&2; echo "building failed; see build/deb/build.log" >&2; exit 1; }
	@ls build/deb/*.deb

clean:
	rm -rf build cgstatfs/objects cgstatfs/include cgstatfs/templates $(VENV)

root:
	@[ "$$(id -u)" = 0 ] || { echo "not root: mounting and BPF need it; try sudo make" >&2; exit 1; }

# install-packages NAME...: what is missing, and nothing where nothing is.
define install-packages
	@missing=$$(for p in $(1); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q ' installed$$' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "installing" $$missing; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
			--no-install-recommends $$missing; } >build/apt.log 2>&1 || \
		{ tail -n 3 build/apt.log >&2; echo "installing failed; see build/apt.log" >&2; exit 1; }; \
	fi
endef

packages: | build.d
	$(call install-packages,$(PACKAGES))

test-packages: | build.d
	$(call install-packages,$(TEST_PACKAGES))

boot-packages: | build.d
	$(call install-packages,$(BOOT_PACKAGES))

bench-packages: | build.d
	$(call install-packages,$(BENCH_PACKAGES))

kernel-packages: | build.d
	$(call install-packages,$(KERNEL_PACKAGES))

deb-packages: | build.d
	$(call install-packages,$(DEB_PACKAGES))

.PHONY: build.d
build.d:
	@mkdir -p build

# The system's Python, whose dist-packages has bcc for those who load bcc collectors.
$(VENV)/installed: pyproject.toml | packages
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(PYTHON) -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

build/vmlinux.h: | packages
	@[ -r /sys/kernel/btf/vmlinux ] || \
		{ echo "/sys/kernel/btf/vmlinux: missing; the kernel needs CONFIG_DEBUG_INFO_BTF" >&2; exit 1; }
	bpftool btf dump file /sys/kernel/btf/vmlinux format c >$@

define compile
	@mkdir -p $(@D)
	clang $(BPF_CFLAGS) -c $< -o $@
	llvm-strip -g $@
endef

cgstatfs/include/%: bpf/%
	@mkdir -p $(@D)
	cp $< $@

cgstatfs/templates/%: bpf/templates/%
	@mkdir -p $(@D)
	cp $< $@

cgstatfs/objects/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h) build/vmlinux.h
	$(compile)

build/examples/%.bpf.o: bpf/examples/%.bpf.c $(wildcard bpf/*.h) build/vmlinux.h
	$(compile)

build/tests/%.bpf.o: tests/bpf/%.bpf.c $(wildcard tests/bpf/*.bpf.c bpf/*.h) build/vmlinux.h
	$(compile)

build/bench/%.bpf.o: bench/bpf/%.bpf.c $(wildcard bpf/*.h) build/vmlinux.h
	$(compile)

build/bench/%: bench/peers/%.c
	@mkdir -p $(@D)
	gcc -O2 -Wall -Wextra -Werror -pthread $(shell pkg-config --cflags fuse3) \
		-o $@ $< $(shell pkg-config --libs fuse3)

$(HOSTILE_OBJECTS): BPF_CFLAGS += -Wno-unused-function -Dcase_$(patsubst %.bpf.o,%,$(@F))
$(HOSTILE_OBJECTS): $(HOSTILE) $(wildcard bpf/*.h) build/vmlinux.h
	$(compile)

# build/kernel leads to the kernel that was built last.
build/kernel/vmlinux.h build/kernel/include/linux/bpf.h: | kernel ;

build/tests/kernel/%.bpf.o: tests/kernel/%.bpf.c $(wildcard tests/kernel/*.h) build/kernel/vmlinux.h
	@mkdir -p $(@D)
	clang $(subst -Ibuild ,-Ibuild/kernel -Itests/kernel ,$(BPF_CFLAGS)) -c $< -o $@
	llvm-strip -g $@

build/tests/kernel/%: tests/kernel/%.c $(wildcard tests/kernel/*.h) build/kernel/include/linux/bpf.h
	@mkdir -p $(@D)
	gcc -O2 -Wall -Wextra -Werror -pthread -Ibuild/kernel/include -o $@ $< -lbpf
