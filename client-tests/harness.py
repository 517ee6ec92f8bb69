# SPDX-License-Identifier: BSD-2-Clause
"""What the tests of the laws share: sectors that say who they are, an oracle, load, and a server.

Every sector that is ever written says where it belongs and which write it comes from, so a sector in
the wrong place, or from the wrong time, is seen wherever it turns up. The oracle keeps the writes of
each sector with the times when they began and were answered. From that it says which of them the
sector may hold: one write is superseded by another that began after it was answered, and that must be
there. What "must be there" is depends on what happened: everything that was answered (a clean stop),
or what a flush covered (a killed server, a power cut).

Times are time.monotonic_ns(): other programs on this machine, like the recorder of disk writes, can
note the same clock.
"""

import ctypes
import errno
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

try:
    import nbd
except ImportError:
    nbd = None

QCOWD = os.path.abspath(os.environ.get("QCOWD", "build/server/qcowd"))
SECTOR = 512
MIB = 1 << 20
SKIPPED = 77
TIMEOUT_S = 60
FOREVER = 1 << 62
ZERO = 0  # the version of a sector that reads as zeroes
BASE = 1  # the version of all sectors of a backing file

STAMP = struct.Struct("<QQ")
ZEROES = bytes(SECTOR)


class Failed(Exception):
    """A law was broken: says what was found."""


def stamp(sector, version):
    """The content of a sector."""
    return ZEROES if version == ZERO else STAMP.pack(sector ^ 0x7163, version) * (SECTOR // 16)


def describe(block, sector):
    """What a sector holds, for messages."""
    place, version = STAMP.unpack_from(block)
    if block == ZEROES:
        return "zeroes"
    if block != STAMP.pack(place, version) * (SECTOR // 16):
        return f"torn or foreign bytes {block[:32].hex()}..."
    if place ^ 0x7163 != sector:
        return f"sector {place ^ 0x7163}'s bytes (write {version})"
    return f"write {version}"


class Write:
    """A write, trim or zero: `ended` is None while it may still happen."""

    __slots__ = ("version", "began", "ended", "done", "fua")

    def __init__(self, version, began, fua=False):
        self.version, self.began, self.fua = version, began, fua
        self.ended, self.done = None, False

    def answered(self, ok):
        self.ended, self.done = time.monotonic_ns(), ok


class Oracle:
    """What each sector of a disk may hold. `keep` keeps all writes, to be asked about the past.
    Set trims_count to False for a server that ignores trims."""

    def __init__(self, size_bytes, base_bytes=0, keep=False):
        self.sectors = size_bytes // SECTOR
        self.versions = BASE
        self.keep = keep
        self.flushes = []  # (began, answered)
        self.reads = set()  # when those under way began
        base, zero = self.settled(BASE), self.settled(ZERO)
        self.trims_count = True
        self.writes = [[base] if i < base_bytes // SECTOR else [zero] for i in range(self.sectors)]

    @staticmethod
    def settled(version):
        write = Write(version, -1, True)
        write.ended, write.done = -1, True
        return write

    def begin(self, first, count, zero, fua):
        self.versions += 1
        if count == 0:
            return Write(ZERO, FOREVER), self.versions
        write = Write(ZERO if zero else self.versions, time.monotonic_ns(), fua)
        for sector in range(first, first + count):
            writes = self.writes[sector]
            writes.append(write)
            if len(writes) > 24 and not self.keep:
                self.writes[sector] = self.pruned(writes)
        return write, self.versions

    def pruned(self, writes):
        """Without those that neither a crash nor a read that is under way can show any more."""
        after_crash = self.possible(writes, self.flushed_until(FOREVER), FOREVER)
        oldest_read = min(self.reads, default=FOREVER)
        in_reads = self.possible(writes, oldest_read, FOREVER, trust_fua=False)
        return [write for write in writes if write in after_crash or write in in_reads]

    def flush_answered(self, began):
        self.flushes.append((began, time.monotonic_ns()))

    def flushed_until(self, cut):
        """Writes answered before this are covered by a flush that was answered before `cut`."""
        covered = max((began for began, answered in self.flushes if answered <= cut), default=-1)
        if not self.keep:
            self.flushes = [(covered, covered)]
        return covered

    @staticmethod
    def possible(writes, safe, cut, trust_fua=True):
        """Those that a sector may hold, if all that was answered up to `safe` must be there, and
        what was written with FUA, too."""
        oldest = -1
        for write in writes:
            if write.done and write.ended <= cut and (write.ended <= safe or (write.fua and trust_fua)):
                oldest = max(oldest, write.began)
        return [write for write in writes if write.began <= cut and
                (write.ended is None or write.ended > cut or write.ended >= oldest)]

    def judge(self, first, data, safe, cut=FOREVER, trust_fua=True):
        """Complains about sectors from `first` on that hold what they must not. Returns versions."""
        found = []
        wrong = []
        for i in range(len(data) // SECTOR):
            sector = first + i
            block = data[i * SECTOR:(i + 1) * SECTOR]
            writes = self.writes[sector]
            version = STAMP.unpack_from(block)[1]
            found.append(version)
            allowed = {write.version for write in
                       (writes if len(writes) == 1 else
                        self.possible(writes, safe, cut, trust_fua))}
            if version not in allowed or block != stamp(sector, version):
                wrong.append(f"sector {sector} holds {describe(block, sector)}; allowed are writes "
                             f"{sorted(allowed)}")
        if wrong:
            raise Failed(f"{len(wrong)} wrong sectors: " + "; ".join(wrong[:5]))
        return found

    def settle(self, versions):
        """What was read after the server had gone is the truth from now on."""
        known = {}
        self.writes = [[known.setdefault(version, self.settled(version))] for version in versions]
        self.flushes = []
        self.reads = set()


# ---- load

class Mix:
    """Which requests, and where. `hot` of them go to the first sixteenth of the disk."""

    def __init__(self, sectors, chosen, hot=0.5, longest=256, reads=0.1, flushes=0.05, fua=0.05):
        self.sectors, self.chosen, self.hot, self.longest = sectors, chosen, hot, longest
        self.reads, self.flushes, self.fua = reads, flushes, fua

    def extent(self):
        chosen = self.chosen
        longest = chosen.choice((1, 8, 64, self.longest))
        count = chosen.randint(1, min(longest, self.longest))
        span = self.sectors // 16 if chosen.random() < self.hot else self.sectors
        first = chosen.randrange(max(span - count, 1))
        if chosen.random() < 0.4:
            unit = chosen.choice((8, 128, 256))
            first -= first % unit
        return first, count

    def request(self):
        chosen = self.chosen
        draw = chosen.random()
        if draw < self.flushes:
            return "flush", 0, 0, False
        if draw < self.flushes + self.reads:
            return "read", *self.extent(), False
        kind = chosen.choices(("write", "trim", "zero", "zero-keep"), (65, 15, 10, 10))[0]
        return kind, *self.extent(), chosen.random() < self.fua


class Client:
    """One connection with many requests in flight; what is answered is told to the oracle."""

    def __init__(self, load, path):
        self.load = load
        self.handle = nbd.NBD()
        self.handle.connect_unix(path)
        self.in_flight = 0
        self.gone = False

    def sent(self, kind, first, count, fua):
        oracle, handle = self.load.oracle, self.handle
        flags = nbd.CMD_FLAG_FUA if fua else 0
        place, length = first * SECTOR, count * SECTOR
        began = time.monotonic_ns()
        if kind == "flush":
            handle.aio_flush(lambda error: self.flushed(began, error))
        elif kind == "read":
            data = bytearray(length)
            oracle.reads.add(began)
            handle.aio_pread(data, place,
                             lambda error: self.has_read(first, data, began, error))
        else:
            changes = kind != "trim" or oracle.trims_count
            write, version = oracle.begin(first, count if changes else 0, kind != "write", fua)

            def answered(error, kind=kind, write=write):
                return self.changed(kind, write, error)

            if kind == "write":
                data = b"".join([stamp(sector, version) for sector in range(first, first + count)])
                handle.aio_pwrite(data, place, answered, flags)
            elif kind == "trim":
                handle.aio_trim(length, place, answered, flags)
            else:
                keep = nbd.CMD_FLAG_NO_HOLE if kind == "zero-keep" else 0
                handle.aio_zero(length, place, answered, flags | keep)
        self.in_flight += 1

    def answered(self, kind, error):
        """Counts an answer; True if it came from the server."""
        self.in_flight -= 1
        if error in (errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE):
            return False
        if error:
            self.load.errors.append((kind, error))
        self.load.answers += 1
        return True

    def changed(self, kind, write, error):
        if self.answered(kind, error.value):
            write.answered(error.value == 0)
            if error.value == errno.ESHUTDOWN:
                write.began = FOREVER + 1  # refused: it must not be seen anywhere
        return 1

    def flushed(self, began, error):
        if self.answered("flush", error.value) and error.value == 0:
            self.load.oracle.flush_answered(began)
        return 1

    def has_read(self, first, data, began, error):
        self.load.oracle.reads.discard(began)
        if self.answered("read", error.value) and error.value == 0 and not self.load.broken:
            try:
                self.load.oracle.judge(first, bytes(data), began, trust_fua=False)
            except Failed as failure:
                self.load.broken = f"a read: {failure}"
        return 1

    def top_up(self, depth):
        try:
            while not self.gone and self.in_flight < depth:
                self.sent(*self.load.mix.request())
        except nbd.Error:
            self.look()

    def look(self):
        self.gone = self.gone or self.handle.aio_is_dead() or self.handle.aio_is_closed()

    def moved(self, events):
        try:
            direction = self.handle.aio_get_direction()
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and \
                    direction & nbd.AIO_DIRECTION_READ:
                self.handle.aio_notify_read()
            elif events & (select.POLLOUT | select.POLLERR) and \
                    direction & nbd.AIO_DIRECTION_WRITE:
                self.handle.aio_notify_write()
        except nbd.Error:
            pass
        self.look()


class Load:
    """Several connections at work at once. Answers with errors are kept, not judged."""

    def __init__(self, oracle, path, chosen, connections=4, depth=8, **mix):
        self.oracle, self.depth = oracle, depth
        self.mix = Mix(oracle.sectors, chosen, **mix)
        self.errors = []
        self.answers = 0
        self.broken = None
        self.clients = [Client(self, path) for _ in range(connections)]

    def step(self, send, wait_s=0.05):
        """One turn: sends if asked to, then takes what has come."""
        poller = select.poll()
        by_fd = {}
        for client in self.clients:
            if send:
                client.top_up(self.depth)
            if client.gone:
                continue
            direction = client.handle.aio_get_direction()
            events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | \
                     (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)
            fd = client.handle.aio_get_fd()
            poller.register(fd, events)
            by_fd[fd] = client
        for fd, events in poller.poll(wait_s * 1000):
            by_fd[fd].moved(events)
        if self.broken:
            raise Failed(self.broken)

    def run(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.all_gone():
            self.step(True)

    def all_gone(self):
        return all(client.gone for client in self.clients)

    def settle(self, until, send=False):
        """Goes on until `until()`."""
        deadline = time.monotonic() + TIMEOUT_S
        while not until():
            if time.monotonic() > deadline:
                raise Failed("no answer for a minute")
            self.step(send)

    def finish(self):
        """Takes all answers and leaves."""
        self.settle(lambda: all(client.gone or client.in_flight == 0 for client in self.clients))
        for client in self.clients:
            if not client.gone:
                client.handle.shutdown()


# ---- the server and the judges

def run(*command, allowed=(0,)):
    """Runs a program that must end with one of the statuses in `allowed`."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, errors="replace",
                            timeout=TIMEOUT_S, check=False)
    if result.returncode not in allowed:
        raise Failed(f"{' '.join(command)}: status {result.returncode}: {result.stdout.strip()}")
    return result


def end_with_parent():
    """In a child: a test that is killed leaves no server behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Server:
    """qcowd on a Unix socket; its words go to a file, so that it never waits for us to read."""

    def __init__(self, image, directory, *options):
        self.image = image
        self.path = os.path.join(directory, "sock")
        self.log = open(os.path.join(directory, "server.log"), "w+", encoding="utf-8",
                        errors="replace")
        self.process = subprocess.Popen([QCOWD, "-U", self.path, *options, image],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=self.log, preexec_fn=end_with_parent)
        deadline = time.monotonic() + TIMEOUT_S
        while not os.path.exists(self.path):
            if self.process.poll() is not None:
                raise Failed(f"the server did not start: {self.said()}")
            if time.monotonic() > deadline:
                self.end()
                raise Failed("the server did not start in a minute")
            time.sleep(0.005)

    def said(self):
        self.log.seek(0)
        return self.log.read().strip()

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """The end without warning. The kernel finishes the dead process's I/O in its own time, and
        the locks on the image stay until then: no other process can open it too early."""
        self.signal(signal.SIGKILL)
        self.process.wait(TIMEOUT_S)
        self.forget()
        deadline = time.monotonic() + TIMEOUT_S
        while "locked by" in run(QCOWD, "check", self.image, allowed=(0, 1, 2, 3)).stdout:
            if time.monotonic() > deadline:
                raise Failed("the image is locked by a process that is gone")
            time.sleep(0.02)

    def forget(self):
        self.log.close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def stopped(self, status=0, within_s=TIMEOUT_S, silent=True):
        """Waits for the end, which must be this one (None: any). Returns what was said."""
        try:
            found = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.end()
            raise Failed(f"still there after {within_s} s") from None
        said = self.said()
        self.forget()
        if found != (found if status is None else status) or (silent and said):
            raise Failed(f"ended with status {found}, expected {status}; said: {said}")
        return said

    def stop(self, status=0, within_s=TIMEOUT_S, silent=True):
        self.signal(signal.SIGTERM)
        return self.stopped(status, within_s, silent)

    def end(self):
        """Whatever happens."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(TIMEOUT_S)


def connected(path):
    handle = nbd.NBD()
    handle.connect_unix(path)
    return handle


def read_all(handle, size_bytes):
    piece = 4 * MIB
    return b"".join([bytes(handle.pread(min(piece, size_bytes - at), at))
                     for at in range(0, size_bytes, piece)])


def check_image(image, leaks, by_qemu=True):
    """Both checkers; `leaks` says whether leaks are all right. Returns whether there are any."""
    allowed = (0, 3) if leaks else (0,)
    leaky = run(QCOWD, "check", image, allowed=allowed).returncode == 3
    if by_qemu and shutil.which("qemu-img"):
        theirs = run("qemu-img", "check", "-f", "qcow2", image, allowed=allowed).returncode == 3
        if theirs != leaky:
            raise Failed(f"{image}: qemu-img check {'finds' if theirs else 'does not find'} leaks")
    return leaky


def repair_leaks(image):
    run(QCOWD, "check", "--repair", "leaks", image)
    check_image(image, leaks=False)


class Format:
    """A shape of image to test with."""

    def __init__(self, name, size_mib, options, base_mib=0):
        self.name, self.options = name, options
        self.size_bytes, self.base_bytes = size_mib * MIB, base_mib * MIB

    def make(self, directory):
        """The path of a new image; its sectors are zeroes, or of version BASE behind a backing."""
        image = os.path.join(directory, f"{self.name}.qcow2")
        backing = []
        if self.base_bytes:
            base = os.path.join(directory, f"{self.name}.raw")
            with open(base, "wb") as file:
                file.write(b"".join([stamp(sector, BASE)
                                     for sector in range(self.base_bytes // SECTOR)]))
            backing = ["-b", base, "-F", "raw"]
        run(QCOWD, "create", "-o", self.options, *backing, image, str(self.size_bytes))
        return image


FORMATS = [
    Format("64k", 32, "cluster_size=64k"),
    Format("4k", 8, "cluster_size=4k,lazy_refcounts=on"),
    Format("extended", 32, "cluster_size=128k,extended_l2=on"),
    Format("512", 4, "cluster_size=512,refcount_bits=1"),
    Format("backed", 24, "cluster_size=64k", base_mib=17),
]


def chosen_formats(names):
    if not names:
        return FORMATS
    by_name = {form.name: form for form in FORMATS}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        sys.exit(f"no format is called {' '.join(unknown)}: there are {' '.join(by_name)}")
    return [by_name[name] for name in names]


def seeded(seed):
    """A source of chance, and its seed: the one given, or a new one."""
    seed = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    return random.Random(seed), seed


class Workplace:
    """A directory that stays, and is named, when something failed in it."""

    def __init__(self, parent=None):
        self.path = tempfile.mkdtemp(prefix="qcowd-laws-", dir=parent)

    def __enter__(self):
        return self.path

    def __exit__(self, kind, value, traceback):
        if kind is None:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            print(f"kept for you to look at: {self.path}", file=sys.stderr)


def need_libnbd():
    if nbd is None:
        print("skipped: the Python bindings of libnbd are not installed")
        sys.exit(SKIPPED)
