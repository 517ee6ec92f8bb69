# SPDX-License-Identifier: BSD-2-Clause
"""An NBD client that speaks in bytes, so that it can say what a well-behaved client never would.

One Connection is one socket. Options and requests are packed here and may be malformed at will;
what the server answers is taken apart strictly: a reply that breaks the framing raises WireError,
one whose framing holds and whose content is wrong has the fault in its `faults`. Nothing here
depends on any NBD library.
"""

import socket
import ssl
import struct
import time

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REPLY_MAGIC = 0x6E8A278C

FIXED_NEWSTYLE, NO_ZEROES = 1, 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 8, 9, 10
OPT_EXTENDED_HEADERS = 11

REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_ERROR = 0x80000000
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM, ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN, \
    ERR_BLOCK_SIZE_REQD, ERR_TOO_BIG, ERR_EXT_HEADER_REQD = range(REP_ERROR + 1, REP_ERROR + 11)
REPLY_NAMES = {
    REP_ACK: "ACK", REP_SERVER: "SERVER", REP_INFO: "INFO", REP_META_CONTEXT: "META_CONTEXT",
    ERR_UNSUP: "ERR_UNSUP", ERR_POLICY: "ERR_POLICY", ERR_INVALID: "ERR_INVALID",
    ERR_PLATFORM: "ERR_PLATFORM", ERR_TLS_REQD: "ERR_TLS_REQD", ERR_UNKNOWN: "ERR_UNKNOWN",
    ERR_SHUTDOWN: "ERR_SHUTDOWN", ERR_BLOCK_SIZE_REQD: "ERR_BLOCK_SIZE_REQD",
    ERR_TOO_BIG: "ERR_TOO_BIG", ERR_EXT_HEADER_REQD: "ERR_EXT_HEADER_REQD",
}

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF = 1 << 5, 1 << 6, 1 << 7
CAN_MULTI_CONN, SEND_CACHE, SEND_FAST_ZERO = 1 << 8, 1 << 10, 1 << 11
BLOCK_STATUS_PAYLOAD = 1 << 12

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
COMMAND_NAMES = ["READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"]
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32

DONE = 1
TYPE_NONE, TYPE_OFFSET_DATA, TYPE_OFFSET_HOLE = 0, 1, 2
TYPE_BLOCK_STATUS, TYPE_BLOCK_STATUS_EXT = 5, 6
TYPE_ERROR, TYPE_ERROR_OFFSET = 0x8001, 0x8002
STATE_HOLE, STATE_ZERO = 1, 2

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
ERROR_NAMES = {0: "success", EPERM: "EPERM", EIO: "EIO", ENOMEM: "ENOMEM", EINVAL: "EINVAL",
               ENOSPC: "ENOSPC", EOVERFLOW: "EOVERFLOW", ENOTSUP: "ENOTSUP",
               ESHUTDOWN: "ESHUTDOWN"}

STRING_MAX = 4096
PAYLOAD_MAX = 32 << 20
EXTENTS_MAX = 1 << 20

SIMPLE, STRUCTURED, EXTENDED = "simple", "structured", "extended"


def error_name(number):
    return ERROR_NAMES.get(number, f"error {number}")


def reply_name(number):
    return REPLY_NAMES.get(number, hex(number))


def command_name(number):
    return COMMAND_NAMES[number] if number < len(COMMAND_NAMES) else f"command {number}"


class WireError(Exception):
    """The server broke the framing, closed the connection, or said nothing for too long."""


class Closed(WireError):
    """The server closed the connection where an answer was due."""


class OptionReply:
    def __init__(self, option, kind, payload):
        self.option, self.kind, self.payload = option, kind, payload

    def __repr__(self):
        return reply_name(self.kind)


class Chunk:
    """One reply message. A simple reply is one too: its magic tells."""

    def __init__(self, magic, flags, kind, cookie, offset, payload):
        self.magic, self.flags, self.kind = magic, flags, kind
        self.cookie, self.offset, self.payload = cookie, offset, payload


class Request:
    def __init__(self, command, flags, cookie, offset, length):
        self.command, self.flags, self.cookie = command, flags, cookie
        self.offset, self.length = offset, length
        self.effect_length = length  # another one where a payload says so

    def __str__(self):
        flags = f", flags {self.flags:#x}" if self.flags else ""
        return f"{command_name(self.command)} of {self.length} bytes at {self.offset}{flags}"


class Result:
    """Everything that one request was answered."""

    def __init__(self, request):
        self.request = request
        self.error = 0
        self.error_texts = []
        self.data = None
        self.chunks = []
        self.extents = {}  # context id -> [(length, status)]
        self.faults = []

    @property
    def name(self):
        return error_name(self.error)


class Connection:
    def __init__(self, sock, journal=None, timeout_sec=5.0):
        self.sock = sock
        self.sock.settimeout(timeout_sec)
        self.journal = journal  # a Journal that outlives the connection, or None
        self.form = SIMPLE
        self.pending = {}  # cookie -> [Request]
        self.gathered = {}  # cookie -> Result, of which more is to come
        self.next_cookie = 0x1000
        self.size = 0
        self.flags = 0
        self.contexts = {}  # name -> id
        self.server_flags = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    # -- bytes --

    def send(self, data):
        try:
            self.sock.sendall(data)
        except socket.timeout as error:
            raise WireError("the server stopped reading") from error
        except OSError as error:
            raise Closed(f"the server closed the connection ({error.strerror})") from error

    def recv(self, length):
        parts = []
        while length > 0:
            try:
                part = self.sock.recv(min(length, 1 << 20))
            except socket.timeout as error:
                raise WireError(f"no answer within {self.sock.gettimeout():.0f} s") from error
            except OSError as error:
                raise Closed(f"the server closed the connection ({error.strerror})") from error
            if not part:
                raise Closed("the server closed the connection")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def is_closed(self, within_sec=2.0):
        """Whether the server closes without a further byte. Bytes raise WireError."""
        old = self.sock.gettimeout()
        self.sock.settimeout(within_sec)
        try:
            more = self.sock.recv(16)
        except socket.timeout:
            return False
        except OSError:
            return True
        finally:
            self.sock.settimeout(old)
        if more:
            raise WireError(f"bytes where none were due: {more.hex()}")
        return True

    def is_silent(self, for_sec=0.05):
        old = self.sock.gettimeout()
        self.sock.settimeout(for_sec)
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except socket.timeout:
            return True
        except OSError:
            return True
        finally:
            self.sock.settimeout(old)

    # -- handshake --

    def greet(self, flags=FIXED_NEWSTYLE | NO_ZEROES):
        magic, option_magic, self.server_flags = struct.unpack(">QQH", self.recv(18))
        if magic != NBDMAGIC or option_magic != IHAVEOPT:
            raise WireError(f"greeting {magic:#x} {option_magic:#x}")
        self.send(struct.pack(">I", flags))
        return self

    def option(self, option, payload=b"", length=None, magic=IHAVEOPT):
        length = len(payload) if length is None else length
        self.send(struct.pack(">QII", magic, option, length) + payload)

    def option_reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.recv(20))
        if magic != OPTION_REPLY_MAGIC:
            raise WireError(f"option reply magic {magic:#x}")
        if length > 1 << 20:
            raise WireError(f"an option reply of {length} bytes")
        return OptionReply(option, kind, self.recv(length))

    def ask(self, option, payload=b""):
        """Sends an option; all its replies, the last is ACK or an error."""
        self.option(option, payload)
        return self.answer(option)

    def answer(self, option):
        replies = []
        while True:
            reply = self.option_reply()
            if reply.option != option:
                raise WireError(f"a reply to option {reply.option}, not to {option}")
            replies.append(reply)
            if reply.kind == REP_ACK or reply.kind & REP_ERROR:
                return replies

    def negotiate(self, form):
        """True when the server agrees to this form."""
        if form != SIMPLE:
            option = OPT_EXTENDED_HEADERS if form == EXTENDED else OPT_STRUCTURED_REPLY
            if self.ask(option)[-1].kind != REP_ACK:
                return False
        self.form = form
        return True

    def set_meta(self, export, queries):
        """SET_META_CONTEXT; the last reply's kind. What it selected is in `contexts`."""
        replies = self.ask(OPT_SET_META_CONTEXT, pack_meta(export, queries))
        self.contexts = {}
        for reply in replies[:-1]:
            if reply.kind != REP_META_CONTEXT or len(reply.payload) < 4:
                raise WireError(f"{reply} in answer to SET_META_CONTEXT")
            name = reply.payload[4:].decode("utf-8", "replace")
            if name in self.contexts:
                raise WireError(f"{name} selected twice")
            self.contexts[name] = struct.unpack(">I", reply.payload[:4])[0]
        return replies[-1].kind

    def go(self, export, infos=(), option=OPT_GO):
        """INFO or GO; the replies. After a GO that is acknowledged size and flags are set."""
        replies = self.ask(option, pack_go(export, infos))
        for reply in replies:
            if reply.kind == REP_INFO and reply.payload[:2] == b"\0\0" and len(reply.payload) == 12:
                self.size, self.flags = struct.unpack(">QH", reply.payload[2:])
        return replies

    def start_tls(self, context, hostname):
        """STARTTLS was acknowledged: the TLS handshake."""
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname=hostname,
                                            suppress_ragged_eofs=False)
        except (ssl.SSLError, OSError) as error:
            raise WireError(f"TLS handshake: {error}") from error

    # -- transmission --

    def pack_request(self, command, offset=0, length=0, payload=b"", flags=0, cookie=None,
                     magic=None):
        if cookie is None:
            cookie = self.next_cookie
            self.next_cookie += 1
        request = Request(command, flags, cookie, offset, length)
        self.pending.setdefault(cookie, []).append(request)
        if self.form == EXTENDED:
            header = struct.pack(">IHHQQQ", magic or EXTENDED_REQUEST_MAGIC, flags, command,
                                 cookie, offset, length)
        else:
            header = struct.pack(">IHHQQI", magic or REQUEST_MAGIC, flags, command, cookie, offset,
                                 length)
        return request, header + payload

    def request(self, *args, **kwargs):
        request, data = self.pack_request(*args, **kwargs)
        self.send(data)
        return request

    def _chunk(self):
        magic, = struct.unpack(">I", self.recv(4))
        if magic == SIMPLE_REPLY_MAGIC:
            if self.form == EXTENDED:
                raise WireError("a simple reply where headers are extended")
            error, cookie = struct.unpack(">IQ", self.recv(12))
            request = self._pending(cookie)
            length = request.length if request.command == READ and error == 0 else 0
            return Chunk(magic, DONE, error, cookie, None, self.recv(length))
        if magic == STRUCTURED_REPLY_MAGIC and self.form == STRUCTURED:
            flags, kind, cookie, length = struct.unpack(">HHQI", self.recv(16))
            offset = None
        elif magic == EXTENDED_REPLY_MAGIC and self.form == EXTENDED:
            flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.recv(28))
        else:
            raise WireError(f"reply magic {magic:#x} where headers are {self.form}")
        if length > PAYLOAD_MAX + (16 << 20):
            raise WireError(f"a chunk of {length} bytes")
        self._pending(cookie)
        return Chunk(magic, flags, kind, cookie, offset, self.recv(length))

    def _pending(self, cookie):
        if not self.pending.get(cookie):
            raise WireError(f"a reply with the cookie {cookie:#x}, which nobody sent")
        return self.pending[cookie][0]

    def receive(self):
        """The next request that is answered to its end, as a Result."""
        while True:
            chunk = self._chunk()
            result = self.gathered.get(chunk.cookie)
            if result is None:
                result = self.gathered[chunk.cookie] = Result(self.pending[chunk.cookie][0])
            result.chunks.append(chunk)
            if chunk.flags & DONE:
                self.pending[chunk.cookie].pop(0)
                if not self.pending[chunk.cookie]:
                    del self.pending[chunk.cookie]
                del self.gathered[chunk.cookie]
                judge(self, result)
                if self.journal is not None:
                    self.journal.note(self, result)
                return result

    def command(self, *args, **kwargs):
        """One request and its answer."""
        request = self.request(*args, **kwargs)
        result = self.receive()
        if result.request is not request:
            raise WireError(f"an answer to {result.request} instead of {request}")
        return result

    def read(self, offset, length, flags=0):
        return self.command(READ, offset, length, flags=flags)

    def write(self, offset, data, flags=0):
        if self.form == EXTENDED:
            flags |= PAYLOAD_LEN
        return self.command(WRITE, offset, len(data), data, flags=flags)

    def flush(self):
        return self.command(FLUSH)

    def status(self, offset, length, flags=0):
        return self.command(BLOCK_STATUS, offset, length, flags=flags)

    def in_step(self):
        """Whether the stream is where it should be: FLUSH, or READ, gets its answer and no other."""
        if self.flags & SEND_FLUSH:
            self.command(FLUSH)
        else:
            self.command(READ, 0, 512)
        return True


class Journal:
    """What was seen on all connections of a run: for the rules that every reply has to keep."""

    def __init__(self):
        self.errors = {}  # number -> example
        self.faults = {}  # subject -> [text]
        self.replies = 0
        self.form_replies = {SIMPLE: 0, STRUCTURED: 0, EXTENDED: 0}

    def note(self, connection, result):
        self.replies += 1
        self.form_replies[connection.form] += 1
        if result.error:
            self.errors.setdefault(result.error, str(result.request))
        for subject, text in result.faults:
            self.faults.setdefault(subject, [])
            if len(self.faults[subject]) < 5:
                self.faults[subject].append(f"{result.request}: {text}")


# -- judging a whole answer --


def judge(connection, result):
    """Fills in error, data and extents, and notes every fault as (subject, text)."""
    chunks = result.chunks
    if chunks[0].magic == SIMPLE_REPLY_MAGIC:
        judge_simple(connection, result)
        return
    for chunk in chunks:
        if chunk.offset is not None and chunk.offset != result.request.offset:
            result.faults.append(("offset", f"a chunk's header has the offset {chunk.offset}"))
        if chunk.flags & ~DONE:
            result.faults.append(("done", f"chunk flags {chunk.flags:#x}"))
        if chunk.kind & 0x8000:
            judge_error_chunk(result, chunk)
    if result.request.command == READ:
        judge_read(result)
    elif result.request.command == BLOCK_STATUS:
        judge_status(connection, result)
    for chunk in chunks:
        if chunk.kind == TYPE_NONE and (chunk.payload or not chunk.flags & DONE):
            result.faults.append(("done", "a NONE chunk with content, or without DONE"))


def judge_simple(connection, result):
    chunk = result.chunks[0]
    result.error = chunk.kind
    if len(result.chunks) > 1:
        raise WireError("a simple reply within a structured one")
    if result.request.command == READ:
        if connection.form != SIMPLE:
            result.faults.append(("simple", "a READ was answered by a simple reply"))
        if not result.error:
            result.data = chunk.payload
    elif result.request.command == BLOCK_STATUS and not result.error:
        result.faults.append(("simple", "a BLOCK_STATUS success came as a simple reply"))


def judge_error_chunk(result, chunk):
    extra = 8 if chunk.kind == TYPE_ERROR_OFFSET else 0
    if len(chunk.payload) < 6 + extra:
        result.faults.append(("error chunk", f"only {len(chunk.payload)} bytes"))
        result.error = result.error or EIO
        return
    error, text_len = struct.unpack(">IH", chunk.payload[:6])
    result.error = result.error or error
    if error == 0:
        result.faults.append(("error chunk", "with the number 0"))
        result.error = result.error or EIO
    if text_len > STRING_MAX or text_len > len(chunk.payload) - 6 - extra:
        result.faults.append(("error chunk", f"a message of {text_len} bytes in a chunk of "
                                             f"{len(chunk.payload)}"))
    text = chunk.payload[6:6 + text_len]
    try:
        result.error_texts.append(text.decode())
    except UnicodeDecodeError:
        result.faults.append(("error chunk", "a message that is not UTF-8"))
    if chunk.kind == TYPE_ERROR_OFFSET and len(chunk.payload) >= 14:
        at, = struct.unpack(">Q", chunk.payload[-8:])
        request = result.request
        if not request.offset <= at < request.offset + max(request.length, 1):
            result.faults.append(("error chunk", f"names the offset {at}, outside the request"))


def judge_read(result):
    request = result.request
    data = bytearray(min(request.length, PAYLOAD_MAX * 2))
    runs = []
    content = 0
    for chunk in result.chunks:
        payload = chunk.payload
        if chunk.kind == TYPE_OFFSET_DATA:
            if len(payload) < 9:
                result.faults.append(("content", f"a data chunk of {len(payload)} bytes"))
                continue
            at, = struct.unpack(">Q", payload[:8])
            size, body = len(payload) - 8, payload[8:]
            if len(payload) > PAYLOAD_MAX + 8:
                result.faults.append(("content", f"a data chunk of {len(payload)} bytes"))
        elif chunk.kind == TYPE_OFFSET_HOLE:
            if len(payload) != 12:
                result.faults.append(("content", f"a hole chunk of {len(payload)} bytes"))
                continue
            at, size = struct.unpack(">QI", payload)
            body = None
            if size == 0:
                result.faults.append(("content", "a hole of no bytes"))
                continue
        else:
            if chunk.kind not in (TYPE_NONE, TYPE_ERROR, TYPE_ERROR_OFFSET):
                result.faults.append(("content", f"a chunk of type {chunk.kind}"))
            continue
        content += 1
        if at < request.offset or at + size > request.offset + request.length:
            result.faults.append(("content", f"{size} bytes at {at} are outside the request"))
            continue
        runs.append((at, size))
        start = at - request.offset
        if body is not None:
            data[start:start + size] = body
    if request.flags & DF and content > 1:
        result.faults.append(("df", f"{content} content chunks"))
    end = request.offset
    for at, size in sorted(runs):
        if at < end:
            result.faults.append(("content", f"bytes at {at} were sent twice"))
        elif at > end and not result.error:
            result.faults.append(("content", f"bytes from {end} to {at} were not sent"))
        end = max(end, at + size)
    if not result.error:
        if end != request.offset + request.length:
            result.faults.append(("content", f"bytes from {end} on were not sent"))
        result.data = bytes(data)


def judge_status(connection, result):
    request = result.request
    filtered = request.flags & PAYLOAD_LEN
    for chunk in result.chunks:
        payload = chunk.payload
        if chunk.kind == TYPE_BLOCK_STATUS and connection.form == STRUCTURED:
            if len(payload) < 12 or (len(payload) - 4) % 8:
                result.faults.append(("extents", f"a status chunk of {len(payload)} bytes"))
                continue
            context, = struct.unpack(">I", payload[:4])
            extents = list(struct.iter_unpack(">II", payload[4:]))
        elif chunk.kind == TYPE_BLOCK_STATUS_EXT and connection.form == EXTENDED:
            if len(payload) < 24 or (len(payload) - 8) % 16:
                result.faults.append(("extents", f"a status chunk of {len(payload)} bytes"))
                continue
            context, count = struct.unpack(">II", payload[:8])
            extents = list(struct.iter_unpack(">QQ", payload[8:]))
            if count != len(extents):
                result.faults.append(("extents", f"{len(extents)} extents, counted as {count}"))
            if any(status >> 32 for _, status in extents):
                result.faults.append(("extents", "the upper half of a status is not 0"))
        else:
            if chunk.kind not in (TYPE_NONE, TYPE_ERROR, TYPE_ERROR_OFFSET):
                result.faults.append(("extents", f"a chunk of type {chunk.kind} where headers are "
                                                 f"{connection.form}"))
            continue
        if context in result.extents:
            result.faults.append(("extents", f"context {context} was answered twice"))
        if context not in connection.contexts.values():
            result.faults.append(("extents", f"context {context} was not selected"))
        result.extents[context] = extents
        judge_extents(connection, result, extents)
    if not result.error and not filtered and \
            set(result.extents) != set(connection.contexts.values()):
        result.faults.append(("extents", f"contexts {sorted(result.extents)} were answered, "
                                         f"{sorted(connection.contexts.values())} selected"))


def judge_extents(connection, result, extents):
    request = result.request
    lengths = [length for length, _ in extents]
    length = request.effect_length
    if any(size == 0 for size in lengths):
        result.faults.append(("extents", "an extent of no bytes"))
    if len(extents) > EXTENTS_MAX:
        result.faults.append(("extents", f"{len(extents)} extents"))
    if len(extents) > 1 and sum(lengths[:-1]) >= length:
        result.faults.append(("extents", "an extent begins past the request's end"))
    if request.offset + sum(lengths) > connection.size:
        result.faults.append(("extents", "the last extent ends past the export's end"))
    if request.flags & REQ_ONE and (len(extents) != 1 or lengths[0] > length):
        result.faults.append(("extents", f"REQ_ONE brought {len(extents)} extents of "
                                         f"{sum(lengths)} bytes"))


# -- packing --


def encode(text):
    return text if isinstance(text, bytes) else text.encode()


def pack_string(text):
    text = encode(text)
    return struct.pack(">I", len(text)) + text


def pack_go(export, infos=()):
    return pack_string(export) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def pack_meta(export, queries):
    return pack_string(export) + struct.pack(">I", len(queries)) + \
        b"".join(pack_string(query) for query in queries)


def connect_socket(address, timeout_sec=5.0):
    """address: a path, or (host, port). Waits out a listener's full backlog."""
    deadline = time.monotonic() + timeout_sec
    while True:
        sock = socket.socket(socket.AF_UNIX) if isinstance(address, str) else None
        try:
            if sock is None:
                return socket.create_connection(address, timeout=timeout_sec)
            sock.settimeout(timeout_sec)
            sock.connect(address)
            return sock
        except OSError as error:
            if sock is not None:
                sock.close()
            if time.monotonic() > deadline:
                raise WireError(f"cannot connect: {error}") from error
            time.sleep(0.01)
