/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * When TLS is offered, demanded and begun, with a stand-in for it: a "handshake" of five bytes each
 * way, and a stream that passes everything through and counts.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/testing.h"
#include "proto/test_main.h"
#include "proto/test_rig.h"

struct wrapper {
    struct stream base;
    struct stream *inner;
    unsigned receives;
    unsigned sends;
};

static struct rig *rig;
static unsigned started;
static unsigned closed;
static struct wrapper *newest;

static struct wrapper *wrapper_of(struct stream *stream)
{
    return container_of(stream, struct wrapper, base);
}

static ssize_t co_wrapper_recv(struct stream *stream, void *buf, size_t len)
{
    struct wrapper *wrapper = wrapper_of(stream);
    wrapper->receives++;
    return wrapper->inner->ops->co_recv(wrapper->inner, buf, len);
}

static int co_wrapper_send(struct stream *stream, struct iovec *iov, int iov_count, bool more)
{
    struct wrapper *wrapper = wrapper_of(stream);
    wrapper->sends++;
    return wrapper->inner->ops->co_send(wrapper->inner, iov, iov_count, more);
}

static void wrapper_end_recv(struct stream *stream)
{
    wrapper_of(stream)->inner->ops->end_recv(wrapper_of(stream)->inner);
}

static void wrapper_abort(struct stream *stream)
{
    wrapper_of(stream)->inner->ops->abort(wrapper_of(stream)->inner);
}

static void co_wrapper_close(struct stream *stream)
{
    struct wrapper *wrapper = wrapper_of(stream);
    char goodbye_text[] = "BYE";
    struct iovec goodbye = {goodbye_text, 3};
    int rc = wrapper->inner->ops->co_send(wrapper->inner, &goodbye, 1, false);
    (void)rc; /* the client may be gone */
    wrapper->inner->ops->co_close(wrapper->inner);
    free(wrapper);
    closed++;
}

static const struct stream_ops wrapper_ops = {
    .co_recv = co_wrapper_recv,
    .co_send = co_wrapper_send,
    .end_recv = wrapper_end_recv,
    .abort = wrapper_abort,
    .co_close = co_wrapper_close,
};

static int co_fake_start_tls(struct nbd_service *service, struct stream *plain,
                             struct stream **secure, struct errtext *err)
{
    char hello[5];
    char ready_text[] = "READY";
    struct iovec ready = {ready_text, 5};

    ck_assert(service == &rig->service);
    started++;
    int rc = co_stream_recv_all(plain, hello, sizeof(hello));
    if (rc < 0) {
        return err_set(err, -rc, "gone");
    }
    if (memcmp(hello, "HELLO", 5) != 0) {
        return err_set(err, EACCES, "not a hello");
    }
    rc = plain->ops->co_send(plain, &ready, 1, false);
    newest = calloc(1, sizeof(*newest));
    ck_assert(rc == 0 && newest != NULL);
    newest->base = (struct stream){.ops = &wrapper_ops, .peer = plain->peer};
    newest->inner = plain;
    *secure = &newest->base;
    return 0;
}

static void ignore_log(enum log_level level, const char *line, void *arg)
{
    (void)line;
    (void)arg;
    ck_assert(level > LOG_LEVEL_WARNING); /* what clients do wrong is no trouble of ours */
}

static void begin(enum nbd_tls_mode mode)
{
    rig = rig_create();
    rig->service.tls_mode = mode;
    rig->service.co_start_tls = co_fake_start_tls;
    started = 0;
    closed = 0;
    newest = NULL;
    log_set_level(LOG_LEVEL_DEBUG);
    log_set_sink(ignore_log, NULL);
}

static struct client *greeted(void)
{
    struct client *client = client_create(rig);
    client_greet(client, 3);
    return client;
}

static void expect(struct client *client, uint32_t option, uint32_t type)
{
    size_t len;
    client_option_reply(client, option, type, &len);
    ck_assert(client_unread(client) == 0);
}

/* Options whose answer is one reply. */
static void ask(struct client *client, uint32_t option, const void *payload, size_t len,
                uint32_t type)
{
    client_option(client, option, payload, len);
    expect(client, option, type);
}

static void start_tls(struct client *client)
{
    ask(client, NBD_OPT_STARTTLS, NULL, 0, NBD_REP_ACK);
    client_send(client, "HELLO", 5);
    ck_assert(memcmp(client_take(client, 5), "READY", 5) == 0);
}

static void expect_goodbye(struct client *client)
{
    ck_assert(memcmp(client_take(client, 3), "BYE", 3) == 0);
    client_expect_closed(client);
    client_free(client);
}

START_TEST(statement_27_require)
{
    uint8_t payload[300];
    begin(NBD_TLS_REQUIRE);
    struct client *client = greeted();
    size_t len = pack_go(payload, "", NULL, 0);
    ask(client, NBD_OPT_GO, payload, len, NBD_REP_ERR_TLS_REQD);
    ask(client, NBD_OPT_INFO, payload, len, NBD_REP_ERR_TLS_REQD);
    ask(client, NBD_OPT_INFO, payload, 1, NBD_REP_ERR_TLS_REQD);
    ask(client, NBD_OPT_LIST, NULL, 0, NBD_REP_ERR_TLS_REQD);
    ask(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NBD_REP_ERR_TLS_REQD);
    ask(client, NBD_OPT_EXTENDED_HEADERS, NULL, 0, NBD_REP_ERR_TLS_REQD);
    memset(payload, 'x', sizeof(payload));
    ask(client, 4711, payload, sizeof(payload), NBD_REP_ERR_TLS_REQD);
    ask(client, NBD_OPT_STARTTLS, payload, 1, NBD_REP_ERR_INVALID);
    start_tls(client);
    ask(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NBD_REP_ACK);
    ask(client, NBD_OPT_STARTTLS, NULL, 0, NBD_REP_ERR_INVALID); /* statement 29 */
    client_go(client, "");
    client_request(client, NBD_CMD_DISC, 0, 1, 0, 0);
    ck_assert_uint_eq(started, 1);
    expect_goodbye(client);

    client = greeted();
    ask(client, NBD_OPT_ABORT, NULL, 0, NBD_REP_ACK);
    client_expect_closed(client);
    client_free(client);

    client = greeted();
    client_option(client, NBD_OPT_EXPORT_NAME, NULL, 0);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_27_off)
{
    begin(NBD_TLS_OFF);
    struct client *client = greeted();
    ask(client, NBD_OPT_STARTTLS, "x", 1, NBD_REP_ERR_INVALID);
    ask(client, NBD_OPT_STARTTLS, NULL, 0, NBD_REP_ERR_POLICY);
    client_go(client, "");
    ck_assert_uint_eq(started, 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(tls_may_be_the_clients_choice)
{
    begin(NBD_TLS_ON);
    struct client *plain = greeted();
    client_go(plain, "");
    client_request(plain, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_expect_simple(plain, 1, 0);
    struct client *secure = greeted();
    start_tls(secure);
    client_go(secure, "");
    unsigned sends = newest->sends;
    unsigned receives = newest->receives;
    client_request(secure, NBD_CMD_READ, 0, 1, 4096, 512);
    client_expect_simple(secure, 1, 0);
    ck_assert(memcmp(client_take(secure, 512), rig->disk->bytes + 4096, 512) == 0);
    ck_assert(newest->sends > sends && newest->receives > receives);
    client_free(plain);
    client_free(secure);
    ck_assert_uint_eq(closed, 1);
    rig_free(rig);
}
END_TEST

START_TEST(statement_28_exports_for_tls_alone)
{
    uint8_t payload[64];
    size_t len;
    begin(NBD_TLS_ON);
    rig->exports[1].tls_only = true;
    struct client *client = greeted();
    client_option(client, NBD_OPT_LIST, NULL, 0);
    for (unsigned i = 0; i < ARRAY_LEN(rig->exports) - 1; i++) {
        client_option_reply(client, NBD_OPT_LIST, NBD_REP_SERVER, &len);
    }
    expect(client, NBD_OPT_LIST, NBD_REP_ACK);
    /* No difference between what is hidden and what is not there. */
    ask(client, NBD_OPT_GO, payload, pack_go(payload, "ro", NULL, 0), NBD_REP_ERR_TLS_REQD);
    ask(client, NBD_OPT_GO, payload, pack_go(payload, "none", NULL, 0), NBD_REP_ERR_TLS_REQD);
    start_tls(client);
    ask(client, NBD_OPT_GO, payload, pack_go(payload, "none", NULL, 0), NBD_REP_ERR_UNKNOWN);
    client_option(client, NBD_OPT_LIST, NULL, 0);
    for (unsigned i = 0; i < ARRAY_LEN(rig->exports); i++) {
        client_option_reply(client, NBD_OPT_LIST, NBD_REP_SERVER, &len);
    }
    expect(client, NBD_OPT_LIST, NBD_REP_ACK);
    client_go(client, "ro");
    client_free(client);
    client = greeted();
    client_option(client, NBD_OPT_EXPORT_NAME, "ro", 2);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_29_nothing_negotiated_survives)
{
    static const char *const allocation[] = {"base:allocation"};
    uint8_t payload[64];
    size_t len;
    begin(NBD_TLS_ON);
    struct client *client = greeted();
    uint32_t headers = _i ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY;
    ask(client, headers, NULL, 0, NBD_REP_ACK);
    len = pack_meta(payload, "", allocation, 1);
    client_option(client, NBD_OPT_SET_META_CONTEXT, payload, len);
    client_option_reply(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, &len);
    expect(client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    start_tls(client);
    /* Contexts need headers first, and those can be agreed on as if for the first time. */
    len = pack_meta(payload, "", allocation, 1);
    ask(client, NBD_OPT_SET_META_CONTEXT, payload, len, NBD_REP_ERR_INVALID);
    ask(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NBD_REP_ACK);
    client_go(client, "");
    client_request(client, NBD_CMD_BLOCK_STATUS, 0, 7, 0, 4096);
    client_expect_error_chunk(client, 7, NBD_EINVAL);
    client_free(client);

    client = greeted();
    ask(client, headers, NULL, 0, NBD_REP_ACK);
    start_tls(client);
    client_go(client, "");
    client_request(client, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_expect_simple(client, 1, 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(statement_29_bytes_behind_starttls_are_fatal)
{
    uint8_t words[64];
    struct wire_option *option = (void *)words;
    begin(NBD_TLS_REQUIRE);
    put_be64(option->magic, NBD_OPTION_MAGIC);
    put_be32(option->option, NBD_OPT_STARTTLS);
    put_be32(option->length, 0);
    memcpy(words + sizeof(*option), "HELLO", 5);
    for (size_t extra = 1; extra <= 5; extra++) {
        struct client *client = greeted();
        client_send(client, words, sizeof(*option) + extra);
        client_expect_closed(client);
        client_free(client);
    }
    ck_assert_uint_eq(started, 0);
    rig_free(rig);
}
END_TEST

START_TEST(statement_30_a_failed_handshake_ends_the_connection)
{
    begin(NBD_TLS_ON);
    struct client *wrong = greeted();
    ask(wrong, NBD_OPT_STARTTLS, NULL, 0, NBD_REP_ACK);
    client_send(wrong, "IHAVE", 5);
    client_expect_closed(wrong);
    client_free(wrong);

    struct client *gone = greeted();
    ask(gone, NBD_OPT_STARTTLS, NULL, 0, NBD_REP_ACK);
    client_send(gone, "HEL", 3);
    client_half_close(gone);
    client_expect_closed(gone);
    client_free(gone);

    struct client *slow = greeted(); /* within the time of the whole handshake */
    rig_advance(rig, 6000 * MS);
    ask(slow, NBD_OPT_STARTTLS, NULL, 0, NBD_REP_ACK);
    rig_advance(rig, 3000 * MS);
    ck_assert(!slow->closed);
    client_send(slow, "HEL", 3);
    rig_advance(rig, 1000 * MS);
    client_expect_closed(slow);
    client_free(slow);
    ck_assert_uint_eq(started, 3);
    rig_free(rig);
}
END_TEST

START_TEST(draining_says_goodbye)
{
    begin(NBD_TLS_ON);
    struct client *idle = greeted();
    start_tls(idle);
    struct client *serving = greeted();
    start_tls(serving);
    client_go(serving, "");
    struct client *halfway = greeted();
    ask(halfway, NBD_OPT_STARTTLS, NULL, 0, NBD_REP_ACK);
    rig->disk->hold = true;
    client_request(serving, NBD_CMD_FLUSH, 0, 1, 0, 0);
    rig_drain(rig, 10000 * MS);
    expect_goodbye(idle);
    client_expect_closed(halfway);
    ck_assert(!serving->closed);
    client_request(serving, NBD_CMD_FLUSH, 0, 2, 0, 0);
    client_expect_simple(serving, 2, NBD_ESHUTDOWN);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(serving, 1, 0);
    expect_goodbye(serving);
    client_free(halfway);
    ck_assert(rig->drained);
    rig_free(rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("starttls");
    TCase *tcase = tcase_create("starttls");
    tcase_set_timeout(tcase, 30);
    tcase_add_test(tcase, statement_27_require);
    tcase_add_test(tcase, statement_27_off);
    tcase_add_test(tcase, tls_may_be_the_clients_choice);
    tcase_add_test(tcase, statement_28_exports_for_tls_alone);
    tcase_add_loop_test(tcase, statement_29_nothing_negotiated_survives, 0, 2);
    tcase_add_test(tcase, statement_29_bytes_behind_starttls_are_fatal);
    tcase_add_test(tcase, statement_30_a_failed_handshake_ends_the_connection);
    tcase_add_test(tcase, draining_says_goodbye);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
