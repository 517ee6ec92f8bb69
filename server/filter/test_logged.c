/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The logged image in front of one in memory that takes its time, tears what overlaps, and fails:
 * whatever clients do at once, the log replays to what the image holds.
 */
#include "filter/logged.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/testing.h"
#include "io/sim.h"
#include "io/testing_writelog.h"
#include "sched/co.h"

#define DISK_BYTES   (24U * 512U)
#define CLIENTS_MAX  16U
#define FLUSHES_MAX  64U
#define REQUESTS     40U
#define LOG_NAME     "log"
#define LONGEST      (5U * 512U)
#define DELAY_MAX_NS 100000U

/* --- an image in memory --------------------------------------------------------------------- */

struct slow_image {
    struct image image;
    struct world *world;
    uint8_t bytes[DISK_BYTES];
    unsigned fail_percent; /* of the changing requests, after doing a part of them */
    uint64_t stall_offset; /* writes here do not end while stalled */
    bool stalled;
    bool flush_fails;
    unsigned changes; /* that reached the image */
};

static struct slow_image *slow_of(struct image *image)
{
    return container_of(image, struct slow_image, image);
}

static void co_delay(struct slow_image *slow)
{
    co_sleep_ns(slow->world, sim_random_below(slow->world, DELAY_MAX_NS));
}

static int co_slow_read(struct image *image, uint64_t offset, void *buf, size_t len,
                        struct read_holes *holes)
{
    struct slow_image *slow = slow_of(image);
    ck_assert(range_inside(offset, len, image->size_bytes));
    co_delay(slow);
    memcpy(buf, slow->bytes + offset, len);
    if (holes) {
        holes->count = 0;
    }
    return 0;
}

/* In pieces, with others in between: overlapping requests mix. buf NULL: zeroes. */
static int co_slow_change(struct slow_image *slow, uint64_t offset, const uint8_t *buf, size_t len)
{
    bool fails = sim_random_below(slow->world, 100) < slow->fail_percent;

    slow->changes++;
    ck_assert(range_inside(offset, len, slow->image.size_bytes));
    while (slow->stalled && offset == slow->stall_offset) {
        co_delay(slow);
    }
    for (size_t done = 0; done < len;) {
        size_t piece = 1 + (size_t)sim_random_below(slow->world, len - done);
        co_delay(slow);
        if (fails && sim_random_below(slow->world, 2)) {
            return -ENOSPC;
        }
        if (buf) {
            memcpy(slow->bytes + offset + done, buf + done, piece);
        } else {
            memset(slow->bytes + offset + done, 0, piece);
        }
        done += piece;
    }
    return fails ? -EIO : 0;
}

static int co_slow_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                         unsigned flags)
{
    (void)flags;
    int result = co_slow_change(slow_of(image), offset, buf, len);
    return result;
}

static int co_slow_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    if (flags & IMAGE_FAST_ZERO) {
        return -ENOTSUP;
    }
    int result = co_slow_change(slow_of(image), offset, NULL, len);
    return result;
}

static int co_slow_trim(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    (void)flags;
    int result = co_slow_change(slow_of(image), offset, NULL, len);
    return result;
}

static int co_slow_flush(struct image *image)
{
    co_delay(slow_of(image));
    return slow_of(image)->flush_fails ? -EIO : 0;
}

static int co_slow_extents(struct image *image, uint64_t offset, uint64_t len,
                           struct extent_list *list)
{
    (void)image;
    (void)offset;
    list->extents[0] = (struct extent){.len = len, .depth = 1};
    list->count = 1;
    return 0;
}

static int co_slow_close(struct image *image, struct errtext *err)
{
    (void)err;
    co_delay(slow_of(image));
    return 0;
}

static const struct image_ops slow_ops = {
    .co_read = co_slow_read,
    .co_write = co_slow_write,
    .co_zero = co_slow_zero,
    .co_trim = co_slow_trim,
    .co_flush = co_slow_flush,
    .co_extents = co_slow_extents,
    .co_close = co_slow_close,
};

/* --- a scene -------------------------------------------------------------------------------- */

struct scene {
    struct world *world;
    struct slow_image slow;
    struct image *image; /* the logged one */
    struct logged_options options;
    struct errtext err;
    int result;
    unsigned clients;
    unsigned running;
    unsigned align;
    void (*body)(struct scene *scene);

    /* In sectors of their own, clients count what was acknowledged. */
    uint64_t counted[CLIENTS_MAX];
    uint64_t counted_at_flush[FLUSHES_MAX][CLIENTS_MAX];
    unsigned flushes;

    void *log_bytes;
    uint64_t log_len;
    uint8_t replayed[DISK_BYTES + 512];
};

static struct scene *scene;

static void co_body(void *arg)
{
    (void)arg;
    scene->body(scene);
}

static void in_coroutine(void (*body)(struct scene *scene))
{
    scene->body = body;
    ck_assert_int_eq(coro_spawn(co_body, NULL, "test"), 0);
    ck_assert(sim_run(scene->world, 0));
}

static void co_open(struct scene *s)
{
    s->result = co_logged_open(s->world, &s->slow.image, LOG_NAME, &s->options, &s->image, &s->err);
}

static void co_close(struct scene *s)
{
    s->result = s->image->ops->co_close(s->image, &s->err);
}

static void no_log_lines(enum log_level level, const char *line, void *arg)
{
    (void)level;
    (void)line;
    (void)arg;
}

static void scene_begin(uint64_t seed, uint64_t size_bytes, bool trim_ignored)
{
    scene = calloc(1, sizeof(*scene));
    ck_assert_ptr_nonnull(scene);
    scene->world = sim_create(seed);
    ck_assert_ptr_nonnull(scene->world);
    scene->slow.world = scene->world;
    scene->slow.image = (struct image){.ops = &slow_ops, .size_bytes = size_bytes, .path = "slow"};
    scene->options.trim_ignored = trim_ignored;
    scene->align = 1;
    log_set_sink(no_log_lines, NULL);
    in_coroutine(co_open);
    ck_assert_msg(scene->result == 0, "%s", scene->err.text);
    ck_assert_uint_eq(scene->image->size_bytes, size_bytes);
}

static void scene_end(void)
{
    free(scene->log_bytes);
    sim_free(scene->world);
    free(scene);
    log_set_sink(NULL, NULL);
    coro_pool_drain();
}

static struct log_reader read_log(void)
{
    free(scene->log_bytes);
    ck_assert_int_eq(sim_file_get(scene->world, LOG_NAME, &scene->log_bytes, &scene->log_len), 0);
    return log_reader_begin(scene->log_bytes, scene->log_len);
}

/* Into scene->replayed. Returns the number of entries. */
static uint64_t replay_all(void)
{
    struct logged_entry entry;
    struct log_reader reader = read_log();

    memset(scene->replayed, 0, sizeof(scene->replayed));
    while (log_reader_next(&reader, &entry)) {
        log_entry_replay(&entry, scene->replayed, sizeof(scene->replayed));
    }
    return reader.entries;
}

static void expect_replay_equals_image(void)
{
    uint64_t size = scene->slow.image.size_bytes;
    replay_all();
    for (uint64_t i = 0; i < size; i++) {
        if (scene->replayed[i] == scene->slow.bytes[i]) {
            continue;
        }
        ck_abort_msg("byte %llu: the log says %u, the image %u", (unsigned long long)i,
                     scene->replayed[i], scene->slow.bytes[i]);
    }
    ck_assert(log_all_zero(scene->replayed + size, sizeof(scene->replayed) - size));
}

/* --- random requests at once ---------------------------------------------------------------- */

static uint64_t below(uint64_t bound)
{
    return sim_random_below(scene->world, bound);
}

static int co_random_request(uint64_t offset, size_t len)
{
    struct image *image = scene->image;
    unsigned flags = below(8) == 0 ? IMAGE_FUA : 0;
    uint8_t data[LONGEST];
    int result;

    switch (below(8)) {
    case 0:
    case 1:
        result = image->ops->co_zero(image, offset, len, flags);
        return result;
    case 2:
    case 3:
        result = image->ops->co_trim(image, offset, len, flags);
        return result;
    case 4:
        result = image->ops->co_flush(image);
        return result;
    default:
        break;
    }
    memset(data, (int)(1 + below(255)), len);
    result = image->ops->co_write(image, offset, data, len, flags);
    return result;
}

static void co_random_client(struct scene *s)
{
    uint64_t size = s->slow.image.size_bytes;

    for (unsigned i = 0; i < REQUESTS; i++) {
        uint64_t offset = round_down_to(below(size), s->align);
        size_t longest = (size_t)MIN_OF(size - offset, (uint64_t)LONGEST);
        size_t len = (size_t)round_up_to(1 + below(longest), s->align);
        int result = co_random_request(offset, MIN_OF(len, longest));
        ck_assert(result == 0 || s->slow.fail_percent > 0);
    }
    s->running--;
}

static void run_clients(void (*body)(struct scene *s), unsigned count)
{
    scene->body = body;
    scene->running = count;
    for (unsigned i = 0; i < count; i++) {
        ck_assert_int_eq(coro_spawn(co_body, NULL, "client"), 0);
    }
    ck_assert(sim_run(scene->world, 0));
    ck_assert_uint_eq(scene->running, 0);
}

static void random_run(uint64_t seed, uint64_t size, unsigned align, unsigned fail_percent)
{
    scene_begin(seed, size, false);
    scene->align = align;
    scene->slow.fail_percent = fail_percent;
    run_clients(co_random_client, CLIENTS_MAX);
    in_coroutine(co_close);
    ck_assert_msg(scene->result == 0, "%s", scene->err.text);
    expect_replay_equals_image();
    scene_end();
}

START_TEST(replay_equals_the_image)
{
    for (unsigned i = 0; i < 5; i++) {
        random_run((uint64_t)_i * 5 + i, DISK_BYTES, _i % 2 ? 1 : 512, 0);
    }
}
END_TEST

START_TEST(replay_equals_the_image_when_requests_fail)
{
    random_run((uint64_t)_i, DISK_BYTES, _i % 2 ? 1 : 512, 20);
}
END_TEST

START_TEST(replay_equals_an_image_of_odd_size)
{
    random_run((uint64_t)_i, DISK_BYTES - 300, 1, _i % 2 ? 0 : 10);
}
END_TEST

/* --- order ---------------------------------------------------------------------------------- */

static void co_counter(struct scene *s)
{
    unsigned me = s->clients++;
    uint8_t data[512];

    for (unsigned i = 1; i <= REQUESTS; i++) {
        memset(data, (int)i, sizeof(data));
        int result = s->image->ops->co_write(s->image, 512ULL * me, data, sizeof(data), 0);
        ck_assert_int_eq(result, 0);
        s->counted[me] = i;
    }
    s->running--;
}

static void co_counter_or_flusher(struct scene *s)
{
    if (s->clients + 1 < CLIENTS_MAX) {
        co_counter(s);
        return;
    }
    while (s->running > 1 && s->flushes < FLUSHES_MAX) {
        memcpy(s->counted_at_flush[s->flushes++], s->counted, sizeof(s->counted));
        int result = s->image->ops->co_flush(s->image);
        ck_assert_int_eq(result, 0);
    }
    s->running--;
}

/* O4, as the log tells it: before the n-th FLUSH stands all that was acknowledged before it. */
START_TEST(a_flush_follows_what_was_acknowledged)
{
    struct logged_entry entry;
    unsigned flush = 0;

    scene_begin((uint64_t)_i, DISK_BYTES, false);
    run_clients(co_counter_or_flusher, CLIENTS_MAX);
    in_coroutine(co_close);
    struct log_reader reader = read_log();
    while (log_reader_next(&reader, &entry)) {
        log_entry_replay(&entry, scene->replayed, sizeof(scene->replayed));
        if (entry.flags != LOGGED_FLUSH) {
            continue;
        }
        unsigned missing = 0;
        for (unsigned i = 0; i < CLIENTS_MAX - 1; i++) {
            missing += scene->replayed[512U * i] < scene->counted_at_flush[flush][i];
        }
        ck_assert_uint_eq(missing, 0);
        flush++;
    }
    ck_assert_uint_gt(flush, 2);
    ck_assert_uint_eq(flush, scene->flushes);
    scene_end();
}
END_TEST

static void co_write_at(struct scene *s, uint64_t offset, size_t len, int value)
{
    uint8_t data[1024];
    memset(data, value, len);
    int result = s->image->ops->co_write(s->image, offset, data, len, 0);
    ck_assert_int_eq(result, 0);
    s->clients++;
}

static void co_stalled_writer(struct scene *s)
{
    co_write_at(s, 512, 100, 1);
}

static void co_same_sector(struct scene *s)
{
    co_write_at(s, 512 + 200, 100, 2);
}

static void co_other_sector(struct scene *s)
{
    co_write_at(s, 1024, 512, 3);
}

static void spawn_and_step(void (*body)(struct scene *s))
{
    scene->body = body;
    ck_assert_int_eq(coro_spawn(co_body, NULL, "writer"), 0);
    sim_run(scene->world, 200);
}

START_TEST(only_conflicts_wait)
{
    scene_begin(1, DISK_BYTES, false);
    scene->slow.stalled = true;
    scene->slow.stall_offset = 512;
    spawn_and_step(co_stalled_writer);
    ck_assert_uint_eq(scene->slow.changes, 1);
    spawn_and_step(co_same_sector);
    ck_assert_uint_eq(scene->slow.changes, 1);
    spawn_and_step(co_other_sector);
    ck_assert_uint_eq(scene->slow.changes, 2);
    ck_assert_uint_eq(scene->clients, 1);
    scene->slow.stalled = false;
    ck_assert(sim_run(scene->world, 0));
    ck_assert_uint_eq(scene->clients, 3);
    in_coroutine(co_close);
    expect_replay_equals_image();
    scene_end();
}
END_TEST

/* Long ranges: another image, of which only the head is kept. */

static int co_count_zero(struct image *image, uint64_t offset, uint64_t len, unsigned flags)
{
    (void)offset;
    (void)flags;
    co_delay(slow_of(image));
    slow_of(image)->changes++;
    ck_assert_uint_le(len, flags & IMAGE_FAST_ZERO ? UINT64_MAX : 32U << 20);
    return 0;
}

static const struct image_ops long_ops = {
    .co_read = co_slow_read,
    .co_zero = co_count_zero,
    .co_trim = co_count_zero,
    .co_close = co_slow_close,
};

static void co_zero_long(struct scene *s)
{
    s->result = s->image->ops->co_zero(s->image, 1U << 20, 1U << 30, 0);
}

static void co_zero_long_fast(struct scene *s)
{
    s->result = s->image->ops->co_zero(s->image, 1U << 20, 1U << 30, IMAGE_FAST_ZERO);
}

START_TEST(long_ranges_are_worked_off_in_pieces)
{
    scene_begin(1, 2ULL << 30, false);
    scene->slow.image.ops = &long_ops;
    in_coroutine(co_zero_long);
    ck_assert_int_eq(scene->result, 0);
    ck_assert_uint_eq(scene->slow.changes, 33);
    in_coroutine(co_zero_long_fast);
    ck_assert_int_eq(scene->result, 0);
    ck_assert_uint_eq(scene->slow.changes, 34);

    scene->image->ending = true;
    in_coroutine(co_zero_long);
    ck_assert_int_eq(scene->result, -ESHUTDOWN);
    ck_assert_uint_eq(scene->slow.changes, 35);
    in_coroutine(co_close);
    ck_assert_int_eq(scene->result, 0);
    scene_end();
}
END_TEST

/* --- what is logged ------------------------------------------------------------------------- */

static void co_one_of_each(struct scene *s)
{
    struct image *image = s->image;
    uint8_t data[2048];
    int results[8];

    memset(data, 5, sizeof(data));
    results[0] = image->ops->co_write(image, 0, data, 2048, 0);
    results[1] = image->ops->co_write(image, 700, data, 600, IMAGE_FUA);
    results[2] = image->ops->co_zero(image, 512, 1024, IMAGE_NO_HOLE);
    results[3] = image->ops->co_trim(image, 100, 1948, IMAGE_FUA);
    results[4] = image->ops->co_flush(image);
    results[5] = image->ops->co_trim(image, 10, 20, 0);
    results[6] = co_logged_mark(image, "here");
    results[7] = image->ops->co_zero(image, 0, 512, IMAGE_FAST_ZERO);
    for (unsigned i = 0; i < 7; i++) {
        ck_assert_int_eq(results[i], 0);
    }
    ck_assert_int_eq(results[7], -ENOTSUP);
}

struct expected_entry {
    uint64_t sector, sectors, flags;
    const char *mark;
};

static void expect_entries(const struct expected_entry *expected, size_t count)
{
    struct logged_entry entry;
    struct log_reader reader = read_log();
    ck_assert_uint_eq(reader.entries, count);
    for (size_t i = 0; i < count; i++) {
        ck_assert(log_reader_next(&reader, &entry));
        ck_assert_uint_eq(entry.sector, expected[i].sector);
        ck_assert_uint_eq(entry.sectors, expected[i].sectors);
        ck_assert_uint_eq(entry.flags, expected[i].flags);
        ck_assert_str_eq(entry.mark, expected[i].mark);
    }
}

START_TEST(requests_become_these_entries)
{
    static const struct expected_entry expected[] = {
        {0, 0, LOGGED_MARK, "start"},
        {0, 4, 0, ""},
        {1, 2, LOGGED_FUA, ""},
        {1, 2, 0, ""},
        {0, 1, LOGGED_FUA, ""}, /* the trim's ragged head */
        {1, 3, LOGGED_DISCARD | LOGGED_FUA, ""},
        {0, 0, LOGGED_FLUSH, ""},
        {0, 1, 0, ""}, /* a trim inside one sector */
        {0, 0, LOGGED_MARK, "here"},
        {0, 0, LOGGED_MARK, "stop"},
    };
    scene_begin(1, DISK_BYTES, false);
    in_coroutine(co_one_of_each);
    in_coroutine(co_close);
    expect_entries(expected, ARRAY_LEN(expected));
    expect_replay_equals_image();
    scene_end();
}
END_TEST

static void co_flush_once(struct scene *s)
{
    s->result = s->image->ops->co_flush(s->image);
}

START_TEST(a_failed_flush_is_not_logged)
{
    static const struct expected_entry expected[] = {
        {0, 0, LOGGED_MARK, "start"},
        {0, 0, LOGGED_MARK, "stop"},
    };
    scene_begin(1, DISK_BYTES, false);
    scene->slow.flush_fails = true;
    in_coroutine(co_flush_once);
    ck_assert_int_eq(scene->result, -EIO);
    in_coroutine(co_close);
    expect_entries(expected, ARRAY_LEN(expected));
    scene_end();
}
END_TEST

static void co_trim_only(struct scene *s)
{
    int result = s->image->ops->co_trim(s->image, 0, 1024, IMAGE_FUA);
    ck_assert_int_eq(result, 0);
}

START_TEST(an_ignored_trim_is_not_logged)
{
    static const struct expected_entry expected[] = {
        {0, 0, LOGGED_MARK, "start"},
        {0, 0, LOGGED_MARK, "stop"},
    };
    scene_begin(1, DISK_BYTES, true);
    in_coroutine(co_trim_only);
    ck_assert_uint_eq(scene->slow.changes, 1);
    in_coroutine(co_close);
    expect_entries(expected, ARRAY_LEN(expected));
    scene_end();
}
END_TEST

/* --- a log that fails ----------------------------------------------------------------------- */

static void co_until_it_breaks(struct scene *s)
{
    struct image *image = s->image;
    uint8_t data[512] = {0};
    struct sim_faults faults = {.write_eio_ppm = 1000000};
    struct sim_faults none = {0};
    int results[5];

    memset(data, 1, sizeof(data));
    results[0] = image->ops->co_write(image, 0, data, sizeof(data), IMAGE_FUA);
    ck_assert_int_eq(results[0], 0);
    sim_set_faults(s->world, &faults);
    results[0] = image->ops->co_write(image, 512, data, sizeof(data), 0);
    sim_set_faults(s->world, &none);
    unsigned changes = s->slow.changes;
    results[1] = image->ops->co_write(image, 1024, data, sizeof(data), 0);
    results[2] = image->ops->co_zero(image, 0, 512, 0);
    results[3] = image->ops->co_trim(image, 0, 512, 0);
    results[4] = image->ops->co_flush(image);
    for (unsigned i = 0; i < 5; i++) {
        ck_assert_int_eq(results[i], -EIO);
    }
    ck_assert_uint_eq(s->slow.changes, changes);
    int read = image->ops->co_read(image, 0, data, sizeof(data), NULL);
    ck_assert_int_eq(read, 0);
    ck_assert_uint_eq(data[0], 1);
}

START_TEST(a_broken_log_ends_all_writing)
{
    static const struct expected_entry expected[] = {
        {0, 0, LOGGED_MARK, "start"},
        {0, 1, LOGGED_FUA, ""},
    };
    scene_begin(1, DISK_BYTES, false);
    in_coroutine(co_until_it_breaks);
    in_coroutine(co_close);
    ck_assert_int_eq(scene->result, -EIO);
    ck_assert_ptr_nonnull(strstr(scene->err.text, LOG_NAME));
    expect_entries(expected, ARRAY_LEN(expected));
    scene_end();
}
END_TEST

static void co_flushes_forever(struct scene *s)
{
    unsigned me = s->clients++;
    uint8_t data[512];
    int result = 0;

    for (unsigned i = 1; i <= REQUESTS && result == 0; i++) {
        memset(data, (int)i, sizeof(data));
        result = s->image->ops->co_write(s->image, 512ULL * me, data, sizeof(data),
                                         i % 4 == 0 ? IMAGE_FUA : 0);
    }
    s->running--;
}

/* However the log fails among many, nobody hangs, and closing says so. */
START_TEST(a_log_that_fails_among_many_leaves_nobody_waiting)
{
    struct sim_faults faults = {.write_eio_ppm = 5000, .flush_eio_ppm = 20000};

    scene_begin((uint64_t)_i, DISK_BYTES, false);
    sim_set_faults(scene->world, &faults);
    run_clients(co_flushes_forever, CLIENTS_MAX);
    faults = (struct sim_faults){.write_eio_ppm = 1000000};
    sim_set_faults(scene->world, &faults);
    in_coroutine(co_close);
    ck_assert_int_lt(scene->result, 0);
    replay_all();
    scene_end();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("logged");
    TCase *tcase = tcase_create("logged");

    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, replay_equals_the_image, 0, 8);
    tcase_add_loop_test(tcase, replay_equals_the_image_when_requests_fail, 0, 8);
    tcase_add_loop_test(tcase, replay_equals_an_image_of_odd_size, 0, 8);
    tcase_add_loop_test(tcase, a_flush_follows_what_was_acknowledged, 0, 5);
    tcase_add_test(tcase, only_conflicts_wait);
    tcase_add_test(tcase, long_ranges_are_worked_off_in_pieces);
    tcase_add_test(tcase, requests_become_these_entries);
    tcase_add_test(tcase, a_failed_flush_is_not_logged);
    tcase_add_test(tcase, an_ignored_trim_is_not_logged);
    tcase_add_test(tcase, a_broken_log_ends_all_writing);
    tcase_add_loop_test(tcase, a_log_that_fails_among_many_leaves_nobody_waiting, 0, 8);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
