/* SPDX-License-Identifier: BSD-2-Clause */
/* Limits that an administrator sets, and what clients see of them in transmission. */
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "proto/test_main.h"
#include "proto/test_rig.h"

#define SECOND (1000 * MS)

static struct rig *rig;
static struct rate_limit rate;

static void begin_rated(uint64_t bytes_per_second, uint64_t operations_per_second)
{
    rig = rig_create();
    rate_limit_init(&rate, bytes_per_second, operations_per_second);
    rig->exports[0].rate = &rate;
}

static void expect_data(struct client *client, uint64_t cookie, size_t len)
{
    client_expect_simple(client, cookie, 0);
    client_take(client, len);
}

START_TEST(requests_longer_than_allowed)
{
    static uint8_t data[8193];
    rig = rig_create();
    rig->service.limits.request_bytes = 8192;
    struct client *client = client_enter(rig, "", SIMPLE);
    client_request(client, NBD_CMD_READ, 0, 1, 0, 8192);
    expect_data(client, 1, 8192);
    client_request(client, NBD_CMD_READ, 0, 2, 0, 8193);
    client_expect_simple(client, 2, NBD_EINVAL);
    client_request(client, NBD_CMD_WRITE, 0, 3, 0, 8193);
    client_send(client, data, 8193);
    client_expect_simple(client, 3, NBD_EINVAL);
    client_request(client, NBD_CMD_WRITE, 0, 4, 0, 8192);
    client_send(client, data, 8192);
    client_expect_simple(client, 4, 0);
    /* Without payload, length is another matter. */
    client_request(client, NBD_CMD_WRITE_ZEROES, 0, 5, 0, 1 << 20);
    client_expect_simple(client, 5, 0);
    client_free(client);

    client = client_enter(rig, "", STRUCTURED);
    client_request(client, NBD_CMD_READ, 0, 6, 0, 8193);
    client_expect_error_chunk(client, 6, NBD_EOVERFLOW);
    client_free(client);

    /* With extended headers, a payload over the limit ends the connection behind the answer. */
    client = client_enter(rig, "", EXTENDED);
    client_extended(client, NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 7, 0, 8193);
    client_expect_error_chunk(client, 7, NBD_EINVAL);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(requests_and_bytes_in_flight)
{
    rig = rig_create();
    rig->service.limits.requests = 3;
    rig->service.limits.request_bytes = 65536;
    rig->service.limits.connection_bytes = 2 * 65536;
    rig->disk->hold = true;
    struct client *client = client_enter(rig, "", SIMPLE);
    for (unsigned i = 0; i < 10; i++) {
        client_request(client, NBD_CMD_FLUSH, 0, i, 0, 0);
    }
    ck_assert_uint_eq(rig_held(rig), 3);
    struct client *other = client_enter(rig, "", SIMPLE);
    for (unsigned i = 0; i < 10; i++) {
        client_request(other, NBD_CMD_READ, 0, i, 0, 65536);
    }
    ck_assert_uint_eq(rig_held(rig), 5);
    rig_release_all(rig);
    rig_run(rig);
    ck_assert_uint_eq(client_unread(client), 10 * 16);
    ck_assert_uint_eq(client_unread(other), 10 * (16 + 65536));
    client_free(client);
    client_free(other);
    rig_free(rig);
}
END_TEST

START_TEST(idle_connections_are_closed)
{
    rig = rig_create();
    rig->service.limits.idle_ms = 10000;
    struct client *idle = client_enter(rig, "", SIMPLE);
    struct client *busy = client_enter(rig, "", SIMPLE);
    struct client *waiting = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    client_request(waiting, NBD_CMD_FLUSH, 0, 77, 0, 0);
    for (unsigned i = 0; i < 30; i++) {
        ck_assert_int_eq(idle->closed, i >= 10);
        client_request(busy, NBD_CMD_CACHE, 0, i, 0, 512);
        client_expect_simple(busy, i, 0);
        rig_advance(rig, SECOND);
    }
    client_expect_closed(idle);
    ck_assert(!idle->aborted); /* in order */
    ck_assert(!busy->closed && !waiting->closed);
    rig_advance(rig, 3600 * SECOND);
    client_expect_closed(busy);
    ck_assert(!waiting->closed);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(waiting, 77, 0);
    rig_advance(rig, 9999 * MS);
    ck_assert(!waiting->closed);
    rig_advance(rig, MS);
    client_expect_closed(waiting);
    client_free(idle);
    client_free(busy);
    client_free(waiting);
    rig_free(rig);
}
END_TEST

/* A part of a request is none: who sends one and falls silent is idle. */
START_TEST(half_a_header_does_not_keep_a_connection)
{
    uint8_t header[28];
    rig = rig_create();
    rig->service.limits.idle_ms = 1000;
    struct client *client = client_enter(rig, "", SIMPLE);
    pack_request(header, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_send(client, header, 20);
    rig_advance(rig, SECOND);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(operations_of_an_export_are_limited)
{
    static const uint16_t types[] = {NBD_CMD_READ, NBD_CMD_WRITE_ZEROES, NBD_CMD_TRIM};
    begin_rated(0, 10);
    struct client *client = client_enter(rig, "", SIMPLE);
    struct client *free_export = client_enter(rig, "other", SIMPLE);
    for (unsigned i = 0; i < 100; i++) {
        client_request(client, types[i % 3], 0, i, 0, i % 3 ? RIG_IMAGE_BYTES : 512);
        client_request(free_export, NBD_CMD_TRIM, 0, i, 0, 512);
        client_expect_simple(free_export, i, 0);
    }
    rig_advance(rig, 5 * SECOND);
    unsigned done = rig->disk->reads + rig->disk->zeroes + rig->disk->trims - 100;
    ck_assert(done >= 50 && done <= 54);
    rig_advance(rig, 5 * SECOND);
    ck_assert_uint_eq(client_unread(client), 100 * 16 + 34 * 512);
    client_free(client);
    client_free(free_export);
    rig_free(rig);
}
END_TEST

START_TEST(what_waits_for_its_turn_holds_no_memory)
{
    static uint8_t data[1 << 20];
    begin_rated(1 << 20, 0);
    struct client *writer = client_enter(rig, "", SIMPLE);
    struct client *reader = client_enter(rig, "", SIMPLE);
    for (unsigned i = 0; i < 4; i++) {
        client_request(writer, NBD_CMD_WRITE, 0, i, 0, sizeof(data));
        client_send(writer, data, sizeof(data));
        client_request(reader, NBD_CMD_READ, 0, i, 0, sizeof(data));
    }
    ck_assert(rig->disk->reads == 0 && rig->disk->writes > 0);
    ck_assert_uint_eq(rig->budget.used, 0);
    /* Another connection's FLUSH and questions go at once. */
    struct client *other = client_enter(rig, "", SIMPLE);
    client_request(other, NBD_CMD_FLUSH, 0, 9, 0, 0);
    client_expect_simple(other, 9, 0);
    rig_advance(rig, 8 * SECOND);
    ck_assert_uint_eq(client_unread(writer), 4 * 16);
    ck_assert_uint_eq(client_unread(reader), 4 * (16 + sizeof(data)));
    client_free(writer);
    client_free(reader);
    client_free(other);
    rig_free(rig);
}
END_TEST

START_TEST(waiting_for_ones_turn_is_not_idle)
{
    begin_rated(1024, 0);
    rig->service.limits.idle_ms = 1000;
    struct client *client = client_enter(rig, "", SIMPLE);
    client_request(client, NBD_CMD_READ, 0, 1, 0, 1 << 20);
    client_request(client, NBD_CMD_READ, 0, 2, 0, 512);
    expect_data(client, 1, 1 << 20);
    rig_advance(rig, 500 * SECOND);
    ck_assert(!client->closed);
    rig_advance(rig, 524 * SECOND);
    expect_data(client, 2, 512);
    rig_advance(rig, 2 * SECOND);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(draining_does_not_wait_for_turns)
{
    static uint8_t data[512];
    begin_rated(0, 1);
    struct client *writer = client_enter(rig, "", SIMPLE);
    struct client *reader = client_enter(rig, "", STRUCTURED);
    client_request(writer, NBD_CMD_TRIM, 0, 1, 0, 512);
    client_expect_simple(writer, 1, 0);
    client_request(writer, NBD_CMD_WRITE, 0, 2, 0, 512);
    client_send(writer, data, sizeof(data));
    client_request(reader, NBD_CMD_READ, 0, 3, 0, 512);
    rig_drain(rig, 3600 * SECOND);
    client_expect_simple(writer, 2, NBD_ESHUTDOWN);
    client_expect_error_chunk(reader, 3, NBD_ESHUTDOWN);
    client_expect_closed(writer);
    client_expect_closed(reader);
    ck_assert(rig->drained && rig->disk->writes == 0 && rig->disk->reads == 0);
    client_free(writer);
    client_free(reader);
    rig_free(rig);
}
END_TEST

START_TEST(connections_end_while_they_wait_for_their_turn)
{
    begin_rated(0, 1);
    struct client *first = client_enter(rig, "", SIMPLE);
    struct client *gone = client_enter(rig, "", SIMPLE);
    struct client *cut = client_enter(rig, "", SIMPLE);
    client_request(first, NBD_CMD_TRIM, 0, 1, 0, 512);
    client_request(gone, NBD_CMD_TRIM, 0, 1, 0, 512);
    client_request(cut, NBD_CMD_TRIM, 0, 1, 0, 512);
    client_vanish(gone);
    rig_advance(rig, 3 * SECOND);
    client_expect_closed(gone);
    client_expect_simple(cut, 1, 0);
    client_request(cut, NBD_CMD_TRIM, 0, 2, 0, 512);
    rig_drain(rig, 0);
    rig_advance(rig, 0);
    ck_assert(rig->drained);
    client_free(first);
    client_free(gone);
    client_free(cut);
    rig_free(rig);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        requests_longer_than_allowed,
        requests_and_bytes_in_flight,
        idle_connections_are_closed,
        half_a_header_does_not_keep_a_connection,
        operations_of_an_export_are_limited,
        what_waits_for_its_turn_holds_no_memory,
        waiting_for_ones_turn_is_not_idle,
        draining_does_not_wait_for_turns,
        connections_end_while_they_wait_for_their_turn,
    };
    return run_tests("limits", tests, ARRAY_LEN(tests));
}
