/* SPDX-License-Identifier: BSD-2-Clause */
/* Ends of connections: draining, stuck peers, memory that others wait for. */
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "proto/test_main.h"
#include "proto/test_rig.h"
#include "proto/transmit.h"
#include "sched/co.h"

#define GRACE_NS (5000 * MS)

static struct rig *rig;

START_TEST(drain_without_connections)
{
    rig = rig_create();
    rig_drain(rig, GRACE_NS);
    ck_assert(rig->drained);
    /* Who comes now is turned away. */
    struct client *late = client_create(rig);
    client_expect_closed(late);
    client_free(late);
    rig_free(rig);
}
END_TEST

START_TEST(drain_closes_idle_connections_at_once)
{
    rig = rig_create();
    struct client *idle = client_enter(rig, "", SIMPLE);
    struct client *mute = client_create(rig);
    struct client *haggling = client_create(rig);
    client_greet(haggling, 3);
    client_take(mute, 18);
    rig_drain(rig, GRACE_NS);
    ck_assert(rig->drained);
    client_expect_closed(idle);
    client_expect_closed(mute);
    client_expect_closed(haggling);
    client_free(idle);
    client_free(mute);
    client_free(haggling);
    rig_free(rig);
}
END_TEST

START_TEST(statement_56_options_while_draining)
{
    static const struct {
        uint32_t option;
        uint32_t reply; /* 0: none */
    } cases[] = {
        {NBD_OPT_ABORT, NBD_REP_ACK},       {NBD_OPT_LIST, NBD_REP_ERR_SHUTDOWN},
        {NBD_OPT_GO, NBD_REP_ERR_SHUTDOWN}, {4711, NBD_REP_ERR_SHUTDOWN},
        {NBD_OPT_EXPORT_NAME, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct wire_option header;
        size_t len;
        rig = rig_create();
        struct client *client = client_create(rig);
        client_greet(client, 3);
        put_be64(header.magic, NBD_OPTION_MAGIC);
        put_be32(header.option, cases[i].option);
        put_be32(header.length, 0);
        client_send(client, &header, 5); /* in the middle of an option */
        rig_drain(rig, GRACE_NS);
        ck_assert(!rig->drained && !client->closed);
        client_send(client, (uint8_t *)&header + 5, sizeof(header) - 5);
        if (cases[i].reply) {
            client_option_reply(client, cases[i].option, cases[i].reply, &len);
        }
        client_expect_closed(client);
        ck_assert(rig->drained);
        client_free(client);
        rig_free(rig);
    }
}
END_TEST

START_TEST(statement_56_drain_finishes_what_is_in_flight)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    client_request(client, NBD_CMD_WRITE, 0, 1, 0, 3);
    client_send(client, "abc", 3);
    client_request(client, NBD_CMD_WRITE, 0, 2, 8, 4);
    client_send(client, "de", 2); /* the rest comes while draining */
    rig_drain(rig, GRACE_NS);
    ck_assert(!rig->drained && !client->closed);
    client_send(client, "fg", 2);
    ck_assert_uint_eq(rig_held(rig), 2);
    /* New ones are refused, their payload drained. */
    client_request(client, NBD_CMD_WRITE, 0, 3, 0, 5);
    client_send(client, "xxxxx", 5);
    client_expect_simple(client, 3, NBD_ESHUTDOWN);
    client_request(client, NBD_CMD_READ, 0, 4, 0, 5);
    client_expect_simple(client, 4, NBD_ESHUTDOWN);
    ck_assert_uint_eq(rig_held(rig), 2);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(client, 1, 0);
    client_expect_simple(client, 2, 0);
    client_expect_closed(client);
    ck_assert(rig->drained);
    ck_assert(memcmp(rig->disk->bytes, "abc", 3) == 0);
    ck_assert(memcmp(rig->disk->bytes + 8, "defg", 4) == 0);
    client_free(client);
    rig_free(rig);
}
END_TEST

/* Who does not move goes soon, who moves has all of the grace, and the image is not cut short. */
START_TEST(drain_cuts_who_does_not_move)
{
    rig = rig_create();
    struct client *deaf = client_enter(rig, "", SIMPLE);
    struct client *halfway = client_enter(rig, "", SIMPLE);
    struct client *slow = client_enter(rig, "", SIMPLE);
    struct client *sending = client_enter(rig, "", SIMPLE);
    struct client *good = client_enter(rig, "", SIMPLE);
    struct client *haggling = client_create(rig);
    client_greet(haggling, 3);
    haggling->window = 0;
    client_option(haggling, NBD_OPT_LIST, NULL, 0);
    deaf->window = slow->window = 10;
    for (unsigned i = 0; i < 200; i++) {
        client_request(deaf, NBD_CMD_READ, 0, i, 0, 65536);
    }
    client_request(slow, NBD_CMD_READ, 0, 1, 0, 65536);
    client_request(halfway, NBD_CMD_WRITE, 0, 1, 0, 100);
    client_request(sending, NBD_CMD_WRITE, 0, 1, 0, 100);
    rig->disk->hold = true;
    client_request(good, NBD_CMD_FLUSH, 0, 1, 0, 0);
    rig_drain(rig, GRACE_NS);
    rig_advance(rig, LIMIT_SHUTDOWN_STILL_HANDSHAKE_MS * MS - 1);
    ck_assert(!haggling->closed);
    rig_advance(rig, 100 * MS);
    ck_assert(haggling->closed && !deaf->closed && !halfway->closed);
    for (uint64_t passed_ms = 600; passed_ms < GRACE_NS / MS; passed_ms += 100) {
        if (passed_ms % 500 == 0) {
            client_take(slow, 1);
            client_send(sending, "x", 1);
        }
        ck_assert(!slow->closed && !sending->closed && !good->closed && !rig->drained);
        ck_assert(passed_ms >= LIMIT_SHUTDOWN_STILL_MS || (!deaf->closed && !halfway->closed));
        ck_assert(passed_ms <= LIMIT_SHUTDOWN_STILL_MS + 200 || (deaf->closed && halfway->closed));
        rig_advance(rig, 100 * MS);
    }
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(good, 1, 0);
    client_expect_closed(good);
    rig_advance(rig, 100 * MS);
    ck_assert(rig->drained && slow->closed && sending->closed);
    client_free(deaf);
    client_free(halfway);
    client_free(slow);
    client_free(sending);
    client_free(good);
    client_free(haggling);
    rig_free(rig);
}
END_TEST

START_TEST(a_second_drain_shortens_the_first)
{
    rig = rig_create();
    struct client *deaf = client_enter(rig, "", SIMPLE);
    deaf->window = 0;
    client_request(deaf, NBD_CMD_READ, 0, 1, 0, 65536);
    rig_drain(rig, GRACE_NS);
    rig_drain(rig, 2 * GRACE_NS); /* does not lengthen */
    ck_assert(rig->service.grace_deadline_ns == rig->now_ns + GRACE_NS);
    rig_drain(rig, 0);
    ck_assert(!rig->drained);
    rig_advance(rig, 0);
    ck_assert(rig->drained && deaf->closed);
    client_free(deaf);
    rig_free(rig);
}
END_TEST

struct export_drain {
    struct nbd_export *export;
    uint64_t grace_ns;
    bool done;
};

static void co_drain_export(void *arg)
{
    struct export_drain *drain = arg;
    co_nbd_dismiss(&rig->service, drain->export, drain->grace_ns);
    drain->done = co_nbd_wait_unused(&rig->service, drain->export, UINT64_MAX);
}

static void start_export_drain(struct export_drain *drain)
{
    ck_assert_int_eq(coro_spawn(co_drain_export, drain, "drain export"), 0);
    rig_run(rig);
}

START_TEST(one_export_is_drained_and_others_go_on)
{
    rig = rig_create();
    struct export_drain drain = {.export = &rig->exports[2], .grace_ns = GRACE_NS};
    struct client *idle = client_enter(rig, "other", SIMPLE);
    struct client *busy = client_enter(rig, "other", SIMPLE);
    struct client *stays = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    client_request(busy, NBD_CMD_READ, 0, 1, 0, 8);
    client_request(stays, NBD_CMD_READ, 0, 1, 0, 8);
    start_export_drain(&drain);
    ck_assert(!drain.done);
    client_expect_closed(idle);
    client_request(busy, NBD_CMD_READ, 0, 2, 0, 8);
    client_expect_simple(busy, 2, NBD_ESHUTDOWN);
    client_request(stays, NBD_CMD_READ, 0, 2, 0, 8);
    ck_assert_uint_eq(rig_held(rig), 3);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(busy, 1, 0);
    client_take(busy, 8);
    client_expect_closed(busy);
    ck_assert(drain.done);
    rig_advance(rig, 10 * GRACE_NS);
    for (unsigned cookie = 1; cookie <= 2; cookie++) {
        client_expect_simple(stays, cookie, 0);
        client_take(stays, 8);
    }
    ck_assert(!stays->closed);
    client_free(idle);
    client_free(busy);
    client_free(stays);
    rig_free(rig);
}
END_TEST

START_TEST(an_export_is_drained_of_stuck_peers_after_the_grace)
{
    rig = rig_create();
    struct export_drain drain = {.export = &rig->exports[2], .grace_ns = GRACE_NS};
    struct client *deaf = client_enter(rig, "other", SIMPLE);
    struct client *halfway = client_enter(rig, "other", SIMPLE);
    deaf->window = 4;
    client_request(deaf, NBD_CMD_READ, 0, 1, 0, 8);
    client_request(halfway, NBD_CMD_WRITE, 0, 1, 0, 8);
    client_send(halfway, "abc", 3);
    start_export_drain(&drain);
    rig_advance(rig, GRACE_NS - 1);
    ck_assert(!drain.done && !deaf->closed && !halfway->closed);
    rig_advance(rig, 1);
    ck_assert(drain.done && deaf->closed && halfway->closed);
    client_free(deaf);
    client_free(halfway);
    rig_free(rig);
}
END_TEST

START_TEST(the_server_stops_while_an_export_is_drained)
{
    rig = rig_create();
    struct export_drain drain = {.export = &rig->exports[2], .grace_ns = 10 * GRACE_NS};
    struct client *deaf = client_enter(rig, "other", SIMPLE);
    deaf->window = 4;
    client_request(deaf, NBD_CMD_READ, 0, 1, 0, 8);
    start_export_drain(&drain);
    rig_drain(rig, GRACE_NS);
    rig_advance(rig, GRACE_NS);
    ck_assert(drain.done && rig->drained && deaf->closed);
    client_free(deaf);
    rig_free(rig);
}
END_TEST

static bool is_client_admitted(const struct nbd_export *export, const struct stream *stream)
{
    (void)export;
    return strcmp(stream->peer, "test") == 0;
}

static void co_apply_rules(void *arg)
{
    *(unsigned *)arg = co_nbd_dismiss_unadmitted(&rig->service, &rig->exports[2], GRACE_NS);
}

START_TEST(who_is_no_longer_admitted_leaves_in_order)
{
    unsigned dismissed;
    rig = rig_create();
    struct client *one = client_enter(rig, "other", SIMPLE);
    struct client *two = client_enter(rig, "other", SIMPLE);
    struct client *elsewhere = client_enter(rig, "ro", SIMPLE);
    one->stream.peer = elsewhere->stream.peer = "stranger";
    rig->exports[2].admits = is_client_admitted;
    rig->disk->hold = true;
    client_request(one, NBD_CMD_READ, 0, 1, 0, 8);
    ck_assert_int_eq(coro_spawn(co_apply_rules, &dismissed, "rules"), 0);
    rig_run(rig);
    ck_assert_uint_eq(dismissed, 1);
    ck_assert_int_eq(coro_spawn(co_apply_rules, &dismissed, "rules"), 0);
    rig_run(rig);
    ck_assert_uint_eq(dismissed, 0);
    ck_assert(!one->closed);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(one, 1, 0);
    client_take(one, 8);
    client_expect_closed(one);
    rig_advance(rig, 2 * GRACE_NS);
    ck_assert(!two->closed && !elsewhere->closed);
    client_free(one);
    client_free(two);
    client_free(elsewhere);
    rig_free(rig);
}
END_TEST

START_TEST(drain_waits_for_the_image_even_without_the_peer)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    client_request(client, NBD_CMD_FLUSH, 0, 1, 0, 0);
    rig_drain(rig, GRACE_NS);
    rig_advance(rig, 2 * GRACE_NS);
    ck_assert(!rig->drained && client->aborted && !client->closed);
    rig_release_all(rig);
    rig_run(rig);
    ck_assert(rig->drained && client->closed);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(drain_reaches_a_reader_that_waits_for_memory)
{
    rig = rig_create();
    budget_init(&rig->budget, RIG_IMAGE_BYTES);
    struct client *holder = client_enter(rig, "", SIMPLE);
    struct client *waiter = client_enter(rig, "", SIMPLE);
    holder->window = 0;
    client_request(holder, NBD_CMD_READ, 0, 1, 0, RIG_IMAGE_BYTES);
    client_request(waiter, NBD_CMD_READ, 0, 2, 0, RIG_IMAGE_BYTES);
    ck_assert_uint_eq(rig->disk->reads, 1);
    rig_drain(rig, 0);
    rig_advance(rig, 0);
    ck_assert(rig->drained && holder->closed && waiter->closed);
    client_free(holder);
    client_free(waiter);
    rig_free(rig);
}
END_TEST

START_TEST(a_goodbye_to_a_peer_that_does_not_read_ends)
{
    rig = rig_create();
    struct client *deaf = client_enter(rig, "", SIMPLE);
    deaf->window = 10;
    client_request(deaf, NBD_CMD_READ, 0, 1, 0, 65536);
    client_request(deaf, NBD_CMD_DISC, 0, 2, 0, 0);
    ck_assert(!deaf->closed);
    rig_advance(rig, 60000 * MS);
    ck_assert(deaf->closed);
    client_free(deaf);
    rig_free(rig);
}
END_TEST

START_TEST(a_goodbye_waits_for_a_slow_image)
{
    rig = rig_create();
    struct client *client = client_enter(rig, "", SIMPLE);
    rig->disk->hold = true;
    client_request(client, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_request(client, NBD_CMD_DISC, 0, 2, 0, 0);
    rig_advance(rig, 3600 * 1000 * MS);
    ck_assert(!client->aborted);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(client, 1, 0);
    client_expect_closed(client);
    client_free(client);
    rig_free(rig);
}
END_TEST

START_TEST(memory_held_by_stuck_peers_is_taken_back)
{
    static uint8_t payload[RIG_IMAGE_BYTES];
    rig = rig_create();
    budget_init(&rig->budget, 2 * RIG_IMAGE_BYTES);
    struct client *deaf = client_enter(rig, "", SIMPLE);
    struct client *halfway = client_enter(rig, "", SIMPLE);
    struct client *idle = client_enter(rig, "", SIMPLE);
    struct client *waiter = client_enter(rig, "", SIMPLE);
    deaf->window = 10;
    client_request(deaf, NBD_CMD_READ, 0, 1, 0, RIG_IMAGE_BYTES);
    client_request(halfway, NBD_CMD_WRITE, 0, 1, 0, RIG_IMAGE_BYTES);
    client_send(halfway, payload, 1000);
    /* As long as nobody needs it they may take their time. */
    rig_advance(rig, 3600 * 1000 * MS);
    ck_assert(!deaf->closed && !halfway->closed);
    client_request(waiter, NBD_CMD_READ, 0, 7, 0, RIG_IMAGE_BYTES);
    ck_assert(client_unread(waiter) == 0);
    /* Small requests go on meanwhile, out of each connection's reserve. */
    client_request(idle, NBD_CMD_READ, 0, 8, 0, 65536);
    client_expect_simple(idle, 8, 0);
    client_take(idle, 65536);
    rig_advance(rig, 2000 * MS);
    ck_assert(deaf->closed && halfway->closed && !idle->closed);
    client_expect_simple(waiter, 7, 0);
    client_take(waiter, RIG_IMAGE_BYTES);
    ck_assert(rig->budget.used == 0);
    client_free(deaf);
    client_free(halfway);
    client_free(idle);
    client_free(waiter);
    rig_free(rig);
}
END_TEST

START_TEST(a_waiter_for_memory_whose_peer_vanishes)
{
    rig = rig_create();
    budget_init(&rig->budget, RIG_IMAGE_BYTES);
    rig->disk->hold = true;
    struct client *holder = client_enter(rig, "", SIMPLE);
    struct client *waiter = client_enter(rig, "", SIMPLE);
    client_request(holder, NBD_CMD_READ, 0, 1, 0, RIG_IMAGE_BYTES);
    client_request(waiter, NBD_CMD_READ, 0, 2, 0, RIG_IMAGE_BYTES);
    client_vanish(waiter);
    rig_release_all(rig);
    rig_run(rig);
    client_expect_simple(holder, 1, 0);
    client_take(holder, RIG_IMAGE_BYTES);
    ck_assert(waiter->closed);
    client_free(holder);
    client_free(waiter);
    rig_free(rig);
}
END_TEST

START_TEST(many_connections_come_and_go)
{
    enum { COUNT = 50 };
    struct client *clients[COUNT];
    rig = rig_create();
    for (unsigned round = 0; round < 5; round++) {
        /* Their handshakes' timers are stopped by then: the rig has room for few. */
        for (unsigned i = 0; i < COUNT; i++) {
            clients[i] = client_enter(rig, i % 2 ? "" : "ro", (int)(i % 3));
        }
        for (unsigned i = 0; i < COUNT; i++) {
            client_request(clients[i], NBD_CMD_FLUSH, 0, i, 0, 0);
            client_expect_simple(clients[i], i, 0);
        }
        for (unsigned i = 0; i < COUNT; i++) {
            client_request(clients[i], NBD_CMD_DISC, 0, 0, 0, 0);
            client_expect_closed(clients[i]);
            client_free(clients[i]);
        }
    }
    rig_free(rig);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        drain_without_connections,
        drain_closes_idle_connections_at_once,
        statement_56_options_while_draining,
        statement_56_drain_finishes_what_is_in_flight,
        drain_cuts_who_does_not_move,
        a_second_drain_shortens_the_first,
        drain_waits_for_the_image_even_without_the_peer,
        one_export_is_drained_and_others_go_on,
        an_export_is_drained_of_stuck_peers_after_the_grace,
        the_server_stops_while_an_export_is_drained,
        who_is_no_longer_admitted_leaves_in_order,
        drain_reaches_a_reader_that_waits_for_memory,
        a_goodbye_to_a_peer_that_does_not_read_ends,
        a_goodbye_waits_for_a_slow_image,
        memory_held_by_stuck_peers_is_taken_back,
        a_waiter_for_memory_whose_peer_vanishes,
        many_connections_come_and_go,
    };
    return run_tests("conn", tests, ARRAY_LEN(tests));
}
