# SPDX-License-Identifier: BSD-2-Clause
"""Clients that do it wrong, each in its own way, chosen by a seed; and one that works meanwhile.

Run as a program it is a crowd of the former, or the latter, so that a test can have many processes of
them: hostile_clients.py crowd SOCKET CERTIFICATE SEED COUNT, hostile_clients.py worker SOCKET.
"""

import json
import os
import random
import socket
import ssl
import struct
import sys
import threading
import time

import nbd_wire as w

KIB, MIB = 1 << 10, 1 << 20
MINE = 16 * MIB  # what the worker writes lies below this, what others write above
PATIENCE_S = 2.0  # no client takes much longer
THREADS = 8
OPTIONS = (w.OPT_EXPORT_NAME, w.OPT_ABORT, w.OPT_LIST, w.OPT_STARTTLS, w.OPT_INFO, w.OPT_GO,
           w.OPT_STRUCTURED_REPLY, w.OPT_LIST_META_CONTEXT, w.OPT_SET_META_CONTEXT,
           w.OPT_EXTENDED_HEADERS)
HARMLESS = (w.READ, w.FLUSH, w.CACHE, w.BLOCK_STATUS, w.DISC, 8, 99, 0xffff)


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    sock.connect(path)
    return sock


def option(number, payload=b"", length=None):
    return struct.pack(">QII", w.IHAVEOPT, number, len(payload) if length is None else length) + payload


def request(kind, offset=0, length=0, payload=b"", flags=0, cookie=0):
    return struct.pack(">IHHQQI", w.REQUEST_MAGIC, flags, kind, cookie, offset, length) + payload


def flags(value=3):
    return struct.pack(">I", value)


def go():
    return option(w.OPT_GO, w.pack_go("", (3,)))


def session(rng, structured=True):
    """A whole conversation of a client that means well, in its parts."""
    parts = [flags()]
    if structured:
        parts += [option(w.OPT_STRUCTURED_REPLY),
                  option(w.OPT_SET_META_CONTEXT, w.pack_meta("", ["base:allocation"]))]
    parts.append(go())
    for cookie in range(rng.randrange(1, 20)):
        offset = MINE + rng.randrange(0, 32 * MIB, 512)
        length = rng.choice((512, 4 * KIB, 64 * KIB, 256 * KIB))
        kind = rng.choice((w.READ, w.WRITE, w.TRIM, w.WRITE_ZEROES, w.FLUSH, w.BLOCK_STATUS))
        payload = rng.randbytes(length) if kind == w.WRITE else b""
        if kind == w.FLUSH:
            offset = length = 0
        parts.append(request(kind, offset, length, payload, cookie=cookie))
    return parts


def some_option(rng):
    number = rng.choice(OPTIONS + (0, 4, 77, 0xffffffff))
    payload = rng.choice((b"", w.pack_go(""), w.pack_go("nobody"), w.pack_meta("", ["base:"]),
                          rng.randbytes(rng.randrange(0, 300)),
                          struct.pack(">I", 0xffffffff) + b"x" * 20))
    return option(number, payload)


def drain(sock, most=1 << 20):
    """Reads what there is until the server closes or falls silent."""
    sock.settimeout(0.05)
    try:
        while most > 0:
            data = sock.recv(65536)
            if not data:
                return
            most -= len(data)
    except OSError:
        pass


class Crowd:
    def __init__(self, path, certificate):
        self.path = path
        self.tls = None
        if certificate != "none":
            self.tls = ssl.create_default_context(cafile=certificate)
            self.tls.check_hostname = False

    # Each of these is one client's life.

    def garbage(self, rng, sock):
        sock.sendall(rng.randbytes(rng.randrange(1, 5000)))
        drain(sock)

    def garbage_later(self, rng, sock):
        parts = session(rng)
        cut = rng.randrange(1, len(parts))
        sock.sendall(b"".join(parts[:cut]) + rng.randbytes(rng.randrange(28, 3000)).replace(b"%", b""))
        drain(sock)

    def half_sent(self, rng, sock):
        said = b"".join(session(rng))
        sock.sendall(said[:rng.randrange(0, min(len(said), rng.choice((100, 300, 1 << 30))))])
        if rng.random() < 0.5:
            sock.shutdown(socket.SHUT_WR)
            drain(sock)

    def slow(self, rng, sock):
        said = b"".join(session(rng))[:rng.randrange(10, 120)]
        for i in range(len(said)):
            sock.sendall(said[i:i + 1])
            time.sleep(0.002)
        drain(sock)

    def oversized_option(self, rng, sock):
        length = rng.choice((65537, 100000, 1 << 20, (1 << 20) + 1, 1 << 31, 0xffffffff))
        sock.sendall(flags() + option(rng.choice(OPTIONS), b"", length))
        sock.sendall(bytes(min(length, rng.choice((0, 1000, 1 << 20)))) + option(w.OPT_LIST))
        drain(sock)

    def oversized_request(self, rng, sock):
        length = rng.choice(((32 << 20) + 1, 64 << 20, (64 << 20) + 1, 0xffffffff))
        kind = rng.choice((w.READ, w.WRITE))
        sock.sendall(flags() + go() + request(kind, MINE, length, cookie=1))
        sock.sendall(bytes(rng.choice((0, 1000, 1 << 20))))
        drain(sock)

    def pipelined(self, rng, sock):
        sock.sendall(b"".join(session(rng)) + request(w.DISC) + b"".join(session(rng)))
        drain(sock)

    def repeated(self, rng, sock):
        again = some_option(rng)
        sock.sendall(flags() + again * rng.randrange(2, 200) + go())
        drain(sock)

    def reordered(self, rng, sock):
        parts = session(rng)[1:] + [some_option(rng) for _ in range(10)]
        # A payload in the wrong place is harmless; a WRITE's header is not, without its payload.
        rng.shuffle(parts)
        sock.sendall(flags() + b"".join(parts))
        drain(sock)

    def strange_requests(self, rng, sock):
        said = [flags(), *([option(w.OPT_STRUCTURED_REPLY)] if rng.random() < 0.5 else []), go()]
        for cookie in range(rng.randrange(1, 60)):
            said.append(request(rng.choice(HARMLESS), rng.getrandbits(rng.choice((20, 26, 64))),
                                rng.getrandbits(rng.choice((9, 16, 32))),
                                flags=rng.choice((0, 0, rng.getrandbits(16))), cookie=cookie))
        sock.sendall(b"".join(said))
        drain(sock)

    def mutated(self, rng, sock):
        """The handshake of a good client, with some bytes changed."""
        said = bytearray(b"".join([flags(), option(w.OPT_STRUCTURED_REPLY), option(w.OPT_LIST),
                                   option(w.OPT_SET_META_CONTEXT, w.pack_meta("", ["base:allocation"])),
                                   go()]))
        for _ in range(rng.randrange(1, 6)):
            said[rng.randrange(len(said))] = rng.choice((0, 1, 0xff, rng.randrange(256)))
        sock.sendall(bytes(said) + request(w.READ, 0, 512))
        drain(sock)

    def gone_with_64_in_flight(self, rng, sock):
        said = [flags(), go()]
        for cookie in range(64):
            kind = rng.choice((w.READ, w.READ, w.WRITE, w.TRIM))
            length = rng.choice((4 * KIB, 64 * KIB))
            payload = bytes(length) if kind == w.WRITE else b""
            said.append(request(kind, MINE + 64 * KIB * cookie, length, payload, cookie=cookie))
        sock.settimeout(0.5)
        try:
            sock.sendall(b"".join(said))
        except TimeoutError:
            pass  # its answers fill the other direction: it goes all the same

    def never_reads(self, rng, sock):
        sock.sendall(flags() + go() + b"".join(request(w.READ, MINE, MIB, cookie=cookie)
                                               for cookie in range(64)))
        time.sleep(rng.random() * 0.2)

    def tls_cut(self, rng, sock):
        """STARTTLS, and then a part of a handshake, or none, or something else."""
        sock.sendall(flags() + option(w.OPT_STARTTLS))
        sock.recv(18 + 20)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.tls.wrap_bio(incoming, outgoing)
        for _ in range(rng.randrange(0, 4)):
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                pass
            hello = outgoing.read()
            if rng.random() < 0.4:
                hello = hello[:rng.randrange(0, len(hello) + 1)]
                if rng.random() < 0.5:
                    hello += rng.randbytes(rng.randrange(1, 500))
                sock.sendall(hello)
                break
            sock.sendall(hello)
            sock.settimeout(0.2)
            incoming.write(sock.recv(65536))
        if rng.random() < 0.5:
            drain(sock)

    def tls_bytes_behind(self, rng, sock):
        sock.sendall(flags() + option(w.OPT_STARTTLS) + some_option(rng))
        drain(sock)

    def tls_then_wrong(self, rng, sock):
        sock.sendall(flags() + option(w.OPT_STARTTLS))
        got = b""
        while len(got) < 18 + 20:
            got += sock.recv(18 + 20 - len(got))
        secure = self.tls.wrap_socket(sock, suppress_ragged_eofs=True)
        said = b"".join(session(rng)[1:])
        secure.sendall(said[:rng.randrange(0, len(said) + 1)])
        how = rng.randrange(3)
        if how == 0:
            drain(secure)
        elif how == 1:  # bytes that no record begins with
            plain = socket.socket(fileno=os.dup(secure.fileno()))
            plain.sendall(rng.randbytes(100))
            plain.close()
        secure.close()

    def lives(self):
        plain = [self.garbage, self.garbage_later, self.half_sent, self.slow, self.oversized_option,
                 self.oversized_request, self.pipelined, self.repeated, self.reordered,
                 self.strange_requests, self.mutated, self.gone_with_64_in_flight,
                 self.never_reads]
        return plain + ([self.tls_cut, self.tls_bytes_behind, self.tls_then_wrong] if self.tls else [])

    def live(self, seed):
        rng = random.Random(seed)
        life = rng.choice(self.lives())
        try:
            sock = connect(self.path)
        except OSError:
            return "no connection"
        try:
            life(rng, sock)
            if rng.random() < 0.3:  # not in order: with an error at the server's end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, ssl.SSLError, ValueError):
            pass  # it was cut off: very well
        finally:
            sock.close()
        return life.__name__

    def run(self, seed, count):
        """All of them, some at a time. How many there were of each."""
        lived = {}
        lock = threading.Lock()
        numbers = iter(range(count))

        def some():
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                name = self.live(f"{seed}:{number}")
                with lock:
                    lived[name] = lived.get(name, 0) + 1

        threads = [threading.Thread(target=some) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return lived


def work(path, until):
    """Writes and reads until `until` is set; latencies in microseconds, and what was wrong."""
    rng = random.Random(os.getpid())
    latencies = []
    expected = {}
    client = w.Connection(connect(path), timeout_sec=60).greet()
    client.go("")
    while not until.is_set():
        offset = rng.randrange(0, MINE, 4096)
        began = time.perf_counter()
        if rng.random() < 0.5 or offset not in expected:
            expected[offset] = rng.randbytes(4096)
            wrong = client.write(offset, expected[offset]).error
        else:
            result = client.read(offset, 4096)
            wrong = result.error or result.data != expected[offset]
        latencies.append((time.perf_counter() - began) * 1e6)
        if wrong:
            return latencies, f"wrong at {offset}: {wrong}"
        time.sleep(0.001)
    for offset, data in expected.items():
        result = client.read(offset, 4096)
        if result.error or result.data != data:
            return latencies, f"wrong at {offset} in the end: {result.error}"
    return latencies, None


def main():
    if sys.argv[1] == "crowd":
        crowd = Crowd(sys.argv[2], sys.argv[3])
        print(json.dumps(crowd.run(sys.argv[4], int(sys.argv[5]))))
        return
    until = threading.Event()

    def wait_for_end():
        sys.stdin.read()
        until.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    latencies, wrong = work(sys.argv[2], until)
    latencies.sort()
    print(json.dumps({
        "requests": len(latencies),
        "median_us": latencies[len(latencies) // 2],
        "p99_us": latencies[len(latencies) * 99 // 100],
        "max_us": latencies[-1],
        "wrong": wrong,
    }))


if __name__ == "__main__":
    main()
