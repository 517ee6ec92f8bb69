# SPDX-License-Identifier: BSD-2-Clause
"""What the client tests share: a directory of their own, and qcowd run in it and ended surely.

The binary is the one that $QCOWD names, or that of ./build.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

TIMEOUT_SEC = 120
QCOWD = os.path.abspath(os.environ.get("QCOWD", "build/server/qcowd"))


def run(*arguments, program=QCOWD, **options):
    """Runs qcowd to its end."""
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, errors="replace", timeout=TIMEOUT_SEC, check=False, **options)


def content(path):
    with open(path, "rb") as file:
        return file.read()


class QcowdCase(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="qcowd-test-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.directory)

    def make(self, name="disk.qcow2", size="16M", *options):
        result = run("create", *options, name, size)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        return name

    def background(self, *command, **options):
        """A process that is ended with the test, whatever happens."""
        options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, **options)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        if process.poll() is None:
            process.kill()
        process.communicate()

    def wait_until(self, condition, process):
        """Waits for condition() while the process lives."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while not condition():
            if process.poll() is not None:
                self.fail(f"{process.args} ended with {process.returncode}: "
                          f"{process.stderr.read() if process.stderr else ''}")
            self.assertLess(time.monotonic(), deadline, "waited too long")
            time.sleep(0.01)

    def start(self, *arguments, wait_for="sock", **options):
        """qcowd in the background; returns when the file `wait_for`, its socket, is there."""
        server = self.background(QCOWD, *arguments, **options)
        if wait_for:
            self.wait_until(lambda: os.path.exists(wait_for), server)
        return server

    def stop(self, server, signal_number=signal.SIGTERM):
        """Stops it; returns exit status and what it said."""
        server.send_signal(signal_number)
        _, said = server.communicate(timeout=TIMEOUT_SEC)
        return server.returncode, said

    def assert_refused(self, result, *mentions):
        """One line that matches every pattern in `mentions`, nothing else, and exit status 1."""
        self.assertEqual(result.returncode, 1, result)
        self.assertEqual(result.stdout, "", result)
        self.assertRegex(result.stderr, r"\Aqcowd: error: [^\n]+\n\Z")
        for mention in mentions:
            self.assertTrue(re.search(mention, result.stderr), f"{mention}: {result.stderr}")
