# SPDX-License-Identifier: BSD-2-Clause
"""The server that is looked at: how it is started, in which variants, and ended again.

A profile is an INI file. [server] has values that commands refer to as {name}; every other section
is a variant, a server of a certain kind, with its `setup` (commands, one a line, run before it is
started) and its `command`. Some variants that tests ask for:

    default        writable, one export; everything is tried on it
    read-only      an export that refuses writes
    backed         an empty image over {base}, a file of 0x5a bytes for its first megabyte
    failing-reads  reads of the first bytes behind 1 MiB fail
    tls-require    TLS by {pki}: ca-cert.pem, server-cert.pem, server-key.pem
    tls-on         as before, and clients may do without

{socket}, {image}, {base}, {dir}, {size} are given. `needs` in a variant is a text that the output of
`{program} --help` must have, else the server has no such variant.
"""

import configparser
import os
import shlex
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import urllib.parse

from nbd_wire import Connection, WireError, connect_socket

START_SEC = 10
BACKED_BYTES = 1 << 20
BAD_AT = 1 << 20
DEFAULT_SIZE = (8 << 30) + 1536
TLS_HOST = "localhost"


class NoVariant(Exception):
    """The profile has no such server."""


class Server:
    """One running server, in a directory of its own."""

    def __init__(self, target, variant):
        self.target, self.variant = target, variant
        self.process = None
        self.directory = tempfile.mkdtemp(prefix="nbd-conformance-", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.address = os.path.join(self.directory, "sock")
        self.values = target.values | {
            "dir": self.directory, "socket": self.address, "size": str(target.size),
            "image": os.path.join(self.directory, "image"),
            "base": os.path.join(self.directory, "base"),
            "pki": os.path.join(self.directory, "pki"),
        }
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.end()
            raise

    def words(self, command):
        """Splits first, and fills in then: a value may be several words only where it is {program}
        or another value of the profile."""
        words = []
        for word in shlex.split(command):
            filled = word.format_map(self.values)
            words += shlex.split(filled) if word.startswith("{") and word.endswith("}") and \
                word[1:-1] in self.target.values else [filled]
        return words

    def prepare(self):
        section = self.target.variants[self.variant]
        text = section.get("setup", "") + section["command"]
        if "{base}" in text:
            with open(self.values["base"], "wb") as base:
                base.write(b"\x5a" * BACKED_BYTES)
                base.truncate(self.target.size)
        if "{pki}" in text:
            make_pki(self.values["pki"])
        if "{image}" in text and not section.get("setup"):
            with open(self.values["image"], "wb") as image:
                image.truncate(self.target.size)
        for line in section.get("setup", "").strip().splitlines():
            done = subprocess.run(self.words(line), stdin=subprocess.DEVNULL, timeout=60,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if done.returncode != 0:
                raise WireError(f"setup: {line}: {done.stdout.decode(errors='replace')}")
        if section.get("damage") == "qcow2-mapping":
            self.start()
            self.damage()

    def damage(self):
        """Data at BAD_AT, and then a mapping of it that no image may have."""
        with self.connect() as client:
            client.greet().go(self.target.export)
            client.write(BAD_AT, b"\xda" * 65536)
            client.flush()
            client.request(2)
        self.stop()
        with open(self.values["image"], "r+b") as image:
            header = image.read(48)
            cluster_bits, = struct.unpack(">I", header[20:24])
            l1_offset, = struct.unpack(">Q", header[40:48])
            offset_mask = 0x00FFFFFFFFFFFE00
            image.seek(l1_offset)
            l2_offset = struct.unpack(">Q", image.read(8))[0] & offset_mask
            entry_at = l2_offset + 8 * (BAD_AT >> cluster_bits)
            image.seek(entry_at)
            entry, = struct.unpack(">Q", image.read(8))
            image.seek(entry_at)
            image.write(struct.pack(">Q", entry | 0x200))  # within a cluster, where none begins

    def start(self):
        if os.path.exists(self.address):
            os.unlink(self.address)
        command = self.words(self.target.variants[self.variant]["command"])
        with open(self.log_path(), "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SEC
        while True:
            if self.process.poll() is not None:
                raise WireError(f"{shlex.join(command)} ended with {self.process.returncode}: "
                                f"{self.log()[-400:]}")
            if os.path.exists(self.address):
                return
            if time.monotonic() > deadline:
                raise WireError(f"{shlex.join(command)} made no socket")
            time.sleep(0.005)

    def log_path(self):
        return os.path.join(self.directory, "log")

    def log(self):
        with open(self.log_path(), encoding="utf-8", errors="replace") as log:
            return log.read()

    def connect(self, journal=None, timeout_sec=None):
        timeout_sec = timeout_sec or self.target.timeout_sec
        return Connection(connect_socket(self.address, timeout_sec), journal, timeout_sec)

    def alive(self):
        return self.process is None or self.process.poll() is None

    def memory_bytes(self):
        """Memory that the process has taken, touched or not; None when nobody knows."""
        if self.process is None:
            return None
        try:
            with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
                fields = dict(line.split(":", 1) for line in status)
            return int(fields["VmData"].split()[0]) * 1024
        except (OSError, KeyError, ValueError):
            return None

    def stop(self, signal_number=signal.SIGTERM, wait_sec=20):
        """Its exit status, None when it had to be killed."""
        if self.process is None:
            return None
        self.process.send_signal(signal_number)
        try:
            return self.process.wait(wait_sec)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class RemoteServer:
    """One that others run: it can be talked to, and nothing else."""

    def __init__(self, target, address):
        self.target, self.address, self.variant = target, address, "default"

    def connect(self, journal=None, timeout_sec=None):
        timeout_sec = timeout_sec or self.target.timeout_sec
        return Connection(connect_socket(self.address, timeout_sec), journal, timeout_sec)

    @staticmethod
    def alive():
        return True

    @staticmethod
    def memory_bytes():
        return None

    def end(self):
        pass


class Target:
    """What a profile, a command or a URI says."""

    def __init__(self, timeout_sec=5.0):
        self.timeout_sec = timeout_sec
        self.values = {}
        self.variants = {}
        self.export = ""
        self.size = DEFAULT_SIZE
        self.address = None
        self.persistent = True
        self.has_log = True
        self.name = "server"
        self.tls_ca = None
        self._help = None

    @classmethod
    def of_profile(cls, path, defines, **options):
        target = cls(**options)
        parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
        parser.optionxform = str
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
        server = dict(parser["server"]) | defines
        target.values = server
        target.variants = {name: dict(parser[name]) for name in parser.sections()
                           if name != "server"}
        target.name = server.get("name", os.path.basename(path))
        target.export = server.get("export", "")
        target.size = int(server.get("size", DEFAULT_SIZE))
        target.persistent = server.get("persistent", "yes") == "yes"
        return target

    @classmethod
    def of_command(cls, command, **options):
        target = cls(**options)
        target.variants = {"default": {"command": shlex.join(command)}}
        target.name = os.path.basename(command[0])
        target.persistent = any("{image}" in word for word in command)
        return target

    @classmethod
    def of_uri(cls, uri, **options):
        target = cls(**options)
        parts = urllib.parse.urlsplit(uri)
        target.export = urllib.parse.unquote(parts.path.removeprefix("/"))
        if parts.scheme == "nbd+unix":
            target.address = urllib.parse.parse_qs(parts.query)["socket"][0]
        elif parts.scheme == "nbd":
            target.address = (parts.hostname or "localhost", parts.port or 10809)
        else:
            raise ValueError(f"{uri}: not nbd:// or nbd+unix://")
        target.name = uri
        target.has_log = False
        return target

    def version(self):
        if "version" not in self.values:
            return ""
        words = [word for part in shlex.split(self.values["version"])
                 for word in shlex.split(part.format_map(self.values))]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=False, timeout=30)
        lines = done.stdout.decode(errors="replace").splitlines()
        return lines[0] if lines else ""

    def help_text(self):
        if self._help is None:
            done = subprocess.run(shlex.split(self.values["program"]) + ["--help"], timeout=30,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, check=False)
            self._help = done.stdout.decode(errors="replace")
        return self._help

    def has_variant(self, name):
        return self.missing(name) is None

    def missing(self, name):
        """Why there is no such variant, None when there is."""
        if name != "default" and name not in self.variants:
            return f"there is no {name} server of this kind"
        needs = self.variants.get(name, {}).get("needs")
        if needs and needs not in self.help_text():
            return f"the server has no {needs}"
        return None

    def start(self, variant="default"):
        if self.address is not None:
            if variant != "default":
                raise NoVariant("only the server at this address can be looked at")
            return RemoteServer(self, self.address)
        if self.missing(variant):
            raise NoVariant(self.missing(variant))
        return Server(self, variant)


def make_pki(directory):
    """A CA, and a server's certificate for TLS_HOST."""
    os.mkdir(directory)

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=directory, check=True, timeout=60,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    if shutil.which("openssl") is None:
        raise NoVariant("openssl is not there to make certificates")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-days", "2",
            "-subj", "/CN=conformance CA", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", *key, "-keyout", "server-key.pem", "-out", "server.csr",
            "-subj", f"/CN={TLS_HOST}")
    with open(os.path.join(directory, "extensions"), "w", encoding="ascii") as file:
        file.write(f"subjectAltName=DNS:{TLS_HOST}\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem",
            "-CAcreateserial", "-out", "server-cert.pem", "-days", "2", "-extfile", "extensions")
