# SPDX-License-Identifier: MIT
"""kslab.py - owns the reading of a kslab heap from gdb: live, through QEMU's gdb port, or from a core dump.

    (gdb) source tests/gdb/kslab.py
    (gdb) kslab heap [EXPRESSION]   which heap the others look at; kslab_default_heap from the start
    (gdb) kslab info                figures of the whole heap
    (gdb) kslab classes             one line for each size class and object cache in use
    (gdb) kslab ptr ADDRESS         what lies there: object, live or free, class, neighbours, callers
    (gdb) kslab leaks MARK          objects that are live now and were not at kslab_mark(&MARK)
    (gdb) kslab check               lists, counts, states, bits and map entries; says what contradicts what
    (gdb) kslab map                 the object pages, one character a page, as kslab_print_map

Everything is read, nothing is called: the program may be in any state. Needs debug information of the library (-g).
"""

import gdb

READY = 0x6B736C62
CURRENT, PARTIAL, FULL, EMPTY, LARGE, FENCED, PURGING = 1, 2, 3, 4, 5, 6, 7
STATES = ["idle", "current", "partial", "full", "empty", "large block", "fenced", "being purged"]
QUEUED = 2  # enum kslab_mail
TAG_FULL, TAG_CACHE, TAG_LARGE, TAG_MASK = 1, 2, 8, 63
CLASS_CACHE = 0xFFFF
BUSY, FREED = 0x42555359, 0x46524545  # states of a trailer
ECHOES, CODES = range(0xB8, 0xC0), 119  # of level 1
COLUMNS = 76
LEAKS_SHOWN = 64


def write(text):
    gdb.write(text + "\n")


class Memory:
    """Memory of the program, in its word size and byte order."""

    def __init__(self):
        self.word_bytes = gdb.lookup_type("void").pointer().sizeof
        self.bits = 8 * self.word_bytes
        self.mask = (1 << self.bits) - 1
        self.order = "big" if "big" in gdb.execute("show endian", to_string=True) else "little"

    def read(self, address, size):
        return bytes(gdb.selected_inferior().read_memory(address & self.mask, size))

    def number(self, data, at, size):
        return int.from_bytes(data[at : at + size], self.order)

    def words(self, address, count):
        data = self.read(address, count * self.word_bytes)
        return [self.number(data, i * self.word_bytes, self.word_bytes) for i in range(count)]

    def word(self, address):
        return self.words(address, 1)[0]

    def string(self, address):
        return gdb.Value(address).cast(gdb.lookup_type("char").pointer()).string() if address else ""


class Layout:
    """Offsets of a struct's fields, from the debug information."""

    def __init__(self, memory, name):
        kind = gdb.lookup_type("struct " + name)
        self.memory = memory
        self.size = kind.sizeof
        self.at = {f.name: (f.bitpos // 8, f.type.sizeof) for f in kind.fields() if f.name}

    def decode(self, data, base=0):
        return {
            name: self.memory.number(data, base + at, size)
            for name, (at, size) in self.at.items()
            if size and size <= 8
        }

    def read(self, address):
        return self.decode(self.memory.read(address, self.size))


class Page:
    """A descriptor: its fields as attributes, its bits on demand."""

    def __init__(self, heap, address):
        self.heap, self.address = heap, address
        self.__dict__.update(heap.page_layout.read(address))
        self._bits = self._held = None

    def words(self):
        return (self.slots + self.heap.memory.bits - 1) // self.heap.memory.bits

    def bits(self):
        """(avail, freed, remote) of each word."""
        if self._bits is None:
            flat = self.heap.memory.words(self.address + self.heap.page_layout.size, 3 * self.words())
            self._bits = [tuple(flat[i : i + 3]) for i in range(0, len(flat), 3)]
        return self._bits

    def is_free(self, index):
        avail, freed, remote = self.bits()[index // self.heap.memory.bits]
        return bool((avail | freed | remote) >> (index % self.heap.memory.bits) & 1)

    def taken(self):
        """Slots whose bits say live: what waits in quarantine does."""
        return [i for i in range(self.slots) if not self.is_free(i)]

    def held(self):
        """How many of them wait in quarantine."""
        if self._held is None:
            self._held = sum(self.heap.is_held(self, i) for i in self.taken()) if self.heap.debug >= 2 else 0
        return self._held

    def live(self):
        return len(self.taken()) - self.held()

    def sc_value(self):
        return self.heap.sc_layout.read(self.sc)

    def size(self):
        return self.sc_value()["size"] if self.sc else 0

    def length(self):
        """Bytes of its run."""
        if self.state == LARGE:
            return self.slots << self.heap.shift
        return self.pages << self.heap.shift

    def is_live_large(self):
        return self.state == LARGE and self.owner == self.heap.address | TAG_LARGE


class Class:
    """A size class of one zone, or a cache's part of it."""

    def __init__(self, heap, address, zone, fields, data, base):
        self.heap, self.address, self.zone = heap, address, zone
        self.__dict__.update(fields)
        self.heads = {
            state: heap.memory.number(data, base + heap.sc_layout.at[name][0], heap.memory.word_bytes)
            for state, name in ((PARTIAL, "partial"), (FULL, "full"), (EMPTY, "empty"))
        }

    def list(self, state):
        """Pages of a list, no more than the class can have; broken links end it."""
        head = address = self.heads[state]
        for _ in range(self.pages + 1):
            if not address:
                return
            page = Page(self.heap, address)
            yield page
            address = page.next
            if address == head:
                return

    def all(self):
        if self.page:
            yield Page(self.heap, self.page)
        for state in (FULL, PARTIAL, EMPTY):
            yield from self.list(state)


class Zone:
    def __init__(self, heap, address):
        self.heap, self.address = heap, address
        self.data = heap.memory.read(address, heap.zone_layout.size)
        self.fields = heap.zone_layout.decode(self.data)
        self.owner = heap.owner_layout.decode(self.data)
        self.cpu, self.level = self.fields["cpu"], self.fields["level"]

    def name(self):
        if self.address == int(self.heap.value["limbo"]):
            return "limbo"
        return "cpu %d level %d" % (self.cpu, self.level)

    def classes(self):
        base, size = self.heap.zone_layout.at["sc"]
        for at in range(base, base + size, self.heap.sc_layout.size):
            fields = self.heap.sc_layout.decode(self.data, at)
            yield Class(self.heap, self.address + at, self, fields, self.data, at)

    def cache_part(self, cache):
        if self.address == int(self.heap.value["limbo"]):
            return None
        address = cache["zones"][self.cpu * self.heap.levels + self.level]
        if not address:
            return None
        data = self.heap.memory.read(address, self.heap.sc_layout.size)
        return Class(self.heap, address, self, self.heap.sc_layout.decode(data), data, 0)


class Heap:
    def __init__(self, value):
        self.value = value
        self.memory = Memory()
        self.address = int(value.address)
        if int(value["state"]) != READY:
            raise gdb.GdbError("this heap is not initialised")
        self.shift = int(value["page_shift"])
        self.grain = int(value["grain_shift"])
        self.leaf = int(value["leaf_shift"])
        self.levels = int(value["levels"])
        self.debug = int(value["debug_level"])
        self.page_layout = Layout(self.memory, "kslab_page")
        self.sc_layout = Layout(self.memory, "kslab_sc")
        self.zone_layout = Layout(self.memory, "kslab_zone")
        self.owner_layout = Layout(self.memory, "kslab_owner")
        self.map_value = value["map"]
        self.base = int(self.map_value["base"])
        self.limit = int(self.map_value["limit"])
        self.nobody, self.released, self.metadata, self.under_way = (
            int(gdb.parse_and_eval("&kslab_page_" + name))
            for name in ("nobody", "released", "metadata", "under_way")
        )
        none = gdb.lookup_global_symbol("kslab_zone_none")
        self.zone_none = int(none.value().address) if none else 0

    # ---- zones and caches

    def zones(self):
        count = self.value["zone"].type.range()[1] + 1
        active = self.memory.words(int(self.value["zone"].address), count)
        parked = self.memory.words(int(self.value["parked"].address), count)
        for cpu in range(count):
            address = parked[cpu] if active[cpu] == self.zone_none else active[cpu]
            while address:
                zone = Zone(self, address)
                yield zone
                address = zone.fields["inner"]
        limbo = int(self.value["limbo"])
        if limbo:
            yield Zone(self, limbo)

    def caches(self):
        layout = Layout(self.memory, "kslab_cache")
        address = int(self.value["caches"])
        for _ in range(10000):
            if not address:
                return
            cache = layout.read(address)
            at, size = layout.at["zones"]
            cache["zones"] = self.memory.words(address + at, size // self.memory.word_bytes)
            cache["name"] = self.memory.string(cache["name"])
            cache["address"] = address
            yield cache
            address = cache["next"]

    def groups(self):
        """(name, slot size, pages at most, parts of all zones) of each class and cache."""
        zones = list(self.zones())
        classes = [list(zone.classes()) for zone in zones]
        peaks = self.value["tally"]["pages_peak"]
        for i in range(len(classes[0]) if classes else 0):
            yield "", classes[0][i].size, int(peaks[i]), [c[i] for c in classes]
        for cache in self.caches():
            parts = [part for part in (zone.cache_part(cache) for zone in zones) if part]
            yield cache["name"], cache["slot_bytes"], cache["pages_peak"], parts

    # ---- the page map

    def entry(self, biased, address):
        return self.memory.word(biased + (address >> self.grain) * self.memory.word_bytes)

    def find(self, address):
        """Address of the descriptor, as kslab_page_map_find."""
        top = ((address - self.base) & self.memory.mask) >> self.leaf
        if top < self.limit:
            return self.entry(int(self.map_value["top"][top]), address)
        top = ((address - int(self.map_value["side_base"])) & self.memory.mask) >> self.leaf
        side = self.map_value["side"]
        if int(side[0]) and top <= side.type.range()[1]:
            return self.entry(int(side[top]), address)
        return self.nobody

    def windows(self):
        """(first address, biased leaf pointers), the side window first."""
        side = self.map_value["side"]
        if int(side[0]):
            count = side.type.range()[1] + 1
            yield int(self.map_value["side_base"]), self.memory.words(int(side.address), count)
        if self.limit:
            yield self.base, self.memory.words(int(self.map_value["top"].address), self.limit)

    def pages(self):
        """Every object page and large block, in the order of kslab_mark."""
        entries = 1 << (self.leaf - self.grain)
        skip = {self.nobody, self.released, self.metadata, self.under_way}
        for base, tops in self.windows():
            unused = None
            for i, biased in enumerate(tops):
                first = (base + (i << self.leaf)) & self.memory.mask
                leaf = (biased + (first >> self.grain) * self.memory.word_bytes) & self.memory.mask
                if leaf == unused:
                    continue
                table = self.memory.words(leaf, entries)
                if all(page == self.nobody for page in table):
                    unused = leaf  # the leaf that all empty entries share
                    continue
                last = 0
                for address in table:
                    if address != last and address not in skip:
                        yield Page(self, address)
                    last = address

    # ---- contents of slots at debug levels

    def hash(self, start):
        """As hash_at in src/debug_slot.h."""
        if self.memory.bits == 64:
            return start * 0x9E3779B97F4A7C15 >> 32 & 0xFFFFFFFF
        return start * 0x9E3779B1 & 0xFFFFFFFF

    def cache_of(self, page):
        """The fields of the cache that a page belongs to, or None."""
        if not page.owner & TAG_CACHE:
            return None
        at = Layout(self.memory, "kslab_cache_zone").at["cache"][0]
        return Layout(self.memory, "kslab_cache").read(self.memory.word(page.sc + at))

    def details(self, page, index):
        """What debug levels know of a slot: dictionary of asked, alloc, free, held."""
        size = page.size()
        start = page.data + index * size
        if self.debug == 0 or page.state == LARGE:
            return {}
        cache = self.cache_of(page)
        if self.debug == 1 and cache is None:
            return self.tail(start, size) if not page.is_free(index) else {}
        if cache and (self.debug == 1 or size - cache["size"] < 5 * self.memory.word_bytes):
            return {}  # no trailer
        words = self.memory.words(start + size - 5 * self.memory.word_bytes, 5)
        info = words[3] & 0xFFFFFFFF if self.memory.order == "little" else words[3] >> (self.memory.bits - 32)
        known = {"alloc": words[0], "free": words[1], "serial": words[2]}
        if cache:
            known["asked"] = cache["size"]
        else:
            known.update(self.asked(info ^ self.hash(start)))
        known["held"] = not page.is_free(index) and self.is_freed(start, size, words)
        return known

    def is_held(self, page, index):
        """A slot whose bits say live waits in quarantine; level 2."""
        return bool(self.details(page, index).get("held"))

    def is_freed(self, start, size, words):
        """As src/debug.c: freed, or being freed just now."""
        place = start + size - 5 * self.memory.word_bytes
        return words[4] in (self.sum(place, FREED, words), place * 0x9E3779B1 & self.memory.mask ^ BUSY)

    def sum(self, place, state, words):
        """The last word of a trailer."""
        mask = self.memory.mask
        if self.memory.bits == 64:
            info, pad = words[3] & 0xFFFFFFFF, words[3] >> 32
        else:
            info, pad = words[3], 0
        x = place * 0x9E3779B1 + state + words[0] * 0x85EBCA6B + words[1] * 0xC2B2AE35
        x = (x + words[2] * 0x27D4EB2F + info * 0x165667B1 + (pad << 32)) & mask
        return x ^ x >> 15

    def tail(self, start, size):
        data = self.memory.read(start + size - 8, 8)
        code = data[7] - 0x80 - (8 if data[7] >= 0xC0 else 0) - (self.hash(start) >> 25)
        code += CODES if code < 0 else 0
        if data[7] < 0x80 or data[7] == 0xFF or data[7] in ECHOES:
            return {}
        if 2 <= code <= 7:
            return {"asked": size - code}
        return self.asked(self.memory.number(data, 0, 4) ^ self.hash(start)) if code == 8 else {}

    @staticmethod
    def asked(info):
        """n out of info_of(n, class), if its sum is right."""
        kind = info >> 16 ^ info & 0xFFFF
        return {"asked": info & 0xFFFF} if kind >> 8 == kind & 0xFF else {}


# ---- commands

heap_expression = "kslab_default_heap"


def the_heap():
    value = gdb.parse_and_eval(heap_expression)
    if value.type.strip_typedefs().code == gdb.TYPE_CODE_PTR:
        value = value.dereference()
    return Heap(value)


def where(address):
    """An address of code with its function."""
    block = gdb.execute("info symbol 0x%x" % address, to_string=True).split(" in section")[0].strip()
    return "0x%x" % address + ("" if block.startswith("No symbol") else " <%s>" % block)


def command(name):
    """Make a function the command `kslab NAME`."""

    def make(fn):
        class Command(gdb.Command):
            __doc__ = fn.__doc__

            def __init__(self):
                super().__init__("kslab " + name, gdb.COMMAND_DATA)

            def invoke(self, argument, from_tty):
                try:
                    fn(argument.strip())
                except gdb.MemoryError as error:
                    raise gdb.GdbError("the heap leads to memory that can't be read: %s" % error)

        Command()
        return fn

    return make


class Prefix(gdb.Command):
    """Look at a kslab heap; `help kslab` lists what there is to see."""

    def __init__(self):
        super().__init__("kslab", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)


Prefix()


@command("heap")
def cmd_heap(argument):
    """kslab heap [EXPRESSION]: a struct kslab_heap, or a pointer to one; without: say which."""
    global heap_expression
    if argument:
        gdb.parse_and_eval(argument)
        heap_expression = argument
    write("kslab heap: " + heap_expression)


@command("info")
def cmd_info(argument):
    """kslab info: figures of the whole heap."""
    heap = the_heap()
    v = heap.value
    live = live_bytes = empty = held = 0
    for _, size, _, parts in heap.groups():
        for part in parts:
            for page in part.all():
                count = page.live()
                live += count
                live_bytes += count * size
                held += page.held()
                empty += page.pages if count == 0 else 0
    write("heap 0x%x: page %d bytes, object pages up to %d bytes, debug level %d"
          % (heap.address, int(v["page_bytes"]), int(v["max_page_bytes"]), heap.debug))
    write("pages: %d in use, %d at most, %d metadata, %d in %d large blocks, %d empty"
          % (int(v["pages_in_use"]), int(v["pages_peak"]), int(v["meta"]["pages"]),
             int(v["large_pages"]), int(v["large_blocks"]), empty))
    write("objects: %d live, %d bytes" % (live, live_bytes)
          + (", %d in quarantine" % held if heap.debug >= 2 else ""))
    for zone in heap.zones():
        c = gdb.Value(zone.address).cast(gdb.lookup_type("struct kslab_zone").pointer())["counters"]
        write("%s: %d slow allocations, %d slow frees, %d remote frees, %d pages made, %d given back%s"
              % (zone.name(), int(c["slow_allocs"]), int(c["slow_frees"]), zone.owner["remote_frees"],
                 int(c["pages_made"]), int(c["pages_released"]),
                 ", mail waits" if zone.owner["mailbox"] or zone.owner["mail"] else ""))
    failed = v["tally"]["failed"]
    reasons = {f.enumval: f.name for f in gdb.lookup_type("enum kslab_reason").fields()}
    text = ["%d %s" % (int(failed[i]), reasons[i]) for i in range(failed.type.range()[1] + 1) if int(failed[i])]
    if text:
        write("failed: " + ", ".join(text))


@command("classes")
def cmd_classes(argument):
    """kslab classes: one line for each size class and object cache in use."""
    heap = the_heap()
    write("class              size   in use    slots   pages    peak")
    for name, size, peak, parts in heap.groups():
        pages = [page for part in parts for page in part.all()]
        if pages or peak:
            write("%-16s%7d%9d%9d%8d%8d" % (name, size, sum(p.live() for p in pages),
                                            sum(p.slots for p in pages), sum(p.pages for p in pages), peak))


def letter(part, page):
    live = page.live()
    if page.address == part.page:
        return "@"
    if live == 0:
        return "."
    return "#" if live == page.slots else str((4 * live + page.slots - 1) // page.slots)


@command("map")
def cmd_map(argument):
    """kslab map: the object pages of each class, one character a page."""
    heap = the_heap()
    write("object pages: . empty  1 2 3 4 quarters live  # full  @ current")
    for name, size, _, parts in heap.groups():
        text = "".join(letter(part, page) for part in parts for page in part.all())
        label = "%-14s%6d  " % (name[:13], size)
        while text:
            write(label + text[: COLUMNS - len(label)])
            text = text[COLUMNS - len(label) :]
            label = " " * len(label)
    write("large blocks: %d, %d pages" % (int(heap.value["large_blocks"]), int(heap.value["large_pages"])))


def describe(heap, page, index):
    """live, free or in quarantine, with callers."""
    known = heap.details(page, index)
    state = "free" if page.is_free(index) else "in quarantine" if known.get("held") else "live"
    return state, known


def show_callers(known):
    if known.get("asked") is not None:
        write("  asked for: %d bytes" % known["asked"])
    if known.get("alloc"):
        write("  allocated by: " + where(known["alloc"]))
    if known.get("free"):
        write("  freed by: " + where(known["free"]))


def show_object(heap, page, address):
    size = page.size()
    offset = address - page.data
    index = offset // size
    owner = page.owner & ~TAG_MASK
    zone = Zone(heap, owner)
    of = "class %d" % size
    cache = heap.cache_of(page)
    if cache:
        of = "cache %s" % heap.memory.string(cache["name"])
    if index >= page.slots:
        write("0x%x: behind the last slot of a page of %s" % (address, of))
        return
    state, known = describe(heap, page, index)
    inside = ", %d bytes inside" % (offset % size) if offset % size else ""
    write("0x%x: object 0x%x of %s, %d bytes, %s%s"
          % (address, page.data + index * size, of, size, state, inside))
    write("  slot %d of %d in page 0x%x (%d bytes, %s, %d live), %s, descriptor 0x%x"
          % (index, page.slots, page.data, page.length(), STATES[min(page.state, 7)], page.live(),
             zone.name(), page.address))
    for word, neighbour in (("before", index - 1), ("behind", index + 1)):
        if 0 <= neighbour < page.slots:
            write("  %s it: 0x%x %s" % (word, page.data + neighbour * size, describe(heap, page, neighbour)[0]))
    show_callers(known)


@command("ptr")
def cmd_ptr(argument):
    """kslab ptr ADDRESS: what lies there."""
    if not argument:
        raise gdb.GdbError("kslab ptr ADDRESS")
    heap = the_heap()
    address = int(gdb.parse_and_eval(argument).cast(gdb.lookup_type("void").pointer())) & heap.memory.mask
    found = heap.find(address)
    texts = {heap.nobody: "not memory of this heap", heap.metadata: "metadata of this heap",
             heap.released: "in a page that has gone back to the page source",
             heap.under_way: "in a page of which nothing was made yet"}
    if found in texts:
        write("0x%x: %s" % (address, texts[found]))
        return
    page = Page(heap, found)
    if page.state == LARGE:
        inside = ", %d bytes inside" % (address - page.data) if address != page.data else ""
        write("0x%x: large block 0x%x, %d bytes, %s%s"
              % (address, page.data, page.length(), "live" if page.is_live_large() else "free", inside))
        write("  asked for: %d bytes" % page.bits()[0][2])
    elif page.state == FENCED or not page.sc:
        write("0x%x: in a page that is fenced off, descriptor 0x%x" % (address, page.address))
    else:
        show_object(heap, page, address)


class Mark:
    """Live bits by (address of page, slot size, word), from the blocks of a struct kslab_mark."""

    def __init__(self, heap, value):
        memory = heap.memory
        block_layout = Layout(memory, "kslab_mark_block")
        record = Layout(memory, "kslab_mark_record")
        words_of_record = (record.size + memory.word_bytes - 1) // memory.word_bytes
        self.words, self.large = {}, set()
        address = int(value["blocks"])
        while address:
            block = block_layout.read(address)
            at = address + block_layout.size
            end = at + block["words"] * memory.word_bytes
            while at < end:
                r = record.read(at)
                at += words_of_record * memory.word_bytes
                if r["size"] == 0:
                    self.large.add(r["data"])
                for i, word in enumerate(memory.words(at, r["count"]) if r["count"] else []):
                    self.words[r["data"], r["size"], r["first"] + i] = word
                at += r["count"] * memory.word_bytes
            address = block["next"]
        self.sequence = int(value["sequence"])

    def has(self, heap, page, size, index, known):
        serial = known.get("serial", 0)
        if serial and 0 < (serial - self.sequence) & heap.memory.mask <= heap.memory.mask >> 1:
            return False
        word = self.words.get((page.data, size, index // heap.memory.bits), 0)
        return bool(word >> (index % heap.memory.bits) & 1)


def leaks_of(heap, mark):
    """(address, bytes, caller) of what is live and new."""
    for page in heap.pages():
        if page.state == LARGE:
            if page.is_live_large() and page.data not in mark.large:
                yield page.data, page.length(), 0
            continue
        if not page.sc or page.state == FENCED:
            continue
        size = page.size()
        for index in range(page.slots):
            if page.is_free(index):
                continue
            known = heap.details(page, index)
            if not known.get("held") and not mark.has(heap, page, size, index, known):
                yield page.data + index * size, known.get("asked", size), known.get("alloc", 0)


@command("leaks")
def cmd_leaks(argument):
    """kslab leaks MARK: objects that are live now and were not at kslab_mark(&MARK)."""
    if not argument:
        raise gdb.GdbError("kslab leaks MARK (a struct kslab_mark, or a pointer to one)")
    value = gdb.parse_and_eval(argument)
    if value.type.strip_typedefs().code == gdb.TYPE_CODE_PTR:
        value = value.dereference()
    if not int(value["heap"]):
        raise gdb.GdbError("that is no mark, or it was given back")
    heap = Heap(value["heap"].dereference())
    callers, count, total = {}, 0, 0
    for address, size, caller in leaks_of(heap, Mark(heap, value)):
        count, total = count + 1, total + size
        if count <= LEAKS_SHOWN:
            write("0x%x %d bytes%s" % (address, size, ", allocated by " + where(caller) if caller else ""))
        if caller:
            callers[caller] = callers.get(caller, 0) + 1
    if count > LEAKS_SHOWN:
        write("... and %d more" % (count - LEAKS_SHOWN))
    for caller, times in sorted(callers.items(), key=lambda item: -item[1]):
        write("%d by %s" % (times, where(caller)))
    write("%d objects, %d bytes since the mark" % (count, total))


class Checker:
    """As src/check.c and kslab_sc_verify; collects sentences."""

    def __init__(self, heap):
        self.heap, self.wrong, self.pages, self.live, self.free = heap, [], 0, 0, 0

    def say(self, what, page=None):
        self.wrong.append(what + (" (descriptor 0x%x, page 0x%x)" % (page.address, page.data) if page else ""))

    def bits(self, part, page):
        heap, bits = self.heap, self.heap.memory.bits
        for i, (avail, freed, remote) in enumerate(page.bits()):
            used = min(bits, page.slots - i * bits)
            tail = heap.memory.mask & ~((1 << used) - 1)
            if avail & freed or remote & (avail | freed):
                self.say("a slot is free twice", page)
            if freed & tail != tail:
                self.say("bits past the last slot are not set", page)
            at = page.address + heap.page_layout.size + 3 * i * heap.memory.word_bytes
            if avail and part.word != at:
                self.say("slots are available outside the current word", page)

    def page(self, part, page, state):
        heap = self.heap
        taken = len(page.taken())
        if (state, page.state) == (FULL, PURGING):
            state = PURGING  # in the same list
            if page.mail != QUEUED:
                self.say("a page that is being purged is not queued", page)
        if page.state != state:
            self.say("state of a page contradicts its list", page)
        if page.sc != part.address:
            self.say("page is in the list of another class", page)
        if page.owner & ~TAG_MASK != part.zone.address or bool(page.owner & TAG_FULL) != (state == FULL):
            self.say("owner of a page is not the owner of its list", page)
        odd = part.size >> page.rotate
        if not page.slots or page.slots * part.size > page.length() or odd * page.inverse & 0xFFFFFFFF != 1:
            self.say("geometry of a page contradicts its class", page)
        for address in (page.data, page.data + page.length() - 1):
            if heap.find(address) != page.address:
                self.say("the map does not lead to the page's descriptor", page)
        if state == EMPTY and taken:
            self.say("a page on the empty list has live objects", page)
        if state == FULL and any(freed & ~self.tail(page, i) for i, (_, freed, _) in enumerate(page.bits())):
            self.say("a page on the full list has free slots", page)
        self.bits(part, page)
        self.pages += 1
        self.live += page.live()
        self.free += page.slots - page.live()

    def tail(self, page, i):
        used = min(self.heap.memory.bits, page.slots - i * self.heap.memory.bits)
        return self.heap.memory.mask & ~((1 << used) - 1)

    def part(self, part):
        pages = empty_run = empty = 0
        if part.page:
            self.page(part, Page(self.heap, part.page), CURRENT)
            pages += 1
        for state in (PARTIAL, FULL, EMPTY):
            before = None
            for page in part.list(state):
                if before and page.prev != before.address:
                    self.say("links of a list are broken", page)
                self.page(part, page, state)
                before = page
                pages += 1
                if state == EMPTY:
                    empty += 1
                    empty_run += page.pages
            if before and before.next != part.heads[state]:
                self.say("links of a list are broken", before)
        if pages != part.pages or empty != part.empty_pages:
            self.say("page counts of class %d of %s are wrong" % (part.size, part.zone.name()))
        return empty_run

    def mail(self, zone):
        """What came out of the mailbox and is not taken in yet."""
        address = zone.owner["mail"]
        for _ in range(1 << 20):
            if not address:
                return
            page = Page(self.heap, address)
            if page.mail != QUEUED:
                self.say("mail waits of a page that is not queued", page)
            if page.owner & ~TAG_MASK != zone.address:
                self.say("mail waits of a page of another owner", page)
            address = page.mail_next
        self.say("mail that waits has no end")

    def large(self):
        head = address = int(self.heap.value["large"]["head"])
        count = pages = 0
        while address and count <= int(self.heap.value["large_blocks"]):
            page = Page(self.heap, address)
            if page.state != LARGE:
                self.say("a page in the list of large blocks is none", page)
            count, pages = count + 1, pages + page.bits()[0][1]
            address = page.next if page.next != head else 0
        if count != int(self.heap.value["large_blocks"]) or pages != int(self.heap.value["large_pages"]):
            self.say("counts of large blocks are wrong")


@command("check")
def cmd_check(argument):
    """kslab check: lists, counts, states, bits and map entries."""
    heap = the_heap()
    checker = Checker(heap)
    caches = list(heap.caches())
    for zone in heap.zones():
        parts = list(zone.classes()) + [p for p in (zone.cache_part(c) for c in caches) if p]
        if sum(checker.part(part) for part in parts) != zone.owner["empty_run"]:
            checker.say("count of empty pages of %s is wrong" % zone.name())
        checker.mail(zone)
    checker.large()
    for sentence in checker.wrong:
        write("wrong: " + sentence)
    write("%d object pages, %d live and %d free slots, %d contradictions"
          % (checker.pages, checker.live, checker.free, len(checker.wrong)))
