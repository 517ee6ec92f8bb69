/* SPDX-License-Identifier: BSD-2-Clause */
/* The image's disk is watched as soon as it has been opened. */
#include "qcow2/test_rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/testing.h"
#include "qcow2/check.h"
#include "sched/co.h"

static struct group beside;

/* Records a call; -errno when it shall fail. */
static int note(void *arg, enum rig_call call, uint64_t offset, uint64_t len,
                const struct iovec *iov, int iov_count)
{
    struct rig *rig = arg;
    struct rig_event event = {call, 0, offset, len};

    if (call != RIG_FLUSH && call != RIG_TRUNCATE) {
        event.place = rig_place_of(rig->q, offset);
    }
    if (rig->look) {
        rig->look(rig, &event, iov, iov_count);
    }
    if (rig->event_count < RIG_EVENTS_MAX) {
        rig->events[rig->event_count++] = event;
    }
    if (rig->fail_with && rig->fail_call == call &&
        (!rig->fail_place || rig->fail_place == event.place)) {
        if (rig->fail_skip == 0) {
            return rig->fail_with;
        }
        rig->fail_skip--;
    }
    return 0;
}

static void log_line(enum log_level level, const char *line, void *arg)
{
    struct rig *rig = arg;
    size_t len = strlen(line);

    (void)level;
    if (rig->log_len + len + 2 < RIG_LOG_BYTES) {
        memcpy(rig->log + rig->log_len, line, len);
        rig->log_len += len;
        rig->log[rig->log_len++] = '\n';
        rig->log[rig->log_len] = '\0';
    }
}

bool rig_logged(const struct rig *rig, const char *text)
{
    return strstr(rig->log, text) != NULL;
}

void rig_fail(struct rig *rig, enum rig_call call, char place, unsigned skip, int with)
{
    rig->fail_call = call;
    rig->fail_place = place;
    rig->fail_skip = skip;
    rig->fail_with = with;
}

void rig_init(struct rig *rig, uint64_t seed)
{
    memset(rig, 0, sizeof(*rig));
    rig->world = sim_create(seed);
    rig->events = calloc(RIG_EVENTS_MAX, sizeof(*rig->events));
    ck_assert(rig->world && rig->events);
    create_options_init(&rig->create);
    rig->create.size_bytes = 64 * MIB;
    log_set_sink(log_line, rig);
}

void rig_free(struct rig *rig)
{
    log_set_sink(NULL, NULL);
    sim_free(rig->world);
    free(rig->events);
}

int co_rig_try_open(struct rig *rig, struct errtext *err)
{
    int ret = co_qcow2_open(rig->world, RIG_IMAGE, &rig->options, &rig->image, err);
    if (ret < 0) {
        rig->image = NULL;
        return ret;
    }
    rig->q = qcow2_of(rig->image);
    watch_disk(rig->q->disk, note, rig);
    return 0;
}

void co_rig_open(struct rig *rig)
{
    struct errtext err = {""};
    int ret = co_rig_try_open(rig, &err);
    ck_assert_msg(ret == 0, "open: %d: %s", ret, err.text);
}

int co_rig_end(struct rig *rig)
{
    struct errtext err = {""};
    int ret = rig->image->ops->co_close(rig->image, &err);
    rig->image = NULL;
    rig->q = NULL;
    ck_assert_msg(ret == 0 || strstr(err.text, RIG_IMAGE), "the message names the file: %s",
                  err.text);
    return ret;
}

void co_rig_close(struct rig *rig)
{
    int ret = co_rig_end(rig);
    ck_assert_int_eq(ret, 0);
}

static void print_finding(void *arg, const char *line)
{
    log_line(LOG_LEVEL_INFO, line, arg);
}

void co_rig_check(struct rig *rig, uint64_t *corruptions, uint64_t *leaks)
{
    struct errtext err = {""};
    struct disk *disk;
    struct header header;
    struct check_options options = {.finding = print_finding, .arg = rig};
    struct check_result result;

    int ret = rig->world->ops->co_disk_open(rig->world, RIG_IMAGE, DISK_READ_ONLY, &disk, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    ret = co_header_read(disk, &header, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    ret = co_qcow2_check(disk, &header, &options, &result, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    header_free(&header);
    disk_close(disk);
    *corruptions = result.corruptions;
    *leaks = result.leaks;
}

struct job {
    struct rig *rig;
    rig_body *body;
    bool bare;
};

static void co_job(void *arg)
{
    struct job *job = arg;
    struct rig *rig = job->rig;

    if (!job->bare) {
        struct errtext err = {""};
        int ret = co_qcow2_create(rig->world, RIG_IMAGE, &rig->create, &err);
        ck_assert_msg(ret == 0, "%s", err.text);
        co_rig_open(rig);
    }
    job->body(rig);
    if (rig->image) {
        rig->fail_with = 0;
        co_rig_close(rig);
        if (!rig->skip_check) {
            uint64_t corruptions, leaks;
            co_rig_check(rig, &corruptions, &leaks);
            ck_assert_msg(corruptions == 0 && leaks == 0, "%s", rig->log);
        }
    }
}

static void run_job(struct rig *rig, rig_body *body, bool bare)
{
    struct job job = {rig, body, bare};

    group_init(&beside);
    ck_assert_int_eq(coro_spawn(co_job, &job, "test"), 0);
    ck_assert_msg(sim_run(rig->world, 50000000), "does not come to an end");
    ck_assert_uint_eq(coro_live_count(), 0);
}

void rig_run(struct rig *rig, rig_body *body)
{
    run_job(rig, body, false);
}

void rig_run_bare(struct rig *rig, rig_body *body)
{
    run_job(rig, body, true);
}

void rig_put(struct rig *rig, const char *path, const struct test_image *image)
{
    ck_assert_int_eq(sim_file_put(rig->world, path, image->bytes, image->len_bytes), 0);
}

struct test_image rig_get(struct rig *rig, const char *path)
{
    struct test_image image = {0};
    void *bytes;
    ck_assert_int_eq(sim_file_get(rig->world, path, &bytes, &image.len_bytes), 0);
    image.bytes = bytes;
    return image;
}

void rig_forget(struct rig *rig)
{
    rig->event_count = 0;
}

const char *rig_script(struct rig *rig)
{
    static char script[1024];
    size_t len = 0;
    static const char letters[] = "?wFzpt";

    for (unsigned i = 0; i < rig->event_count && len + 1 < sizeof(script); i++) {
        const struct rig_event *event = &rig->events[i];
        if (event->call == RIG_READ || (event->call == RIG_WRITE && event->place == RIG_DATA)) {
            continue;
        }
        char letter = event->call == RIG_WRITE ? event->place : letters[event->call];
        if (event->call == RIG_WRITE && len > 0 && script[len - 1] == letter) {
            continue;
        }
        script[len++] = letter;
    }
    script[len] = '\0';
    return script;
}

unsigned rig_count(const struct rig *rig, enum rig_call call)
{
    unsigned count = 0;
    for (unsigned i = 0; i < rig->event_count; i++) {
        count += rig->events[i].call == call;
    }
    return count;
}

void co_rig_write(struct rig *rig, uint64_t offset, uint64_t len, int byte)
{
    uint8_t *bytes = malloc(len);
    ck_assert_ptr_nonnull(bytes);
    memset(bytes, byte, len);
    int ret = rig->image->ops->co_write(rig->image, offset, bytes, len, 0);
    free(bytes);
    ck_assert_int_eq(ret, 0);
}

void co_rig_trim(struct rig *rig, uint64_t offset, uint64_t len)
{
    int ret = rig->image->ops->co_trim(rig->image, offset, len, 0);
    ck_assert_int_eq(ret, 0);
}

void co_rig_zero(struct rig *rig, uint64_t offset, uint64_t len, unsigned flags)
{
    int ret = rig->image->ops->co_zero(rig->image, offset, len, flags);
    ck_assert_int_eq(ret, 0);
}

void co_rig_flush(struct rig *rig)
{
    int ret = rig->image->ops->co_flush(rig->image);
    ck_assert_int_eq(ret, 0);
}

void co_rig_expect(struct rig *rig, uint64_t offset, uint64_t len, int byte)
{
    uint8_t *bytes = malloc(len);
    ck_assert_ptr_nonnull(bytes);
    int ret = rig->image->ops->co_read(rig->image, offset, bytes, len, NULL);
    ck_assert_int_eq(ret, 0);
    for (uint64_t i = 0; i < len; i++) {
        if (bytes[i] != (uint8_t)byte) {
            ck_abort_msg("byte %#llx is %#x, should be %#x", (unsigned long long)(offset + i),
                         bytes[i], (unsigned)byte);
        }
    }
    free(bytes);
}

struct side_job {
    struct rig *rig;
    void (*fn)(struct rig *rig);
};

static void co_side_job(void *arg)
{
    struct side_job *job = arg;
    job->fn(job->rig);
    free(job);
    group_leave(&beside);
}

void rig_spawn(struct rig *rig, void (*fn)(struct rig *rig))
{
    struct side_job *job = malloc(sizeof(*job));
    ck_assert_ptr_nonnull(job);
    *job = (struct side_job){rig, fn};
    group_enter(&beside);
    ck_assert_int_eq(coro_spawn(co_side_job, job, "test, beside"), 0);
}

void co_rig_join(struct rig *rig)
{
    (void)rig;
    co_group_wait(&beside);
}

int rig_main(Suite *suite)
{
    return test_suite_run(suite);
}
