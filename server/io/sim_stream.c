/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Two pipes, one a direction, and a timer for each: when it fires, a piece of what is under way
 * arrives. The end of a stream travels behind the bytes before it, as on a socket: who aborts or
 * closes has not taken back what it had sent.
 */
#include "io/sim_stream.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "io/sim_random.h"
#include "sched/sync.h"

struct sim_link;

struct pipe {
    struct sim_link *link;
    uint8_t *ring;
    size_t begin;
    size_t used;        /* sent and not yet received */
    size_t arrived;     /* of those: can be received, at the front */
    bool ended;         /* nothing more will be sent */
    bool end_arrived;   /* and the receiver can know */
    bool reset;         /* the end is no clean one */
    bool refused;       /* the receiver wants no more bytes, and sees none */
    int send_error;     /* what sending returns from now on; 0: it works */
    uint64_t held_till; /* nothing arrives before */
    bool armed;
    struct world_timer timer;
    struct wait_queue receiving;
    struct wait_queue sending;
};

struct sim_end {
    struct stream stream;
    struct sim_link *link;
    struct pipe *in;
    struct pipe *out;
    bool aborted;
    bool closed;
};

struct sim_link {
    struct world *world;
    struct sim_rng rng;
    size_t window_bytes;
    uint64_t longest_delay_ns;
    struct pipe pipes[2];
    struct sim_end ends[2];
};

static struct sim_end *end_of(struct stream *stream)
{
    return container_of(stream, struct sim_end, stream);
}

/* ---- Bytes under way ---- */

static bool has_news(const struct pipe *pipe)
{
    return pipe->used > pipe->arrived || (pipe->ended && !pipe->end_arrived);
}

static void arm(struct pipe *pipe)
{
    struct sim_link *link = pipe->link;
    uint64_t due_ns = world_now_ns(link->world);

    if (!has_news(pipe)) {
        return;
    }
    /* Often quick, seldom slow: the delay's order of magnitude is what is drawn. */
    uint64_t bound = link->longest_delay_ns >> sim_rng_below(&link->rng, 8);
    due_ns += sim_rng_below(&link->rng, bound + 1);
    pipe->armed = true;
    link->world->ops->timer_start(link->world, &pipe->timer, MAX_OF(due_ns, pipe->held_till));
}

static size_t draw_piece(struct sim_rng *rng, size_t most)
{
    if (sim_rng_below(rng, 4) == 0) {
        return most;
    }
    size_t bound = (size_t)1 << sim_rng_below(rng, 17);
    return 1 + (size_t)sim_rng_below(rng, MIN_OF(bound, most));
}

static void on_due(struct world_timer *timer)
{
    struct pipe *pipe = container_of(timer, struct pipe, timer);
    size_t under_way = pipe->used - pipe->arrived;

    pipe->armed = false;
    if (pipe->refused) {
        pipe->used = pipe->arrived;
        pipe->end_arrived = pipe->ended;
        wait_queue_wake_all(&pipe->sending);
    } else if (under_way > 0) {
        pipe->arrived += draw_piece(&pipe->link->rng, under_way);
    } else {
        pipe->end_arrived = pipe->ended;
    }
    wait_queue_wake_all(&pipe->receiving);
    arm(pipe);
}

static size_t ring_put(struct pipe *pipe, const uint8_t *bytes, size_t len)
{
    size_t capacity = pipe->link->window_bytes;
    size_t now = MIN_OF(len, capacity - pipe->used);
    size_t at = (pipe->begin + pipe->used) % capacity;
    size_t front = MIN_OF(now, capacity - at);

    memcpy(pipe->ring + at, bytes, front);
    memcpy(pipe->ring, bytes + front, now - front);
    pipe->used += now;
    return now;
}

static size_t ring_take(struct pipe *pipe, uint8_t *bytes, size_t len)
{
    size_t capacity = pipe->link->window_bytes;
    size_t now = MIN_OF(len, pipe->arrived);
    size_t front = MIN_OF(now, capacity - pipe->begin);

    memcpy(bytes, pipe->ring + pipe->begin, front);
    memcpy(bytes + front, pipe->ring, now - front);
    pipe->begin = (pipe->begin + now) % capacity;
    pipe->used -= now;
    pipe->arrived -= now;
    return now;
}

/* ---- The ends ---- */

static ssize_t co_sim_recv(struct stream *stream, void *buf, size_t len)
{
    struct sim_end *end = end_of(stream);
    struct pipe *in = end->in;

    for (;;) {
        if (end->aborted) {
            return -ESHUTDOWN;
        }
        if (in->arrived > 0 && len > 0) {
            size_t got = ring_take(in, buf, len);
            wait_queue_wake_all(&in->sending);
            return (ssize_t)got;
        }
        if (in->refused) {
            return 0;
        }
        if (in->end_arrived) {
            return in->reset ? -ECONNRESET : 0;
        }
        co_wait(&in->receiving);
    }
}

static int co_send_bytes(struct sim_end *end, const uint8_t *bytes, size_t len)
{
    struct pipe *out = end->out;

    while (len > 0) {
        if (end->aborted) {
            return -ESHUTDOWN;
        }
        if (out->send_error) {
            return out->send_error;
        }
        size_t put = ring_put(out, bytes, len);
        bytes += put;
        len -= put;
        if (!out->armed) {
            arm(out);
        }
        if (put == 0) {
            co_wait(&out->sending);
        }
    }
    return 0;
}

static int co_sim_send(struct stream *stream, struct iovec *iov, int iov_count, bool more)
{
    (void)more;
    for (int i = 0; i < iov_count; i++) {
        int result = co_send_bytes(end_of(stream), iov[i].iov_base, iov[i].iov_len);
        if (result < 0) {
            return result;
        }
    }
    return 0;
}

static void sim_end_recv(struct stream *stream)
{
    struct pipe *in = end_of(stream)->in;

    in->refused = true;
    wait_queue_wake_all(&in->receiving);
}

static void sim_abort(struct stream *stream)
{
    struct sim_end *end = end_of(stream);
    struct pipe *in = end->in;
    struct pipe *out = end->out;

    if (end->aborted) {
        return;
    }
    end->aborted = true;
    in->refused = true;
    in->used = 0;
    in->arrived = 0;
    in->send_error = -EPIPE;
    wait_queue_wake_all(&in->receiving);
    wait_queue_wake_all(&in->sending);
    out->ended = true;
    wait_queue_wake_all(&out->sending);
    if (!out->armed) {
        arm(out);
    }
}

static void link_free(struct sim_link *link)
{
    for (unsigned i = 0; i < ARRAY_LEN(link->pipes); i++) {
        link->world->ops->timer_stop(link->world, &link->pipes[i].timer);
        free(link->pipes[i].ring);
    }
    free(link);
}

static void co_sim_close(struct stream *stream)
{
    struct sim_end *end = end_of(stream);
    struct sim_link *link = end->link;

    assert(list_empty(&end->in->receiving.waiters) && list_empty(&end->out->sending.waiters));
    assert(!end->closed);
    sim_abort(stream);
    end->closed = true;
    if (link->ends[0].closed && link->ends[1].closed) {
        link_free(link);
    }
}

static const struct stream_ops sim_stream_ops = {
    .co_recv = co_sim_recv,
    .co_send = co_sim_send,
    .end_recv = sim_end_recv,
    .abort = sim_abort,
    .co_close = co_sim_close,
};

void sim_stream_pair(struct world *world, const struct sim_stream_options *options,
                     struct stream *ends[2])
{
    struct sim_link *link = calloc(1, sizeof(*link));

    assert(options->window_bytes > 0);
    if (!link) {
        abort();
    }
    link->world = world;
    link->window_bytes = options->window_bytes;
    link->longest_delay_ns = options->longest_delay_ns;
    sim_rng_init(&link->rng, options->seed, 1);
    for (unsigned i = 0; i < 2; i++) {
        struct pipe *pipe = &link->pipes[i];
        pipe->link = link;
        pipe->timer.fired = on_due;
        pipe->ring = malloc(link->window_bytes);
        if (!pipe->ring) {
            abort();
        }
        wait_queue_init(&pipe->receiving);
        wait_queue_init(&pipe->sending);
        link->ends[i] = (struct sim_end){
            .stream = {.ops = &sim_stream_ops, .peer = options->peer[i]},
            .link = link,
            .in = &link->pipes[i],
            .out = &link->pipes[1 - i],
        };
        ends[i] = &link->ends[i].stream;
    }
}

void sim_stream_vanish(struct stream *stream)
{
    struct sim_end *end = end_of(stream);
    struct pipe *out = end->out;
    size_t under_way = out->used - out->arrived;

    if (end->aborted) {
        return;
    }
    out->reset = true;
    out->used = out->arrived + (size_t)sim_rng_below(&end->link->rng, under_way + 1);
    sim_abort(stream);
    end->in->send_error = -ECONNRESET;
}

void sim_stream_hold(struct stream *stream, uint64_t for_ns)
{
    struct pipe *in = end_of(stream)->in;
    struct world *world = in->link->world;

    in->held_till = MAX_OF(in->held_till, world_now_ns(world) + for_ns);
    if (in->armed) {
        world->ops->timer_start(world, &in->timer, in->held_till);
    }
}
