/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The log of writes: its bytes as the kernel would write them, entries side by side in a world that
 * completes in any order, what a power cut leaves, and the end after an error.
 */
#include "io/writelog.h"

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

#define CLIENTS 16U

struct scene {
    struct world *world;
    struct writelog *log;
    struct errtext err;
    int result;
    unsigned clients;       /* begun so far */
    unsigned running;       /* of them */
    unsigned sent[CLIENTS]; /* entries each client has appended */
    unsigned published;     /* calls that returned 0 */
    uint8_t *bytes;
    uint64_t len;
    void (*body)(struct scene *scene);
};

static void co_body(void *arg)
{
    struct scene *scene = arg;
    scene->body(scene);
}

static void in_coroutine(struct scene *scene, void (*body)(struct scene *scene))
{
    scene->body = body;
    ck_assert_int_eq(coro_spawn(co_body, scene, "test"), 0);
    ck_assert(sim_run(scene->world, 0));
}

static void co_create(struct scene *scene)
{
    scene->result = co_writelog_create(scene->world, "log", &scene->log, &scene->err);
}

static void co_close(struct scene *scene)
{
    scene->result = co_writelog_close(scene->log, &scene->err);
}

static void no_log_lines(enum log_level level, const char *line, void *arg)
{
    (void)level;
    (void)line;
    (void)arg;
}

static struct scene scene_new(uint64_t seed)
{
    struct scene scene = {.world = sim_create(seed)};
    ck_assert_ptr_nonnull(scene.world);
    log_set_sink(no_log_lines, NULL);
    return scene;
}

static struct scene scene_with_log(uint64_t seed)
{
    struct scene scene = scene_new(seed);
    in_coroutine(&scene, co_create);
    ck_assert_msg(scene.result == 0, "%s", scene.err.text);
    return scene;
}

static struct log_reader scene_read(struct scene *scene)
{
    void *bytes;
    free(scene->bytes);
    ck_assert_int_eq(sim_file_get(scene->world, "log", &bytes, &scene->len), 0);
    scene->bytes = bytes;
    return log_reader_begin(scene->bytes, scene->len);
}

static void scene_end(struct scene *scene)
{
    free(scene->bytes);
    sim_free(scene->world);
    log_set_sink(NULL, NULL);
    coro_pool_drain();
}

/* --- format --------------------------------------------------------------------------------- */

static uint8_t *put_number(uint8_t *at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        at[i] = (uint8_t)(value >> (8 * i));
    }
    return at + bytes;
}

static uint8_t *put_entry(uint8_t *at, uint64_t sector, uint64_t sectors, uint64_t flags,
                          const char *mark)
{
    uint8_t *start = at;
    at = put_number(at, sector, 8);
    at = put_number(at, sectors, 8);
    at = put_number(at, flags, 8);
    at = put_number(at, strlen(mark), 8);
    memcpy(at, mark, strlen(mark));
    return start + 512;
}

static void co_format(struct scene *scene)
{
    uint8_t data[3 * 512];
    struct iovec two[] = {{data, 512}, {data + 512, 1024}};
    struct writelog *log = scene->log;
    int results[6];

    memset(data, 'x', sizeof(data));
    results[0] = co_writelog_mark(log, "start");
    results[1] = co_writelog_data(log, 0x1122334455, two, 2, WRITELOG_FUA);
    results[2] = co_writelog_zeroes(log, 7, 2, 0);
    results[3] = co_writelog_flush(log);
    results[4] = co_writelog_discard(log, 9, 1000, WRITELOG_FUA);
    results[5] = co_writelog_publish(log);
    for (size_t i = 0; i < ARRAY_LEN(results); i++) {
        ck_assert_int_eq(results[i], 0);
    }
}

START_TEST(bytes_are_those_of_the_kernel)
{
    static uint8_t expected[512 * 11];
    uint8_t *at = expected;
    struct scene scene = scene_with_log(1);

    put_number(at, 0x6a736677736872ULL, 8);
    put_number(at + 8, 1, 8);
    put_number(at + 16, 5, 8);
    put_number(at + 24, 512, 4);
    at = put_entry(at + 512, 0, 0, 8, "start");
    at = put_entry(at, 0x1122334455, 3, 2, "");
    memset(at, 'x', 3 * 512);
    at = put_entry(at + 3 * 512, 7, 2, 0, "");
    at = put_entry(at + 2 * 512, 0, 0, 1, "");
    at = put_entry(at, 9, 1000, 4 + 2, "");
    ck_assert_int_eq((int)(at - expected), (int)sizeof(expected));

    in_coroutine(&scene, co_format);
    scene_read(&scene);
    ck_assert_uint_eq(scene.len, sizeof(expected));
    ck_assert_int_eq(memcmp(scene.bytes, expected, sizeof(expected)), 0);
    in_coroutine(&scene, co_close);
    ck_assert_int_eq(scene.result, 0);
    scene_end(&scene);
}
END_TEST

static void co_long_ones(struct scene *scene)
{
    char text[600];
    memset(text, 'm', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    int zeroes = co_writelog_zeroes(scene->log, 5, (80U << 20) / 512, WRITELOG_FUA);
    int discard = co_writelog_discard(scene->log, 5, (300U << 20) / 512, 0);
    int mark = co_writelog_mark(scene->log, text);
    ck_assert(zeroes == 0 && discard == 0 && mark == 0);
}

/* Tools hold an entry's data in memory, and skip discards of more than 128 MiB. */
START_TEST(long_entries_are_cut)
{
    static const uint64_t mib[] = {32, 32, 16, 128, 128, 44};
    uint64_t sector = 5;
    struct logged_entry entry;
    struct scene scene = scene_with_log(2);

    in_coroutine(&scene, co_long_ones);
    in_coroutine(&scene, co_close);
    struct log_reader reader = scene_read(&scene);
    ck_assert_uint_eq(reader.entries, 7);
    for (unsigned i = 0; i < 6; i++) {
        ck_assert(log_reader_next(&reader, &entry));
        sector = i == 3 ? 5 : sector;
        ck_assert_uint_eq(entry.sector, sector);
        ck_assert_uint_eq(entry.sectors, (mib[i] << 20) / 512);
        ck_assert_uint_eq(entry.flags, i < 3 ? LOGGED_FUA : LOGGED_DISCARD);
        sector += entry.sectors;
    }
    ck_assert(log_reader_next(&reader, &entry));
    ck_assert_uint_eq(strlen(entry.mark), WRITELOG_MARK_MAX);
    ck_assert_uint_eq(reader.at, reader.len);
    scene_end(&scene);
}
END_TEST

/* --- many at once --------------------------------------------------------------------------- */

/*
 * Client c's n-th entry is about sector c * 2^20 + n, and its data repeats that number; zeroes are
 * zeroes. So a reader knows of each byte whether it is where it belongs.
 */
static uint64_t signature(unsigned client, unsigned n)
{
    return ((uint64_t)(client + 1) << 20) + n;
}

static int co_append_random(struct scene *scene, unsigned client, unsigned n)
{
    uint64_t sector = signature(client, n);
    uint64_t sectors = 1 + sim_random_below(scene->world, 12);
    unsigned flags = sim_random_below(scene->world, 4) == 0 ? WRITELOG_FUA : 0;

    switch (sim_random_below(scene->world, 5)) {
    case 0:
        return co_writelog_zeroes(scene->log, sector, sectors, flags);
    case 1:
        return co_writelog_discard(scene->log, sector, sectors, flags);
    default:
        break;
    }
    uint64_t *data = malloc(sectors * 512);
    ck_assert_ptr_nonnull(data);
    for (uint64_t i = 0; i < sectors * 64; i++) {
        data[i] = sector;
    }
    struct iovec iov = {data, sectors * 512};
    int result = co_writelog_data(scene->log, sector, &iov, 1, flags);
    free(data);
    return result;
}

static void check_data(const struct logged_entry *entry)
{
    uint64_t first = entry->data ? get_le64(entry->data) : 0;
    ck_assert_msg(first == 0 || first == entry->sector, "entry for %llx holds data of %llx",
                  (unsigned long long)entry->sector, (unsigned long long)first);
    bool torn = false;
    for (uint64_t i = 0; entry->data && i < entry->sectors * 64; i++) {
        torn |= get_le64(entry->data + 8 * i) != first;
    }
    ck_assert(!torn);
}

/* Every counted entry is whole, and each client's follow one another without a gap. */
static void check_log(struct scene *scene, unsigned seen[CLIENTS])
{
    struct logged_entry entry;
    struct log_reader reader = scene_read(scene);

    memset(seen, 0, CLIENTS * sizeof(*seen));
    while (log_reader_next(&reader, &entry)) {
        unsigned client = (unsigned)(entry.sector >> 20) - 1;
        if (entry.sectors == 0) {
            continue;
        }
        ck_assert_uint_lt(client, CLIENTS);
        ck_assert_uint_eq(entry.sector, signature(client, seen[client]));
        seen[client]++;
        check_data(&entry);
    }
}

static void co_client(struct scene *scene)
{
    unsigned client = scene->clients++;
    int result = 0;

    for (unsigned n = 0; result == 0 && n < 40; n++) {
        result = co_append_random(scene, client, n);
        scene->sent[client] += result == 0;
        if (result == 0 && sim_random_below(scene->world, 8) == 0) {
            result = co_writelog_flush(scene->log);
            if (result == 0) {
                result = co_writelog_publish(scene->log);
            }
            scene->published += result == 0;
        }
    }
    scene->running--;
}

static void start_clients(struct scene *scene)
{
    scene->body = co_client;
    scene->running = CLIENTS;
    for (unsigned i = 0; i < CLIENTS; i++) {
        ck_assert_int_eq(coro_spawn(co_body, scene, "client"), 0);
    }
}

START_TEST(entries_written_side_by_side_stay_whole)
{
    unsigned seen[CLIENTS];
    struct scene scene = scene_with_log((uint64_t)_i);

    start_clients(&scene);
    ck_assert(sim_run(scene.world, 0));
    ck_assert_uint_eq(scene.running, 0);
    in_coroutine(&scene, co_close);
    ck_assert_int_eq(scene.result, 0);
    check_log(&scene, seen);
    for (unsigned i = 0; i < CLIENTS; i++) {
        ck_assert_uint_eq(seen[i], 40);
    }
    scene_end(&scene);
}
END_TEST

/* What the super block counts is whole even when the power goes. */
START_TEST(a_power_cut_leaves_a_log_that_replays)
{
    unsigned seen[CLIENTS];
    struct scene scene = scene_with_log((uint64_t)_i);

    start_clients(&scene);
    for (uint64_t steps = sim_random_below(scene.world, 1500); steps > 0; steps--) {
        sim_step(scene.world);
    }
    sim_crash(scene.world);
    ck_assert(sim_run(scene.world, 0));
    ck_assert_uint_eq(scene.running, 0);
    in_coroutine(&scene, co_close);
    ck_assert_int_lt(scene.result, 0);
    sim_reboot(scene.world);
    void *bytes;
    if (sim_file_get(scene.world, "log", &bytes, &scene.len) == 0 && scene.len > 0) {
        /* The first publish makes the first super block durable. */
        bool begun = get_le64(bytes) != 0;
        free(bytes);
        ck_assert(begun || scene.published == 0);
        if (begun) {
            check_log(&scene, seen);
        }
    }
    scene_end(&scene);
}
END_TEST

/* --- the end -------------------------------------------------------------------------------- */

static void co_after_failure(struct scene *scene)
{
    uint64_t entries = scene_read(scene).entries;
    struct sim_faults none = {0};

    sim_set_faults(scene->world, &none);
    int error = writelog_error(scene->log);
    ck_assert_int_lt(error, 0);
    int mark = co_writelog_mark(scene->log, "late");
    int discard = co_writelog_discard(scene->log, 0, 8, 0);
    int zeroes = co_writelog_zeroes(scene->log, 0, 8, 0);
    int publish = co_writelog_publish(scene->log);
    ck_assert(mark == error && discard == error && zeroes == error && publish == error);
    ck_assert_uint_eq(scene_read(scene).entries, entries);
}

START_TEST(after_an_error_there_are_no_more_entries)
{
    unsigned seen[CLIENTS];
    struct scene scene = scene_with_log((uint64_t)_i);
    struct sim_faults faults = {.write_eio_ppm = _i % 3 == 0 ? 5000 : 0,
                                .flush_eio_ppm = _i % 3 == 1 ? 50000 : 0};

    sim_set_faults(scene.world, &faults);
    if (_i % 3 == 2) {
        sim_set_space(scene.world, 300U << 10);
    }
    start_clients(&scene);
    ck_assert(sim_run(scene.world, 0));
    ck_assert_uint_eq(scene.running, 0);
    if (writelog_error(scene.log) == 0) { /* it struck nobody */
        in_coroutine(&scene, co_close);
        scene_end(&scene);
        return;
    }
    in_coroutine(&scene, co_after_failure);
    check_log(&scene, seen);
    for (unsigned i = 0; i < CLIENTS; i++) {
        ck_assert_uint_le(seen[i], scene.sent[i]);
    }
    in_coroutine(&scene, co_close);
    ck_assert_int_lt(scene.result, 0);
    ck_assert_ptr_nonnull(strstr(scene.err.text, "log"));
    scene_end(&scene);
}
END_TEST

START_TEST(only_an_empty_file_is_taken)
{
    struct scene scene = scene_new(1);

    ck_assert_int_eq(sim_file_put(scene.world, "log", "precious", 8), 0);
    in_coroutine(&scene, co_create);
    ck_assert_int_eq(scene.result, -EEXIST);
    ck_assert_ptr_nonnull(strstr(scene.err.text, "log: "));
    ck_assert_ptr_nonnull(strstr(scene.err.text, "remove it"));
    ck_assert_int_eq(sim_file_put(scene.world, "log", "", 0), 0);
    in_coroutine(&scene, co_create);
    ck_assert_int_eq(scene.result, 0);
    in_coroutine(&scene, co_close);
    ck_assert_int_eq(scene.result, 0);
    ck_assert_uint_eq(scene_read(&scene).entries, 0);
    scene_end(&scene);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("writelog");
    TCase *tcase = tcase_create("writelog");

    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, bytes_are_those_of_the_kernel);
    tcase_add_test(tcase, long_entries_are_cut);
    tcase_add_loop_test(tcase, entries_written_side_by_side_stay_whole, 1, 11);
    tcase_add_loop_test(tcase, a_power_cut_leaves_a_log_that_replays, 1, 41);
    tcase_add_loop_test(tcase, after_an_error_there_are_no_more_entries, 1, 19);
    tcase_add_test(tcase, only_an_empty_file_is_taken);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
