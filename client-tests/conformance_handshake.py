# SPDX-License-Identifier: BSD-2-Clause
"""Greeting and options: rules 1 to 26."""

import struct
import time

import nbd_wire as w
from conformance_check import rule

ERRORS_OF_MALFORMED = (w.ERR_INVALID, w.ERR_UNSUP, w.ERR_TOO_BIG, w.ERR_POLICY)
ALLOCATION = "base:allocation"
DEPTH = "qemu:allocation-depth"
OPTIONS_TO_SEND = 4000
HANDSHAKE_SEC = 15


@rule(1, "The greeting is 18 bytes with no unknown flag; a client flag not offered disconnects")
def greeting(t):
    connection = t.connect()
    magic, option_magic, flags = struct.unpack(">QQH", connection.recv(18))
    t.expect(magic == w.NBDMAGIC and option_magic == w.IHAVEOPT, "the magics are wrong")
    t.expect(flags & w.FIXED_NEWSTYLE, "fixed newstyle is not offered")
    t.expect(not flags & ~3, f"handshake flags {flags:#x}")
    if not flags & w.NO_ZEROES:
        t.note("NO_ZEROES is not offered")
    t.expect(connection.is_silent(), "bytes behind the greeting")
    for bad in (4, 0x10003, 0x80000003):
        t.expect_closed(t.greeted(bad), f"client flags {bad:#x}")


@rule(2, "A probe that connects and leaves is no error in the log")
def probe(t):
    if not t.target.has_log:
        t.skip("the server's log cannot be seen")
    before = t.server.log()
    for _ in range(3):
        t.connect().close()
        connection = t.connect()
        connection.recv(18)
        connection.close()
    time.sleep(0.1)
    said = t.server.log()[len(before):].strip()
    t.expect(not said, f"the log says: {said[:200]}")


@rule(3, "A wrong option magic disconnects; an absurd option length is refused, never allocated")
def option_header(t):
    connection = t.greeted()
    connection.option(w.OPT_LIST, magic=w.IHAVEOPT ^ 1)
    t.expect_closed(connection, "a wrong option magic")
    before = t.server.memory_bytes()
    connection = t.greeted()
    connection.option(w.OPT_LIST, length=0xFFFFFFFF)
    try:
        t.expect(connection.is_closed(), "an option of 2^32-1 bytes: the connection stays open")
    except w.WireError:
        t.note("an option of 2^32-1 bytes is answered")
    after = t.server.memory_bytes()
    if before is not None and after is not None:
        t.expect(after - before < 256 << 20, f"memory grew by {(after - before) >> 20} MiB")


@rule(4, "An unknown option is drained and answered by ERR_UNSUP; the next option parses")
def unknown_options(t):
    for option in (0, 4, 12, 0x7FFFFFFF, 0xFFFFFFFF):
        connection = t.greeted()  # a server may have a limit to their number
        for length in (0, 1, 1000, 4096):
            t.expect_refusal(connection, option, b"\xee" * length, (w.ERR_UNSUP,),
                             f"option {option:#x} of {length} bytes")


@rule(5, "A malformed option gets one error reply, and the next option parses")
def malformed_options(t):
    for option in (w.OPT_LIST, w.OPT_STARTTLS, w.OPT_INFO, w.OPT_GO, w.OPT_STRUCTURED_REPLY,
                   w.OPT_EXTENDED_HEADERS, w.OPT_LIST_META_CONTEXT, w.OPT_SET_META_CONTEXT):
        connection = t.greeted()
        connection.negotiate(w.STRUCTURED)
        for length in (1, 3, 5, 300, 4000):
            t.expect_refusal(connection, option, b"\xff" * length,
                             ERRORS_OF_MALFORMED + (w.ERR_UNKNOWN,),
                             f"option {option} with {length} bytes of 0xff")


@rule(6, "Without fixed newstyle EXPORT_NAME works, with its zeroes; others disconnect or work")
def not_fixed_newstyle(t):
    for option in (w.OPT_LIST, w.OPT_GO, 99):
        connection = t.greeted(0)
        connection.option(option)
        try:
            connection.answer(option)
            t.note("options are answered without fixed newstyle")
        except w.Closed:
            pass
    connection = t.greeted(0)
    connection.option(w.OPT_EXPORT_NAME, w.encode(t.export))
    reply = connection.recv(134)
    t.expect(reply[10:] == bytes(124), "the 124 zeroes are not zero")
    t.expect_good(connection.command(w.READ, 0, 512))


@rule(7, "EXPORT_NAME: close without bytes when it fails; 10 bytes, or 134 with the zeroes")
def export_name(t):
    for flags, length in ((1, 134), (3, 10)):
        connection = t.greeted(flags)
        connection.option(w.OPT_EXPORT_NAME, w.encode(t.export))
        reply = connection.recv(length)
        size, connection.flags = struct.unpack(">QH", reply[:10])
        t.expect(size > 0 and connection.flags & w.HAS_FLAGS,
                 f"size {size}, flags {connection.flags:#x}")
        t.expect(not connection.flags & w.SEND_DF, "DF is offered without structured replies")
        t.expect(not any(reply[10:]), "the zeroes are not zero")
        t.expect_good(connection.command(w.READ, 0, 512))
    bad_names = [b"n" * 4097, b"n" * 5000]
    if t.takes_any_name():
        t.note("any export name is taken here")
    else:
        bad_names.append(b"there-is-none")
    for name in bad_names:
        connection = t.greeted()
        connection.option(w.OPT_EXPORT_NAME, name)
        t.expect_closed(connection, f"EXPORT_NAME of {len(name)} bytes, not known")


@rule(8, "After EXTENDED_HEADERS, EXPORT_NAME disconnects")
def export_name_after_extended(t):
    connection = t.negotiated(w.EXTENDED)
    connection.option(w.OPT_EXPORT_NAME, w.encode(t.export))
    t.expect_closed(connection, "EXPORT_NAME after EXTENDED_HEADERS")


@rule(9, "ABORT is acknowledged, whatever it carries, and then the connection closes")
def abort(t):
    for payload in (b"", b"goodbye"):
        connection = t.greeted()
        replies = connection.ask(w.OPT_ABORT, payload)
        t.expect(len(replies) == 1 and replies[0].kind == w.REP_ACK,
                 f"ABORT with {len(payload)} bytes: {replies}")
        t.expect_closed(connection, f"ABORT with {len(payload)} bytes")
    before = t.server.log() if t.target.has_log else ""
    connection = t.greeted()
    connection.option(w.OPT_ABORT)
    connection.close()
    time.sleep(0.05)
    t.expect(t.server.alive(), "ABORT of a client that left at once: the server is gone")
    if t.target.has_log:
        said = t.server.log()[len(before):].strip()
        t.expect(not said, f"ABORT of a client that left at once, the log says: {said[:200]}")


def listed(t, connection):
    replies = connection.ask(w.OPT_LIST)
    t.expect(all(reply.kind == w.REP_SERVER for reply in replies[:-1]), f"LIST: {replies}")
    return replies


@rule(10, "LIST: ERR_INVALID with data; else one SERVER for each export and ACK, or ERR_POLICY")
def list_exports(t):
    connection = t.greeted()
    t.expect_refusal(connection, w.OPT_LIST, b"x", (w.ERR_INVALID,), "LIST with data")
    last = listed(t, connection)[-1]
    t.expect(last.kind in (w.REP_ACK, w.ERR_POLICY), f"LIST ends with {last}")
    t.expect_options_go_on(connection, "LIST")


@rule(11, "A SERVER reply holds a name within its length, a description, and text only")
def list_replies(t):
    connection = t.greeted()
    replies = listed(t, connection)
    if len(replies) == 1:
        t.skip("no export is listed")
    for reply in replies[:-1]:
        if not t.expect(len(reply.payload) >= 4, f"a SERVER reply of {len(reply.payload)} bytes"):
            continue
        name_len, = struct.unpack(">I", reply.payload[:4])
        t.expect(name_len <= min(len(reply.payload) - 4, w.STRING_MAX),
                 f"a name of {name_len} bytes in a reply of {len(reply.payload)}")
        try:
            name = reply.payload[4:4 + name_len].decode()
            reply.payload[4 + name_len:].decode()
        except UnicodeDecodeError:
            t.expect(False, "a name or description that is not UTF-8")
            continue
        answer = connection.go(name, option=w.OPT_INFO)[-1]
        t.expect(answer.kind in (w.REP_ACK, w.ERR_TLS_REQD), f"INFO of \"{name}\": {answer}")


@rule(12, "INFO and GO must fit their length exactly, else ERR_INVALID")
def info_length(t):
    good = w.pack_go(t.export, [w.INFO_NAME, w.INFO_BLOCK_SIZE])
    for option in (w.OPT_INFO, w.OPT_GO):
        bad = [good[:cut] for cut in range(len(good))] + [good + b"\0", good + b"\0\0\0"]
        bad += [struct.pack(">I", size) + good[4:] for size in (0xFFFFFFFF, len(good) - 5,
                                                                len(good), 4097)]
        for payload in bad:
            t.expect_refusal(t.greeted(), option, payload, (w.ERR_INVALID,),
                             f"{'GO' if option == w.OPT_GO else 'INFO'} of {len(payload)} bytes, "
                             f"name length {payload[:4].hex()}")


@rule(13, "Names: 4096 bytes of UTF-8 without NUL; the empty one is the default; echoes are clean")
def names(t):
    refused = (w.ERR_UNKNOWN, w.ERR_INVALID, w.ERR_TOO_BIG)
    cases = [b"n" * 4097, b"a\0b", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80"]
    if t.takes_any_name():
        t.note("any export name is taken here")
    else:
        cases += [b"n" * 4096, b"new\nline\x1b[31m", "gr\u00fc\u00df".encode(), b"a" * 255]
    for name in cases:
        last = t.greeted().go(name, option=w.OPT_INFO)[-1]
        when = f"the name {name[:12]!r} of {len(name)} bytes"
        if last.kind == w.REP_ACK:
            t.expect(len(name) <= 4096 and b"\0" not in name, f"{when} is taken")
            t.note(f"{when} is taken")
            continue
        t.expect(last.kind in refused, f"{when}: {last}")
        if b"\0" in name:
            t.expect(last.kind == w.ERR_INVALID, f"{when}: {last}")
        t.expect(len(last.payload) <= w.STRING_MAX, f"{when}: a text of {len(last.payload)} bytes")
        t.expect(len(last.payload) < 1000, f"{when}: echoed in {len(last.payload)} bytes")
        t.expect(not any(byte < 32 or byte == 127 for byte in last.payload),
                 f"{when}: echoed with control characters")
        try:
            last.payload.decode()
        except UnicodeDecodeError:
            t.expect(False, f"{when}: echoed in a text that is not UTF-8")
    last = t.greeted().go("", option=w.OPT_INFO)[-1]
    t.expect(last.kind in (w.REP_ACK, w.ERR_UNKNOWN), f"the empty name: {last}")


@rule(14, "INFO_EXPORT comes unasked, unknown infos are ignored, GO adds no zeroes")
def info_export(t):
    connection = t.greeted(w.FIXED_NEWSTYLE)  # where EXPORT_NAME would add zeroes
    for infos in ((), (77, 0xFFFF), (w.INFO_EXPORT, w.INFO_EXPORT, 5)):
        for option in (w.OPT_INFO, w.OPT_GO):
            if option == w.OPT_GO and infos != (w.INFO_EXPORT, w.INFO_EXPORT, 5):
                continue
            replies = connection.go(t.export, infos, option)
            t.expect(replies[-1].kind == w.REP_ACK, f"infos {infos}: {replies[-1]}")
            exports = [reply for reply in replies if reply.payload[:2] == b"\0\0"]
            t.expect(len(exports) >= 1, f"infos {infos}: no INFO_EXPORT")
            t.expect(all(len(reply.payload) == 12 for reply in exports),
                     "INFO_EXPORT is not 12 bytes")
            t.expect(not any(reply.payload[:2] in (b"\0\x4d", b"\xff\xff") for reply in replies),
                     "an unknown info was answered")
    t.expect_good(connection.command(w.READ, 0, 512))


@rule(15, "ERR_UNKNOWN is preceded by no INFO")
def unknown_export(t):
    if t.takes_any_name():
        t.skip("any export name is taken here")
    connection = t.greeted()
    for option in (w.OPT_INFO, w.OPT_GO):
        replies = connection.go("there-is-none", [w.INFO_BLOCK_SIZE, w.INFO_NAME], option)
        t.expect(len(replies) == 1 and replies[0].kind == w.ERR_UNKNOWN, f"{replies}")


@rule(16, "GO right behind the same INFO gets the same answers")
def info_then_go(t):
    for form in t.forms():
        connection = t.negotiated(form)
        if form != w.SIMPLE:
            connection.set_meta(t.export, [ALLOCATION])
        infos = [w.INFO_NAME, w.INFO_DESCRIPTION, w.INFO_BLOCK_SIZE]
        first, second = (sorted(reply.payload for reply in connection.go(t.export, infos, option))
                         for option in (w.OPT_INFO, w.OPT_GO))
        t.expect(first == second, f"headers {form}: {first} and then {second}")


@rule(17, "A failed GO leaves the options open; a later one works")
def go_again(t):
    connection = t.greeted()
    bad = w.pack_go("there-is-none") if not t.takes_any_name() else b"\xff" * 9
    last = connection.ask(w.OPT_GO, bad)[-1]
    t.expect(last.kind & w.REP_ERROR, f"a bad GO: {last}")
    t.go_on(connection, t.export)
    t.expect_good(connection.command(w.READ, 0, 512))


def block_size(t, connection):
    for reply in connection.go(t.export, [w.INFO_BLOCK_SIZE], w.OPT_INFO):
        if reply.kind == w.REP_INFO and reply.payload[:2] == b"\0\3":
            return reply.payload
    return t.skip("INFO_BLOCK_SIZE is not answered")


@rule(18, "Block sizes: minimum a power of 2 up to 64 KiB, preferred 512 or more, maximum not less")
def block_sizes(t):
    payload = block_size(t, t.greeted())
    if not t.expect(len(payload) == 14, f"{len(payload)} bytes instead of 14"):
        return
    _, minimum, preferred, maximum = struct.unpack(">HIII", payload)
    power = minimum & (minimum - 1) == 0 and preferred & (preferred - 1) == 0
    t.expect(minimum and preferred and power, f"{minimum} and {preferred} are not powers of 2")
    t.expect(minimum <= 65536, f"minimum {minimum}")
    t.expect(preferred >= max(512, minimum), f"preferred {preferred}")
    t.expect(maximum >= preferred, f"maximum {maximum} below preferred {preferred}")
    t.expect(maximum == 0xFFFFFFFF or maximum % minimum == 0, f"maximum {maximum}")
    t.expect(maximum >= 1 << 20, f"maximum {maximum} is under 1 MiB")


@rule(19, "A client that asks for block sizes is let in; unaligned I/O is served or EINVAL")
def unaligned(t):
    connection = t.greeted()
    last = connection.go(t.export, [w.INFO_BLOCK_SIZE])[-1]
    t.expect(last.kind == w.REP_ACK, f"GO that asked for block sizes: {last}")
    connection = t.greeted()
    replies = connection.go(t.export)
    if replies[-1].kind == w.ERR_BLOCK_SIZE_REQD:
        t.expect(any(reply.payload[:2] == b"\0\3" for reply in replies),
                 "ERR_BLOCK_SIZE_REQD without the block sizes before it")
        return
    if connection.flags & w.READ_ONLY:
        t.expect_error(connection.command(w.READ, 511, 3), (0, w.EINVAL))
        return
    at = t.room(connection)
    before = bytes(range(256)) * 32
    t.expect_good(connection.write(at, before))
    result = connection.write(at + 511, b"xyz")
    t.expect_error(result, (0, w.EINVAL))
    after = before[:511] + b"xyz" + before[514:] if not result.error else before
    t.expect_data(connection, at, after, "around an unaligned write")
    result = connection.read(at + 509, 7)
    if t.expect_error(result, (0, w.EINVAL)) and not result.error:
        t.expect(result.data == after[509:516], "an unaligned read brought other bytes")


def repeat(t, connection, option):
    last = connection.ask(option)[-1]
    t.expect(last.kind in (w.ERR_INVALID, w.REP_ACK), f"option {option} again: {last}")
    if last.kind == w.REP_ACK:
        t.note(f"option {option} again is acknowledged")
    t.expect_options_go_on(connection, f"option {option} again")


@rule(20, "STRUCTURED_REPLY and EXTENDED_HEADERS: refused with data, harmless again, in order")
def repeated_forms(t):
    if w.STRUCTURED not in t.forms():
        t.skip("structured replies are not offered")
    connection = t.greeted()
    t.expect_refusal(connection, w.OPT_STRUCTURED_REPLY, b"x", (w.ERR_INVALID,),
                     "STRUCTURED_REPLY with data")
    t.go_on(connection, t.export)
    t.expect_good(connection.command(w.READ, 0, 512))  # replies are simple: else a WireError
    connection = t.negotiated(w.STRUCTURED)
    repeat(t, connection, w.OPT_STRUCTURED_REPLY)
    if w.EXTENDED not in t.forms():
        t.note("extended headers are not offered")
        return
    connection = t.greeted()
    t.expect_refusal(connection, w.OPT_EXTENDED_HEADERS, b"x", (w.ERR_INVALID,),
                     "EXTENDED_HEADERS with data")
    t.go_on(connection, t.export)
    t.expect_good(connection.command(w.READ, 0, 512))
    connection = t.negotiated(w.EXTENDED)
    repeat(t, connection, w.OPT_EXTENDED_HEADERS)
    t.expect_refusal(connection, w.OPT_STRUCTURED_REPLY, b"", (w.ERR_EXT_HEADER_REQD,),
                     "STRUCTURED_REPLY after EXTENDED_HEADERS")
    t.go_on(connection, t.export)
    t.expect_good(connection.command(w.READ, 0, 512))


@rule(21, "EXTENDED_HEADERS needs no STRUCTURED_REPLY before it, and GO works after it")
def extended_alone(t):
    for structured_first in (False, True):
        connection = t.negotiated(w.STRUCTURED if structured_first else w.SIMPLE)
        if not connection.negotiate(w.EXTENDED):
            t.skip("extended headers are not offered")
        last = connection.go(t.export)[-1]
        t.expect(last.kind == w.REP_ACK, f"GO: {last}")
        result = connection.command(w.READ, 0, 512)
        t.expect_good(result)
        t.expect_no_faults(result)


def with_contexts(t):
    connection = t.negotiated(w.STRUCTURED)
    kind = connection.set_meta(t.export, [ALLOCATION])
    if kind != w.REP_ACK or ALLOCATION not in connection.contexts:
        t.skip("base:allocation is not offered")
    return connection


def expect_no_status(t, connection, export, when):
    connection.contexts = {}
    connection.journal = None  # what is wrong here belongs to this rule alone
    t.go_on(connection, export)
    t.expect_error(connection.status(0, 65536), w.EINVAL, f"BLOCK_STATUS {when}")
    t.expect(connection.in_step(), when)


@rule(22, "Metadata contexts need structured replies; every SET, even a failed one, wipes them")
def contexts_wiped(t):
    with_contexts(t)
    t.expect_refusal(t.greeted(), w.OPT_SET_META_CONTEXT, w.pack_meta(t.export, [ALLOCATION]),
                     (w.ERR_INVALID, w.ERR_EXT_HEADER_REQD), "SET before STRUCTURED_REPLY")
    spoilers = [("malformed", b"x"), ("cut off", w.pack_meta(t.export, [ALLOCATION])[:-1]),
                ("of no query", w.pack_meta(t.export, []))]
    if not t.takes_any_name():
        spoilers.append(("for an unknown export", w.pack_meta("there-is-none", [ALLOCATION])))
    for what, payload in spoilers:
        connection = with_contexts(t)
        connection.ask(w.OPT_SET_META_CONTEXT, payload)
        expect_no_status(t, connection, t.export, f"after a SET {what}")


@rule(23, "Queries: none selects nothing and lists all; namespaces list; unknown ones are ignored")
def queries(t):
    def ask(option, texts, may_fail=False):
        replies = with_contexts(t).ask(option, w.pack_meta(t.export, texts))
        if may_fail and replies[-1].kind == w.ERR_INVALID:
            t.note(f"a query of \"{texts[0][:20]}\" is ERR_INVALID")
            return [ALLOCATION]
        t.expect(replies[-1].kind == w.REP_ACK, f"queries {[q[:20] for q in texts]}: {replies[-1]}")
        return [reply.payload[4:].decode() for reply in replies[:-1]]

    t.expect(ask(w.OPT_SET_META_CONTEXT, []) == [], "SET of no query selected something")
    everything = ask(w.OPT_LIST_META_CONTEXT, [])
    t.expect(ALLOCATION in everything, f"LIST of no query: {everything}")
    t.expect(ask(w.OPT_LIST_META_CONTEXT, ["base:"]) == [ALLOCATION], "LIST of base:")
    t.expect(ask(w.OPT_SET_META_CONTEXT, ["base:"]) == [], "SET of base: selected something")
    for unknown in ("x-there-is:none", "base:none", "base:allocationx", "nocolon", "", "x" * 5000):
        may_fail = not unknown.startswith("x-")
        t.expect(ask(w.OPT_SET_META_CONTEXT, [unknown, ALLOCATION], may_fail) == [ALLOCATION],
                 f"SET of \"{unknown[:20]}\" and base:allocation")
    whole = w.pack_meta(t.export, [ALLOCATION, "base:"])
    for option in (w.OPT_LIST_META_CONTEXT, w.OPT_SET_META_CONTEXT):
        for cut in range(0, len(whole), 3):
            t.expect_refusal(with_contexts(t), option, whole[:cut], (w.ERR_INVALID,),
                             f"queries cut off at {cut}")


@rule(24, "A query named twice is one context; ids are distinct, and 0 in a LIST")
def duplicate_queries(t):
    connection = with_contexts(t)
    replies = connection.ask(w.OPT_SET_META_CONTEXT,
                             w.pack_meta(t.export, [ALLOCATION, DEPTH, ALLOCATION, DEPTH]))
    contexts = [(reply.payload[4:], reply.payload[:4]) for reply in replies[:-1]]
    t.expect(len({name for name, _ in contexts}) == len(contexts), f"twice in {contexts}")
    t.expect(len({number for _, number in contexts}) == len(contexts), f"ids in {contexts}")
    replies = connection.ask(w.OPT_LIST_META_CONTEXT, w.pack_meta(t.export, []))
    t.expect(all(reply.payload[:4] == bytes(4) for reply in replies[:-1]), "ids in a LIST")


@rule(25, "Contexts hold for the export they were selected for only; DF stays")
def contexts_of_another_export(t):
    other = t.target.values.get("other-export")
    if other is None and not t.takes_any_name():
        t.skip("there is one export only")
    connection = with_contexts(t)
    expect_no_status(t, connection, other or "another-export", "of another export")
    if connection.flags & w.SEND_DF:
        result = connection.read(0, 4096, w.DF)
        t.expect_good(result)
        t.expect_no_faults(result)


@rule(26, "A handshake is bounded, in options and in time, and holds up nobody else")
def bounded_handshake(t):
    connection = t.greeted()
    one = struct.pack(">QII", w.IHAVEOPT, 0x7FFFFFF0, 0)
    try:
        for _ in range(OPTIONS_TO_SEND // 100):
            connection.send(one * 100)
            for _ in range(100):
                connection.option_reply()
        t.expect(False, f"{OPTIONS_TO_SEND} options were answered, without an end")
    except w.Closed:
        pass
    seconds = t.suite.background.slow_handshake_sec(HANDSHAKE_SEC)
    t.expect(seconds is not None,
             f"a client that sends a byte a second was not ended within {HANDSHAKE_SEC - 2} s")
