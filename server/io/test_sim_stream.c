/* SPDX-License-Identifier: BSD-2-Clause */
/* Connections in the simulated world: order, bounds, ends of every kind, and the seed's word. */
#include "io/sim_stream.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/testing.h"
#include "io/sim.h"
#include "sched/co.h"

#define MESSAGE_BYTES 50000U
#define SEEDS         40U

static struct world *world;
static struct stream *ends[2];

/* One side of a conversation; what it did and got. */
struct side {
    struct stream *stream;
    size_t to_send;
    size_t most_at_once; /* of a receive */
    int send_result;     /* 1: not yet */
    ssize_t recv_result; /* the last */
    size_t received;
    unsigned pieces;
    uint64_t digest; /* of the sizes and times of pieces */
    bool in_order;
};

static uint8_t byte_at(size_t at)
{
    return (uint8_t)(at * 31 + at / 253);
}

static void send_all(void *arg)
{
    struct side *side = arg;
    uint8_t *bytes = malloc(side->to_send + 1);
    ck_assert(bytes != NULL);
    for (size_t i = 0; i < side->to_send; i++) {
        bytes[i] = byte_at(i);
    }
    struct iovec iov[2] = {{bytes, side->to_send / 3}, {NULL, 0}};
    iov[1] = (struct iovec){bytes + side->to_send / 3, side->to_send - side->to_send / 3};
    side->send_result = side->stream->ops->co_send(side->stream, iov, 2, false);
    free(bytes);
}

static void recv_all(void *arg)
{
    struct side *side = arg;
    uint8_t bytes[4096];
    side->in_order = true;
    for (;;) {
        ssize_t got = side->stream->ops->co_recv(side->stream, bytes,
                                                 MIN_OF(sizeof(bytes), side->most_at_once));
        side->recv_result = got;
        if (got <= 0) {
            return;
        }
        for (size_t i = 0; i < (size_t)got; i++) {
            side->in_order = side->in_order && bytes[i] == byte_at(side->received + i);
        }
        side->received += (size_t)got;
        side->pieces++;
        side->digest = (side->digest ^ (uint64_t)got ^ world_now_ns(world)) * 0x100000001b3ULL;
    }
}

static void begin(uint64_t seed, size_t window_bytes, struct side *sender, struct side *receiver)
{
    struct sim_stream_options options = {
        .seed = seed,
        .window_bytes = window_bytes,
        .longest_delay_ns = 100000,
        .peer = {"right", "left"},
    };
    world = sim_create(seed);
    ck_assert(world != NULL);
    sim_stream_pair(world, &options, ends);
    *sender = (struct side){.stream = ends[0], .to_send = MESSAGE_BYTES, .send_result = 1};
    *receiver = (struct side){.stream = ends[1], .most_at_once = 4096, .recv_result = 1};
}

static void spawn(coro_fn *fn, struct side *side)
{
    ck_assert_int_eq(coro_spawn(fn, side, "side"), 0);
}

static void run(void)
{
    ck_assert(sim_run(world, 1000000));
}

static void close_end(void *arg)
{
    struct stream *end = arg;
    end->ops->co_close(end);
}

static void close_stream(struct stream *end)
{
    ck_assert_int_eq(coro_spawn(close_end, end, "close"), 0);
    run();
}

static void finish(void)
{
    ck_assert_uint_eq(coro_live_count(), 0);
    sim_free(world);
    coro_pool_drain();
}

START_TEST(bytes_arrive_in_order_and_pieces)
{
    unsigned pieces = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct side sender;
        struct side receiver;
        begin(seed, 1 + (size_t)seed * 997, &sender, &receiver);
        ck_assert_str_eq(ends[0]->peer, "right");
        ck_assert_str_eq(ends[1]->peer, "left");
        spawn(send_all, &sender);
        spawn(recv_all, &receiver);
        run();
        ck_assert_int_eq(sender.send_result, 0);
        ck_assert_uint_eq(receiver.received, MESSAGE_BYTES);
        ck_assert(receiver.in_order);
        ck_assert_int_eq((int)coro_live_count(), 1); /* the receiver waits for more */
        pieces += receiver.pieces;
        close_stream(ends[0]);
        ck_assert_int_eq((int)receiver.recv_result, 0);
        close_stream(ends[1]);
        finish();
    }
    ck_assert_uint_gt(pieces, SEEDS * 10);
}
END_TEST

START_TEST(both_directions_at_once)
{
    struct side there;
    struct side there_end;
    begin(5, 700, &there, &there_end);
    struct side back = {.stream = ends[1], .to_send = 9999, .send_result = 1};
    struct side back_end = {.stream = ends[0], .most_at_once = 13};
    spawn(send_all, &there);
    spawn(recv_all, &there_end);
    spawn(send_all, &back);
    spawn(recv_all, &back_end);
    run();
    ck_assert_int_eq(there.send_result, 0);
    ck_assert_int_eq(back.send_result, 0);
    ck_assert_uint_eq(there_end.received, MESSAGE_BYTES);
    ck_assert_uint_eq(back_end.received, 9999);
    ck_assert(there_end.in_order && back_end.in_order);
    ends[0]->ops->abort(ends[0]);
    ends[1]->ops->abort(ends[1]);
    run();
    close_stream(ends[1]);
    close_stream(ends[0]);
    finish();
}
END_TEST

START_TEST(sender_waits_for_the_reader)
{
    struct side sender;
    struct side receiver;
    begin(3, 1000, &sender, &receiver);
    sender.to_send = 1001;
    spawn(send_all, &sender);
    run();
    ck_assert_int_eq(sender.send_result, 1);
    receiver.most_at_once = 1;
    spawn(recv_all, &receiver);
    run();
    ck_assert_int_eq(sender.send_result, 0);
    ck_assert_uint_eq(receiver.received, 1001);
    close_stream(ends[0]);
    close_stream(ends[1]);
    finish();
}
END_TEST

START_TEST(close_lets_arrive_what_was_sent)
{
    struct side sender;
    struct side receiver;
    begin(4, MESSAGE_BYTES, &sender, &receiver);
    spawn(send_all, &sender);
    coro_run_ready();
    ck_assert_int_eq(sender.send_result, 0);
    ck_assert_int_eq(coro_spawn(close_end, ends[0], "close"), 0);
    spawn(recv_all, &receiver);
    run();
    ck_assert_uint_eq(receiver.received, MESSAGE_BYTES);
    ck_assert_int_eq((int)receiver.recv_result, 0);
    close_stream(ends[1]);
    finish();
}
END_TEST

START_TEST(abort_ends_both_sides)
{
    struct side sender;
    struct side receiver;
    begin(6, 1000, &sender, &receiver);
    struct side own = {.stream = ends[0], .most_at_once = 100, .recv_result = 1};
    spawn(send_all, &sender); /* waits: nobody reads */
    spawn(recv_all, &own);
    run();
    ck_assert_int_eq(sender.send_result, 1);
    ends[0]->ops->abort(ends[0]);
    ends[0]->ops->abort(ends[0]);
    run();
    ck_assert_int_eq(sender.send_result, -ESHUTDOWN);
    ck_assert_int_eq((int)own.recv_result, -ESHUTDOWN);
    spawn(recv_all, &receiver);
    struct side answer = {.stream = ends[1], .to_send = 10, .send_result = 1};
    spawn(send_all, &answer);
    run();
    ck_assert_uint_eq(receiver.received, 1000);
    ck_assert_int_eq((int)receiver.recv_result, 0);
    ck_assert_int_eq(answer.send_result, -EPIPE);
    close_stream(ends[0]);
    close_stream(ends[1]);
    finish();
}
END_TEST

START_TEST(vanishing_cuts_messages)
{
    unsigned cut = 0;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct side sender;
        struct side receiver;
        begin(seed, 2 * MESSAGE_BYTES, &sender, &receiver);
        spawn(send_all, &sender);
        spawn(recv_all, &receiver);
        for (uint64_t i = 0; i < seed % 7; i++) {
            sim_step(world);
        }
        sim_stream_vanish(ends[0]);
        run();
        cut += receiver.received > 0 && receiver.received < MESSAGE_BYTES;
        ck_assert(receiver.in_order);
        ck_assert_int_eq((int)receiver.recv_result, -ECONNRESET);
        struct side answer = {.stream = ends[1], .to_send = 10, .send_result = 1};
        spawn(send_all, &answer);
        run();
        ck_assert_int_eq(answer.send_result, -ECONNRESET);
        close_stream(ends[1]);
        close_stream(ends[0]);
        finish();
    }
    ck_assert_uint_gt(cut, SEEDS / 5);
}
END_TEST

START_TEST(held_end_gets_nothing_until_then)
{
    struct side sender;
    struct side receiver;
    begin(8, 3000, &sender, &receiver);
    uint64_t until_ns = world_now_ns(world) + 1000000000;
    spawn(send_all, &sender);
    spawn(recv_all, &receiver);
    coro_run_ready();
    sim_stream_hold(ends[1], 1000000000);
    while (receiver.received == 0) {
        ck_assert_int_eq(sender.send_result, 1);
        ck_assert(sim_step(world));
    }
    ck_assert(world_now_ns(world) >= until_ns);
    run();
    ck_assert_uint_eq(receiver.received, MESSAGE_BYTES);
    close_stream(ends[0]);
    close_stream(ends[1]);
    finish();
}
END_TEST

START_TEST(end_recv_leaves_sending_alone)
{
    struct side sender;
    struct side receiver;
    begin(9, 1000, &sender, &receiver);
    struct side back = {.stream = ends[1], .to_send = 5000, .send_result = 1};
    struct side back_end = {.stream = ends[0], .most_at_once = 4096};
    spawn(recv_all, &receiver);
    run();
    ends[1]->ops->end_recv(ends[1]);
    run();
    ck_assert_int_eq((int)receiver.recv_result, 0);
    spawn(send_all, &sender); /* into the void, without waiting for ever */
    spawn(send_all, &back);
    spawn(recv_all, &back_end);
    run();
    ck_assert_int_eq(sender.send_result, 0);
    ck_assert_int_eq(back.send_result, 0);
    ck_assert_uint_eq(back_end.received, 5000);
    close_stream(ends[1]);
    close_stream(ends[0]);
    finish();
}
END_TEST

static uint64_t digest_of(uint64_t seed)
{
    struct side sender;
    struct side receiver;
    begin(seed, 4096, &sender, &receiver);
    spawn(send_all, &sender);
    spawn(recv_all, &receiver);
    run();
    close_stream(ends[0]);
    close_stream(ends[1]);
    finish();
    return receiver.digest;
}

START_TEST(same_seed_same_pieces)
{
    ck_assert(digest_of(1) == digest_of(1));
    ck_assert(digest_of(1) != digest_of(2));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sim_stream");
    TCase *tcase = tcase_create("streams");
    suite_add_tcase(suite, tcase);
    tcase_add_test(tcase, bytes_arrive_in_order_and_pieces);
    tcase_add_test(tcase, both_directions_at_once);
    tcase_add_test(tcase, sender_waits_for_the_reader);
    tcase_add_test(tcase, close_lets_arrive_what_was_sent);
    tcase_add_test(tcase, abort_ends_both_sides);
    tcase_add_test(tcase, vanishing_cuts_messages);
    tcase_add_test(tcase, held_end_gets_nothing_until_then);
    tcase_add_test(tcase, end_recv_leaves_sending_alone);
    tcase_add_test(tcase, same_seed_same_pieces);
    return test_suite_run(suite);
}
