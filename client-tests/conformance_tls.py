# SPDX-License-Identifier: BSD-2-Clause
"""TLS: rules 27 to 30."""

import os
import ssl
import struct
import warnings

import nbd_wire as w
from conformance_check import rule
from conformance_handshake import ALLOCATION
from conformance_target import TLS_HOST


def tls_context(server, oldest=ssl.TLSVersion.TLSv1_2, newest=ssl.TLSVersion.MAXIMUM_SUPPORTED):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(os.path.join(server.values["pki"], "ca-cert.pem"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are tried on purpose
        context.minimum_version = oldest
        context.maximum_version = newest
    if newest == ssl.TLSVersion.TLSv1_1:
        context.set_ciphers("DEFAULT@SECLEVEL=0")
    return context


def start_tls(t, connection, server, **versions):
    last = connection.ask(w.OPT_STARTTLS)[-1]
    if last.kind != w.REP_ACK:
        raise w.WireError(f"STARTTLS: {last}")
    connection.start_tls(tls_context(server, **versions), TLS_HOST)
    t.opened.append(connection)  # a new socket
    return connection


def any_tls_variant(t):
    return t.variant("tls-on" if t.target.has_variant("tls-on") else "tls-require")


def expect_no_tls(t):
    """What a server without TLS has to say."""
    connection = t.greeted()
    t.expect_refusal(connection, w.OPT_STARTTLS, b"", (w.ERR_POLICY, w.ERR_UNSUP),
                     "STARTTLS without TLS")
    for option in (w.OPT_LIST, w.OPT_STRUCTURED_REPLY, w.OPT_INFO, w.OPT_SET_META_CONTEXT, 99):
        last = connection.ask(option)[-1]
        t.expect(last.kind != w.ERR_TLS_REQD, f"option {option} without TLS: {last}")


@rule(27, "TLS required: STARTTLS and ABORT only, others ERR_TLS_REQD; no TLS: never that error")
def tls_required(t):
    expect_no_tls(t)
    server = t.variant("tls-require")
    connection = t.greeted(server=server)
    for option, payload in ((w.OPT_LIST, b""), (w.OPT_INFO, w.pack_go(t.export)),
                            (w.OPT_GO, w.pack_go(t.export)), (w.OPT_STRUCTURED_REPLY, b""),
                            (w.OPT_LIST_META_CONTEXT, w.pack_meta(t.export, [])),
                            (w.OPT_SET_META_CONTEXT, w.pack_meta(t.export, [ALLOCATION])),
                            (w.OPT_GO, b"\xff" * 1000), (0x7FFFFFF1, b"x" * 1000)):
        replies = connection.ask(option, payload)
        t.expect(len(replies) == 1 and replies[0].kind == w.ERR_TLS_REQD,
                 f"option {option} before TLS: {replies}")
    connection.option(w.OPT_EXPORT_NAME, w.encode(t.export))
    t.expect_closed(connection, "EXPORT_NAME before TLS")
    last = t.greeted(server=server).ask(w.OPT_ABORT)[-1]
    t.expect(last.kind in (w.REP_ACK, w.ERR_TLS_REQD), f"ABORT before TLS: {last}")
    if last.kind != w.REP_ACK:
        t.note("ABORT needs TLS, too")
    connection = start_tls(t, t.greeted(server=server), server)
    t.go_on(connection, t.export)
    t.expect_good(connection.command(w.READ, 0, 512))


@rule(28, "TLS optional: clear and TLS both work, and ERR_TLS_REQD is for INFO and GO alone")
def tls_optional(t):
    server = t.variant("tls-on")
    for encrypted in (False, True, False):
        connection = t.greeted(server=server)
        if encrypted:
            start_tls(t, connection, server)
        for option in (w.OPT_LIST, w.OPT_STRUCTURED_REPLY, 0x7FFFFFF1):
            last = connection.ask(option)[-1]
            t.expect(last.kind != w.ERR_TLS_REQD, f"option {option}: {last}")
        connection.form = w.STRUCTURED if w.STRUCTURED in t.forms() else w.SIMPLE
        t.go_on(connection, t.export)
        t.expect_good(connection.command(w.READ, 0, 512))


@rule(29, "STARTTLS: no data, once; it wipes what was agreed, and clear bytes behind it are lost")
def tls_start(t):
    server = any_tls_variant(t)
    connection = t.greeted(server=server)
    last = connection.ask(w.OPT_STARTTLS, b"x")[-1]
    t.expect(last.kind == w.ERR_INVALID, f"STARTTLS with data: {last}")
    connection = start_tls(t, t.greeted(server=server), server)
    last = connection.ask(w.OPT_STARTTLS)[-1]
    t.expect(last.kind == w.ERR_INVALID, f"STARTTLS again: {last}")

    connection = t.greeted(server=server)
    injected = struct.pack(">QII", w.IHAVEOPT, 0x7FFFFFF1, 0)
    connection.send(struct.pack(">QII", w.IHAVEOPT, w.OPT_STARTTLS, 0) + injected)
    try:
        # Bytes in the clear behind STARTTLS may be dropped, or end the connection; never be obeyed.
        t.expect(connection.option_reply().kind == w.REP_ACK, "STARTTLS with an option behind it")
        connection.start_tls(tls_context(server), TLS_HOST)
        t.opened.append(connection)
        answers = connection.ask(w.OPT_LIST)  # a WireError on a reply to another option
        t.expect(answers[-1].kind in (w.REP_ACK, w.ERR_POLICY), f"then LIST: {answers[-1]}")
    except w.WireError as error:
        t.expect("reply to option" not in str(error),
                 "an option sent in the clear was answered inside TLS")

    if server.variant == "tls-require":
        t.note("nothing can be agreed on before TLS")
        return
    connection = t.greeted(server=server)
    if connection.negotiate(w.STRUCTURED):
        connection.set_meta(t.export, [ALLOCATION])
    start_tls(t, connection, server)
    connection.form = w.SIMPLE
    connection.contexts = {}
    t.go_on(connection, t.export)
    t.expect(not connection.flags & w.SEND_DF, "structured replies outlived STARTTLS")
    t.expect_good(connection.command(w.READ, 0, 512))
    t.expect_error(connection.status(0, 512), w.EINVAL, "BLOCK_STATUS by contexts of before")


@rule(30, "A failed TLS handshake disconnects, TLS 1.1 is refused, DISC brings close_notify")
def tls_end(t):
    server = any_tls_variant(t)
    connection = t.greeted(server=server)
    t.expect(connection.ask(w.OPT_STARTTLS)[-1].kind == w.REP_ACK, "STARTTLS")
    connection.send(struct.pack(">QII", w.IHAVEOPT, w.OPT_LIST, 0) * 20)
    try:
        while True:
            connection.recv(1)
    except w.Closed:
        pass
    except w.WireError:
        t.expect(False, "no TLS behind STARTTLS: the connection stays open")
    try:
        start_tls(t, t.greeted(server=server), server, oldest=ssl.TLSVersion.TLSv1,
                  newest=ssl.TLSVersion.TLSv1_1)
        t.expect(False, "TLS 1.1 is taken")
    except w.WireError:
        pass
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        connection = start_tls(t, t.greeted(server=server), server, oldest=version, newest=version)
        t.go_on(connection, t.export)
        t.expect_good(connection.command(w.READ, 0, 512))
        connection.request(w.DISC)
        try:
            t.expect(connection.sock.recv(1) == b"", f"{version.name}: bytes after DISC")
        except (ssl.SSLError, OSError) as error:
            t.expect(False, f"{version.name}: no close_notify after DISC: {error}")
