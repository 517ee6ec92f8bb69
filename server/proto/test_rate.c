/* SPDX-License-Identifier: BSD-2-Clause */
/* Bytes and operations a second, under a clock that the test moves. */
#include "proto/rate.h"

#include "base/limits.h"
#include "proto/test_main.h"
#include "proto/test_rig.h"
#include "sched/co.h"

#define SECOND (1000 * MS)

static struct rig *rig;
static struct rate_limit rate;

/* A client that asks again as soon as it has got, until it is told to go. */
struct asker {
    struct rate_client client;
    uint64_t bytes;
    unsigned most;
    unsigned got;
    bool refused;
};

static void co_ask(void *arg)
{
    struct asker *asker = arg;
    while (asker->got < asker->most && !asker->refused) {
        asker->refused = !co_rate_take(&rate, &rig->world, &asker->client, asker->bytes);
        asker->got += !asker->refused;
    }
}

static void begin(uint64_t bytes_per_second, uint64_t operations_per_second)
{
    rig = rig_create();
    rate_limit_init(&rate, bytes_per_second, operations_per_second);
}

static void start(struct asker *asker)
{
    ck_assert(coro_spawn(co_ask, asker, "ask") == 0);
    rig_run(rig);
}

static void end_asker(struct asker *asker)
{
    rate_client_quit(&asker->client);
    rig_run(rig);
    ck_assert(!rate_client_waits(&asker->client));
}

static void end(void)
{
    ck_assert(list_empty(&rate.waiters));
    rig_free(rig); /* no timer is left armed */
}

START_TEST(without_limits_nothing_waits)
{
    begin(0, 0);
    struct asker asker = {.bytes = LIMIT_PAYLOAD_BYTES, .most = 100000};
    start(&asker);
    ck_assert_uint_eq(asker.got, 100000);
    end();
}
END_TEST

START_TEST(operations_keep_the_pace)
{
    begin(0, 100);
    struct asker asker = {.bytes = LIMIT_PAYLOAD_BYTES, .most = 100000};
    start(&asker);
    ck_assert_uint_eq(asker.got, 26); /* a quarter of a second's, and the one that fills it */
    rig_advance(rig, 10 * SECOND);
    ck_assert_uint_eq(asker.got, 1026);
    end_asker(&asker);
    ck_assert(asker.refused);
    end();
}
END_TEST

START_TEST(what_was_not_used_is_not_saved_up)
{
    begin(0, 100);
    struct asker asker = {.most = 100000};
    rig_advance(rig, 3600 * SECOND);
    start(&asker);
    ck_assert_uint_eq(asker.got, 26);
    end_asker(&asker);
    end();
}
END_TEST

START_TEST(bytes_keep_the_pace_whatever_the_size)
{
    static const uint64_t sizes[] = {512, 4096, 1 << 20, LIMIT_PAYLOAD_BYTES};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        begin(8 * MIB, 0);
        struct asker asker = {.bytes = sizes[i], .most = UINT32_MAX};
        uint64_t time_ns = sizes[i] < MIB ? SECOND : 20 * SECOND;
        start(&asker);
        rig_advance(rig, time_ns);
        uint64_t fair = 8 * MIB * time_ns / SECOND;
        uint64_t got = asker.got * sizes[i];
        ck_assert(got >= fair);
        ck_assert(got <= fair + 2 * MIB + sizes[i]);
        end_asker(&asker);
        end();
    }
}
END_TEST

START_TEST(the_stricter_of_the_two_counts)
{
    begin(1 * MIB, 10);
    struct asker small = {.bytes = 512, .most = 10000};
    start(&small);
    rig_advance(rig, 10 * SECOND);
    ck_assert(small.got >= 100 && small.got <= 104);
    end_asker(&small);
    end();
    begin(1 * MIB, 10);
    struct asker large = {.bytes = MIB / 2, .most = 10000};
    start(&large);
    rig_advance(rig, 10 * SECOND);
    ck_assert(large.got >= 20 && large.got <= 22);
    end_asker(&large);
    end();
}
END_TEST

START_TEST(clients_share_fairly)
{
    begin(4 * MIB, 0);
    struct asker large = {.bytes = MIB, .most = 1000000};
    struct asker small = {.bytes = 4096, .most = 1000000};
    start(&large);
    rig_advance(rig, 5 * SECOND);
    start(&small);
    unsigned large_before = large.got;
    rig_advance(rig, 10 * SECOND);
    uint64_t large_bytes = (large.got - large_before) * large.bytes;
    uint64_t small_bytes = small.got * small.bytes;
    ck_assert(large_bytes + small_bytes >= 38 * MIB && large_bytes + small_bytes <= 42 * MIB);
    ck_assert(small_bytes >= 18 * MIB && small_bytes <= 22 * MIB);
    end_asker(&large);
    end_asker(&small);
    end();
}
END_TEST

START_TEST(many_clients_share_operations)
{
    static struct asker askers[50];
    begin(0, 1000);
    for (size_t i = 0; i < ARRAY_LEN(askers); i++) {
        askers[i] = (struct asker){.most = 1000000};
        start(&askers[i]);
    }
    rig_advance(rig, 10 * SECOND);
    unsigned got = 0;
    for (size_t i = 0; i < ARRAY_LEN(askers); i++) {
        /* The first was alone while the burst lasted. */
        ck_assert(askers[i].got >= 195 && askers[i].got <= 206 + (i == 0 ? 251 : 0));
        got += askers[i].got;
        end_asker(&askers[i]);
    }
    ck_assert(got >= 10000 && got <= 10251);
    end();
}
END_TEST

START_TEST(who_quits_pays_nothing)
{
    begin(1 * MIB, 0);
    struct asker first = {.bytes = MIB, .most = 1};
    struct asker quits = {.bytes = LIMIT_PAYLOAD_BYTES, .most = 1};
    struct asker stays = {.bytes = 512, .most = 1};
    start(&first);
    start(&quits);
    start(&stays);
    ck_assert(first.got == 1 && rate_client_waits(&quits.client) &&
              rate_client_waits(&stays.client));
    end_asker(&quits);
    ck_assert(quits.refused && quits.got == 0 && rate_client_waits(&stays.client));
    rig_advance(rig, SECOND);
    ck_assert_uint_eq(stays.got, 1);
    rate_client_quit(&stays.client); /* has no wait any more */
    end();
}
END_TEST

START_TEST(quitting_after_the_turn_has_come_is_too_late)
{
    begin(0, 1);
    struct asker asker = {.most = 2};
    start(&asker);
    ck_assert(asker.got == 1 && rate_client_waits(&asker.client));
    rig->now_ns += 10 * SECOND;
    rate.world->ops->timer_stop(rate.world, &rate.timer);
    rate.timer.fired(&rate.timer); /* it is ready, and has not run yet */
    rate_client_quit(&asker.client);
    rig_run(rig);
    ck_assert(asker.got == 2 && !asker.refused);
    end();
}
END_TEST

START_TEST(limits_change_while_some_wait)
{
    begin(1024, 0);
    struct asker asker = {.bytes = LIMIT_PAYLOAD_BYTES, .most = 1000};
    start(&asker);
    ck_assert_uint_eq(asker.got, 1); /* and the next in nine hours */
    rate_limit_set(&rate, 1 * GIB, 0);
    rig_advance(rig, 2 * SECOND);
    ck_assert(asker.got >= 33 && asker.got <= 80);
    rate_limit_set(&rate, 0, 1);
    rig_advance(rig, 2 * SECOND);
    unsigned before = asker.got;
    rig_advance(rig, 10 * SECOND);
    ck_assert(asker.got >= before + 9 && asker.got <= before + 11);
    rate_limit_set(&rate, 0, 0);
    rig_advance(rig, 100 * MS);
    ck_assert_uint_eq(asker.got, 1000);
    end();
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        without_limits_nothing_waits,
        operations_keep_the_pace,
        what_was_not_used_is_not_saved_up,
        bytes_keep_the_pace_whatever_the_size,
        the_stricter_of_the_two_counts,
        clients_share_fairly,
        many_clients_share_operations,
        who_quits_pays_nothing,
        quitting_after_the_turn_has_come_is_too_late,
        limits_change_while_some_wait,
    };
    return run_tests("rate", tests, ARRAY_LEN(tests));
}
