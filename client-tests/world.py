# SPDX-License-Identifier: BSD-2-Clause
"""Where the clients of a test come from: this system, or a folder with another one in it.

A test says which clients it `needs`, and runs them with call(), background() or script(). It is
written once: `test-NAME` takes the clients of this system, `test-NAME --debian13` those of the folder
that $QCOWD_DEBIAN13 names (scripts/debian13 makes one), with the same server and the same tests. A
test that needs no client has nothing to do there and is skipped.

A folder's programs see /proc, /sys, /dev and the directory of temporary files, where all images and
sockets are, by mounts in a mount namespace of their own, of which a process of ours is the keeper: its
end is theirs, however the test ends, and nothing is ever mounted that others see, or that `rm -rf`
could walk into. Without root the namespace belongs to a user namespace.
"""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

from qcowd_case import TIMEOUT_SEC, QcowdCase, run

SKIPPED = 77
MIB = 1 << 20

KEEPER = """
set -e
for path in /proc /sys /dev "$2"; do
    mkdir -p "$1$path"
    mount --rbind "$path" "$1$path"
done
echo ready
exec chroot "$1" cat
"""


class Native:
    """This system."""

    foreign = False

    @staticmethod
    def find(program):
        return shutil.which(program)

    @staticmethod
    def command(*words):
        return list(words)

    @staticmethod
    def path(path):
        """How we reach a file that the clients made."""
        return path


class Folder:
    """A system in a folder."""

    foreign = True

    def __init__(self, folder):
        self.folder = os.path.realpath(folder)
        self.keeper = None

    def find(self, program):
        """Its path in the folder."""
        for directory in ("/usr/bin", "/usr/sbin"):
            if os.access(f"{self.folder}{directory}/{program}", os.X_OK):
                return f"{directory}/{program}"
        return None

    def enter(self):
        """The keeper's number; there is one for the life of this process."""
        if self.keeper is None:
            user = [] if os.geteuid() == 0 else ["--map-root-user"]
            self.keeper = subprocess.Popen(
                ["unshare", "--mount", *user, "sh", "-c", KEEPER, "keeper", self.folder,
                 os.path.realpath(tempfile.gettempdir())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if self.keeper.stdout.readline() != b"ready\n":
                raise OSError(f"{self.folder} cannot be entered")
        return str(self.keeper.pid)

    def command(self, *words):
        keeper = self.enter()
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", keeper, *user, "--mount", "--root", f"--wdns={os.getcwd()}",
                self.find(words[0]) or words[0], *words[1:]]

    def path(self, path):
        return f"/proc/{self.enter()}/root{os.path.abspath(path)}"


def chosen():
    """The world that the command line asks for."""
    if "--debian13" not in sys.argv:
        return Native()
    sys.argv.remove("--debian13")
    folder = os.environ.get("QCOWD_DEBIAN13")
    if not folder:
        print("skipped: $QCOWD_DEBIAN13 names no folder with a Debian 13; scripts/debian13 makes one")
        sys.exit(SKIPPED)
    return Folder(folder)


WORLD = chosen()


def needs(*programs):
    """A test of these clients, which is skipped where there are none."""
    def decorate(test):
        test.needs_clients = True
        missing = [program for program in programs if not WORLD.find(program)]
        return unittest.skipIf(missing, f"not installed: {' '.join(missing)}")(test)
    return decorate


class ClientCase(QcowdCase):
    """A disk on a socket, clients of the world, and QEMU's tools as judges of the image afterwards."""

    def setUp(self):
        if WORLD.foreign and not hasattr(getattr(self, self._testMethodName), "needs_clients"):
            self.skipTest("no client of another system is in it")
        super().setUp()
        self.socket = os.path.join(self.directory, "sock")
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def client(self, *command, timeout=TIMEOUT_SEC):
        """Runs a client to its end, whatever that is."""
        return subprocess.run(WORLD.command(*command), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              errors="replace", timeout=timeout, check=False)

    def call(self, *command, timeout=TIMEOUT_SEC):
        """Runs a client that must succeed; returns what it printed."""
        result = self.client(*command, timeout=timeout)
        self.assertEqual(result.returncode, 0, f"{command}: {result.stdout}{result.stderr}")
        return result.stdout

    def client_background(self, *command, **options):
        """A client that is ended with the test, whatever happens."""
        return self.background(*WORLD.command(*command), **options)

    @staticmethod
    def script(text):
        """Words for a shell of this system that run a shell script of clients."""
        return shlex.join(WORLD.command("sh", "-c", text))

    def serve(self, size="64M", *options):
        self.make("disk.qcow2", size)
        return self.start("-U", "sock", *options, "disk.qcow2")

    @staticmethod
    def write_sample(path, size_bytes, data_bytes=8 * MIB):
        """A sparse file with data at both ends and at some places between."""
        places = random.Random(size_bytes)
        piece_bytes = MIB // 2 + 512
        offsets = [0, size_bytes - piece_bytes]
        while len(offsets) * piece_bytes < data_bytes:
            offsets.append(places.randrange(0, size_bytes - piece_bytes) // 512 * 512)
        with open(path, "wb") as file:
            file.truncate(size_bytes)
            for offset in offsets:
                file.seek(offset)
                file.write(places.randbytes(piece_bytes))

    def judge(self, same_as=None, image="disk.qcow2"):
        """The image must be sound, and hold what the raw file `same_as` holds."""
        result = run("check", image)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        if WORLD.find("qemu-img"):
            self.call("qemu-img", "check", "-f", "qcow2", image)
            if same_as:
                self.call("qemu-img", "compare", "-f", "raw", "-F", "qcow2", same_as, image)

    def stop_and_judge(self, server, same_as=None, image="disk.qcow2"):
        """Ends the server, in order and without a word."""
        self.assertEqual(self.stop(server), (0, ""))
        self.judge(same_as, image)

    def json(self, *command):
        return json.loads(self.call(*command))
