/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A TLS session as a stream over a stream. GnuTLS never waits and never sees a socket: it takes
 * received bytes from one buffer and leaves bytes to send in another, and co_recv and co_send move
 * them between the buffers and the inner stream.
 *
 * Where GnuTLS runs: the handshake, which computes for milliseconds, on a worker; records, between
 * two waits, on the thread's full-size stack (coro_call_on_driver). Never on a coroutine's stack,
 * which our two transport functions assert. A call into the session is never interrupted by
 * another, as all of them are made by one thread without a suspension within; the receiver's and
 * the sender's waits do not hold each other up.
 *
 * Only the sender gives GnuTLS a buffer to send from: what it wants to say while it receives
 * (the answer to a key update) it says with the next record, and an alert is never sent then.
 */
#include "io/tls_keys.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/x509.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "io/buffers.h"
#include "io/iov.h"
#include "sched/co.h"

#define RECORD_BYTES 16384U
/* Header, tag, padding; and a key update that may go before it. */
#define RECORD_ROOM      (RECORD_BYTES + 1024U)
#define RECV_SMALL_BYTES 512U
#define RECV_LARGE_BYTES (64U * 1024U)
#define SEND_BYTES_MAX   (8U * RECORD_ROOM)
/* What the server says in a handshake goes out in pieces of this size. */
#define FLIGHT_BYTES  2048U
#define GOODBYE_BYTES 1024U
#define GOODBYE_NS    (1000ULL * 1000 * 1000)
/* No record is shorter: its header. */
#define RECORD_BYTES_MIN 5U

struct tls_buffer {
    uint8_t *bytes;
    size_t capacity;
    size_t begin; /* what is there: [begin, end) */
    size_t end;
};

struct tls_stream {
    struct stream base;
    struct stream *inner;
    struct world *world;
    struct tls_keys *keys;
    gnutls_session_t session;
    struct tls_buffer received; /* encrypted; in `small`, or the pool's */
    struct tls_buffer to_send;  /* encrypted; the sender's, no bytes without one */
    bool aborted;
    bool recv_ended; /* by us */
    int recv_result; /* 1: going on; 0: the peer has said goodbye; -errno */
    bool broken;     /* the session can say nothing more */
    struct world_timer goodbye_timer;
    char *identity;
    uint8_t small[RECV_SMALL_BYTES];
};

static struct tls_stream *to_tls(struct stream *stream)
{
    return container_of(stream, struct tls_stream, base);
}

/* ---- Buffers, and GnuTLS's ends of them ---- */

static int tls_buffer_init(struct tls_buffer *buffer, size_t capacity)
{
    *buffer = (struct tls_buffer){.bytes = buffer_get(capacity), .capacity = capacity};
    return buffer->bytes ? 0 : -ENOMEM;
}

static void tls_buffer_release(struct tls_buffer *buffer)
{
    buffer_put(buffer->bytes, buffer->capacity);
    *buffer = (struct tls_buffer){.bytes = NULL};
}

static size_t tls_buffer_used(const struct tls_buffer *buffer)
{
    return buffer->end - buffer->begin;
}

static size_t tls_buffer_room(const struct tls_buffer *buffer)
{
    return buffer->capacity - buffer->end;
}

static ssize_t pull(gnutls_transport_ptr_t transport, void *to, size_t len)
{
    struct tls_stream *s = transport;
    size_t now = MIN_OF(len, tls_buffer_used(&s->received));

    assert(!coro_self()); /* this stack is large enough */
    if (now == 0) {
        gnutls_transport_set_errno(s->session, EAGAIN);
        return -1;
    }
    memcpy(to, s->received.bytes + s->received.begin, now);
    s->received.begin += now;
    return (ssize_t)now;
}

/* Whether there is something to pull, without waiting for it. */
static int pull_timeout(gnutls_transport_ptr_t transport, unsigned timeout_ms)
{
    struct tls_stream *s = transport;
    (void)timeout_ms;
    return tls_buffer_used(&s->received) > 0 ? 1 : 0;
}

static ssize_t push(gnutls_transport_ptr_t transport, const void *from, size_t len)
{
    struct tls_stream *s = transport;
    size_t now = MIN_OF(len, tls_buffer_room(&s->to_send));

    assert(!coro_self());
    if (now == 0) {
        gnutls_transport_set_errno(s->session, EAGAIN);
        return -1;
    }
    memcpy(s->to_send.bytes + s->to_send.end, from, now);
    s->to_send.end += now;
    return (ssize_t)now;
}

/* One receive of the inner stream; as co_recv. The buffer is empty. */
static ssize_t co_fill(struct tls_stream *s)
{
    struct tls_buffer *buffer = &s->received;

    assert(tls_buffer_used(buffer) == 0);
    buffer->begin = 0;
    buffer->end = 0;
    ssize_t got = s->inner->ops->co_recv(s->inner, buffer->bytes, buffer->capacity);
    if (got > 0) {
        assert((size_t)got <= buffer->capacity);
        buffer->end = (size_t)got;
    }
    return got;
}

static void release_received(struct tls_stream *s)
{
    if (s->received.bytes != s->small) {
        tls_buffer_release(&s->received);
    }
}

/*
 * Before a receive: a full buffer means that there is more to come, any other that the peer may
 * fall silent, and then a session should cost little.
 */
static void fit_receive_buffer(struct tls_stream *s)
{
    bool was_full = s->received.end == s->received.capacity;
    struct tls_buffer fresh = {.bytes = s->small, .capacity = sizeof(s->small)};

    if (was_full && s->received.capacity == RECV_LARGE_BYTES) {
        return;
    }
    if (was_full && tls_buffer_init(&fresh, RECV_LARGE_BYTES) < 0) {
        return; /* it goes with the one there is */
    }
    release_received(s);
    s->received = fresh;
}

/* Sends what GnuTLS has left for us. */
static int co_flush(struct tls_stream *s, bool more)
{
    struct tls_buffer *buffer = &s->to_send;
    struct iovec iov = {buffer->bytes + buffer->begin, tls_buffer_used(buffer)};

    buffer->begin = 0;
    buffer->end = 0;
    return iov.iov_len > 0 ? s->inner->ops->co_send(s->inner, &iov, 1, more) : 0;
}

static void complain(const struct tls_stream *s, int code)
{
    if (code == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        log_client(LOG_LEVEL_INFO, s->base.peer, NULL, "TLS ended by the client's alert: %s",
                   gnutls_alert_get_name(gnutls_alert_get(s->session)));
    } else {
        log_client(LOG_LEVEL_INFO, s->base.peer, NULL, "TLS failed: %s", gnutls_strerror(code));
    }
}

/* ---- Receiving ---- */

struct unseal {
    struct tls_stream *s;
    uint8_t *to;
    size_t len;
    size_t done;
};

/* What became of the session with this result of a receive. */
static void note_recv_code(struct tls_stream *s, ssize_t code)
{
    if (code == 0) {
        s->recv_result = 0;
        return;
    }
    /* Renegotiation is TLS 1.2's, and nothing that an NBD client needs. */
    if (gnutls_error_is_fatal((int)code) || code == GNUTLS_E_REHANDSHAKE) {
        complain(s, (int)code);
        s->recv_result = -ECONNRESET;
        s->broken = true;
    }
}

/* Decrypts what has come, as far as it goes. */
static void run_unseal(void *arg)
{
    struct unseal *unseal = arg;
    struct tls_stream *s = unseal->s;
    /* Each turn takes a record; a few more for what GnuTLS keeps. O10 */
    size_t turns_left = tls_buffer_used(&s->received) / RECORD_BYTES_MIN + 4;

    while (unseal->done < unseal->len && s->recv_result > 0 && turns_left-- > 0) {
        ssize_t got =
            gnutls_record_recv(s->session, unseal->to + unseal->done, unseal->len - unseal->done);
        if (got > 0) {
            unseal->done += (size_t)got;
            continue;
        }
        note_recv_code(s, got);
        if (got == GNUTLS_E_AGAIN && tls_buffer_used(&s->received) == 0) {
            break;
        }
    }
}

static ssize_t co_tls_recv(struct stream *stream, void *buf, size_t len)
{
    struct tls_stream *s = to_tls(stream);

    for (;;) {
        if (s->aborted) {
            return -ESHUTDOWN;
        }
        if (s->recv_ended || s->recv_result <= 0) {
            return s->recv_ended ? 0 : s->recv_result;
        }
        struct unseal unseal = {.s = s, .to = buf, .len = len};
        coro_call_on_driver(run_unseal, &unseal);
        if (unseal.done > 0) {
            return (ssize_t)unseal.done; /* an end behind it is told by the next call */
        }
        if (s->recv_result <= 0) {
            continue;
        }
        if (tls_buffer_used(&s->received) > 0) {
            log_client(LOG_LEVEL_INFO, s->base.peer, NULL, "TLS makes no progress");
            s->recv_result = -ECONNRESET;
            s->broken = true;
            continue;
        }
        fit_receive_buffer(s);
        ssize_t got = co_fill(s);
        if (got < 0) {
            return s->aborted ? -ESHUTDOWN : got;
        }
        if (got == 0 && !s->recv_ended) {
            /* Without a goodbye anybody on the way may have cut it. */
            log_client(LOG_LEVEL_DEBUG, s->base.peer, NULL,
                       "the TLS stream ends without a goodbye");
            s->recv_result = -ECONNRESET;
        }
    }
}

/* ---- Sending ---- */

struct seal {
    struct tls_stream *s;
    struct iovec *iov; /* what is left, no empty entry first */
    int iov_count;
    uint64_t left_bytes;
    int result;
};

/* The bytes of the next record in one piece: in place, or gathered in `scratch`. */
static const void *next_piece(const struct seal *seal, uint8_t *scratch, size_t *len)
{
    *len = (size_t)MIN_OF(seal->left_bytes, (uint64_t)RECORD_BYTES);
    if (seal->iov[0].iov_len >= *len) {
        return seal->iov[0].iov_base;
    }
    iov_copy_out(seal->iov, seal->iov_count, 0, scratch, *len);
    return scratch;
}

/* Encrypts until the buffer is full or nothing is left. */
static void run_seal(void *arg)
{
    struct seal *seal = arg;
    struct tls_stream *s = seal->s;
    uint8_t scratch[RECORD_BYTES];

    seal->result = 0;
    while (seal->left_bytes > 0 && tls_buffer_room(&s->to_send) >= RECORD_ROOM) {
        size_t len;
        const void *piece = next_piece(seal, scratch, &len);
        ssize_t taken = gnutls_record_send(s->session, piece, len);
        if (taken == GNUTLS_E_INTERRUPTED) {
            continue;
        }
        if (taken == GNUTLS_E_AGAIN && tls_buffer_used(&s->to_send) > 0) {
            break; /* to be repeated with the same bytes when there is room */
        }
        if (taken <= 0) {
            complain(s, (int)taken);
            seal->result = -ECONNRESET;
            s->broken = true;
            return;
        }
        iov_advance(&seal->iov, &seal->iov_count, (size_t)taken);
        seal->left_bytes -= (size_t)taken;
    }
}

static size_t send_buffer_bytes(uint64_t payload_bytes)
{
    uint64_t records = payload_bytes / RECORD_BYTES + 1;
    return (size_t)MIN_OF(payload_bytes + records * (RECORD_ROOM - RECORD_BYTES) + RECORD_ROOM,
                          (uint64_t)SEND_BYTES_MAX);
}

static int co_tls_send(struct stream *stream, struct iovec *iov, int iov_count, bool more)
{
    struct tls_stream *s = to_tls(stream);
    struct seal seal = {.s = s, .iov = iov, .iov_count = iov_count};

    iov_advance(&seal.iov, &seal.iov_count, 0);
    seal.left_bytes = iov_total_bytes(seal.iov, seal.iov_count);
    if (seal.left_bytes == 0) {
        return 0;
    }
    if (tls_buffer_init(&s->to_send, send_buffer_bytes(seal.left_bytes)) < 0) {
        return -ENOMEM;
    }
    int result = 0;
    while (result == 0 && seal.left_bytes > 0) {
        if (s->aborted || s->broken) {
            result = s->aborted ? -ESHUTDOWN : -ECONNRESET;
            break;
        }
        coro_call_on_driver(run_seal, &seal);
        result = co_flush(s, more || seal.left_bytes > 0);
        result = result == 0 ? seal.result : result;
    }
    tls_buffer_release(&s->to_send);
    return s->aborted && result < 0 ? -ESHUTDOWN : result;
}

/* ---- Ending ---- */

static void tls_end_recv(struct stream *stream)
{
    struct tls_stream *s = to_tls(stream);

    s->recv_ended = true;
    s->inner->ops->end_recv(s->inner);
}

static void tls_abort(struct stream *stream)
{
    struct tls_stream *s = to_tls(stream);

    s->aborted = true;
    s->inner->ops->abort(s->inner);
}

static void on_goodbye_late(struct world_timer *timer)
{
    struct tls_stream *s = container_of(timer, struct tls_stream, goodbye_timer);
    s->inner->ops->abort(s->inner);
}

static void run_goodbye(void *arg)
{
    struct tls_stream *s = arg;
    int code = gnutls_bye(s->session, GNUTLS_SHUT_WR);
    (void)code; /* a session that can say nothing more, or the buffer is full: it is over anyway */
}

/* close_notify; a peer that does not take it is waited for a moment only. */
static void co_say_goodbye(struct tls_stream *s)
{
    if (s->aborted || s->broken || tls_buffer_init(&s->to_send, GOODBYE_BYTES) < 0) {
        return;
    }
    coro_call_on_driver(run_goodbye, s);
    s->world->ops->timer_start(s->world, &s->goodbye_timer, world_now_ns(s->world) + GOODBYE_NS);
    int result = co_flush(s, false);
    s->world->ops->timer_stop(s->world, &s->goodbye_timer);
    tls_buffer_release(&s->to_send);
    if (result < 0) {
        log_client(LOG_LEVEL_DEBUG, s->base.peer, NULL, "gone before our goodbye");
    }
}

static void run_deinit(void *arg)
{
    struct tls_stream *s = arg;
    gnutls_deinit(s->session);
}

/* All but the inner stream. */
static void tls_stream_free(struct tls_stream *s)
{
    if (s->session) {
        coro_call_on_driver(run_deinit, s);
    }
    tls_keys_release(s->keys);
    release_received(s);
    tls_buffer_release(&s->to_send);
    free(s->identity);
    free(s);
}

static void co_tls_close(struct stream *stream)
{
    struct tls_stream *s = to_tls(stream);
    struct stream *inner = s->inner;

    co_say_goodbye(s);
    tls_stream_free(s);
    inner->ops->co_close(inner);
}

static uint64_t tls_progress(struct stream *stream)
{
    struct stream *inner = to_tls(stream)->inner;
    return inner->ops->progress(inner);
}

static void tls_move(struct stream *stream, struct world *world)
{
    struct tls_stream *s = to_tls(stream);

    s->world = world;
    s->inner->ops->move(s->inner, world);
}

static const struct stream_ops tls_stream_ops = {
    .co_recv = co_tls_recv,
    .co_send = co_tls_send,
    .end_recv = tls_end_recv,
    .abort = tls_abort,
    .progress = tls_progress,
    .move = tls_move,
    .co_close = co_tls_close,
};

/* ---- The handshake ---- */

/* What a worker does: one go at the handshake, and all that needs a large stack at its end. */
struct handshake {
    struct tls_stream *s;
    const struct tls *tls;
    int code; /* GNUTLS_E_*; 0: the session stands */
    bool wants_to_send;
    size_t unread_before; /* what there was for the last go */
    struct errtext *err;
    int result; /* when the code is no longer one of "go on" */
};

static int session_create(struct tls_stream *s)
{
    int code = gnutls_init(&s->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS);

    if (code < 0) {
        s->session = NULL;
        return code;
    }
    gnutls_transport_set_ptr(s->session, s);
    gnutls_transport_set_pull_function(s->session, pull);
    gnutls_transport_set_pull_timeout_function(s->session, pull_timeout);
    gnutls_transport_set_push_function(s->session, push);
    gnutls_handshake_set_timeout(s->session, 0); /* the connection has its own */
    code = tls_keys_apply(s->keys, s->session);
    if (code >= 0 && tls_keys_verify_peer(s->keys)) {
        static gnutls_typed_vdata_st purpose = {
            .type = GNUTLS_DT_KEY_PURPOSE_OID,
            .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT,
        };
        gnutls_session_set_verify_cert2(s->session, &purpose, 1, 0);
    }
    return code;
}

/* Who the peer is, in s->identity. 0 or -errno. */
static int find_certificate_identity(struct tls_stream *s)
{
    unsigned count;
    gnutls_datum_t name = {.data = NULL};
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(s->session, &count);
    gnutls_x509_crt_t certificate;

    if (!chain || count == 0 || gnutls_x509_crt_init(&certificate) < 0) {
        return -EINVAL;
    }
    int code = gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER);
    if (code >= 0) {
        code = gnutls_x509_crt_get_dn3(certificate, &name, 0);
    }
    /* A name as long as that is nobody's we could want to know. */
    bool usable = code >= 0 && name.size <= LIMIT_NBD_STRING_BYTES;
    if (usable && asprintf(&s->identity, "dn:%.*s", (int)name.size, (char *)name.data) < 0) {
        s->identity = NULL;
    }
    gnutls_free(name.data);
    gnutls_x509_crt_deinit(certificate);
    return s->identity ? 0 : -EINVAL;
}

static int find_identity(struct tls_stream *s)
{
    if (gnutls_auth_get_type(s->session) == GNUTLS_CRD_PSK) {
        const char *name = gnutls_psk_server_get_username(s->session);
        if (!name || asprintf(&s->identity, "psk:%s", name) < 0) {
            s->identity = NULL;
            return -EINVAL;
        }
        return 0;
    }
    return tls_keys_verify_peer(s->keys) ? find_certificate_identity(s) : 0;
}

static void explain_certificate(struct handshake *handshake)
{
    struct tls_stream *s = handshake->s;
    unsigned status = gnutls_session_get_verify_cert_status(s->session);
    gnutls_datum_t text = {.data = NULL};

    if (gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) < 0) {
        text.data = NULL;
    }
    handshake->result = err_set(handshake->err, EACCES, "its certificate is refused: %s",
                                text.data ? (char *)text.data : "it is not valid");
    gnutls_free(text.data);
}

/* The handshake has failed: why, and what the peer is told. */
static void explain_failure(struct handshake *handshake)
{
    struct tls_stream *s = handshake->s;
    int code = handshake->code;

    /* The reason that the specification has for it; nothing is sent where it has none. */
    int sent = gnutls_alert_send_appropriate(s->session, code);
    (void)sent;
    if (code == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        handshake->result = err_set(handshake->err, ECONNRESET, "the client refuses: %s",
                                    gnutls_alert_get_name(gnutls_alert_get(s->session)));
    } else if (code == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR ||
               code == GNUTLS_E_CERTIFICATE_ERROR) {
        explain_certificate(handshake);
    } else {
        handshake->result = err_set(handshake->err, EACCES, "%s", gnutls_strerror(code));
    }
}

static void admit(struct handshake *handshake)
{
    struct tls_stream *s = handshake->s;
    char shown[256];

    int result = find_identity(s);
    if (result < 0) {
        handshake->result = err_set(handshake->err, -result, "who it is cannot be told");
    } else if (!tls_is_allowed(handshake->tls, s->identity)) {
        const char *who = s->identity ? s->identity : "nobody in particular";
        handshake->result = err_set(handshake->err, EACCES, "%s is not among those allowed",
                                    err_sanitise(shown, sizeof(shown), who, strlen(who)));
    } else {
        handshake->result = 0;
        return;
    }
    int sent = gnutls_alert_send(s->session, GNUTLS_AL_FATAL, GNUTLS_A_ACCESS_DENIED);
    (void)sent; /* the connection ends either way */
}

static bool goes_on(int code)
{
    return code < 0 && !gnutls_error_is_fatal(code);
}

static void run_handshake(void *arg)
{
    struct handshake *handshake = arg;
    struct tls_stream *s = handshake->s;

    handshake->code = s->session ? 0 : session_create(s);
    if (handshake->code < 0) {
        handshake->result = err_set(handshake->err, ENOMEM, "%s", gnutls_strerror(handshake->code));
        return;
    }
    handshake->code = gnutls_handshake(s->session);
    handshake->wants_to_send =
        goes_on(handshake->code) && gnutls_record_get_direction(s->session) == 1;
    if (handshake->code == 0) {
        admit(handshake);
    } else if (!goes_on(handshake->code)) {
        explain_failure(handshake);
    }
}

/* Receives or sends what the last go has asked for. 0 or -errno. */
static int co_feed_handshake(struct handshake *handshake)
{
    struct tls_stream *s = handshake->s;
    size_t unread = tls_buffer_used(&s->received);
    bool any_sent = tls_buffer_used(&s->to_send) > 0;

    int result = co_flush(s, false);
    if (result < 0) {
        return err_set(handshake->err, -result, "the client is gone: %s", strerror(-result));
    }
    if (unread == 0 && !handshake->wants_to_send) {
        ssize_t got = co_fill(s);
        if (got <= 0) {
            return err_set(handshake->err, ECONNRESET, "the client left in the middle of it");
        }
    } else if (unread == handshake->unread_before && !any_sent) {
        return err_set(handshake->err, EIO, "it makes no progress");
    }
    handshake->unread_before = tls_buffer_used(&s->received);
    return 0;
}

/* There is no session before the client's first byte: who sends none costs little. */
static int co_handshake(struct handshake *handshake)
{
    struct tls_stream *s = handshake->s;

    do {
        int result = co_feed_handshake(handshake);
        if (result < 0) {
            return result;
        }
        s->world->ops->co_work(s->world, run_handshake, handshake);
    } while (goes_on(handshake->code));
    int sent = co_flush(s, false); /* the end of ours, or an alert */
    if (handshake->result == 0 && sent < 0) {
        return err_set(handshake->err, -sent, "the client is gone: %s", strerror(-sent));
    }
    return handshake->result;
}

static void run_log_session(void *arg)
{
    const struct tls_stream *s = arg;
    char shown[256];
    const char *who = s->identity ? s->identity : "nobody in particular";

    log_client(LOG_LEVEL_INFO, s->base.peer, NULL, "%s, %s, %s",
               gnutls_protocol_get_name(gnutls_protocol_get_version(s->session)),
               gnutls_cipher_get_name(gnutls_cipher_get(s->session)),
               err_sanitise(shown, sizeof(shown), who, strlen(who)));
}

int co_tls_accept(struct tls *tls, struct world *world, struct stream *inner, struct stream **out,
                  struct errtext *err)
{
    struct tls_stream *s = calloc(1, sizeof(*s));
    uint8_t *flight = malloc(FLIGHT_BYTES);

    if (!s || !flight) {
        free(s);
        free(flight);
        return err_set(err, ENOMEM, "out of memory");
    }
    s->base = (struct stream){.ops = &tls_stream_ops, .peer = inner->peer, .origin = inner->origin};
    s->inner = inner;
    s->world = world;
    s->keys = tls_keys_hold(tls);
    s->recv_result = 1;
    s->goodbye_timer.fired = on_goodbye_late;
    s->received = (struct tls_buffer){.bytes = s->small, .capacity = sizeof(s->small)};
    s->to_send = (struct tls_buffer){.bytes = flight, .capacity = FLIGHT_BYTES};
    struct handshake handshake = {.s = s, .tls = tls, .err = err};
    int result = co_handshake(&handshake);
    s->to_send = (struct tls_buffer){.bytes = NULL};
    free(flight);
    if (result < 0) {
        tls_stream_free(s);
        return result;
    }
    s->base.identity = s->identity;
    coro_call_on_driver(run_log_session, s);
    *out = &s->base;
    return 0;
}
