#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""golden.py - owns the golden listings: what the hot paths of kslab_malloc and kslab_free cost.

    tests/golden/golden.py [-o DIR] [--update] [--listing] [--worse]

Compiles src/kmalloc.c by the Makefile's own rule, with its kernel flags for each target, and reads
the disassembly. The hot path is every way from the entry to a return on which no cold end is met:
COLD below names them, and a call of, or a jump to one ends a way. Counted are the instructions of
the longest such way, and what lies on any of them:

    spills      push, pop, any access to memory by the stack or frame pointer
    calls       calls of other functions; a jump to one is a call and a return
    divisions   division instructions (those of libgcc are calls)
    fences      instructions that order memory or are atomic
    loops       ways back

Each figure above its limit in limits.txt fails; one below is told, so that the limit can follow
(--update writes them all). A `promise` line there is a limit that no limit may exceed; `compiler`
lines say which versions they were taken with. Counts are those of the object file: a linker that
relaxes code (riscv64) makes them smaller.

--worse is the test of this test: each change in WORSE, made to a copy of the source, must fail.
Runs: anywhere the cross compilers are. The last line is "N passed, N failed".
"""
import argparse
import os
import platform
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIMITS = os.path.join(ROOT, "tests/golden/limits.txt")
FUNCTIONS = ("kslab_malloc", "kslab_free")
COLD = {"kslab_heap_malloc_unrouted", "kslab_heap_malloc_slow", "kslab_heap_free_cold",
        "kslab_heap_free_known", "kslab_heap_word_full"}
COMPILERS = ("gcc", "clang")
TARGETS = ("x86_64", "aarch64", "riscv64")
COLUMNS = ("instructions", "spills", "calls", "divisions", "fences", "loops")
# One CPU with one level and with four; the CPUs of the kernel that make run boots.
CONFIGS = {
    "1": "-DKSLAB_CFG_LEVELS=1",
    "4": "-DKSLAB_CFG_LEVELS=4",
    "smp": "-Itests/kernel -DKSLAB_CFG_HEADER='<port.h>'",
}

# What each change to src/heap.h must be told as: (column, text, its replacement).
WORSE = (
    ("instructions", "\tKSLAB_STORE_RELAXED(avail, word & (word - 1));",
     "\tKSLAB_STORE_RELAXED(avail, word & (word - 1));\n\tzone->counters.slow_allocs++;"),
    ("divisions", "(size_t)(index / KSLAB_WORD_BITS) * 3",
     "(size_t)(index / page->slots) * 3"),
    ("calls", "\tKSLAB_STORE_RELAXED(&bits[1], freed);",
     "\tKSLAB_STORE_RELAXED(&bits[1], freed);\n\tkslab_heap_idle(heap);"),
    ("fences", "\tKSLAB_STORE_RELAXED(&bits[1], freed);", "\tKSLAB_FETCH_OR_SEQ(&bits[1], freed);"),
    ("spills", "\tbits = &page->bits[0].avail",
     "\tvolatile uint32_t kept = index;\n\n\tindex = kept;\n\tbits = &page->bits[0].avail"),
    ("loops", "\tKSLAB_HIDE(bit);",
     "\twhile (KSLAB_LOAD_RELAXED(&bits[2]) == 1)\n\t\tKSLAB_HIDE(index);"),
)


class Machine:
    """How the disassembly of one target is read; all patterns match a mnemonic or its operands."""

    def __init__(self, branch, jump, call, ret, spill, frame, division, fence, link=None):
        self.branch = re.compile(branch + r"$")
        self.jump = re.compile(jump + r"$")
        self.call = re.compile(call + r"$")
        self.ret = re.compile(ret + r"$")
        self.spill = re.compile(spill)      # of the whole instruction
        self.frame = re.compile(frame)      # makes a frame pointer; group 1: an access by it
        self.division = re.compile(division + r"$")
        self.fence = re.compile(fence)      # of the whole instruction
        self.link = link                    # operand that makes a jump a call


MACHINES = {
    "x86_64": Machine(
        r"(j(?!mp)[a-z]+|loop\w*)", r"jmpq?", r"callq?", r"(repz )?retq?",
        r"push|pop|leave|enter|.*[(]%[re]?sp[,)]", r"mov\s+%rsp,%rbp", r"i?div[bwlq]?",
        r"lock |[lms]fence|xchg\b.*[(]"),
    "aarch64": Machine(
        r"(b\.\w+|cbn?z|tbn?z)", r"(b|br)", r"(bl|blr)", r"ret",
        r".*\[sp\b", r"(mov|add)\s+x29, sp", r"[su]div",
        r"dmb|dsb|isb|ldx|stx|ldax|stlx|ldar|stlr|cas|swp|ldadd|ldset|ldclr"),
    "riscv64": Machine(
        r"b(eq|ne|lt|ge|ltu|geu|gt|le|gtu|leu|eqz|nez|lez|gez|ltz|gtz)",
        r"(j|jr|jal|jalr)", r"call", r"ret",
        r".*[(]sp[)]", r"addi?\s+s0,sp,", r"(div|rem)u?w?",
        r"fence|amo|lr\.|sc\.", link="ra"),
}
FRAME_ACCESS = {"x86_64": r".*[(]%rbp[,)]", "aarch64": r".*\[x29\b", "riscv64": r".*[(]s0[)]"}


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, **options)


def prefix(target):
    return "" if platform.machine() == target else target + "-linux-gnu-"


def compile_one(tree, out, target, compiler, config):
    """The object of src/kmalloc.c, by the rule that makes the library's."""
    directory = os.path.join(out, f"{target}-{compiler}-{config}")
    name = os.path.join(directory, "kmalloc.o")
    flags = CONFIGS[config]
    if config == "smp" and target == "riscv64" and compiler == "gcc":
        flags += " -march=rv64imac_zicsr"
    os.makedirs(directory, exist_ok=True)
    # A make of its own, with nothing of one above it.
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    run("make", "--no-print-directory", "-s", "-C", tree, "DEPS=skip", f"TARGET={target}",
        f"CC={'clang' if compiler == 'clang' else prefix(target) + 'gcc'}", f"OUT={directory}",
        f"CFLAGS={flags}", name, stdout=subprocess.DEVNULL, env=clean)
    return name


class Listing:
    """One function: instructions as (address, mnemonic, operands, symbol of a relocation)."""

    def __init__(self, target, name, function):
        self.machine = MACHINES[target]
        self.target = target
        tool = prefix(target) + "objdump"
        start, size = self.find(tool, name, function)
        self.start, self.end = start, start + size
        self.code = []
        self.read(tool, name)
        self.at = {address: i for i, (address, *_) in enumerate(self.code)}

    @staticmethod
    def find(tool, name, function):
        table = run(tool, "-t", name, stdout=subprocess.PIPE).stdout
        for line in table.splitlines():
            words = line.split()
            if words and words[-1] == function and " F " in line:
                return int(words[0], 16), int(words[-2], 16)
        sys.exit(f"golden: no {function} in {name}")

    def read(self, tool, name):
        text = run(tool, "-dr", "--no-show-raw-insn", "-j", ".text", name,
                   stdout=subprocess.PIPE).stdout
        for line in text.splitlines():
            found = re.match(r"\s+([0-9a-f]+):\s+(\S.*)$", line)
            if not found:
                continue
            address, rest = int(found[1], 16), found[2].strip()
            if not self.start <= address < self.end:
                continue
            relocation = re.match(r"R_(\w+)\s+(\S+)$", rest)
            if relocation:
                symbol = re.sub(r"[-+]0x[0-9a-f]+$", "", relocation[2])
                # RELAX and branches to local labels say nothing that the listing does not.
                if not symbol.startswith(("*ABS*", ".L")):
                    self.code[-1][3] = symbol
                continue
            rest = re.sub(r"\s*(//|#) .*$", "", rest)
            found = re.match(r"((?:lock |repz |rep |bnd )?\S+)\s*(.*)$", rest)
            self.code.append([address, found[1], found[2], None])

    def target_of(self, i):
        """Where a jump or call goes: (index or None, symbol or None)."""
        address, mnemonic, operands, symbol = self.code[i]
        if symbol is None and self.target == "riscv64" and i > 0:
            # auipc with the relocation, then the jump.
            before = self.code[i - 1]
            if before[1] == "auipc" and before[3] and re.match(r"jalr?$|jr$", mnemonic):
                symbol = before[3]
        if symbol is not None:
            return None, symbol
        found = re.search(r"\b(?:0x)?([0-9a-f]+)(?: <([^>+]+)[^>]*>)?$", operands)
        if found and int(found[1], 16) in self.at:
            return self.at[int(found[1], 16)], None
        return None, found[2] if found and found[2] else "?"

    def step(self, i):
        """What instruction i does: (indices that follow, returns, is a call, is a cold end)."""
        _, mnemonic, operands, _ = self.code[i]
        machine = self.machine
        if machine.ret.match(mnemonic):
            return [], True, False, False
        if machine.branch.match(mnemonic):
            to, symbol = self.target_of(i)
            follow = [i + 1] + ([to] if to is not None else [])
            return follow, False, to is None and symbol not in COLD, False
        is_jump, is_call = machine.jump.match(mnemonic), machine.call.match(mnemonic)
        if is_jump and machine.link is not None and mnemonic in ("jal", "jalr"):
            is_call = operands.split(",")[0] == machine.link or "," not in operands
        if is_call:
            _, symbol = self.target_of(i)
            return ([], False, False, True) if symbol in COLD else ([i + 1], False, True, False)
        if is_jump:
            to, symbol = self.target_of(i)
            if to is not None:
                return [to], False, False, False
            return ([], False, False, True) if symbol in COLD else ([], True, True, False)
        return [i + 1], False, False, False

    def hot(self):
        """Longest way to a return, indices on any way to one, whether there is a way back."""
        longest, state, loop = {}, {}, [False]
        order = []

        def visit(i):
            state[i] = 1
            for j in self.step(i)[0]:
                if j not in state:
                    visit(j)
                elif state[j] == 1:
                    loop[0] = True
            state[i] = 2
            order.append(i)

        visit(0)
        returns = set()
        while True: # to a fixed point: loops bring things round
            before = len(returns)
            for i in order:
                follow, ends, _, _ = self.step(i)
                if ends or any(j in returns for j in follow):
                    returns.add(i)
            if len(returns) == before:
                break
        for i in order: # what follows comes first, but for ways back, which count no more
            follow, ends, _, _ = self.step(i)
            if i in returns:
                longest[i] = 1 + max([longest.get(j, 0) for j in follow], default=0)
        has_loop = loop[0] and self.loops_among(returns)
        return longest.get(0, 0), sorted(returns), has_loop

    def loops_among(self, on):
        def reaches(start):
            seen, todo = set(), [j for j in self.step(start)[0] if j in on]
            while todo:
                i = todo.pop()
                if i == start:
                    return True
                if i not in seen:
                    seen.add(i)
                    todo += [j for j in self.step(i)[0] if j in on]
            return False
        return any(reaches(i) for i in on)

    def whole(self, i):
        return f"{self.code[i][1]} {self.code[i][2]}"

    def count(self):
        length, on, loop = self.hot()
        machine = self.machine
        has_frame = any(machine.frame.match(self.whole(i)) for i in range(len(self.code)))
        spill = machine.spill
        if has_frame:
            spill = re.compile(spill.pattern + "|" + FRAME_ACCESS[self.target])
        # lea and its like compute an address and touch no memory.
        touches = [i for i in on if not self.code[i][1].startswith("lea")]
        return {
            "instructions": length,
            "spills": sum(bool(spill.match(self.whole(i))) for i in touches),
            "calls": sum(self.step(i)[2] for i in on),
            "divisions": sum(bool(machine.division.match(self.code[i][1])) for i in on),
            "fences": sum(bool(machine.fence.match(self.whole(i))) for i in on),
            "loops": int(loop),
        }

    def show(self):
        on = set(self.hot()[1])
        for i, (address, mnemonic, operands, symbol) in enumerate(self.code):
            text = f"{mnemonic} {operands}".strip() + (f"  {symbol}" if symbol else "")
            print(f"    {'|' if i in on else ' '} {address - self.start:4x}  {text}")


def read_limits():
    limits, promises, versions = {}, {}, {}
    with open(LIMITS, encoding="ascii") as file:
        for line in file:
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if words[0] == "compiler":
                versions[words[1]] = words[2]
                continue
            table = promises if words[0] == "promise" else limits
            if words[0] == "promise":
                words = words[1:]
            table[tuple(words[:4])] = dict(zip(COLUMNS, map(int, words[4:])))
    return limits, promises, versions


def tell_versions(wanted):
    """The limits hold for one version of each compiler; another one may need limits of its own."""
    for compiler in COMPILERS:
        for name in ("clang",) if compiler == "clang" else [prefix(t) + "gcc" for t in TARGETS]:
            major = run(name, "-dumpversion", stdout=subprocess.PIPE).stdout.split(".")[0].strip()
            if major != wanted.get(compiler):
                print(f"note: {name} {major}; the limits are those of {wanted.get(compiler)}")


def write_limits(counts):
    with open(LIMITS, encoding="ascii") as file:
        kept = [line for line in file
                if line.startswith(("#", "promise", "compiler")) or not line.strip()]
    with open(LIMITS, "w", encoding="ascii") as file:
        file.writelines(kept)
        for key, count in counts.items():
            file.write(row(key, count))


def row(key, count):
    return (f"{key[0]:<13}{key[1]:<7}{key[2]:<9}{key[3]:<5}" +
            "".join(f"{count[c]:>{len(c) + 2}}" for c in COLUMNS) + "\n")


def measure(tree, out, listing, keys):
    counts = {}
    for target, compiler, config in keys:
        name = compile_one(tree, out, target, compiler, config)
        for function in FUNCTIONS:
            one = Listing(target, name, function)
            counts[function, compiler, target, config] = one.count()
            if listing:
                print(f"{function} {compiler} {target} {config}")
                one.show()
    return counts


def judge(counts, limits, promises):
    """What is wrong, and what could be tightened, of one set of counts."""
    wrong, better = [], []
    for key, count in counts.items():
        limit = limits.get(key)
        name = " ".join(key) + ": "
        if limit is None:
            wrong.append((key, None, name + "has no limit in limits.txt"))
            continue
        for column, most in promises.get(key, {}).items():
            if limit[column] > most:
                text = f"the limit of {limit[column]} {column} is above the {most} promised"
                wrong.append((key, column, name + text))
        for column in COLUMNS:
            text = f"{name}{count[column]} {column}, limit {limit[column]}"
            if count[column] > limit[column]:
                wrong.append((key, column, text))
            elif count[column] < limit[column]:
                better.append(text + ": tighten it")
    return wrong, better


def test_worse(out, limits, promises, compilers):
    """Return: (passed, failed)."""
    passed = failed = 0
    tree = os.path.join(out, "worse")
    for number, (column, text, worse) in enumerate(WORSE):
        shutil.rmtree(tree, ignore_errors=True)
        os.makedirs(tree)
        for part in ("src", "include", "tests/kernel"):
            shutil.copytree(os.path.join(ROOT, part), os.path.join(tree, part))
        shutil.copy(os.path.join(ROOT, "Makefile"), tree)
        with open(os.path.join(tree, "src/heap.h"), encoding="ascii") as file:
            source = file.read()
        if source.count(text) != 1:
            print(f"worse {number + 1}: src/heap.h has no longer one line {text.strip()!r}")
            failed += 1
            continue
        with open(os.path.join(tree, "src/heap.h"), "w", encoding="ascii") as file:
            file.write(source.replace(text, worse))
        for compiler in compilers:
            for target in TARGETS:
                counts = measure(tree, os.path.join(out, f"worse-{number + 1}"), False,
                                 [(target, compiler, "4")])
                told = {c for _, c, _ in judge(counts, limits, promises)[0]}
                if column in told:
                    passed += 1
                else:
                    print(f"worse {number + 1}, {compiler} {target}: more {column} went unseen")
                    failed += 1
    return passed, failed


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("-o", default=os.path.join(ROOT, "build/golden"))
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--listing", action="store_true")
    parser.add_argument("--worse", action="store_true")
    args = parser.parse_args()
    out = os.path.abspath(args.o)
    sys.setrecursionlimit(100000) # a way through the code is followed by recursion
    keys = [(t, c, k) for t in TARGETS for c in COMPILERS for k in CONFIGS]
    counts = measure(ROOT, out, args.listing, keys)
    order = sorted(counts, key=lambda k: (FUNCTIONS.index(k[0]), TARGETS.index(k[2])))
    counts = {key: counts[key] for key in order}
    if args.update:
        write_limits(counts)
    limits, promises, versions = read_limits()
    tell_versions(versions)
    print(f"{'function':<13}{'cc':<7}{'target':<9}{'cfg':<5}" +
          "".join(f"{c:>{len(c) + 2}}" for c in COLUMNS))
    for key, count in counts.items():
        print(row(key, count), end="")
    wrong, better = judge(counts, limits, promises)
    for line in better:
        print("better: " + line)
    for _, _, line in wrong:
        print("FAILED " + line)
    bad = {key for key, _, _ in wrong}
    passed, failed = len(counts) - len(bad), len(bad)
    if args.worse:
        one = test_worse(out, limits, promises, COMPILERS)
        print(f"deliberately worse sources: {one[0]} told, {one[1]} unseen")
        passed, failed = passed + one[0], failed + one[1]
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
