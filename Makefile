# SPDX-License-Identifier: MIT
# Makefile - owns how kslab is built, tested, booted and installed. All it makes lies in build/.
#
# src/*.c and include/ alone are the library: a kernel may as well compile them with its own rules.
#
# Honoured: TARGET (x86_64 i386 aarch64 riscv64 riscv32 arm), CC, AR, NM, CROSS_COMPILE, CFLAGS and
# LDFLAGS (appended), PREFIX, DESTDIR, WERROR=0, DEPS=0 (never install a package), JOBS, V=1 (show
# commands).

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.SECONDARY:
.DELETE_ON_ERROR:

BUILD ?= build
PREFIX ?= /usr/local
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
ARCH ?= x86_64
TARGET ?= $(ARCH)
TARGETS := x86_64 i386 aarch64 riscv64 riscv32 arm
SRC := $(wildcard src/*.c)
HEADERS := $(wildcard include/kslab/*.h)
VERSION = $(shell sed -n 's/^.define KSLAB_VERSION_[MP][A-Z]* \([0-9]*\)$$/\1/p' \
	include/kslab/config.h | paste -sd.)

ifeq ($(filter $(TARGET),$(TARGETS)),)
$(error TARGET=$(TARGET): must be one of $(TARGETS))
endif

# What a recipe prints: "  CC      build/..." or, with V=1, the commands.
Q := $(if $(V),,@)
say = $(if $(V),@:,@printf '  %-7s %s\n' '$(1)' '$(2)')

# ---- tools of the target ------------------------------------------------------------------------

machine := $(shell uname -m)
prefix_x86_64 := $(if $(filter x86_64,$(machine)),,x86_64-linux-gnu-)
prefix_i386 := $(prefix_x86_64)
prefix_aarch64 := $(if $(filter aarch64,$(machine)),,aarch64-linux-gnu-)
prefix_riscv64 := $(if $(filter riscv64,$(machine)),,riscv64-linux-gnu-)
prefix_riscv32 := $(prefix_riscv64)
prefix_arm := arm-linux-gnueabi-
CROSS_COMPILE ?= $(prefix_$(TARGET))

ifeq ($(origin CC),default)
CC := $(CROSS_COMPILE)gcc
endif
clang := $(findstring clang,$(CC))
# One ar, nm and objdump of GNU binutils do for archives of every ELF machine.
ifeq ($(origin AR),default)
AR := ar
endif
NM ?= nm
LD_gnu := $(CROSS_COMPILE)ld
ifeq ($(origin LD),default)
LD := $(if $(clang),ld.lld,$(LD_gnu))
endif

# ---- flags --------------------------------------------------------------------------------------

WERROR ?= 1
WARN := -Wall -Wextra -Wconversion -Wshadow -Wundef -Wstrict-prototypes -Wmissing-prototypes \
	$(if $(filter 0,$(WERROR)),,-Werror)
KERNEL_CFLAGS := -std=c11 -O2 -fomit-frame-pointer -ffreestanding -nostdlib -fno-pic -fno-stack-protector \
	-fno-asynchronous-unwind-tables $(WARN)

machine_x86_64 := -m64 -mno-red-zone -mgeneral-regs-only -mcmodel=kernel
machine_i386 := -m32 -march=i686 -mgeneral-regs-only
machine_aarch64 := -mgeneral-regs-only -mno-outline-atomics
# lld 14 can't relax, and refuses objects that need it.
machine_riscv64 := -march=rv64imac -mabi=lp64 -mcmodel=medany $(if $(clang),-mno-relax)
machine_riscv32 := -march=rv32imac -mabi=ilp32 -mcmodel=medany $(if $(clang),-mno-relax)
machine_arm := -march=armv7-a -mfloat-abi=soft
triple_arm := armv7-linux-gnueabi
triple := --target=$(or $(triple_$(TARGET)),$(TARGET)-none-elf)
MACHINE := $(if $(clang),$(triple)) $(machine_$(TARGET))

# ---- rules for a directory of objects -----------------------------------------------------------

# $(call flags-file,directory,command,need): a file that changes when the command does; the objects
# depend on it.
define flags-file
$(1)/flags: FORCE | $(3)
	@mkdir -p $$(@D)
	@printf '%s\n' $$(call quote,$(2)) | cmp -s - $$@ || \
		printf '%s\n' $$(call quote,$(2)) > $$@
endef
quote = '$(subst ','\'',$(1))'

# $(call object-rules,directory,source directory,command)
define object-rules
$(1)/%.o: $(2)/%.c $(1)/flags
	$$(call say,CC,$$@)
	$$(Q)$(3) -MMD -MP -c $$< -o $$@
endef

# $(call archive-rule,archive,objects)
define archive-rule
$(1): $(2)
	$$(call say,AR,$$@)
	$$(Q)rm -f $$@ && $$(AR) rcs $$@ $$^
endef

objects = $(patsubst %.c,$(1)/%.o,$(notdir $(2)))

# ---- the library --------------------------------------------------------------------------------

OUT ?= $(BUILD)/$(TARGET)
LIB := $(OUT)/libkslab.a
lib_objects := $(call objects,$(OUT),$(SRC))
lib_compile = $(CC) $(MACHINE) $(KERNEL_CFLAGS) -Iinclude $(CFLAGS)

lib: $(LIB) ## build/TARGET/libkslab.a for a kernel (the default)

all: lib host ## library for TARGET and for the host

$(eval $(call flags-file,$(OUT),$(lib_compile),need-lib))
$(eval $(call object-rules,$(OUT),src,$(lib_compile)))
$(eval $(call archive-rule,$(LIB),$(lib_objects)))

install: lib ## archive, headers and kslab.pc, with the knobs of CFLAGS, to DESTDIR/PREFIX
	install -d $(DESTDIR)$(PREFIX)/include/kslab $(DESTDIR)$(PREFIX)/lib/pkgconfig
	install -m 644 $(HEADERS) $(DESTDIR)$(PREFIX)/include/kslab
	install -m 644 $(LIB) $(DESTDIR)$(PREFIX)/lib
	printf '%s\n' 'prefix=$(PREFIX)' 'Name: kslab' 'Description: kernel slab allocator' \
		'Version: $(VERSION)' \
		$(call quote,Cflags: -I$${prefix}/include $(filter -DKSLAB_%,$(CFLAGS))) \
		'Libs: -L$${prefix}/lib -lkslab' \
		> $(DESTDIR)$(PREFIX)/lib/pkgconfig/kslab.pc

# ---- freestanding checks ------------------------------------------------------------------------

# target-compiler pairs. Each is built with the default configuration and with everything turned on.
FREESTANDING ?= x86_64-gcc i386-gcc aarch64-gcc riscv64-gcc riscv32-gcc \
	x86_64-clang i386-clang aarch64-clang riscv64-clang riscv32-clang arm-clang
freestanding_full := -DKSLAB_CFG_CPUS=4 -DKSLAB_CFG_DEBUG=2
freestanding_checks := $(FREESTANDING:%=check-%) $(FREESTANDING:%=check-full-%) check-headers check-knobs

freestanding: need-freestanding ## all targets, gcc and clang: build, check symbols and headers
	@rm -rf $(BUILD)/checks && mkdir -p $(BUILD)/checks
	+@$(MAKE) --no-print-directory -k $(parallel) $(freestanding_checks) || true
	@passed=$$(ls $(BUILD)/checks | wc -l); all=$(words $(freestanding_checks)); \
	echo "freestanding: $$passed passed, $$((all - passed)) failed"; test $$passed = $$all

parallel = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(JOBS))
# A configuration of the library in a directory of its own, by a make of its own. $(1):
# target-compiler.
pair_target = $(firstword $(subst -, ,$(1)))
pair_make = $(MAKE) --no-print-directory DEPS=skip TARGET=$(call pair_target,$(1)) \
	$(if $(findstring clang,$(1)),CC=clang) check-symbols
$(FREESTANDING:%=check-%): check-%:
	+@$(call pair_make,$*) OUT=$(BUILD)/$*
	@touch $(BUILD)/checks/$@
$(FREESTANDING:%=check-full-%): check-full-%:
	+@$(call pair_make,$*) OUT=$(BUILD)/$*-full CFLAGS='$(CFLAGS) $(freestanding_full)'
	@touch $(BUILD)/checks/$@

# Undefined may be what compilers expect from a kernel, and the port. Global is only what has our
# prefix.
check-symbols: $(LIB)
	@$(NM) $(LIB) | awk 'NF == 3 && $$2 ~ /[A-Z]/ { def[$$3] = 1 } \
	NF == 2 && $$1 == "U" { ref[$$2] = 1 } \
	END { for (s in ref) \
		if (!(s in def) && s !~ /^(memcpy|memset|memmove|memcmp|kslab_port_.*)$$/) \
			{ print "$(LIB): undefined: " s; bad = 1 } \
	for (s in def) if (s !~ /^kslab_/) { print "$(LIB): global without prefix: " s; bad = 1 } \
	exit bad }'

# Each public header alone: C99 with both compilers, C++.
header_flags := -fsyntax-only -Iinclude -Wall -Wextra -Wundef -Werror
check-headers:
	@file=$(BUILD)/checks/.header.c; for h in $(HEADERS); do \
	printf '#include <%s>\n#include <%s>\n' $${h#include/} $${h#include/} > $$file && \
	for full in '' '$(freestanding_full)'; do \
	gcc -x c -std=c99 -pedantic $(header_flags) $$full $$file && \
	clang -x c -std=c99 -pedantic -ffreestanding $(header_flags) $$full $$file && \
	g++ -x c++ -std=c++11 $(header_flags) $$full $$file && \
	clang++ -x c++ -std=c++17 -ffreestanding $(header_flags) $$full $$file || \
	exit 1; done || exit 1; done
	@touch $(BUILD)/checks/$@

# What config.h says about each knob that is out of range, or an expression that operators beside it
# would tear apart.
bad_knobs := CPUS=0 CPUS=65536 CPUS=4+4 LEVELS=0 LEVELS=9 LEVELS=1+1 DEBUG=-1 DEBUG=3 \
	GRAIN_SHIFT=8 GRAIN_SHIFT=21 GRAIN_SHIFT=9+3 LEAF_SHIFT=12 LEAF_SHIFT=31 LEAF_SHIFT=12+9 \
	TOP_ENTRIES=0 TOP_ENTRIES=3 FLAT_MAP=-1 FLAT_MAP=2 REGIONS=0 REGIONS=65
check-knobs:
	@for knob in $(bad_knobs); do for cc in gcc clang; do \
	echo '#include <kslab/config.h>' | $$cc -x c -std=c99 -ffreestanding -fsyntax-only -Iinclude \
		-DKSLAB_CFG_$$knob - 2>&1 | grep -q "error.*KSLAB_CFG_$${knob%%=*}: " || \
		{ echo "$$cc: KSLAB_CFG_$$knob is not refused"; exit 1; }; done || exit 1; done
	@touch $(BUILD)/checks/$@

# ---- the host: threads play CPUs, programs run on it --------------------------------------------

HOST := $(BUILD)/host
HOSTCC ?= gcc
host_flags := -std=gnu11 -O2 -g -fPIC $(WARN) -Iinclude -Itests
# protected: exported, yet calls inside the .so are direct. The port is in tests/host/port.h.
host_compile = $(HOSTCC) $(host_flags) -fvisibility=protected -ftls-model=initial-exec \
	-fno-builtin -DKSLAB_CFG_HEADER='"host/port.h"' $(CFLAGS)
# Programs that take whatever malloc is linked or preloaded, and the recorder, know nothing of
# kslab.
host_plain = $(HOSTCC) $(host_flags) $(CFLAGS)
host_programs := $(addprefix $(HOST)/,replay rss names threads growth)
host_objects := $(call objects,$(HOST)/src,$(SRC)) $(HOST)/port/port.o

host: $(HOST)/libkslab.a $(HOST)/libkslab.so $(HOST)/librecord.so $(host_programs)
host: ## build/host: libkslab.a, libkslab.so (LD_PRELOAD), librecord.so, test programs

$(eval $(call flags-file,$(HOST)/src,$(host_compile),need-host))
$(eval $(call flags-file,$(HOST)/port,$(host_compile),need-host))
$(eval $(call flags-file,$(HOST)/plain,$(host_plain),need-host))
$(eval $(call object-rules,$(HOST)/src,src,$(host_compile)))
$(eval $(call object-rules,$(HOST)/port,tests/host,$(host_compile)))
$(eval $(call object-rules,$(HOST)/plain,tests/host,$(host_plain)))
$(eval $(call archive-rule,$(HOST)/libkslab.a,$(host_objects)))

$(HOST)/libkslab.so: $(host_objects) $(HOST)/port/preload.o
	$(call say,LD,$@)
	$(Q)$(HOSTCC) -shared -Wl,-z,now -o $@ $^ -pthread $(LDFLAGS)

$(HOST)/librecord.so: $(HOST)/plain/recorder.o
	$(call say,LD,$@)
	$(Q)$(HOSTCC) -shared -o $@ $^ -pthread -ldl $(LDFLAGS)

$(host_programs): $(HOST)/%: $(HOST)/plain/%.o
	$(call say,LD,$@)
	$(Q)$(HOSTCC) -o $@ $^ -pthread $(LDFLAGS)

# ---- tests --------------------------------------------------------------------------------------

# tests/test_*.c are programs; every other tests/*.c is compiled into each of them, with src/*.c.
# A line
#	BUILD: -DKSLAB_CFG_CPUS=4 ...
# in a comment of a program gives the flags for all of it. Every variant compiles everything once
# per distinct set of flags. T=test_heap and VARIANTS=gcc narrow the choice.
VARIANTS ?= gcc clang asan i386
T ?= $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
TEST_SECONDS ?= 600
TESTS := $(BUILD)/test

test_gcc := $(HOSTCC) -O2
test_clang := clang -O2
test_asan := $(HOSTCC) -O1 -fsanitize=address,undefined -fno-sanitize-recover=all \
	-fno-omit-frame-pointer
# cmocka's header comes from /usr/include, everything else from the cross compiler's own
# directories.
test_i386 := i686-linux-gnu-gcc -O2 -idirafter /usr/include
test_ld_i386 := -L/usr/lib/i386-linux-gnu
test_flags := -std=gnu11 -g -pthread -Iinclude -Isrc -Itests
test_env := CMOCKA_MESSAGE_OUTPUT=TAP ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
test_results = $(foreach v,$(VARIANTS),$(T:%=$(TESTS)/$(v)/%.tap))

test: need-test ## all cmocka tests: gcc, clang, sanitizers, 32 bit. T=, VARIANTS= narrow the choice
	@rm -f $(test_results)
	+@$(MAKE) --no-print-directory -k $(parallel) test-programs || true
	@sh tests/summary.sh $(TESTS) '$(VARIANTS)' '$(T)'

ifneq ($(filter test-programs,$(MAKECMDGOALS)),)
# name|directory of its flags|flags, blanks as ~
test_table := $(shell for t in $(T); do \
	flags=$$(sed -n 's|.*BUILD: *\(.*[^ ]\) *\*/.*|\1|p; s|.*BUILD: *\(-[^*]*[^ *]\)$$|\1|p' \
		tests/$$t.c | head -n 1); \
	key=$$(printf %s "$$flags" | sed 's/-DKSLAB_CFG_//g; s/[^A-Za-z0-9]\{1,\}/_/g'); \
	echo "$$t|$${key:-default}|$$(printf %s "$$flags" | tr ' ' '~')"; done)
table_name = $(word 1,$(subst |, ,$(1)))
table_key = $(word 2,$(subst |, ,$(1)))
table_flags = $(subst ~, ,$(word 3,$(subst |, ,$(1))))
test_helpers := $(filter-out tests/test_%,$(wildcard tests/*.c))

# $(call test-library,variant,key,flags)
test_compile = $(test_$(1)) $(test_flags) $(2) $(CFLAGS)
define test-library
$(call flags-file,$(TESTS)/$(1)/$(2),$(call test_compile,$(1),$(3)) $(WARN))
$(call object-rules,$(TESTS)/$(1)/$(2),src,$(call test_compile,$(1),$(3)) $(WARN))
$(call object-rules,$(TESTS)/$(1)/$(2),tests,$(call test_compile,$(1),$(3)) -Wall -Wextra)
$(call archive-rule,$(TESTS)/$(1)/$(2)/libtest.a,\
	$(call objects,$(TESTS)/$(1)/$(2),$(SRC) $(test_helpers)))
endef

# $(call test-program,variant,key,name)
define test-program
test-programs: $(TESTS)/$(1)/$(3).tap
$(TESTS)/$(1)/$(3): $(TESTS)/$(1)/$(2)/$(3).o $(TESTS)/$(1)/$(2)/libtest.a
	$$(call say,LD,$$@)
	$$(Q)$(test_$(1)) -g -pthread $$^ $(test_ld_$(1)) -lcmocka $(LDFLAGS) -o $$@
$(TESTS)/$(1)/$(3).tap: $(TESTS)/$(1)/$(3)
	$$(call say,TEST,$$<)
	@$(test_env) timeout $(TEST_SECONDS) $$< > $$@.new 2> $$<.err; \
	echo "# exit $$$$?" >> $$@.new; mv $$@.new $$@
endef

# Each distinct key once: the first row of the table that has it.
test_keys := $(sort $(foreach row,$(test_table),$(call table_key,$(row))))
key_row = $(firstword $(foreach row,$(test_table),\
	$(if $(filter $(1),$(call table_key,$(row))),$(row))))
$(foreach v,$(VARIANTS),$(foreach k,$(test_keys),\
	$(eval $(call test-library,$(v),$(k),$(call table_flags,$(call key_row,$(k)))))))
$(foreach v,$(VARIANTS),$(foreach row,$(test_table),\
	$(eval $(call test-program,$(v),$(call table_key,$(row)),$(call table_name,$(row))))))
-include $(wildcard $(TESTS)/*/*/*.d)
endif

# ---- the kernel that boots ----------------------------------------------------------------------

# ARCH is TARGET by another name: make run ARCH=aarch64
KERNEL := $(BUILD)/kernel-$(TARGET)
TRACES ?= $(sort $(wildcard tests/traces/*.trace))
RUN_SECONDS ?= 300
kernel_sources := $(filter-out %/arch_x86_64.c %/arch_aarch64.c %/arch_riscv64.c,\
	$(wildcard tests/kernel/*.c)) tests/kernel/arch_$(TARGET).c
kernel_machine_riscv64 := $(if $(clang),,-march=rv64imac_zicsr)
kernel_compile = $(CC) $(MACHINE) $(kernel_machine_$(TARGET)) $(KERNEL_CFLAGS) -g -Iinclude \
	-Itests/kernel -DKSLAB_CFG_HEADER='<port.h>' $(CFLAGS)
kernel_objects := $(call objects,$(KERNEL)/src,$(SRC)) \
	$(call objects,$(KERNEL)/kernel,$(kernel_sources)) \
	$(KERNEL)/kernel/boot_$(TARGET).o $(KERNEL)/traces.o

qemu_x86_64 := qemu-system-x86_64 -M q35 -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4
qemu_aarch64 := qemu-system-aarch64 -M virt -cpu cortex-a72 \
	-semihosting-config enable=on,target=native
qemu_riscv64 := qemu-system-riscv64 -M virt -bios none
qemu_flags := -accel tcg -m 512 -smp 4 -display none -monitor none -serial stdio -nic none
# isa-debug-exit makes 2c + 1 of the kernel's exit code c.
qemu_success_x86_64 := 1

kernel: $(KERNEL)/kernel.elf ## the test kernel for ARCH (x86_64, aarch64, riscv64)

run: need-run kernel ## boot it in QEMU: replays traces on one CPU, on four. OPTIONS='debug=1 inject=...'
	@timeout $(RUN_SECONDS) $(qemu_$(TARGET)) $(qemu_flags) -kernel $(KERNEL)/kernel.elf \
		$(if $(OPTIONS),-append '$(OPTIONS)') </dev/null; \
	status=$$?; test $$status = $(or $(qemu_success_$(TARGET)),0) || \
	{ echo "make run: QEMU ended with status $$status"; exit 1; }

$(eval $(call flags-file,$(KERNEL)/src,$(kernel_compile),need-lib))
$(eval $(call flags-file,$(KERNEL)/kernel,$(kernel_compile),need-lib))
$(eval $(call object-rules,$(KERNEL)/src,src,$(kernel_compile)))
$(eval $(call object-rules,$(KERNEL)/kernel,tests/kernel,$(kernel_compile)))

$(KERNEL)/kernel/%.o: tests/kernel/%.S $(KERNEL)/kernel/flags
	$(call say,AS,$@)
	$(Q)$(kernel_compile) -MMD -MP -c $< -o $@

# A table of all traces, { name, begin, end } each, closed by a null name: tests/kernel/replay.h.
$(KERNEL)/traces.S: $(TRACES) $(KERNEL)/kernel/flags Makefile
	@test -n "$(TRACES)" || { echo 'no tests/traces/*.trace to replay'; exit 1; }
	@{ n=0; for t in $(TRACES); do n=$$((n + 1)); \
		printf '\t.section .rodata\n1%d:\t.incbin "%s"\n2%d:\n' $$n $$t $$n; \
		printf '3%d:\t.asciz "%s"\n' $$n $$(basename $$t .trace); done; \
	printf '\t.data\n\t.balign 8\n\t.globl kernel_traces\nkernel_traces:\n'; \
	n=0; for t in $(TRACES); do n=$$((n + 1)); \
		printf '\t.quad 3%db, 1%db, 2%db\n' $$n $$n $$n; done; \
	printf '\t.quad 0, 0, 0\n\t.section .note.GNU-stack,"",%%progbits\n'; } > $@

$(KERNEL)/traces.o: $(KERNEL)/traces.S
	$(Q)$(kernel_compile) -c $< -o $@

$(KERNEL)/kernel.elf: $(kernel_objects) linker/$(TARGET).ld
	$(call say,LD,$@)
	$(Q)$(LD) -static -nostdlib --build-id=none -z max-page-size=4096 -z noexecstack \
		-T linker/$(TARGET).ld -o $@ $(kernel_objects)

# ---- evidence: what takes longer, each ends with "N passed, N failed" -----------------------------

programs: need-programs host ## sqlite3, python3, git, gcc and redis-server run on libkslab.so
	@tests/programs.sh $(BUILD)/host
misuse: need-host ## the table of misuse programs against libkslab.so, debug levels 0 and 1
	@tests/misuse/run.sh
readme: need-host ## the example of the README compiles and works
	@tests/readme.sh
model: need-model ## weak-memory model checker on the real source, its mutants; Spin. MODEL=quick
	@tests/wmm/run.sh $(MODEL)
	@tests/spin/run.sh $(MODEL)
tsan: need-test ## ThreadSanitizer on many CPUs, and on copies with one order weakened
	@sh tests/test_tsan.sh
sanitize: need-sanitize ## AddressSanitizer and Valgrind see through the heap's hooks
	@tests/sanitize/run.sh
gdb: need-gdb ## the gdb extension on a process, a core dump and the kernel in QEMU
	@tests/gdb/run.sh
bench: need-bench ## compare with other allocators, 40 s (BENCH=full: 8 min)
	@CC='$(HOSTCC)' CFLAGS='$(CFLAGS)' sh tests/bench/run.sh $(or $(BENCH),quick) -o $(BUILD)/bench
golden: need-golden ## hot paths of malloc and free: instructions, spills, calls within their limits
	@tests/golden/golden.py -o $(BUILD)/golden --worse
worst: need-worst ## longest single call of each function, in instructions, against its bound; 80 s
	@CC='$(HOSTCC)' sh tests/worst/run.sh -o $(BUILD)/worst
levels: need-levels ## what debug levels 1 and 2 cost on the traces, as ratios to level 0
	@CC='$(HOSTCC)' sh tests/bench/levels.sh
icount: need-icount ## instructions per call
	@CC='$(HOSTCC)' sh tests/bench/icount.sh -o $(BUILD)/bench/icount

# ---- packages -----------------------------------------------------------------------------------

# probe=package: a command, or a file, and the Debian package that brings it.
need_cc := $(if $(filter clang,$(CC)),clang=clang)\
	$(if $(filter gcc,$(CC)),gcc=gcc)\
	$(if $(filter aarch64-linux-gnu-gcc,$(CC)),$(CC)=gcc-aarch64-linux-gnu)\
	$(if $(filter riscv64-linux-gnu-gcc,$(CC)),$(CC)=gcc-riscv64-linux-gnu)\
	$(if $(filter arm-linux-gnueabi-gcc,$(CC)),$(CC)=gcc-arm-linux-gnueabi)\
	$(if $(filter x86_64-linux-gnu-gcc,$(CC)),$(CC)=gcc-x86-64-linux-gnu)
need_lib := $(need_cc) ar=binutils $(if $(clang),$(LD)=lld)
need_freestanding := gcc=gcc g++=g++ clang=clang nm=binutils \
	aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu riscv64-linux-gnu-gcc=gcc-riscv64-linux-gnu
need_host := gcc=gcc /usr/include/stdio.h=libc6-dev ar=binutils
need_test := $(need_host) /usr/include/cmocka.h=libcmocka-dev \
	$(if $(filter clang,$(VARIANTS)),clang=clang) \
	$(if $(filter i386,$(VARIANTS)),i686-linux-gnu-gcc=gcc-i686-linux-gnu \
	/usr/i686-linux-gnu/include/stdio.h=libc6-dev-i386-cross \
	/usr/lib/i386-linux-gnu/libcmocka.so=libcmocka-dev:i386)
need_qemu_x86_64 := qemu-system-x86_64=qemu-system-x86
need_qemu_aarch64 := qemu-system-aarch64=qemu-system-arm
need_qemu_riscv64 := qemu-system-riscv64=qemu-system-misc
need_run := $(need_lib) $(need_qemu_$(TARGET))
need_programs := $(need_host) sqlite3=sqlite3 python3=python3 git=git gcc=gcc redis-server=redis-server \
	redis-benchmark=redis-tools
need_model := $(need_host) spin=spin
need_valgrind := valgrind=valgrind /usr/share/doc/libc6-dbg/copyright=libc6-dbg
need_sanitize := $(need_host) $(need_valgrind)
need_gdb := $(need_host) gdb=gdb $(need_qemu_x86_64)
need_bench := gcc=gcc gnuplot=gnuplot-nox /usr/include/mimalloc.h=libmimalloc-dev \
	/usr/include/jemalloc/jemalloc.h=libjemalloc-dev /usr/include/gperftools/tcmalloc.h=libgoogle-perftools-dev
need_golden := $(need_freestanding) python3=python3
need_worst := $(need_host) objcopy=binutils
need_icount := gcc=gcc $(need_valgrind)
need_levels := $(need_host) $(need_valgrind)
need_format-check := clang-format=clang-format
need_deps = $(sort $(need_freestanding) $(need_test) $(need_run) $(need_programs) $(need_model) \
	$(need_sanitize) $(need_gdb))

deps: need-deps ## install the Debian packages that the others need (they do it by themselves)

# Looks whether everything is there, which takes milliseconds; only then is apt-get called.
# DEPS=skip is for makes called by make.
need-%:
	@test '$(DEPS)' != skip || exit 0; \
	packages=; for n in $(sort $(need_$*)); do \
		case $$n in /*) test -e $${n%%=*} ;; *) command -v $${n%%=*} >/dev/null ;; esac || \
		packages="$$packages $${n#*=}"; done; \
	test -n "$$packages" || exit 0; \
	echo "needed Debian packages:$$packages"; \
	if test '$(DEPS)' = 0; then echo 'DEPS=0: not installing them'; exit 1; fi; \
	command -v apt-get >/dev/null || { echo 'no apt-get: install them by hand'; exit 1; }; \
	root=; test "$$(id -u)" = 0 || root=sudo; \
	run() { echo "+ $$*"; $$root "$$@"; }; \
	case $$packages in *:i386*) dpkg --print-foreign-architectures | grep -qx i386 || \
		run dpkg --add-architecture i386 ;; esac; \
	for try in 1 2 3; do \
		run apt-get -qq update || echo 'apt-get update failed in part'; \
		run env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
			--no-install-recommends $$packages && exit 0; \
		sleep 5; \
	done; exit 1

# ---- the rest -----------------------------------------------------------------------------------

format-check: need-format-check ## clang-format's opinion on all C files
	@clang-format --dry-run --Werror $(shell find include src tests -name '*.[ch]')

clean: ## remove build/
	rm -rf $(BUILD)

help: ## this list
	@echo 'make [TARGET=x86_64|i386|aarch64|riscv64|riscv32|arm] [CC=gcc|clang|...] ...'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

FORCE:
.PHONY: FORCE lib all install freestanding check-symbols $(freestanding_checks) host test \
	test-programs kernel run programs misuse readme model tsan sanitize gdb bench golden worst levels icount deps format-check clean help

-include $(wildcard $(OUT)/*.d $(HOST)/*/*.d $(KERNEL)/*/*.d)
