# SPDX-License-Identifier: BSD-2-Clause
"""Requests and replies: rules 31 to 58."""

import random
import signal
import socket
import struct
import time

import nbd_wire as w
from conformance_check import MIB, rule
from conformance_handshake import ALLOCATION, DEPTH
from conformance_target import BACKED_BYTES, BAD_AT

GIB = 1 << 30
UNIT = 65536
WIRE_ERRORS = (w.EPERM, w.EIO, w.ENOMEM, w.EINVAL, w.ENOSPC, w.EOVERFLOW, w.ENOTSUP, w.ESHUTDOWN)
SLOW_SEC = 1.0
EXCESS_CLIENTS = 24


def pattern(length, seed=1):
    return random.Random(seed).randbytes(length)


def chunked_form(t):
    """The richest form with chunks."""
    forms = t.forms()
    if len(forms) == 1:
        t.skip("neither structured replies nor extended headers are offered")
    return forms[-1]


def status_connection(t, form=w.STRUCTURED, contexts=(ALLOCATION,), server=None):
    return t.enter(form, contexts, server=server)


def full_extents(connection, offset, length, context=ALLOCATION):
    """The status of a whole range, in pieces as the server gives it."""
    found = []
    end = offset + length
    while offset < end:
        result = connection.status(offset, min(end - offset, GIB))
        if result.error:
            raise w.WireError(f"{result.request}: {result.name}")
        for size, status in result.extents[connection.contexts[context]]:
            if offset >= end:
                break
            found.append((offset, min(size, end - offset), status))
            offset += size
    return found


@rule(31, "A bad request magic disconnects; cookies come back bit for bit, and may repeat")
def magic_and_cookie(t):
    for form in t.forms():
        connection = t.enter(form)
        for cookie in (0, 1, 0xFFFFFFFFFFFFFFFF, 0x0123456789ABCDEF, 0x8000000000000000):
            t.expect_good(connection.command(w.READ, 0, 512, cookie=cookie))
        for _ in range(3):
            connection.request(w.READ, 0, 512, cookie=77)
        for _ in range(3):
            t.expect_good(connection.receive())
        wrong = w.REQUEST_MAGIC if form == w.EXTENDED else w.EXTENDED_REQUEST_MAGIC
        for magic in (wrong, w.SIMPLE_REPLY_MAGIC):
            connection = t.enter(form)
            connection.request(w.READ, 0, 512, magic=magic)
            t.expect_cut(connection, f"headers {form}, request magic {magic:#x}")


def refused_write(t, connection, offset, length, flags, errors):
    flags |= w.PAYLOAD_LEN if connection.form == w.EXTENDED else 0
    result = connection.command(w.WRITE, offset, length, b"\x25" * length, flags=flags)
    t.expect_error(result, errors)
    connection.in_step()


@rule(32, "A refused WRITE is drained to its last byte; an absurd one may end the connection")
def refused_writes(t):
    for form in t.forms():
        connection = t.writable(form)
        size = connection.size
        for length in (512, 65536, 1 << 20):
            refused_write(t, connection, size - 512, length + 512, 0, (w.ENOSPC, w.EINVAL))
            refused_write(t, connection, (1 << 64) - 512, length, 0, (w.ENOSPC, w.EINVAL))
            refused_write(t, connection, 0, length, 0x8000, w.EINVAL)
    if t.target.has_variant("read-only"):
        connection = t.enter(server=t.variant("read-only"))
        refused_write(t, connection, 0, 300000, 0, (w.EPERM, w.EINVAL))
    connection = t.writable()
    before = t.server.memory_bytes()
    connection.request(w.WRITE, 0, 0xFFFFF000)
    try:
        result = connection.receive()
        t.expect(result.error, "a WRITE of 2^32-4096 bytes, without them, is answered by success")
        t.expect_closed(connection, "a WRITE of 2^32-4096 bytes, answered")
    except w.Closed:
        pass
    except w.WireError:
        t.note("a WRITE of 2^32-4096 bytes is waited for")
        after = t.server.memory_bytes()
        if before is not None and after is not None:
            t.expect(after - before < 256 * MIB, f"it is allocated: {(after - before) >> 20} MiB")


@rule(33, "Once there are chunks a READ is never answered by a simple reply; extended: nothing is")
def never_simple(t):
    chunked_form(t)
    for form in t.forms()[1:]:
        connection = t.enter(form)
        results = [connection.read(0, 512), connection.read(0, 512, 0x8000),
                   connection.read(connection.size, 512), connection.read(512, 0)]
        if form == w.EXTENDED:
            results += [connection.command(w.CACHE, 0, 512), connection.command(99),
                        connection.flush()]
            if not connection.flags & w.READ_ONLY:
                at = t.room(connection)
                results += [connection.write(at, bytes(4096)),
                            connection.command(w.WRITE_ZEROES, at + 4096, 512)]
        for result in results:
            t.expect_no_faults(result, ("simple", "offset"))
    t.expect_journal_clean(("simple", "offset"))


@rule(34, "Every structured reply ends with one DONE; NONE is empty and has it")
def one_done(t):
    chunked_form(t)
    for form in t.forms()[1:]:
        connection = t.enter(form)
        for _ in range(20):
            connection.request(w.READ, 0, 65536)
            connection.request(w.READ, connection.size, 1)
        for _ in range(40):
            t.expect_no_faults(connection.receive(), ("done",))
        t.expect(connection.is_silent(), "a chunk came after DONE")
    t.expect_journal_clean(("done",))


@rule(35, "A read error leaves the connection in step; a simple reply that began is cut off")
def read_errors(t):
    server = t.variant("failing-reads")
    first = True
    for form in t.forms():
        connection = t.enter(form, server=server)
        for offset, length in ((BAD_AT, 512), (BAD_AT - UNIT, 2 * UNIT), (BAD_AT, 65536)):
            try:
                result = connection.read(offset, length)
            except w.Closed as error:
                t.expect(form == w.SIMPLE, f"headers {form}: {error}")
                break
            # A server may give a damaged image up after the first error.
            t.expect_error(result, w.EIO if first else (w.EIO, w.EINVAL),
                           f"headers {form}, a read that fails at {offset}")
            t.expect_no_faults(result)
            first = False
            if connection.read(0, 512).error and not connection.flags & w.READ_ONLY:
                t.note("after one read error all reads fail")
            connection.in_step()


def make_holes(t, connection):
    """A place where data and zeroes alternate; its offset and content."""
    at = t.room(connection)
    content = b""
    for index in range(8):
        content += pattern(UNIT, index) if index % 2 else bytes(UNIT)
    for index in range(1, 8, 2):
        t.expect_good(connection.write(at + index * UNIT, content[index * UNIT:(index + 1) * UNIT]))
    return at, content


@rule(36, "Chunks of a READ cover each byte once, inside the request, none empty")
def chunks_cover(t):
    chunked_form(t)
    for form in t.forms()[1:]:
        connection = t.writable(form)
        at, content = make_holes(t, connection)
        for start, length in ((0, len(content)), (100, 200), (UNIT - 1, 2), (5, len(content) - 9),
                              (UNIT, UNIT), (2 * UNIT, UNIT), (777, 3 * UNIT)):
            result = connection.read(at + start, length)
            t.expect_good(result)
            t.expect_no_faults(result, ("content",))
            t.expect(result.data == content[start:start + length], f"{result.request}: other bytes")
        result = connection.read(at, 0)
        t.expect_no_faults(result, ("content",))
        result = connection.read(4 * MIB, min(32 * MIB, connection.size - 4 * MIB))
        t.expect_no_faults(result, ("content",))
    t.expect_journal_clean(("content",))


@rule(37, "DF: one content chunk, up to 64 KiB always, else EOVERFLOW without content")
def dont_fragment(t):
    chunked_form(t)
    plain = t.enter()
    t.expect(not plain.flags & w.SEND_DF, "DF is offered without chunks")
    for form in t.forms()[1:]:
        connection = t.enter(form)
        if not connection.flags & w.SEND_DF:
            t.skip("DF is not offered")
        at = 0
        if not connection.flags & w.READ_ONLY:
            at, content = make_holes(t, connection)
            result = connection.read(at + 1000, UNIT, w.DF)
            t.expect(result.data == content[1000:1000 + UNIT], "other bytes with DF")
        for length in (512, UNIT, 8 * UNIT, 16 * MIB):
            result = connection.read(at, length, w.DF)
            t.expect_error(result, 0 if length <= UNIT else (0, w.EOVERFLOW))
            t.expect_no_faults(result)
            content = [chunk for chunk in result.chunks
                       if chunk.kind in (w.TYPE_OFFSET_DATA, w.TYPE_OFFSET_HOLE)]
            t.expect(not (result.error and content), f"{result.request}: content and an error")


@rule(38, "Error chunks: a number, and a UTF-8 message of at most 4096 bytes within the chunk")
def error_chunks(t):
    chunked_form(t)
    for form in t.forms()[1:]:
        connection = t.enter(form)
        for result in (connection.read(connection.size, 512), connection.read(0, 512, 0x8000),
                       connection.command(4711)):
            t.expect(result.error, f"{result.request} succeeds")
            t.expect_no_faults(result, ("error chunk",))
    t.expect_journal_clean(("error chunk",))


@rule(39, "Only the protocol's eight error numbers; EOVERFLOW and ENOTSUP where they belong")
def error_numbers(t):
    connection = t.enter()
    result = connection.read(0, min(connection.size, 0xFFFFFE00))
    t.expect_error(result, (w.EINVAL, w.EOVERFLOW, w.ENOMEM), "a READ of 2^32-512 bytes")
    if result.error == w.ENOMEM:
        t.note("a READ of 2^32-512 bytes is ENOMEM")
    for number, example in t.journal.errors.items():
        t.expect(number in WIRE_ERRORS, f"the number {number}, for {example}")
    example = t.journal.errors.get(w.ENOTSUP, "")
    t.expect(not example or "WRITE_ZEROES" in example, f"ENOTSUP for {example}")


@rule(40, "Past the end: ENOSPC for writing, EINVAL else, no wrap; EPERM on a read-only export")
def past_the_end(t):
    commands = [(w.READ, w.EINVAL, 0), (w.WRITE, w.ENOSPC, 0), (w.TRIM, w.EINVAL, w.SEND_TRIM),
                (w.WRITE_ZEROES, w.ENOSPC, w.SEND_WRITE_ZEROES), (w.CACHE, w.EINVAL, w.SEND_CACHE)]
    for form in t.forms():
        connection = t.enter(form)
        tail = connection.size % 512
        for command, error, flag in commands:
            if flag and not connection.flags & flag:
                continue
            if command == w.WRITE and connection.flags & w.READ_ONLY:
                continue
            for offset in (connection.size - tail, connection.size + 512, (1 << 63), (1 << 64) - 512):
                length = 512 + tail
                payload = bytes(length) if command == w.WRITE else b""
                flags = w.PAYLOAD_LEN if payload and form == w.EXTENDED else 0
                result = connection.command(command, offset, length, payload, flags=flags)
                t.expect_error(result, error)
            connection.in_step()
        if form == w.EXTENDED:
            result = connection.command(w.TRIM, 512, (1 << 64) - 512)
            t.expect(result.error, f"{result.request}: success")
    if not t.target.has_variant("read-only"):
        t.note("no read-only server to try")
        return
    connection = t.enter(server=t.variant("read-only"))
    t.expect(connection.flags & w.READ_ONLY, "the read-only flag is not set")
    for command in (w.WRITE, w.TRIM, w.WRITE_ZEROES):
        result = connection.command(command, 0, 512, bytes(512) if command == w.WRITE else b"")
        t.expect_error(result, w.EPERM, f"{w.command_name(command)} on a read-only export")
    t.expect_good(connection.read(0, 512))


@rule(41, "Unknown commands and flags are EINVAL and end nothing; FUA is good on every command")
def commands_and_flags(t):
    for form in t.forms():
        connection = t.enter(form)
        for command in (8, 9, 99, 0x7FFF, 0xFFFF):
            t.expect_error(connection.command(command, 0, 512), w.EINVAL)
        for command, flags in ((w.READ, 0x8000), (w.READ, w.NO_HOLE), (w.READ, w.REQ_ONE),
                               (w.FLUSH, 0x4000), (w.FLUSH, w.DF), (w.CACHE, w.FAST_ZERO),
                               (w.READ, w.FAST_ZERO)):
            if command == w.FLUSH and not connection.flags & w.SEND_FLUSH:
                continue
            length = 0 if command == w.FLUSH else 512
            t.expect_error(connection.command(command, 0, length, flags=flags), w.EINVAL)
        if connection.flags & w.SEND_FUA:
            t.expect_good(connection.command(w.READ, 0, 512, flags=w.FUA))
            if connection.flags & w.SEND_FLUSH:
                t.expect_good(connection.command(w.FLUSH, flags=w.FUA))
        else:
            t.note("FUA is not offered")
        connection.in_step()


@rule(42, "Requests of no bytes end nothing; READ has no empty chunk, BLOCK_STATUS is EINVAL")
def zero_lengths(t):
    for form in t.forms():
        connection = t.writable(form)
        for command in (w.READ, w.WRITE, w.TRIM, w.WRITE_ZEROES, w.CACHE):
            flags = w.PAYLOAD_LEN if command == w.WRITE and form == w.EXTENDED else 0
            for offset in (0, connection.size):
                result = connection.command(command, offset, 0, flags=flags)
                t.expect_error(result, (0, w.EINVAL, w.ENOSPC))
                t.expect_no_faults(result)
        connection.in_step()
        if form != w.SIMPLE and t.suite.facts.get("contexts", True):
            with_status = t.negotiated(form)
            with_status.set_meta(t.export, [ALLOCATION])
            t.suite.facts["contexts"] = bool(with_status.contexts)
            t.go_on(with_status, t.export)
            t.expect_error(with_status.status(0, 0), w.EINVAL)


def survivor(t, change, expected, what):
    """Makes a change, kills the server without a warning, and looks what is left."""
    if not t.target.persistent:
        t.skip("nothing that this server keeps outlives it")
    server = t.local_server()
    connection = t.writable(server=server)
    at = t.room(connection)
    t.expect_good(connection.write(at, pattern(4 * UNIT)))
    if connection.flags & w.SEND_FLUSH:
        t.expect_good(connection.flush())
    change(server, connection, at)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    deadline = time.monotonic() + 5
    while True:
        try:
            server.start()
            break
        except w.WireError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    connection = t.enter(server=server)
    t.expect_data(connection, at, expected, what)


@rule(43, "FLUSH covers every write answered before it, on any connection; its range is ignored")
def flush(t):
    connection = t.writable(flags=w.SEND_FLUSH)
    result = connection.command(w.FLUSH, 0x123456, 777)
    t.expect_error(result, (0, w.EINVAL), "a FLUSH with a range")
    data = pattern(4 * UNIT, 2)

    def change(server, first, at):
        other = t.enter(server=server) if first.flags & w.CAN_MULTI_CONN else first
        t.expect_good(first.write(at, data))
        t.expect_good(other.flush(), "FLUSH on another connection")

    survivor(t, change, data, "a write that a FLUSH had covered, after a kill")


@rule(44, "FUA makes WRITE, WRITE_ZEROES and TRIM last before they are answered")
def fua(t):
    connection = t.writable(flags=w.SEND_FUA)
    data = pattern(4 * UNIT, 3)
    expected = bytearray(data)

    def change(_, client, at):
        t.expect_good(client.write(at, data, w.FUA))
        if client.flags & w.SEND_WRITE_ZEROES:
            t.expect_good(client.command(w.WRITE_ZEROES, at + 100, UNIT, flags=w.FUA))
            expected[100:100 + UNIT] = bytes(UNIT)
        if client.flags & w.SEND_TRIM:
            t.expect_good(client.command(w.TRIM, at + 2 * UNIT, UNIT, flags=w.FUA))
            after = client.read(at + 2 * UNIT, UNIT)
            expected[2 * UNIT:3 * UNIT] = after.data  # anything, but this for good

    connection.close()
    survivor(t, change, expected, "changes with FUA, after a kill")


def slowest_read(t, form, command):
    """Seconds that other requests waited while this one ran, and its result."""
    connection = t.writable(form)
    other = t.enter(form)
    kind, offset, length, flags = command
    connection.request(kind, offset, length, flags=flags)
    slowest = 0.0
    for connection_used in (other, other, other):
        begin = time.monotonic()
        t.expect_good(connection_used.read(512, 4096))
        slowest = max(slowest, time.monotonic() - begin)
    return slowest, connection.receive()


@rule(45, "TRIM leaves old bytes or zeroes, never others; its size alone never fails or blocks")
def trim(t):
    connection = t.writable(flags=w.SEND_TRIM)
    at = t.room(connection)
    data = pattern(4 * UNIT, 4)
    t.expect_good(connection.write(at, data))
    t.expect_good(connection.command(w.TRIM, at + 700, 3 * UNIT))
    after = connection.read(at, 4 * UNIT).data
    t.expect(after[:700] == data[:700] and after[700 + 3 * UNIT:] == data[700 + 3 * UNIT:],
             "bytes around a TRIM changed")
    odd = sum(new not in (old, 0) for new, old in zip(after, data))
    t.expect(odd == 0, f"{odd} bytes are neither old nor zero after a TRIM")

    most = min(connection.size - 2 * GIB, 0xFFFFFE00) if connection.size > 4 * GIB else 0
    if most:
        offset = connection.size - most - connection.size % 512
        slowest, result = slowest_read(t, w.SIMPLE, (w.TRIM, offset, most, 0))
        t.expect_good(result)
        t.expect(slowest < SLOW_SEC, f"a read waited {slowest:.1f} s for it")
        if w.EXTENDED in t.forms():
            slowest, result = slowest_read(t, w.EXTENDED, (w.TRIM, 4 * GIB - 512,
                                                           connection.size - 4 * GIB + 512, 0))
            t.expect_good(result)
            t.expect(slowest < SLOW_SEC, f"a read waited {slowest:.1f} s for it")
    else:
        t.note("the export is too small for large requests")
    if t.target.has_variant("backed"):
        connection = t.writable(server=t.variant("backed"), flags=w.SEND_TRIM)
        t.expect_data(connection, 0, b"\x5a" * BACKED_BYTES, "the backing file")
        t.expect_good(connection.write(0, b"\xa5" * 2 * UNIT))
        t.expect_good(connection.command(w.TRIM, 0, 4 * UNIT))
        after = connection.read(0, 2 * UNIT).data
        t.expect(not any(byte == 0x5A for byte in after),
                 "a TRIM uncovered what the backing file holds below overwritten bytes")


@rule(46, "WRITE_ZEROES always reads as zeroes, of any size; NO_HOLE leaves space allocated")
def write_zeroes(t):
    connection = t.writable(flags=w.SEND_WRITE_ZEROES)
    at = t.room(connection)
    for flags in (0, w.NO_HOLE):
        data = pattern(4 * UNIT, 5)
        t.expect_good(connection.write(at, data))
        t.expect_good(connection.command(w.WRITE_ZEROES, at + 513, 2 * UNIT, flags=flags))
        expected = data[:513] + bytes(2 * UNIT) + data[513 + 2 * UNIT:]
        t.expect_data(connection, at, expected, f"WRITE_ZEROES with flags {flags:#x}")
    large = min(connection.size - at, 256 * MIB)
    t.expect_good(connection.command(w.WRITE_ZEROES, at, large))
    t.expect_data(connection, at, bytes(4 * UNIT), "WRITE_ZEROES of 256 MiB")
    if connection.size > 8 * GIB and w.EXTENDED in t.forms():
        length = connection.size - 4 * GIB - connection.size % 512
        slowest, result = slowest_read(t, w.EXTENDED, (w.WRITE_ZEROES, 4 * GIB, length, 0))
        t.expect_good(result)
        t.expect(slowest < SLOW_SEC, f"a read waited {slowest:.1f} s for it")
    if w.STRUCTURED in t.forms():
        with_status = t.negotiated(w.STRUCTURED)
        with_status.set_meta(t.export, [ALLOCATION])
        if not with_status.contexts:
            return
        t.go_on(with_status, t.export)
        t.expect_good(with_status.command(w.WRITE_ZEROES, at, 4 * UNIT, flags=w.NO_HOLE))
        holes = [size for _, size, status in full_extents(with_status, at, 4 * UNIT)
                 if status & w.STATE_HOLE]
        t.expect(not holes, f"{sum(holes)} bytes are called holes after NO_HOLE")


@rule(47, "FAST_ZERO: zeroes, or ENOTSUP and nothing changed; ENOTSUP never without it")
def fast_zero(t):
    connection = t.writable(flags=w.SEND_WRITE_ZEROES)
    at = t.room(connection)
    if not connection.flags & w.SEND_FAST_ZERO:
        t.expect_error(connection.command(w.WRITE_ZEROES, at, UNIT, flags=w.FAST_ZERO), w.EINVAL,
                       "FAST_ZERO that is not offered")
        t.skip("FAST_ZERO is not offered")
    data = pattern(4 * UNIT, 6)
    for offset, length in ((0, 4 * UNIT), (512, 512), (UNIT - 512, UNIT), (0, UNIT)):
        for extra in (0, w.NO_HOLE):
            t.expect_good(connection.write(at, data))
            begin = time.monotonic()
            result = connection.command(w.WRITE_ZEROES, at + offset, length,
                                        flags=w.FAST_ZERO | extra)
            took = time.monotonic() - begin
            t.expect_error(result, (0, w.ENOTSUP))
            t.expect(took < SLOW_SEC, f"{result.request} took {took:.1f} s")
            expected = data if result.error else \
                data[:offset] + bytes(length) + data[offset + length:]
            t.expect_data(connection, at, expected, f"{result.request}: {result.name}")
            t.expect_good(connection.command(w.WRITE_ZEROES, at + offset, length, flags=extra))
    large = min(connection.size - at, 0xFFFFFE00)
    t.expect_error(connection.command(w.WRITE_ZEROES, at, large, flags=w.FAST_ZERO),
                   (0, w.ENOTSUP))


@rule(48, "base:allocation: what it calls ZERO reads as zeroes, and data is neither ZERO nor HOLE")
def allocation_is_true(t):
    connection = status_connection(t)
    if connection.flags & w.READ_ONLY:
        t.skip("the export is read-only")
    at, _ = make_holes(t, connection)
    if connection.flags & w.SEND_TRIM:
        connection.command(w.TRIM, at + UNIT, UNIT // 2)
    content = connection.read(at, 8 * UNIT).data
    for offset, size, status in full_extents(connection, at, 8 * UNIT):
        piece = content[offset - at:offset - at + size]
        t.expect(not (status & w.STATE_ZERO and any(piece)), f"data at {offset} is called ZERO")
        t.expect(not (status & w.STATE_HOLE and any(piece)), f"data at {offset} is called HOLE")
        t.expect(not status & ~3, f"status {status:#x}")
    if t.target.has_variant("backed"):
        connection = status_connection(t, server=t.variant("backed"))
        for offset, size, status in full_extents(connection, 0, 2 * BACKED_BYTES):
            backed = offset < BACKED_BYTES
            t.expect(not (status & w.STATE_ZERO and backed),
                     f"the backing file's data at {offset} is called ZERO")
            if backed and not status & w.STATE_HOLE:
                t.note("data of the backing file is called allocated")


def status_requests(size):
    yield from ((0, 512), (0, UNIT), (100, 1), (UNIT - 1, 2), (size - 512, 512), (size - 1, 1),
                (0, min(size, 0xFFFFFE00)), (size // 2, min(size // 4, GIB)))


@rule(49, "BLOCK_STATUS: one chunk a context, extents within reason, REQ_ONE exactly one")
def block_status(t):
    connection = status_connection(t)
    at = make_holes(t, connection)[0] if not connection.flags & w.READ_ONLY else 0
    for offset, length in list(status_requests(connection.size)) + [(at, 8 * UNIT), (at + 9, 99)]:
        offset -= offset % connection.minimum
        length += -length % connection.minimum
        for flags in (0, w.REQ_ONE):
            result = connection.status(offset, length, flags)
            t.expect_good(result)
            t.expect_no_faults(result)
            for extents in result.extents.values():
                t.expect(all(left[1] != right[1] for left, right in zip(extents, extents[1:])),
                         f"{result.request}: equal neighbours")
                tail = (offset + sum(size for size, _ in extents)) == connection.size
                t.expect(all(size % connection.minimum == 0
                             for size, _ in extents[:-1 if tail else None]),
                         f"{result.request}: extents that are no multiple of the minimum block")
    both = t.negotiated(w.STRUCTURED)
    both.set_meta(t.export, [ALLOCATION, DEPTH])
    if len(both.contexts) == 2:
        t.go_on(both, t.export)
        for offset, length in ((at, 8 * UNIT), (0, 512)):
            result = both.status(offset, length)
            t.expect(len(result.extents) == 2, f"{len(result.extents)} chunks for two contexts")
            t.expect_no_faults(result)
    t.expect_journal_clean(("extents",))


@rule(50, "With extended headers BLOCK_STATUS has 64-bit extents, for short requests too")
def block_status_extended(t):
    connection = status_connection(t, w.EXTENDED)
    for offset, length in list(status_requests(connection.size)) + [(0, connection.size)]:
        offset -= offset % connection.minimum
        length += -length % connection.minimum
        result = connection.status(offset, length)
        t.expect_good(result)
        t.expect_no_faults(result)
        t.expect(all(chunk.kind == w.TYPE_BLOCK_STATUS_EXT for chunk in result.chunks
                     if chunk.kind != w.TYPE_NONE), f"{result.request}: not of type 6")


def filtered_status(connection, ids, length, offset=0, raw=None):
    payload = raw if raw is not None else struct.pack(f">Q{len(ids)}I", length, *ids)
    request = connection.request(w.BLOCK_STATUS, offset, len(payload), payload,
                                 flags=w.PAYLOAD_LEN)
    request.effect_length = length
    return connection.receive()


@rule(51, "A BLOCK_STATUS payload names contexts once; foreign payloads are drained or disconnect")
def payloads(t):
    bare = t.enter(w.EXTENDED)
    t.expect(not bare.flags & w.BLOCK_STATUS_PAYLOAD,
             "BLOCK_STATUS_PAYLOAD is offered without contexts")
    for command in (w.READ, w.FLUSH, w.TRIM, w.WRITE_ZEROES, w.CACHE, w.BLOCK_STATUS, 99):
        for length in (1, 12, 50000):
            result = bare.command(command, 0, length, b"\x33" * length, flags=w.PAYLOAD_LEN)
            t.expect_error(result, w.EINVAL)
            bare.in_step()
    bare.request(w.FLUSH, 0, 1 << 40, flags=w.PAYLOAD_LEN)
    try:
        t.expect(bare.receive().error, "a payload of 2^40 bytes: success")
        t.expect_closed(bare, "a payload of 2^40 bytes")
    except w.Closed:
        pass
    structured = t.enter(w.STRUCTURED)
    t.expect(not structured.flags & w.BLOCK_STATUS_PAYLOAD, "offered with structured replies")

    connection = status_connection(t, w.EXTENDED)
    if not connection.flags & w.BLOCK_STATUS_PAYLOAD:
        t.note("BLOCK_STATUS_PAYLOAD is not offered")
        return
    good = connection.contexts[ALLOCATION]
    result = filtered_status(connection, [good], UNIT)
    t.expect_good(result)
    t.expect(list(result.extents) == [good], f"contexts {list(result.extents)} were answered")
    t.expect_no_faults(result)
    length = connection.size
    result = filtered_status(connection, [good], length)
    t.expect_good(result, "a payload with an effect of the whole export")
    for what, ids in (("an unknown context", [good ^ 0x5555]), ("a context twice", [good, good])):
        t.expect_error(filtered_status(connection, ids, UNIT), w.EINVAL, what)
        connection.in_step()
    for size in (1, 7, 9, 11, 13, 300):
        t.expect_error(filtered_status(connection, [], UNIT, raw=bytes(size)), w.EINVAL,
                       f"a payload of {size} bytes")
        connection.in_step()
    result = filtered_status(connection, [good], UNIT, connection.size)
    t.expect_error(result, w.EINVAL, "a payload's effect past the end")
    connection = t.negotiated(w.EXTENDED)
    connection.set_meta(t.export, [ALLOCATION, DEPTH])
    if len(connection.contexts) == 2:
        t.go_on(connection, t.export)
        for wanted in connection.contexts.values():
            result = filtered_status(connection, [wanted], UNIT)
            t.expect(list(result.extents) == [wanted], f"{wanted} asked, {list(result.extents)}")


@rule(52, "An extended WRITE without PAYLOAD_LEN is served, or refused without taking data for requests")
def write_without_payload_flag(t):
    connection = t.writable(w.EXTENDED)
    at = t.room(connection)
    t.expect_good(connection.write(at, bytes(4096)))
    # Data that would be a WRITE of 512 bytes, if it were read as a request.
    _, trap = connection.pack_request(w.WRITE, at, 512, b"\x66" * 512, flags=w.PAYLOAD_LEN)
    connection.pending.clear()
    connection.request(w.WRITE, at + 8192, len(trap), trap)
    try:
        result = connection.receive()
        if t.expect_error(result, (0, w.EINVAL)) and not connection.is_closed(0.3):
            connection.in_step()
            after = connection.read(at + 8192, len(trap)).data
            t.expect(result.error or after == trap, "a success that wrote nothing")
            t.note("its length is taken for a payload's")
        else:
            t.note("it is refused, and the connection ended")
    except w.Closed:
        t.note("the connection is ended")
    t.expect_data(t.enter(), at, bytes(4096), "what the data would have written as a request")


@rule(53, "CACHE is a hint: success or EINVAL, and nothing changes; its unknown flags are EINVAL")
def cache(t):
    connection = t.enter()
    before = connection.read(0, UNIT).data
    for offset, length in ((0, UNIT), (512, 1), (0, min(connection.size, GIB))):
        t.expect_error(connection.command(w.CACHE, offset, length), (0, w.EINVAL))
    for flags in (0x8000, w.DF, w.NO_HOLE):
        t.expect_error(connection.command(w.CACHE, 0, UNIT, flags=flags), w.EINVAL)
    t.expect(connection.read(0, UNIT).data == before, "CACHE changed data")
    if not connection.flags & w.SEND_CACHE:
        t.note("CACHE is not offered")


@rule(54, "DISC: what is outstanding is answered, then the connection closes; leaving is no error")
def disconnect(t):
    for form in t.forms():
        connection = t.enter(form)
        data = b""
        for index in range(16):
            data += connection.pack_request(w.READ, index * UNIT, UNIT)[1]
        data += connection.pack_request(w.DISC)[1]
        connection.pending.pop(connection.next_cookie - 1)
        connection.send(data)
        for index in range(16):
            try:
                t.expect_error(connection.receive(), (0, w.ESHUTDOWN))
            except w.Closed:
                t.expect(False, f"headers {form}: {index} of 16 requests were answered after DISC")
                break
        else:
            t.expect_closed(connection, f"DISC, headers {form}")
    connection = t.enter()
    connection.request(w.DISC, 12345, 678, flags=0xFFDF)
    try:
        t.expect_closed(connection, "DISC with a range and flags")
    except w.WireError:
        t.note("DISC with a range and flags is answered")
    before = t.server.log() if t.target.has_log else ""
    connection = t.enter()
    t.expect_good(connection.read(0, 512))
    connection.close()
    time.sleep(0.05)
    t.expect(t.server.alive(), "a client left without DISC: the server is gone")
    if t.target.has_log:
        said = t.server.log()[len(before):].strip()
        t.expect(not said, f"a client left without DISC, the log says: {said[:200]}")


@rule(55, "Replies are never torn; a client that does not read holds up nobody else")
def stalled_reader(t):
    for form in t.forms():
        connection = t.enter(form)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        data = b"".join(connection.pack_request(w.READ, 4096 * index, 30000 + index)[1]
                        for index in range(48))
        connection.send(data)
        time.sleep(0.05)
        for _ in range(48):  # taken apart strictly
            t.expect_good(connection.receive())
    stalled = t.enter()
    stalled.sock.setblocking(False)
    requests = b"".join(stalled.pack_request(w.READ, 0, MIB)[1] for _ in range(400))
    try:
        stalled.sock.send(requests)
    except BlockingIOError:
        pass
    time.sleep(0.2)
    before = t.server.memory_bytes()
    other = t.enter()
    begin = time.monotonic()
    for _ in range(20):
        t.expect_good(other.read(0, 4096))
    took = time.monotonic() - begin
    t.expect(took < SLOW_SEC, f"20 reads took {took:.1f} s beside a client that does not read")
    after = t.server.memory_bytes()
    if before is not None and after is not None:
        t.expect(after - before < 512 * MIB, f"memory grew by {(after - before) >> 20} MiB")


@rule(56, "On shutdown requests are finished or ESHUTDOWN, options ERR_SHUTDOWN; it ends in time")
def shutdown(t):
    server = t.local_server()
    connection = t.writable(server=server)
    haggling = t.greeted(server=server)
    at = t.room(connection)
    data = b"".join(connection.pack_request(w.WRITE, at + index * UNIT, UNIT,
                                            bytes([index + 1]) * UNIT)[1] for index in range(32))
    connection.send(data)
    server.process.send_signal(signal.SIGTERM)
    written = set()
    try:
        for _ in range(32):
            result = connection.receive()
            if t.expect_error(result, (0, w.ESHUTDOWN)) and not result.error:
                written.add((result.request.offset - at) // UNIT)
    except w.Closed:
        pass
    try:
        last = haggling.ask(w.OPT_LIST)[-1]
        t.expect(last.kind in (w.ERR_SHUTDOWN, w.REP_ACK), f"LIST while shutting down: {last}")
    except w.Closed:
        pass
    connection.close()
    haggling.close()
    status = server.stop()
    t.expect(status == 0, f"exit status {status} after SIGTERM")
    if t.target.persistent and written:
        server.start()
        connection = t.enter(server=server)
        for index in sorted(written):
            t.expect_data(connection, at + index * UNIT, bytes([index + 1]) * UNIT,
                          "a write that was answered before the end")
    seconds = t.suite.background.stalled_shutdown_sec()
    t.expect(seconds is not None, "with a client that does not read, SIGTERM does not end it")


@rule(57, "CAN_MULTI_CONN: what is flushed on one connection is seen on another; none is left waiting")
def multi_conn(t):
    clients = []
    for _ in range(EXCESS_CLIENTS):
        clients.append(t.connect(timeout_sec=2))
    for index, client in enumerate(clients):
        try:
            client.greet()
        except w.Closed:
            pass
        except w.WireError as error:
            t.expect(False, f"client {index + 1} of {EXCESS_CLIENTS}: {error}")
            break
    for client in clients:
        client.close()
    first = t.writable()
    if not first.flags & w.CAN_MULTI_CONN:
        t.skip("CAN_MULTI_CONN is not offered")
    second, third = t.enter(), t.enter()
    at = t.room(first)
    for index in range(8):
        data = pattern(UNIT, 100 + index)
        t.expect_good(first.write(at, data, w.FUA if index % 2 else 0))
        if not index % 2:
            t.expect_good(third.flush())
        t.expect_data(second, at, data, "a flushed write, on another connection")


@rule(58, "The export's last bytes can be read, written and asked for, whatever its size")
def last_bytes(t):
    connection = t.enter()
    size, minimum = connection.size, connection.minimum
    if minimum > 1:
        t.note(f"the minimum block is {minimum}")
        t.expect(size % minimum == 0, f"size {size} is no multiple of the minimum {minimum}")
    wanted = t.target.size if t.target.address is None else size
    t.expect(size == wanted, f"the export has {size} bytes, the image {wanted}")
    t.expect_good(connection.read(size - minimum, minimum))
    t.expect_good(connection.read(size - size % 4096 - 4096, 4096 + size % 4096))
    t.expect_error(connection.read(size - minimum, minimum + 1), w.EINVAL)
    if not connection.flags & w.READ_ONLY:
        tail = pattern(max(minimum, 3))[:minimum if minimum > 1 else 3]
        t.expect_good(connection.write(size - len(tail), tail))
        t.expect_data(connection, size - len(tail), tail, "the last bytes")
    if w.STRUCTURED in t.forms():
        with_status = t.negotiated(w.STRUCTURED)
        with_status.set_meta(t.export, [ALLOCATION])
        if with_status.contexts:
            t.go_on(with_status, t.export)
            result = with_status.status(size - minimum, minimum)
            t.expect_good(result)
            t.expect_no_faults(result)
