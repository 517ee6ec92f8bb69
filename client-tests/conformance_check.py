# SPDX-License-Identifier: BSD-2-Clause
"""What one rule's test has at hand: connections at every stage, servers of other variants, room on
the export, and a place to say what is wrong."""

import struct
import uuid

import nbd_wire as w
from conformance_target import NoVariant

MIB = 1 << 20
ROOM_BYTES = 16 * MIB

RULES = {}  # number -> (title, function)

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"


def rule(number, title):
    def register(function):
        assert number not in RULES
        RULES[number] = (title, function)
        return function
    return register


class NotApplicable(Exception):
    pass


class Suite:
    """What all rules of one run share."""

    def __init__(self, target, background):
        self.target = target
        self.journal = w.Journal()
        self.background = background
        self.server = None
        self.next_room = 2 * ROOM_BYTES
        self.facts = {}

    def main_server(self):
        if self.server is None or not self.server.alive():
            if self.server is not None:
                self.server.end()
            self.server = self.target.start()
        return self.server

    def end(self):
        if self.server is not None:
            self.server.end()


class Check:
    def __init__(self, suite):
        self.suite = suite
        self.target = suite.target
        self.journal = suite.journal
        self.export = suite.target.export
        self.failures = []
        self.notes = []
        self.opened = []
        self.servers = []

    # -- verdicts --

    def expect(self, good, text):
        if not good:
            self.failures.append(text)
        return good

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)

    @staticmethod
    def skip(text):
        raise NotApplicable(text)

    # -- servers --

    @property
    def server(self):
        return self.suite.main_server()

    def variant(self, name):
        try:
            server = self.target.start(name)
        except NoVariant as error:
            raise NotApplicable(str(error)) from error
        self.servers.append(server)
        return server

    def local_server(self):
        """A fresh one that this rule may stop or kill."""
        server = self.variant("default")
        if not hasattr(server, "process"):
            self.skip("the server cannot be started and stopped by this suite")
        return server

    def clean_up(self):
        for connection in self.opened:
            connection.close()
        for server in self.servers:
            server.end()

    # -- connections --

    def connect(self, server=None, timeout_sec=None):
        connection = (server or self.server).connect(self.journal, timeout_sec)
        self.opened.append(connection)
        return connection

    def greeted(self, flags=w.FIXED_NEWSTYLE | w.NO_ZEROES, server=None):
        return self.connect(server).greet(flags)

    def negotiated(self, form, server=None):
        """Greeted, and the form agreed on; not applicable when the server has none of it."""
        connection = self.greeted(server=server)
        if not connection.negotiate(form):
            self.skip({w.STRUCTURED: "structured replies are not offered",
                       w.EXTENDED: "extended headers are not offered"}[form])
        return connection

    def enter(self, form=w.SIMPLE, contexts=(), export=None, server=None):
        """In transmission."""
        export = self.export if export is None else export
        connection = self.negotiated(form, server)
        if contexts:
            connection.set_meta(export, contexts)
            if len(connection.contexts) < len(contexts):
                self.skip(f"no metadata context {' or '.join(contexts)}")
        self.go_on(connection, export)
        return connection

    def go_on(self, connection, export):
        replies = connection.go(export, [w.INFO_BLOCK_SIZE])
        if replies[-1].kind != w.REP_ACK:
            raise w.WireError(f"GO: {replies[-1]}")
        connection.minimum = 1
        for reply in replies:
            if reply.kind == w.REP_INFO and reply.payload[:2] == b"\0\3":
                connection.minimum = struct.unpack(">HIII", reply.payload)[1]

    def writable(self, form=w.SIMPLE, contexts=(), server=None, flags=0):
        """In transmission of an export that takes writes, and has these transmission flags."""
        connection = self.enter(form, contexts, server=server)
        if connection.flags & w.READ_ONLY:
            self.skip("the export is read-only")
        for flag, name in ((w.SEND_FLUSH, "FLUSH"), (w.SEND_FUA, "FUA"), (w.SEND_TRIM, "TRIM"),
                           (w.SEND_WRITE_ZEROES, "WRITE_ZEROES"), (w.SEND_DF, "DF"),
                           (w.SEND_FAST_ZERO, "FAST_ZERO")):
            if flags & flag and not connection.flags & flag:
                self.skip(f"{name} is not offered")
        return connection

    def forms(self):
        """The header forms that the server has."""
        if "forms" not in self.suite.facts:
            found = [w.SIMPLE]
            for form in (w.STRUCTURED, w.EXTENDED):
                with self.connect() as connection:
                    if connection.greet().negotiate(form):
                        found.append(form)
            self.suite.facts["forms"] = found
        return self.suite.facts["forms"]

    def takes_any_name(self):
        if "any name" not in self.suite.facts:
            with self.connect() as connection:
                replies = connection.greet().go(f"no-{uuid.uuid4()}", option=w.OPT_INFO)
                self.suite.facts["any name"] = replies[-1].kind == w.REP_ACK
        return self.suite.facts["any name"]

    def room(self, connection, length=ROOM_BYTES):
        """The offset of a place that no other rule writes to."""
        at = self.suite.next_room
        rooms = (length + ROOM_BYTES - 1) // ROOM_BYTES
        if at + rooms * ROOM_BYTES > connection.size:
            self.skip(f"the export, {connection.size} bytes, is too small")
        self.suite.next_room = at + rooms * ROOM_BYTES
        return at

    # -- things to expect --

    def expect_closed(self, connection, when, within_sec=2.0):
        self.expect(connection.is_closed(within_sec), f"{when}: the connection stays open")

    def expect_cut(self, connection, when):
        """Closed, perhaps with an error reply before."""
        try:
            for _ in range(w.STRING_MAX):
                connection.recv(1)
            self.expect(False, f"{when}: it is answered at length")
        except w.Closed:
            pass
        except w.WireError:
            self.expect(False, f"{when}: the connection stays open")

    def expect_refusal(self, connection, option, payload, kinds, when):
        """One error of these kinds, and the next option is read in its place. Contexts may come
        before an error, and are to be disregarded then."""
        replies = connection.ask(option, payload)
        self.expect(all(reply.kind == w.REP_META_CONTEXT for reply in replies[:-1]),
                    f"{when}: {replies}")
        self.expect(replies[-1].kind in kinds,
                    f"{when}: {replies[-1]} instead of {' or '.join(map(w.reply_name, kinds))}")
        self.expect_options_go_on(connection, when)
        return replies[-1]

    def expect_options_go_on(self, connection, when):
        try:
            reply = connection.ask(0x7FFFFFF0)[-1]
        except w.WireError as error:
            raise w.WireError(f"{when}: then another option: {error}") from error
        self.expect(reply.kind & w.REP_ERROR, f"{when}: then an unknown option: {reply}")

    def expect_error(self, result, errors, when=None):
        errors = errors if isinstance(errors, (tuple, list)) else (errors,)
        return self.expect(result.error in errors,
                           f"{when or result.request}: {result.name} instead of "
                           f"{' or '.join(map(w.error_name, errors))}")

    def expect_good(self, result, when=None):
        return self.expect_error(result, 0, when)

    def expect_data(self, connection, offset, data, when):
        result = connection.read(offset, len(data))
        if self.expect_good(result, when):
            self.expect(result.data == data, f"{when}: other bytes came back "
                                             f"(first at {first_difference(result.data, data)})")

    def expect_no_faults(self, result, subjects=None):
        for subject, text in result.faults:
            if subjects is None or subject in subjects:
                self.expect(False, f"{result.request}: {text}")

    def expect_journal_clean(self, subjects):
        """Over everything that was seen in this run so far."""
        for subject in subjects:
            for text in self.journal.faults.get(subject, []):
                self.expect(False, text)


def first_difference(left, right):
    for at, (one, other) in enumerate(zip(left, right)):
        if one != other:
            return at
    return min(len(left), len(right))
