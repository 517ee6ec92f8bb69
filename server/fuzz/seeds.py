#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Writes the inputs that the fuzzers begin with: well-formed ones, each with something of its own.

    seeds.py CORPUS-DIRECTORY

Names are telling, those that libFuzzer finds later are hashes. The layouts are those that the
targets' files describe; the wire's numbers come from the clients' tests.
"""

import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "client-tests"))
import nbd_wire as nbd  # noqa: E402

MEMORY_BYTES = 272 * 1024  # of an export in memory
DISK_BYTES = 12 * 4096  # of the first shape of images


# ---- The wire ----

def option(number, payload=b""):
    return struct.pack(">QII", nbd.IHAVEOPT, number, len(payload)) + payload


def text(value):
    return struct.pack(">I", len(value)) + value


def go(name=b"", infos=(), number=nbd.OPT_GO):
    return option(number, text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos))


def meta_payload(name, queries):
    return text(name) + struct.pack(">I", len(queries)) + b"".join(text(q) for q in queries)


def meta(queries, name=b"", number=nbd.OPT_SET_META_CONTEXT):
    return option(number, meta_payload(name, queries))


def request(number, offset=0, length=0, flags=0, cookie=1, payload=b""):
    return struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, flags, number, cookie, offset,
                       length) + payload


def extended(number, offset=0, length=0, flags=0, cookie=1, payload=b""):
    return struct.pack(">IHHQQQ", nbd.EXTENDED_REQUEST_MAGIC, flags, number, cookie, offset,
                       length) + payload


def commands(form):
    """Each command once, good; then some that are refused."""
    pack = extended if form == nbd.EXTENDED else request
    has_payload = nbd.PAYLOAD_LEN if form == nbd.EXTENDED else 0
    wanted = [
        (nbd.READ, 0, 512, 0, b""),
        (nbd.READ, 100, 3000, nbd.DF if form != nbd.SIMPLE else 0, b""),
        (nbd.WRITE, 1024, 64, has_payload | nbd.FUA, b"w" * 64),
        (nbd.FLUSH, 0, 0, 0, b""),
        (nbd.TRIM, 0, 4096, 0, b""),
        (nbd.WRITE_ZEROES, 4096, 512, nbd.NO_HOLE, b""),
        (nbd.WRITE_ZEROES, 0, 4096, nbd.FAST_ZERO | nbd.FUA, b""),
        (nbd.CACHE, 0, 4096, 0, b""),
        (nbd.BLOCK_STATUS, 0, 8192, 0, b""),
        (nbd.BLOCK_STATUS, 0, 8192, nbd.REQ_ONE, b""),
        (nbd.READ, 1 << 40, 512, 0, b""),
        (nbd.READ, MEMORY_BYTES - 512, 513, 0, b""),
        (nbd.READ, DISK_BYTES - 512, 513, 0, b""),
        (nbd.TRIM, DISK_BYTES - 512, 513, 0, b""),
        (nbd.BLOCK_STATUS, 1, 1 << 31, 0, b""),
        (99, 0, 0, 0, b""),
    ]
    if form == nbd.EXTENDED:
        wanted.append((nbd.BLOCK_STATUS, 0, 12, nbd.PAYLOAD_LEN, struct.pack(">QI", 4096, 1)))
    said = b""
    for cookie, (number, offset, length, flags, payload) in enumerate(wanted, 1):
        said += pack(number, offset, length, flags, cookie, payload)
    return said


BASE, DEPTH = b"base:allocation", b"qemu:allocation-depth"
GREETING = struct.pack(">I", nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES)
FORMS = {
    nbd.SIMPLE: b"",
    nbd.STRUCTURED: option(nbd.OPT_STRUCTURED_REPLY),
    nbd.EXTENDED: option(nbd.OPT_EXTENDED_HEADERS),
}


def manners(choice=0, seed=1):
    return bytes((choice, seed))


def handshake_seeds():
    for form, agree in FORMS.items():
        contexts = b"" if form == nbd.SIMPLE else meta([BASE, DEPTH])
        pack = extended if form == nbd.EXTENDED else request
        goodbye = pack(nbd.DISC, cookie=1000)
        whole = GREETING + agree + contexts + go() + commands(form) + goodbye
        yield f"{form}", manners() + whole
        yield f"{form}-slow", manners(1) + whole
        yield f"{form}-lazy-batched", manners(2 | 16) + whole
        yield f"{form}-vanishes", manners(4) + whole
        yield f"{form}-drained", manners(6, 2) + whole
        yield f"{form}-export-drained", manners(6, 1) + whole
        yield f"{form}-no-budget", manners(8 | 1) + whole
        yield f"{form}-read-only", manners() + GREETING + agree + go(b"ro") + commands(form)
    infos = (nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE)
    yield "info", manners() + GREETING + go(b"ro", infos, nbd.OPT_INFO) + go(b"none") + go(b"hidden") + \
        option(nbd.OPT_ABORT)
    yield "list", manners() + GREETING + option(nbd.OPT_LIST) + option(77, b"what") + \
        option(nbd.OPT_LIST, b"x")
    yield "list-meta", manners() + GREETING + FORMS[nbd.STRUCTURED] + \
        meta([], b"", nbd.OPT_LIST_META_CONTEXT) + \
        meta([b"base:", b"qemu:", b"other:x"], b"", nbd.OPT_LIST_META_CONTEXT)
    yield "export-name", manners() + GREETING + option(nbd.OPT_EXPORT_NAME, b"ro") + \
        request(nbd.READ, 0, 512)
    yield "old-client", manners() + struct.pack(">I", 0) + option(nbd.OPT_EXPORT_NAME, b"") + \
        commands(nbd.SIMPLE)
    tls = option(nbd.OPT_STARTTLS) + b"T"
    yield "tls", manners(128 | 32) + GREETING + FORMS[nbd.STRUCTURED] + tls + go(b"secret") + \
        request(nbd.READ, 0, 512)
    yield "tls-pipelined", manners(32) + GREETING + tls + go(b"secret")
    yield "tls-required", manners(128 | 64 | 1) + GREETING + go() + tls + option(nbd.OPT_LIST) + go()


def request_seeds():
    flags = (nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.SEND_TRIM | nbd.SEND_DF |
             nbd.SEND_WRITE_ZEROES | nbd.SEND_CACHE | nbd.SEND_FAST_ZERO)
    for number, name in enumerate(nbd.COMMAND_NAMES):
        for form, more in ((0, 0), (1, 0), (2, nbd.BLOCK_STATUS_PAYLOAD)):
            rules = struct.pack(">BHQ", form | 12, flags | more, 1 << 20)
            pack = extended if form == 2 else request
            payload_flag = nbd.PAYLOAD_LEN if form == 2 and number == nbd.WRITE else 0
            yield f"{name.lower()}-{form}", rules + pack(number, 4096, 512, payload_flag)
            if number not in (nbd.READ, nbd.WRITE, nbd.BLOCK_STATUS):
                continue
            for border, length in (("end", 512), ("past-end", 513), ("far-past-end", 1 << 31)):
                yield f"{name.lower()}-{form}-{border}", \
                    rules + pack(number, (1 << 20) - 512, length, payload_flag)
    rules = struct.pack(">BHQ", 2 | 12, flags | nbd.BLOCK_STATUS_PAYLOAD, 1 << 20)
    yield "filter", rules + extended(nbd.BLOCK_STATUS, 4096, 16, nbd.PAYLOAD_LEN, 1,
                                     struct.pack(">QII", 512, 1, 2))


def meta_seeds():
    yield "set-both", b"\0" + meta_payload(b"disk", [BASE, DEPTH])
    yield "list-all", b"\1" + meta_payload(b"", [])
    yield "list-spaces", b"\1" + meta_payload(b"", [b"base:", b"qemu:"])
    yield "set-unknown", b"\0" + meta_payload(b"x", [b"base:", b"other:thing"])


def record(kind, offset, length, flags=0):
    """A request of the connection's target: sectors, or bytes with bit 7 of the kind."""
    return struct.pack(">BBHH", kind, flags, offset, length)


READ_, WRITE_, _, FLUSH_, TRIM_, ZERO_, STATUS_, CACHE_ = range(8)


def connection_seeds():
    records = b"".join((
        record(WRITE_, 0, 8), record(READ_, 0, 16), record(WRITE_ | 0x80, 300, 700, nbd.FUA),
        record(TRIM_, 4, 4), record(ZERO_, 2, 9, nbd.NO_HOLE), record(STATUS_, 0, 16),
        record(FLUSH_, 0, 0), record(WRITE_, 10, 9), record(ZERO_, 0, 16, nbd.FAST_ZERO),
        record(READ_ | 0x80, 1, 5000, nbd.DF), record(CACHE_, 0, 4), record(STATUS_, 3, 9, 8)))
    for number, form in enumerate(FORMS):
        mode = number | (0 if form == nbd.SIMPLE else 4)
        yield f"raw-{form}", manners() + bytes((mode,)) + commands(form)
        yield f"records-{form}-slow", manners(1, number) + bytes((mode | 8,)) + records
    for shape in range(12):
        yield f"records-{shape}", manners(0, shape) + bytes((1 | 4 | 8 | shape << 4,)) + records
    long = b"".join((record(WRITE_, 0, 500), record(READ_, 3, 400), record(READ_, 0, 300, nbd.DF),
                     record(WRITE_, 100, 300, nbd.FUA), record(STATUS_, 0, 512)))
    for number, form in enumerate(FORMS):
        for choice, seed in ((0, 1), (1, 2), (2, 3), (4, 4), (6, 5), (9, 6), (16, 7), (1, 0x23),
                             (0, 0x44), (0, 0x11), (9, 0x15), (6, 0x12)):
            yield f"long-{form}-{choice}-{seed}", \
                manners(choice, seed) + bytes((number | 4 | 8 | 12 << 4,)) + long
    for choice in (2, 4, 6, 9, 17):
        yield f"records-manners-{choice}", manners(choice, 3) + bytes((2 | 4 | 8,)) + records * 3


def damage(place, index, value, what=0, width=0):
    """Place 0-7 (header, reftable, refcounts, L1, L2, snapshots, their L1, data); width 8 >> n."""
    size = {0: 8, 1: 1, 2: 1, 3: 2}[what]
    return bytes((place | what << 3 | width << 5, index)) + value.to_bytes(size, "big")


def ask(kind, offset, length, bits=0):
    return struct.pack(">BHB", 0x80 | kind | bits, offset, length)


def raw_image(version, order):
    """An empty image of four clusters: header, refcount table, refcounts, L1 table."""
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, 9, 64 * 512, 0, 1, 3 * 512,
                         512, 1, 0, 0)
    if version == 3:
        header += struct.pack(">QQQII", 0, 0, 0, order, 104)
    counts = {0: b"\x0f", 3: b"\1" * 4, 4: b"\0\1" * 4}[order]
    clusters = (header, struct.pack(">Q", 2 * 512), counts, b"")
    return b"".join(cluster.ljust(512, b"\0") for cluster in clusters)


def image_seeds():
    """Kinds: write, read, trim, zero, zero in place, zero if fast, status, flush."""
    asked = b"".join((ask(1, 0, 30), ask(0, 3, 9), ask(0, 20, 40, 8), ask(2, 4, 16), ask(1, 0, 47),
                      ask(3, 1, 3), ask(0, 9, 9, 0x20), ask(2, 8, 9, 0x20), ask(4, 0, 20, 0x20),
                      ask(6, 0, 99), ask(7, 0, 0), ask(5, 0, 9), ask(0, 777, 20, 0x50)))
    for shape in range(12):
        yield f"whole-{shape}", bytes((shape, 0, shape)) + asked
    for version, order in ((2, 4), (3, 0), (3, 3)):
        yield f"raw-{version}-{order}", bytes((12, 0, 3)) + raw_image(version, order)
    for usage in (1, 2, 4, 8, 16, 32, 64, 128, 192):
        yield f"usage-{usage}", bytes((1, usage, 7)) + asked
    damages = {
        "dirty": damage(0, 9, 1),
        "corrupt": damage(0, 9, 2),
        "unknown-feature": damage(0, 9, 1 << 40),
        "bitmaps": damage(0, 11, 1),
        "huge": damage(0, 3, 1 << 50),
        "l1-huge": damage(0, 9, 1 << 20, 0, 1),
        "refcount-zero": damage(2, 5, 0, 1, 2),
        "refcount-two": damage(2, 5, 2, 1, 2),
        "l2-to-header": damage(4, 0, 0, 2),
        "l2-to-l2": damage(4, 1, 4, 2),
        "l2-twice": damage(4, 2, 5, 2),
        "l2-compressed": damage(4, 0, 0x4005, 3),
        "l2-zero": damage(4, 0, 0x8105, 3),
        "l1-to-l1": damage(3, 0, 3, 2),
        "reftable-to-data": damage(1, 0, 6, 2),
        "reftable-empty": damage(1, 0, 0),
    }
    # What has been found.
    damages["l1-copied-without-table"] = damage(3, 0, 1 << 63)
    yield "backing-name-with-escape", bytes((9, 0, 1)) + damage(0, 32, 0x1b5b324a0a0a0a0a) + asked
    for name, records in damages.items():
        yield name, bytes((1, 0, 5)) + records + asked
        yield f"{name}-repaired", bytes((1, 16, 5)) + records + asked
        yield f"{name}-below", bytes((1, 128, 5)) + records + asked


def extension(kind, data, claim=None):
    """Kinds: end, backing format, bitmaps, feature names, crypto, data file, two unknown ones."""
    lie = b"" if claim is None else struct.pack(">H", claim)
    return bytes((0x40, kind | (0x80 if lie else 0), len(data))) + lie + data


def snapshot(how, ident, name, between=b"", lies=b""):
    return bytes((0x80, how)) + between + bytes((len(ident),)) + ident + \
        bytes((len(name),)) + name + lies


def snapshots_seeds():
    good = snapshot(8, b"1", b"once") + snapshot(12, b"2", b"and again") + snapshot(1, b"", b"")
    for usage in (0, 1, 2, 4, 8, 16, 3, 6):
        yield f"good-{usage}", bytes((usage, 1)) + good
    yield "odd-texts", bytes((0, 1)) + snapshot(9, b"\n\x1b[2J", b"\xff\xfe\0hidden")
    yield "lying-lengths", bytes((0, 1)) + good + \
        snapshot(0x18, b"3", b"long", b"", struct.pack(">HHH", 60000, 60000, 1000))
    yield "l1-elsewhere", bytes((0, 1)) + snapshot(10, b"4", b"x", bytes((3, 1)))
    yield "l1-far", bytes((0, 1)) + snapshot(11, b"5", b"x", struct.pack(">QH", 1 << 40, 3))
    names = struct.pack(">BB46s", 0, 40, b"time travel\x07") + struct.pack(">BB46s", 1, 0, b"lazy")
    yield "feature-names", bytes((0, 1)) + damage(0, 9, 1 << 40) + extension(3, names)
    yield "extensions", bytes((4, 1)) + extension(1, b"raw") + extension(6, b"?" * 33) + \
        extension(5, b"data") + extension(0, b"")
    yield "lying-extension", bytes((0, 1)) + extension(6, b"abc", 4095) + extension(1, b"raw")
    entry = struct.pack(">QIIBBHI", 0, 0, 0, 1, 16, 4, 0) + b"days" + bytes(4)
    directory = 13 * 4096  # behind nine clusters of the image and four of the snapshot table
    yield "bitmaps", bytes((0, 1)) + damage(0, 11, 1) + \
        extension(2, struct.pack(">IIQQ", 1, 0, 32, directory)) + bytes((0xc0, len(entry))) + entry
    yield "luks", bytes((0, 1)) + damage(0, 4, (2 << 32) | 1) + \
        extension(4, struct.pack(">QQ", directory, 512))


def change(verb, name, source=0, bits=0):
    """Verbs: add, remove, clear, enable, disable, merge."""
    return bytes((0xc0 | verb | bits, name | source << 4))


def table_entry(bitmap, index, cluster, all_set=0):
    return bytes((0x80 | (bitmap + 1) % 3 | index << 2 | all_set << 4, cluster))


def bitmaps_seeds():
    changes = b"".join(change(verb, name, (name + 1) % 6, bits) for bits in (0, 8, 0x10)
                       for verb, name in ((0, 3), (5, 0), (3, 1), (2, 0), (4, 3), (1, 1), (0, 4), (1, 4)))
    for usage in range(16):
        yield f"changes-{usage}", bytes((usage, 1)) + changes
    directory = {
        "table-offset": (0, struct.pack(">Q", 1 << 40)),
        "table-unaligned": (6, b"\xff"),
        "table-size": (8, b"\x7f\xff\xff\xff"),
        "in-use": (15, b"\3"),
        "flags": (12, b"\xff"),
        "type": (16, b"\2"),
        "granularity": (17, b"\x28"),
        "granularity-255": (17, b"\xff"),
        "no-name": (18, b"\0\0"),
        "long-name": (18, b"\4\0"),
        "extra": (20, b"\xff\xff\xff\xff"),
        "nul": (24, b"\0"),
        "twice": (56, b"a\0"),
    }
    for name, (at, data) in directory.items():
        record = bytes((0x40 | len(data), at)) + data
        for usage in (0, 1, 2, 3):
            yield f"{name}-{usage}", bytes((usage, 1)) + record + changes
    tables = {
        "all-set": table_entry(0, 0, 0, 1),
        "onto-l1": table_entry(0, 0, 3),
        "onto-data": table_entry(1, 0, 6),
        "onto-directory": table_entry(1, 0, 11),
        "past-the-end": table_entry(2, 0, 200),
        "beyond-the-disk": table_entry(2, 1, 16),
        "reserved": table_entry(0, 0, 13, 1),
        "any": bytes((0xa0,)) + b"\xff" * 8,
    }
    for name, record in tables.items():
        for usage in (0, 2):
            yield f"{name}-{usage}", bytes((usage, 1)) + record + changes
    yield "extension", bytes((0, 1)) + damage(0, 14, 70000, 0, 1) + changes
    yield "directory-far", bytes((2, 1)) + damage(0, 16, 1 << 50) + changes


def text_lines(what, *lines):
    """What: 0 a command line, 1 settings of an export, 2 options of an image, 3 backing, 4 URI."""
    return bytes((what,)) + "\n".join(lines).encode()


def options_seeds():
    yield "serve", text_lines(0, "qcowd", "-U", "/run/x", "-e", "disk", "-r", "a.qcow2")
    yield "serve-limits", text_lines(
        0, "qcowd", "--max-bytes=1G", "--max-connections", "7", "--idle-timeout=5",
        "--max-bytes-per-second=1M", "--port=0", "--bind", "::1", "--tls=off", "a")
    yield "serve-tls", text_lines(0, "qcowd", "--tls=require", "--tls-psk", "keys", "--tls-allow",
                                  "psk:alice", "--discard=ignore", "--cache", "none", "-v", "a")
    yield "serve-exports", text_lines(0, "qcowd", "-e", "a", "a.qcow2", "-e", "b", "--allow",
                                      "10.0.0.0/8", "--export-tls=on", "b.qcow2")
    yield "serve-run", text_lines(0, "qcowd", "serve", "--run", "true", "--socket-mode=660", "a")
    yield "create", text_lines(0, "qcowd", "create", "-o", "compat=1.1,cluster_size=4k",
                               "-b", "base", "-F", "raw", "new.qcow2", "10G")
    yield "check", text_lines(0, "qcowd", "check", "--repair=all", "--", "-image")
    yield "info", text_lines(0, "qcowd", "info", "--json", "image")
    yield "help", text_lines(0, "qcowd", "--help")
    yield "export", text_lines(
        1, "name=vm1", "image=/disks/vm1", "description=a disk", "read-only=true", "tls=require",
        "discard=ignore", "cache=none", "allow=user:0", "allow=fd00::/8", "allow=192.168.0.1",
        "allow=unix", "allow=vsock:3", "tls-allow=dn:CN=vm1,O=Example", "bytes-per-second=1M",
        "operations-per-second=100")
    yield "image", text_lines(2, "size=1G", "compat=1.1", "cluster_size=64k", "refcount_bits=16")
    yield "image-old", text_lines(2, "size=10M", "compat=0.10", "cluster_size=4096")
    yield "image-extended", text_lines(2, "size=100M", "extended_l2=on", "lazy_refcounts=on",
                                       "compression_type=zstd", "backing_file=b", "backing_fmt=raw")
    yield "image-odd", text_lines(2, "size=1.5G", "refcount_bits=1")
    for number, (image, name) in enumerate((
            ("a/b", "c"), ("a/b", "/c"), ("b", "file:c"), ("b", "nbd://x"), ("b", "json:{}"),
            ("a/b", "./c:d"), ("b", ""))):
        yield f"backing-{number}", text_lines(3, image, name)
    yield "uri", text_lines(4, "/run/a b.sock", "disk?/%41 ä")


def backing_name_seeds():
    """A byte of 4 formats of the header and 3 of the caller, and the name."""
    file = '"file":{"driver":"file","filename":"/x/base"}'
    names = {
        "plain": (1, "base"),
        "assumed": (4, "/x/base"),
        "unnamed": (0, "base"),
        "protocol": (1, "nbd://host/x"),
        "file": (1, "file:base"),
        "json": (2, 'json:{"driver":"qcow2",' + file + "}"),
        "json-dotted": (0, "json:{'driver':'raw','file.driver':'host_device','file.filename':'/dev/x'}"),
        "json-driverless": (1, "json:{" + file + "}"),
        "json-through-raw": (1, 'json:{"driver":"raw","file":{"driver":"qcow2",' + file + "}}"),
        "json-twice": (2, 'json:{"driver":"qcow2","file":{"driver":"qcow2",' + file + "}}"),
        "json-quotes": (1, "json:{'driver':'raw','file.filename':'it\\'s \"\\u00e9\\n'}"),
        "json-harmless": (2, 'json:{"driver":"qcow2","node-name":"n","cache":{"direct":true},'
                             '"encrypt.key-secret":"s",' + file + "}"),
        "json-offset": (1, 'json:{"driver":"raw","offset":512,' + file + "}"),
        "json-backing": (2, 'json:{"driver":"qcow2","backing":null,' + file + "}"),
        "json-below": (2, 'json:{"backing":{"backing":null,"driver":"qcow2",' + file + '},'
                          '"driver":"qcow2",' + file + "}"),
        "json-nbd": (1, 'json:{"driver":"nbd","server":{"type":"unix","path":"/s"}}'),
        "json-deep": (1, "json:" + '{"a":[' * 8),
        "json-differs": (1, 'json:{"driver":"qcow2",' + file + "}"),
    }
    for name, (formats, text) in names.items():
        yield name, bytes((formats,)) + text.encode()


def control_seeds():
    """The length of pieces, then what a client says."""
    add = '{"execute": "qcowd-export-add", "arguments": {"name": "b", "image": "b.qcow2", ' \
          '"read-only": true, "allow": ["user:root"]}, "id": 1}'
    for name, said in {
            "session": '{"execute": "qmp_capabilities"}{"execute":"query-commands","id":[{}]}\r\n',
            "add": add + '{"execute": "block-export-del", "arguments": {"id": "b", "mode": "hard"}}',
            "wrong": '{"execute": 5}{"exec-oob": "x"}{"execute": "quit", "arguments": {"x": "\\u0000"}}',
            "stray": 'hello\n[1]\n{"execute": "quit", "id": "}\\"{"}\n',
            "deep": '{"a":' * 20 + "\n{}",
    }.items():
        for piece in (0, 6, 255):
            yield f"{name}-{piece}", bytes((piece,)) + said.encode()


def luks_seeds():
    """Sectors of the area, a header as QEMU makes it, and the start of the slots' material."""
    def header(family=b"aes", mode=b"xts-plain64", digest=b"sha256", key=64, iterations=2, active=1):
        slot_sectors = (key * 4000 + 511) // 512 + 7 & ~7
        head = b"LUKS\xba\xbe" + struct.pack(">H32s32s32sII20s32sI40s", 1, family, mode, digest,
                                             8 + 8 * slot_sectors, key, b"d" * 20, b"s" * 32, 2, b"0-1-2-3")
        slots = b"".join(struct.pack(">II32sII", 0xac71f3 if number < active else 0xdead, iterations, b"t" * 32,
                                     8 + number * slot_sectors, 4000) for number in range(8))
        return struct.pack(">H", 8 + 8 * slot_sectors) + head + slots

    yield "xts", header() + b"material"
    yield "essiv", header(mode=b"cbc-essiv:sha256", digest=b"sha1", key=16)
    yield "ecb", header(mode=b"ecb", digest=b"ripemd160", key=32)
    yield "twofish", header(family=b"twofish", mode=b"ctr-plain", digest=b"sha512", key=24, active=8)
    yield "serpent", header(family=b"serpent", mode=b"xts-plain", digest=b"md5", key=32)
    yield "cast5", header(family=b"cast5", mode=b"cbc-plain64", key=16)
    yield "much-work", header(iterations=1 << 25)
    yield "short-area", b"\0\1" + header()[2:]
    yield "unknown", header(family=b"rot", mode=b"gcm-random")


SEEDS = {
    "luks": luks_seeds,
    "control": control_seeds,
    "backing_name": backing_name_seeds,
    "options": options_seeds,
    "snapshots": snapshots_seeds,
    "bitmaps": bitmaps_seeds,
    "connection": connection_seeds,
    "image": image_seeds,
    "request": request_seeds,
    "meta": meta_seeds,
    "handshake": handshake_seeds,
}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for target, seeds in SEEDS.items():
        directory = os.path.join(sys.argv[1], target)
        os.makedirs(directory, exist_ok=True)
        for name, data in seeds():
            with open(os.path.join(directory, name), "wb") as out:
                out.write(data)


if __name__ == "__main__":
    main()
