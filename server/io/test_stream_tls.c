/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sessions between our server side and a GnuTLS client, over memory: handshakes that succeed and
 * fail, bulk in both directions at once, and every way to end.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/x509.h>

#include "base/check.h"
#include "base/log.h"
#include "base/testing.h"
#include "io/buffers.h"
#include "io/test_tls.h"
#include "sched/co.h"

#define KEY       "000102030405060708090a0b0c0d0e0f"
#define OTHER_KEY "ff0102030405060708090a0b0c0d0e0f"
#define TLS12     "NORMAL:-VERS-ALL:+VERS-TLS1.2:+ECDHE-PSK:+DHE-PSK:+PSK"
#define BULK      (6U << 20)

enum { UNFINISHED = 1000 };

/* One session, its server's end in coroutines. */
struct rig {
    char *directory;
    struct tls *tls;
    struct test_world world;
    struct memory_stream *memory;
    struct tls_client client;
    struct stream *stream; /* NULL until accepted */
    int accepted;
    struct errtext err;
    /* co_receive */
    uint8_t *received;
    size_t received_len;
    size_t receive_at_once;
    ssize_t receive_end;
    /* co_send_all */
    const uint8_t *sample;
    size_t sample_len;
    int sent;
};

static void discard_log(enum log_level level, const char *line, void *arg)
{
    (void)level;
    (void)line;
    (void)arg;
}

static uint8_t *make_sample(size_t len)
{
    uint8_t *sample = malloc(len);
    uint32_t state = 12345;
    ck_assert_ptr_nonnull(sample);
    for (size_t i = 0; i < len; i++) {
        state = state * 1664525U + 1013904223U;
        sample[i] = (uint8_t)(state >> 24);
    }
    return sample;
}

static struct rig *rig_create(void)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    ck_assert_ptr_nonnull(rig);
    log_set_level(LOG_LEVEL_DEBUG);
    log_set_sink(discard_log, NULL);
    rig->directory = make_directory();
    rig->memory = memory_stream_create();
    rig->accepted = UNFINISHED;
    rig->receive_end = UNFINISHED;
    rig->sent = UNFINISHED;
    rig->receive_at_once = 70000;
    test_world_init(&rig->world);
    return rig;
}

static void use_psk(struct rig *rig)
{
    char path[256];
    struct tls_config config = {.psk_file = path};
    write_file(rig->directory, "keys", 0600, "alice:" KEY "\nbob:" OTHER_KEY "\n");
    snprintf(path, sizeof(path), "%s/keys", rig->directory);
    ck_assert_msg(tls_create(&rig->tls, &config, &rig->err) == 0, "%s", rig->err.text);
}

static void co_accept_session(void *arg)
{
    struct rig *rig = arg;
    struct stream *stream = NULL;
    int result =
        co_tls_accept(rig->tls, &rig->world.world, &rig->memory->stream, &stream, &rig->err);
    rig->stream = stream;
    rig->accepted = result;
    if (result < 0) {
        rig->memory->stream.ops->co_close(&rig->memory->stream);
    }
}

static void co_receive(void *arg)
{
    struct rig *rig = arg;
    ssize_t got = 1;
    while (got > 0) {
        rig->received = realloc(rig->received, rig->received_len + rig->receive_at_once);
        ck_assert_ptr_nonnull(rig->received);
        got = rig->stream->ops->co_recv(rig->stream, rig->received + rig->received_len,
                                        rig->receive_at_once);
        ck_assert_int_le(got, (ssize_t)rig->receive_at_once);
        rig->received_len += got > 0 ? (size_t)got : 0;
    }
    rig->receive_end = got;
}

/* In pieces of all sizes, as replies are. */
static void co_send_all(void *arg)
{
    struct rig *rig = arg;
    static const size_t sizes[] = {20, 20, 131072, 28, 0, 16384, 1, 100000, 16383, 16385, 700000};
    size_t done = 0;
    size_t turn = 0;
    int result = 0;
    while (result == 0 && done < rig->sample_len) {
        struct iovec iov[8];
        int count = 0;
        for (; count < 8 && done < rig->sample_len; count++, turn++) {
            size_t len = MIN_OF(sizes[turn % ARRAY_LEN(sizes)], rig->sample_len - done);
            iov[count].iov_base = (void *)(uintptr_t)(rig->sample + done);
            iov[count].iov_len = len;
            done += len;
        }
        result = rig->stream->ops->co_send(rig->stream, iov, count, done < rig->sample_len);
    }
    rig->sent = result;
}

static void co_close_session(void *arg)
{
    struct rig *rig = arg;
    rig->stream->ops->co_close(rig->stream);
    rig->stream = NULL;
}

static void spawn(coro_fn *fn, struct rig *rig)
{
    ck_assert_int_eq(coro_spawn(fn, rig, "test"), 0);
}

/* The client's handshake to its end; its code. */
static int shake_hands(struct rig *rig)
{
    int code = GNUTLS_E_AGAIN;
    spawn(co_accept_session, rig);
    for (unsigned turns = 0; turns < 100000 && code < 0 && !gnutls_error_is_fatal(code); turns++) {
        code = gnutls_handshake(rig->client.session);
        coro_run_ready();
    }
    if (code == 0) {
        coro_run_ready();
    }
    return code;
}

static void connect_psk(struct rig *rig, const char *priorities)
{
    tls_client_init(&rig->client, rig->memory, priorities);
    tls_client_use_psk(&rig->client, "alice", KEY);
    int code = shake_hands(rig);
    ck_assert_msg(code == 0 && rig->accepted == 0, "%d %s", code, rig->err.text);
    ck_assert_str_eq(rig->stream->identity, "psk:alice");
    ck_assert_str_eq(rig->stream->peer, "memory");
}

static void rig_free(struct rig *rig)
{
    if (rig->stream) {
        spawn(co_close_session, rig);
        coro_run_ready();
    }
    ck_assert(rig->memory->closed);
    ck_assert_uint_eq(coro_live_count(), 0);
    ck_assert_ptr_null(rig->world.timer);
    tls_client_free(&rig->client);
    memory_stream_free(rig->memory);
    tls_free(rig->tls);
    remove_directory(rig->directory);
    free(rig->received);
    free(rig);
    coro_pool_drain();
    buffer_pool_drain();
}

static void client_send(struct rig *rig, const void *bytes, size_t len)
{
    const uint8_t *at = bytes;
    while (len > 0) {
        ssize_t sent = gnutls_record_send(rig->client.session, at, len);
        ck_assert_int_gt(sent, 0);
        at += sent;
        len -= (size_t)sent;
    }
}

/* Takes what the server sends until there are len bytes. */
static void client_expect(struct rig *rig, const uint8_t *wanted, size_t len)
{
    uint8_t piece[32768];
    size_t done = 0;
    while (done < len) {
        ssize_t got =
            gnutls_record_recv(rig->client.session, piece, MIN_OF(sizeof(piece), len - done));
        if (got == GNUTLS_E_AGAIN) {
            ck_assert_msg(coro_run_ready(), "the server has gone quiet after %zu bytes", done);
            continue;
        }
        ck_assert_msg(got > 0, "%s", gnutls_strerror((int)got));
        ck_assert_mem_eq(piece, wanted + done, (size_t)got);
        done += (size_t)got;
    }
}

static void expect_no_secrets_lost(struct rig *rig, const char *text)
{
    spawn(co_receive, rig);
    client_send(rig, text, strlen(text));
    coro_run_ready();
    ck_assert_uint_eq(rig->received_len, strlen(text));
    ck_assert_mem_eq(rig->received, text, strlen(text));
    rig->sample = (const uint8_t *)text;
    rig->sample_len = strlen(text);
    spawn(co_send_all, rig);
    client_expect(rig, rig->sample, rig->sample_len);
    ck_assert_int_eq(rig->sent, 0);
}

/* ---- Sessions that work ---- */

START_TEST(test_psk_session)
{
    static const char *const priorities[] = {
        NULL,
        TLS12,
        "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+PSK",
        "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+DHE-PSK",
        "NORMAL:-KX-ALL:+PSK:-VERS-ALL:+VERS-TLS1.3",
    };
    struct rig *rig = rig_create();
    use_psk(rig);
    connect_psk(rig, priorities[_i]);
    ck_assert_uint_ge(rig->world.works, 2); /* the handshake runs there */
    expect_no_secrets_lost(rig, "as it was said");
    ck_assert_int_eq(gnutls_bye(rig->client.session, GNUTLS_SHUT_WR), 0);
    coro_run_ready();
    ck_assert_int_eq(rig->receive_end, 0);
    rig_free(rig);
}
END_TEST

/* The server's order counts: clients put ChaCha20 before AES-128-GCM. */
START_TEST(test_ciphers)
{
    static const struct {
        const char *of_server; /* NULL: its own */
        const char *of_client;
        gnutls_cipher_algorithm_t expected;
    } cases[] = {
        {NULL, NULL, GNUTLS_CIPHER_AES_128_GCM},
        {NULL, "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+DHE-PSK", GNUTLS_CIPHER_AES_128_GCM},
        {NULL, "NORMAL:-CIPHER-ALL:+CHACHA20-POLY1305:+AES-128-GCM:+ECDHE-PSK:+PSK",
         GNUTLS_CIPHER_AES_128_GCM},
        {NULL, "NORMAL:-CIPHER-ALL:+CHACHA20-POLY1305:+ECDHE-PSK:+PSK",
         GNUTLS_CIPHER_CHACHA20_POLY1305},
        {"NORMAL:-CIPHER-ALL:+CHACHA20-POLY1305:+ECDHE-PSK:+PSK", NULL,
         GNUTLS_CIPHER_CHACHA20_POLY1305},
    };
    char path[256];
    struct rig *rig = rig_create();
    struct tls_config config = {.psk_file = path, .priority = cases[_i].of_server};
    write_file(rig->directory, "keys", 0600, "alice:" KEY "\n");
    snprintf(path, sizeof(path), "%s/keys", rig->directory);
    ck_assert_msg(tls_create(&rig->tls, &config, &rig->err) == 0, "%s", rig->err.text);
    connect_psk(rig, cases[_i].of_client);
#if defined(__x86_64__)
    bool fast = __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
    if (fast || cases[_i].expected != GNUTLS_CIPHER_AES_128_GCM) {
        ck_assert_int_eq(gnutls_cipher_get(rig->client.session), cases[_i].expected);
    }
#endif
    rig_free(rig);
}
END_TEST

START_TEST(test_a_priority_that_is_none)
{
    char path[256];
    struct rig *rig = rig_create();
    struct tls_config config = {.psk_file = path, .priority = "NORMAL:+NO-SUCH-THING"};
    write_file(rig->directory, "keys", 0600, "alice:" KEY "\n");
    snprintf(path, sizeof(path), "%s/keys", rig->directory);
    ck_assert_int_eq(tls_create(&rig->tls, &config, &rig->err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(rig->err.text, "--tls-priority"));
    ck_assert_ptr_nonnull(strstr(rig->err.text, "NO-SUCH-THING"));
    memory_stream_free(rig->memory);
    remove_directory(rig->directory);
    free(rig);
}
END_TEST

START_TEST(test_byte_by_byte)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    rig->memory->deliver_most = 1;
    rig->receive_at_once = 1;
    connect_psk(rig, _i ? TLS12 : NULL);
    expect_no_secrets_lost(rig, "slowly");
    memory_client_leaves(rig->memory);
    coro_run_ready();
    rig_free(rig);
}
END_TEST

START_TEST(test_bulk_both_ways_at_once)
{
    static const size_t windows[] = {SIZE_MAX, 3000, 65536};
    struct rig *rig = rig_create();
    uint8_t *sample = make_sample(BULK);
    size_t client_sent = 0;
    size_t client_got = 0;
    use_psk(rig);
    connect_psk(rig, NULL);
    rig->memory->window = windows[_i];
    rig->memory->deliver_most = _i == 1 ? 1777 : SIZE_MAX;
    rig->sample = sample;
    rig->sample_len = BULK;
    spawn(co_receive, rig);
    spawn(co_send_all, rig);
    while (client_got < BULK || client_sent < BULK) {
        uint8_t piece[20000];
        if (client_sent < BULK) {
            size_t len = MIN_OF((size_t)50000, BULK - client_sent);
            client_send(rig, sample + client_sent, len);
            client_sent += len;
            if (client_sent > BULK / 2 && client_sent <= BULK / 2 + len) {
                /* Keys may change under way; the server answers with its next record. */
                ck_assert_int_eq(gnutls_session_key_update(rig->client.session, GNUTLS_KU_PEER), 0);
            }
        }
        coro_run_ready();
        ssize_t got = gnutls_record_recv(rig->client.session, piece, sizeof(piece));
        ck_assert(got > 0 || got == GNUTLS_E_AGAIN);
        if (got > 0) {
            ck_assert_mem_eq(piece, sample + client_got, (size_t)got);
            client_got += (size_t)got;
        }
    }
    while (coro_run_ready()) {
    }
    ck_assert_int_eq(rig->sent, 0);
    ck_assert_uint_eq(rig->received_len, BULK);
    ck_assert_mem_eq(rig->received, sample, BULK);
    ck_assert_int_eq(gnutls_bye(rig->client.session, GNUTLS_SHUT_WR), 0);
    coro_run_ready();
    ck_assert_int_eq(rig->receive_end, 0);
    rig_free(rig);
    free(sample);
}
END_TEST

START_TEST(test_records_are_filled)
{
    struct rig *rig = rig_create();
    uint8_t *sample = make_sample(1U << 20);
    use_psk(rig);
    connect_psk(rig, NULL);
    rig->sample = sample;
    rig->sample_len = 1U << 20;
    size_t before = rig->memory->to_client.end;
    spawn(co_send_all, rig);
    coro_run_ready();
    size_t overhead = rig->memory->to_client.end - before - rig->sample_len;
    /* Two sends of up to 8 pieces: 22 bytes for each of the full records, and few that are not. */
    ck_assert_uint_le(overhead, 22 * ((1U << 20) / 16384 + 4));
    ck_assert_uint_le(rig->memory->sends, 2 + (1U << 20) / 100000 + 4);
    client_expect(rig, sample, rig->sample_len);
    rig_free(rig);
    free(sample);
}
END_TEST

/* ---- Ends ---- */

START_TEST(test_stream_without_goodbye_is_truncated)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    connect_psk(rig, NULL);
    spawn(co_receive, rig);
    client_send(rig, "abc", 3);
    memory_client_leaves(rig->memory);
    coro_run_ready();
    ck_assert_uint_eq(rig->received_len, 3);
    ck_assert_int_eq(rig->receive_end, -ECONNRESET);
    rig_free(rig);
}
END_TEST

START_TEST(test_half_a_record_is_truncated)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    connect_psk(rig, NULL);
    client_send(rig, "abcdef", 6);
    rig->memory->to_server.end -= 3;
    spawn(co_receive, rig);
    coro_run_ready();
    memory_client_leaves(rig->memory);
    coro_run_ready();
    ck_assert_uint_eq(rig->received_len, 0);
    ck_assert_int_eq(rig->receive_end, -ECONNRESET);
    rig_free(rig);
}
END_TEST

/* But the first byte's: TLS 1.3 does not mean it. */
START_TEST(test_flipped_bit)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    connect_psk(rig, _i % 2 ? TLS12 : NULL);
    client_send(rig, "abcdef", 6);
    rig->memory->to_server.bytes[rig->memory->to_server.begin + (size_t)_i] ^= 1;
    spawn(co_receive, rig);
    coro_run_ready();
    memory_client_leaves(rig->memory);
    coro_run_ready();
    ck_assert_uint_eq(rig->received_len, 0);
    ck_assert_int_eq(rig->receive_end, -ECONNRESET);
    rig_free(rig);
}
END_TEST

START_TEST(test_data_before_the_end_comes_first)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    connect_psk(rig, NULL);
    client_send(rig, "last words", 10);
    ck_assert_int_eq(gnutls_bye(rig->client.session, GNUTLS_SHUT_WR), 0);
    spawn(co_receive, rig);
    coro_run_ready();
    ck_assert_uint_eq(rig->received_len, 10);
    ck_assert_int_eq(rig->receive_end, 0);
    rig_free(rig);
}
END_TEST

START_TEST(test_close_says_goodbye)
{
    struct rig *rig = rig_create();
    char byte;
    use_psk(rig);
    connect_psk(rig, _i ? TLS12 : NULL);
    spawn(co_receive, rig);
    coro_run_ready();
    ck_assert_int_eq(rig->receive_end, UNFINISHED);
    rig->stream->ops->end_recv(rig->stream);
    coro_run_ready();
    ck_assert_int_eq(rig->receive_end, 0);
    rig->sample = (const uint8_t *)"answer";
    rig->sample_len = 6;
    spawn(co_send_all, rig);
    coro_run_ready();
    ck_assert_int_eq(rig->sent, 0); /* sending goes on */
    spawn(co_close_session, rig);
    coro_run_ready();
    client_expect(rig, rig->sample, 6);
    /* 0 is a close_notify; an end without it would be an error. */
    ck_assert_int_eq(gnutls_record_recv(rig->client.session, &byte, 1), 0);
    rig_free(rig);
}
END_TEST

START_TEST(test_goodbye_that_nobody_reads_is_bounded)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    connect_psk(rig, NULL);
    rig->memory->window = 0;
    spawn(co_close_session, rig);
    coro_run_ready();
    ck_assert(!rig->memory->closed);
    struct world_timer *timer = rig->world.timer;
    ck_assert_ptr_nonnull(timer);
    timer->fired(timer);
    coro_run_ready();
    ck_assert(rig->memory->closed);
    rig_free(rig);
}
END_TEST

START_TEST(test_abort_ends_both_waits)
{
    struct rig *rig = rig_create();
    uint8_t *sample = make_sample(100000);
    use_psk(rig);
    connect_psk(rig, NULL);
    rig->memory->window = 1000;
    rig->sample = sample;
    rig->sample_len = 100000;
    spawn(co_receive, rig);
    spawn(co_send_all, rig);
    coro_run_ready();
    ck_assert_int_eq(rig->sent, UNFINISHED);
    rig->stream->ops->abort(rig->stream);
    coro_run_ready();
    ck_assert_int_eq(rig->sent, -ESHUTDOWN);
    ck_assert_int_eq(rig->receive_end, -ESHUTDOWN);
    size_t sent = rig->memory->to_client.end;
    spawn(co_close_session, rig);
    coro_run_ready();
    ck_assert_uint_eq(rig->memory->to_client.end, sent); /* no goodbye any more */
    rig_free(rig);
    free(sample);
}
END_TEST

START_TEST(test_renegotiation_is_refused)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    connect_psk(rig, TLS12);
    spawn(co_receive, rig);
    ck_assert_int_eq(gnutls_handshake(rig->client.session), GNUTLS_E_AGAIN);
    coro_run_ready();
    ck_assert_int_eq(rig->receive_end, -ECONNRESET);
    rig_free(rig);
}
END_TEST

/* ---- Handshakes that fail ---- */

static void expect_refused(struct rig *rig, const char *mention)
{
    coro_run_ready();
    ck_assert_int_lt(rig->accepted, 0);
    ck_assert_msg(strstr(rig->err.text, mention) != NULL, "%s", rig->err.text);
    ck_assert(rig->memory->closed);
    rig_free(rig);
}

START_TEST(test_wrong_psk)
{
    static const char *const priorities[] = {NULL, TLS12};
    struct rig *rig = rig_create();
    use_psk(rig);
    tls_client_init(&rig->client, rig->memory, priorities[_i % 2]);
    /* A wrong key, a name that does not exist: no difference can be seen. */
    tls_client_use_psk(&rig->client, _i < 2 ? "alice" : "mallory", OTHER_KEY);
    int code = shake_hands(rig);
    ck_assert_int_eq(code, GNUTLS_E_FATAL_ALERT_RECEIVED);
    expect_refused(rig, "");
}
END_TEST

START_TEST(test_old_versions_are_refused)
{
    static const char *const priorities[] = {
        "NORMAL:-VERS-ALL:+VERS-TLS1.1:+ECDHE-PSK:+DHE-PSK:+PSK:%VERIFY_ALLOW_BROKEN",
        "NORMAL:-VERS-ALL:+VERS-TLS1.0:+ECDHE-PSK:+DHE-PSK:+PSK:%VERIFY_ALLOW_BROKEN",
    };
    struct rig *rig = rig_create();
    use_psk(rig);
    tls_client_init(&rig->client, rig->memory, priorities[_i]);
    tls_client_use_psk(&rig->client, "alice", KEY);
    ck_assert_int_ne(shake_hands(rig), 0);
    memory_client_leaves(rig->memory);
    coro_run_ready();
    ck_assert_int_lt(rig->accepted, 0);
    ck_assert_ptr_null(rig->stream);
    rig_free(rig);
}
END_TEST

static const uint8_t garbage[][40] = {
    "IHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0\0", /* what was meant to be heard as if over TLS */
    "\x16\x03\x01\xff\xff",
    "\x16\x03\x01\x00\x04\x01\xff\xff\xff",
    "\x16\x03\x03\x00\x00\x16\x03\x03\x00\x00\x16\x03\x03\x00\x00\x16\x03\x03\x00\x00",
    "\x17\x03\x03\x00\x01x",
    "\x15\x03\x03\x00\x02\x02\x28",
    "\x14\x03\x03\x00\x01\x01\x14\x03\x03\x00\x01\x01",
    "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
    "GET / HTTP/1.0\r\n\r\n",
    "",
};

START_TEST(test_garbage)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    tls_client_init(&rig->client, rig->memory, NULL);
    spawn(co_accept_session, rig);
    memory_send(rig->memory, garbage[_i], sizeof(garbage[_i]));
    coro_run_ready();
    memory_client_leaves(rig->memory);
    expect_refused(rig, "");
}
END_TEST

/* A true handshake, cut or bent at each of many places. */
START_TEST(test_bent_handshake)
{
    for (size_t at = (size_t)_i; at < 420; at += 20) {
        struct rig *rig = rig_create();
        use_psk(rig);
        tls_client_init(&rig->client, rig->memory, at % 2 ? TLS12 : NULL);
        tls_client_use_psk(&rig->client, "alice", KEY);
        spawn(co_accept_session, rig);
        ck_assert_int_eq(gnutls_handshake(rig->client.session), GNUTLS_E_AGAIN);
        struct bytes *sent = &rig->memory->to_server;
        if (at < sent->end) {
            sent->bytes[at] ^= (uint8_t)(1U << (at % 8));
            sent->end = at % 3 == 0 ? at + 1 : sent->end;
        }
        coro_run_ready();
        int code = gnutls_handshake(rig->client.session);
        (void)code; /* some bits matter to nobody */
        coro_run_ready();
        memory_client_leaves(rig->memory);
        coro_run_ready();
        ck_assert_int_ne(rig->accepted, UNFINISHED);
        rig_free(rig);
    }
}
END_TEST

START_TEST(test_abort_during_the_handshake)
{
    struct rig *rig = rig_create();
    use_psk(rig);
    tls_client_init(&rig->client, rig->memory, NULL);
    tls_client_use_psk(&rig->client, "alice", KEY);
    spawn(co_accept_session, rig);
    coro_run_ready();
    if (_i) {
        ck_assert_int_eq(gnutls_handshake(rig->client.session), GNUTLS_E_AGAIN);
        coro_run_ready();
    }
    ck_assert_int_eq(rig->accepted, UNFINISHED);
    rig->memory->stream.ops->abort(&rig->memory->stream);
    expect_refused(rig, "left");
}
END_TEST

/* ---- Certificates ---- */

struct certificate_case {
    const char *certificate; /* the client's; NULL: none */
    const char *allowed;
    bool verify;
    const char *refused; /* NULL: gets in */
    const char *identity;
};

static const struct certificate_case certificate_cases[] = {
    {NULL, NULL, false, NULL, NULL},
    {"good", NULL, false, NULL, NULL},
    {"good", NULL, true, NULL, "dn:CN=good,O=Test"},
    {"good", "dn:CN=good,O=Test", true, NULL, "dn:CN=good,O=Test"},
    {"good", "CN=good,O=Test", true, NULL, "dn:CN=good,O=Test"},
    {"good", "CN=good", true, "not among those allowed", NULL},
    {"good", "psk:CN=good,O=Test", true, "not among those allowed", NULL},
    {"other", "CN=good,O=Test", true, "not among those allowed", NULL},
    {NULL, NULL, true, "", NULL},
    {"foreign", NULL, true, "certificate is refused", NULL},
    {"expired", NULL, true, "certificate is refused", NULL},
    {"early", NULL, true, "certificate is refused", NULL},
    {"server", NULL, true, "certificate is refused", NULL}, /* not meant for clients */
    {"revoked", NULL, true, "certificate is refused", NULL},
};

static void make_certificates(const char *directory)
{
    struct test_ca *ca = test_ca_create(directory);
    struct test_ca *foreign;
    char *elsewhere = make_directory();
    test_ca_issue(ca, directory, "server", GNUTLS_KP_TLS_WWW_SERVER, -60, 3600);
    test_ca_issue(ca, directory, "good", GNUTLS_KP_TLS_WWW_CLIENT, -60, 3600);
    test_ca_issue(ca, directory, "other", GNUTLS_KP_TLS_WWW_CLIENT, -60, 3600);
    test_ca_issue(ca, directory, "expired", GNUTLS_KP_TLS_WWW_CLIENT, -600, -60);
    test_ca_issue(ca, directory, "early", GNUTLS_KP_TLS_WWW_CLIENT, 600, 3600);
    test_ca_issue(ca, directory, "revoked", GNUTLS_KP_TLS_WWW_CLIENT, -600, 3600);
    test_ca_revoke_last(ca, directory);
    test_ca_free(ca);
    foreign = test_ca_create(elsewhere);
    test_ca_issue(foreign, directory, "foreign", GNUTLS_KP_TLS_WWW_CLIENT, -60, 3600);
    test_ca_free(foreign);
    remove_directory(elsewhere);
}

static void use_certificates(struct rig *rig, const char *const *allowed, bool verify)
{
    struct tls_config config = {
        .certificates = rig->directory,
        .verify_peer = verify,
        .allowed = allowed,
        .allowed_count = allowed && *allowed ? 1 : 0,
    };
    make_certificates(rig->directory);
    ck_assert_msg(tls_create(&rig->tls, &config, &rig->err) == 0, "%s", rig->err.text);
}

START_TEST(test_certificates)
{
    const struct certificate_case *c = &certificate_cases[_i / 2];
    struct rig *rig = rig_create();
    char byte;
    use_certificates(rig, &c->allowed, c->verify);
    tls_client_init(&rig->client, rig->memory, _i % 2 ? TLS12 : NULL);
    if (c->certificate) {
        tls_client_use_certificate(&rig->client, rig->directory, c->certificate);
        /* Also when the server's list of authorities does not have its own. */
        gnutls_certificate_set_flags(rig->client.certificates,
                                     GNUTLS_CERTIFICATE_SKIP_KEY_CERT_MATCH);
    }
    int code = shake_hands(rig);
    if (!c->refused) {
        ck_assert_msg(code == 0 && rig->accepted == 0, "%s", rig->err.text);
        if (c->identity) {
            ck_assert_str_eq(rig->stream->identity, c->identity);
        } else {
            ck_assert_ptr_null(rig->stream->identity);
        }
        expect_no_secrets_lost(rig, "signed");
        memory_client_leaves(rig->memory);
        coro_run_ready();
        rig_free(rig);
        return;
    }
    if (code == 0) { /* a TLS 1.3 client hears of it when it first reads */
        ck_assert_int_eq(gnutls_record_recv(rig->client.session, &byte, 1),
                         GNUTLS_E_FATAL_ALERT_RECEIVED);
    } else {
        ck_assert_int_eq(code, GNUTLS_E_FATAL_ALERT_RECEIVED);
    }
    expect_refused(rig, c->refused);
}
END_TEST

START_TEST(test_both_kinds_of_credentials)
{
    static const char *const allowed[] = {"alice"};
    char path[256];
    struct rig *rig = rig_create();
    struct tls_config config = {
        .certificates = rig->directory,
        .psk_file = path,
        .verify_peer = true,
        .allowed = allowed,
        .allowed_count = 1,
    };
    make_certificates(rig->directory);
    write_file(rig->directory, "keys", 0600, "alice:" KEY "\nbob:" OTHER_KEY);
    snprintf(path, sizeof(path), "%s/keys", rig->directory);
    ck_assert_msg(tls_create(&rig->tls, &config, &rig->err) == 0, "%s", rig->err.text);
    tls_client_init(&rig->client, rig->memory, NULL);
    if (_i == 0) {
        tls_client_use_psk(&rig->client, "alice", KEY);
        ck_assert_int_eq(shake_hands(rig), 0);
        ck_assert_str_eq(rig->stream->identity, "psk:alice");
        rig_free(rig);
        return;
    }
    if (_i == 1) {
        tls_client_use_psk(&rig->client, "bob", OTHER_KEY);
    } else {
        tls_client_use_certificate(&rig->client, rig->directory, "good");
    }
    (void)shake_hands(rig);
    expect_refused(rig, "not among those allowed");
}
END_TEST

/* ---- Reloading ---- */

static void co_reload(void *arg)
{
    struct rig *rig = arg;
    rig->sent = co_tls_reload(rig->tls, &rig->world.world, &rig->err);
}

START_TEST(test_reload)
{
    struct rig *rig = rig_create();
    char path[256];
    snprintf(path, sizeof(path), "%s/keys", rig->directory);
    struct tls_config config = {.psk_file = path};
    write_file(rig->directory, "keys", 0600, "alice:" KEY "\n");
    ck_assert_int_eq(tls_create(&rig->tls, &config, &rig->err), 0);
    connect_psk(rig, NULL);

    if (_i == 0) { /* a broken file leaves what was, and says why */
        write_file(rig->directory, "keys", 0600, "alice:0123\n");
        spawn(co_reload, rig);
        coro_run_ready();
        ck_assert_int_eq(rig->sent, -EINVAL);
        ck_assert_ptr_nonnull(strstr(rig->err.text, "keys, line 1: "));
    } else {
        write_file(rig->directory, "keys", 0600, "alice:" OTHER_KEY "\n");
        spawn(co_reload, rig);
        coro_run_ready();
        ck_assert_int_eq(rig->sent, 0);
    }
    expect_no_secrets_lost(rig, "the old session goes on");
    memory_client_leaves(rig->memory);
    coro_run_ready();
    spawn(co_close_session, rig);
    coro_run_ready();
    tls_client_free(&rig->client);
    memory_stream_free(rig->memory);

    rig->memory = memory_stream_create();
    rig->accepted = UNFINISHED;
    tls_client_init(&rig->client, rig->memory, NULL);
    tls_client_use_psk(&rig->client, "alice", _i == 0 ? KEY : OTHER_KEY);
    ck_assert_int_eq(shake_hands(rig), 0);
    ck_assert_int_eq(rig->accepted, 0);
    rig_free(rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("stream_tls");
    TCase *tcase = tcase_create("stream_tls");
    tcase_set_timeout(tcase, 50);
    tcase_add_loop_test(tcase, test_psk_session, 0, 5);
    tcase_add_loop_test(tcase, test_byte_by_byte, 0, 2);
    tcase_add_loop_test(tcase, test_bulk_both_ways_at_once, 0, 3);
    tcase_add_test(tcase, test_records_are_filled);
    tcase_add_test(tcase, test_stream_without_goodbye_is_truncated);
    tcase_add_test(tcase, test_half_a_record_is_truncated);
    tcase_add_loop_test(tcase, test_ciphers, 0, 5);
    tcase_add_test(tcase, test_a_priority_that_is_none);
    tcase_add_loop_test(tcase, test_flipped_bit, 1, 27);
    tcase_add_test(tcase, test_data_before_the_end_comes_first);
    tcase_add_loop_test(tcase, test_close_says_goodbye, 0, 2);
    tcase_add_test(tcase, test_goodbye_that_nobody_reads_is_bounded);
    tcase_add_test(tcase, test_abort_ends_both_waits);
    tcase_add_test(tcase, test_renegotiation_is_refused);
    tcase_add_loop_test(tcase, test_wrong_psk, 0, 4);
    tcase_add_loop_test(tcase, test_old_versions_are_refused, 0, 2);
    tcase_add_loop_test(tcase, test_garbage, 0, (int)ARRAY_LEN(garbage));
    tcase_add_loop_test(tcase, test_bent_handshake, 0, 20);
    tcase_add_loop_test(tcase, test_abort_during_the_handshake, 0, 2);
    tcase_add_loop_test(tcase, test_certificates, 0, 2 * (int)ARRAY_LEN(certificate_cases));
    tcase_add_loop_test(tcase, test_both_kinds_of_credentials, 0, 3);
    tcase_add_loop_test(tcase, test_reload, 0, 2);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
