/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Real disks: what may be opened, and random operations against a model in memory, through the
 * page cache, past it, and on tmpfs.
 */
#include "io/testing.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "io/world.h"
#include "io/world_real.h"
#include "sched/sync.h"

#define MODEL_BYTES (3U << 20)

static struct world *world;

static void make_dir(void)
{
    test_dir_make(NULL);
}

static void world_begin(void)
{
    world = world_real_create(test_loop);
    ck_assert_ptr_nonnull(world);
}

static void world_end(void)
{
    world_real_free(world);
    world = NULL;
}

static struct disk *must_open(const char *path, unsigned flags)
{
    struct disk *disk = NULL;
    struct errtext err = {""};

    if (world->ops->co_disk_open(world, path, flags, &disk, &err) < 0) {
        ck_abort_msg("%s", err.text);
    }
    return disk;
}

/* Opening fails with this -errno, and the message has both parts. */
static void refused(const char *path, unsigned flags, int ret, const char *part, const char *part2)
{
    struct disk *disk = NULL;
    struct errtext err = {""};

    int got = world->ops->co_disk_open(world, path, flags, &disk, &err);
    ck_assert_msg(got == ret, "%s: %d instead of %d (%s)", path, got, ret, err.text);
    ck_assert_ptr_null(disk);
    ck_assert_msg(strstr(err.text, part) && strstr(err.text, part2), "unexpected message: %s",
                  err.text);
}

static void make_file(const char *name, uint64_t size_bytes)
{
    int fd = open(test_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)size_bytes), 0);
    close(fd);
}

static void co_open_body(void *arg)
{
    (void)arg;
    world_begin();
    make_file("image", 1000);
    ck_assert_int_eq(symlink("image", test_path("link")), 0);
    ck_assert_int_eq(mkfifo(test_path("pipe"), 0600), 0);

    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%.100s", test_path("socket"));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);

    const unsigned both[] = {DISK_READ_ONLY, DISK_WRITABLE};
    for (int i = 0; i < 2; i++) {
        refused(test_path("nothing"), both[i], -ENOENT, "/nothing: cannot open: no such file",
                "check the name");
        refused(test_dir, both[i], -EINVAL, test_dir, "is a directory");
        refused(test_path("pipe"), both[i], -EINVAL, "/pipe", "is a pipe");
        refused(test_path("socket"), both[i], -EINVAL, "/socket", "is a socket");
        refused("/dev/zero", both[i], -EINVAL, "/dev/zero", "is a character device");
        /* Names are plain paths, never protocols. */
        refused("nbd://localhost:10809", both[i], -ENOENT, "nbd://", "no such file");
        refused("json:{\"driver\":\"file\"}", both[i], -ENOENT, "json:", "no such file");
        refused("", both[i], -ENOENT, "no such file", "");
    }
    refused(test_path("image"), DISK_CREATE, -EEXIST, "/image: cannot create", "remove it");
    refused(test_path("no/image"), DISK_CREATE, -ENOENT, "cannot create", "directory first");
    refused("bad\nname", 0, -ENOENT, "bad\\x0aname", "");

    struct disk *disk = must_open(test_path("image"), DISK_WRITABLE);
    ck_assert_uint_eq(disk->size_bytes, 1000);
    ck_assert(disk->writable);
    ck_assert(!disk->is_block_device);
    ck_assert_str_eq(disk->path, test_path("image"));
    refused(test_path("image"), DISK_WRITABLE, -EAGAIN, "locked by another process", "stop");
    refused(test_path("link"), DISK_READ_ONLY, -EAGAIN, "/link: locked", "stop");
    struct disk *again = must_open(test_path("link"), DISK_READ_ONLY | DISK_NO_LOCK);
    ck_assert_int_eq(memcmp(disk->file_id, again->file_id, sizeof(disk->file_id)), 0);
    ck_assert_int_eq(co_disk_write(again, 0, "x", 1), -EBADF);
    ck_assert_int_eq(again->ops->co_zero(again, 0, 1), -EBADF);
    ck_assert_int_eq(again->ops->co_punch(again, 0, 1), -EBADF);
    ck_assert_int_eq(again->ops->co_truncate(again, 0), -EBADF);
    ck_assert_int_eq(co_disk_flush(again), 0);
    disk_close(again);
    disk_close(disk);
    disk_close(NULL);

    disk = must_open(test_path("link"), DISK_READ_ONLY);
    again = must_open(test_path("image"), DISK_READ_ONLY);
    refused(test_path("image"), DISK_WRITABLE, -EAGAIN, "locked", "stop");
    disk_close(again);
    disk_close(disk);

    disk = must_open(test_path("made"), DISK_CREATE);
    ck_assert_uint_eq(disk->size_bytes, 0);
    ck_assert(disk->writable);
    ck_assert_int_eq(co_disk_write(disk, 10, "hello", 5), 0);
    ck_assert_int_eq(co_disk_flush(disk), 0);
    ck_assert_uint_eq(disk->size_bytes, 15);
    disk_close(disk);
    ck_assert_int_eq(world->ops->remove(world, test_path("made")), 0);
    ck_assert_int_eq(world->ops->remove(world, test_path("made")), -ENOENT);
    world_end();
}

START_TEST(test_open)
{
    test_run(co_open_body, NULL);
}
END_TEST

/* Random operations against a model. */

struct model_run {
    unsigned flags;
    unsigned steps;
    uint64_t state;
};

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Cuts buf into random pieces; every other time into just one. */
static int cut(uint64_t *state, unsigned char *buf, size_t len, struct iovec *iov, int capacity)
{
    int count = 0;

    while (len > 0) {
        size_t part = len;
        if (count < capacity - 1 && next_random(state) % 2) {
            part = (size_t)(next_random(state) % (len + 1));
        }
        iov[count++] = (struct iovec){buf, part};
        buf += part;
        len -= part;
    }
    return count;
}

/* Offsets and lengths of every alignment, mostly short, sometimes past what is copied inline. */
static void choose_range(uint64_t *state, uint64_t *offset, size_t *len)
{
    static const size_t most[] = {16, 600, 5000, 70000, 1500000};
    static const uint64_t unit[] = {1, 512, 4096};
    uint64_t align = unit[next_random(state) % 3];

    *len = (size_t)(next_random(state) % most[next_random(state) % 5]);
    *offset = next_random(state) % (MODEL_BYTES - *len);
    *offset -= *offset % align;
    *len -= *len % align;
}

struct model {
    unsigned char *bytes; /* zero behind size_bytes */
    unsigned char *scratch;
    uint64_t size_bytes;
};

static void grow(struct model *model, uint64_t end)
{
    model->size_bytes = end > model->size_bytes ? end : model->size_bytes;
}

static void co_model_step(struct model_run *run, struct model *model, struct disk *disk)
{
    struct iovec iov[8];
    uint64_t offset;
    size_t len;

    choose_range(&run->state, &offset, &len);
    int count = cut(&run->state, model->scratch, len, iov, 8);
    unsigned kind = (unsigned)(next_random(&run->state) % 16);
    if (kind < 7) {
        memset(model->scratch, 0xee, len);
        ck_assert_int_eq(disk->ops->co_read(disk, offset, iov, count), 0);
        ck_assert_int_eq(memcmp(model->scratch, model->bytes + offset, len), 0);
    } else if (kind < 12) {
        memset(model->scratch, (int)(next_random(&run->state) % 255 + 1), len);
        memcpy(model->bytes + offset, model->scratch, len);
        ck_assert_int_eq(disk->ops->co_write(disk, offset, iov, count), 0);
        grow(model, len ? offset + len : 0);
    } else if (kind == 12) {
        ck_assert_int_eq(disk->ops->co_zero(disk, offset, len), 0);
        memset(model->bytes + offset, 0, len);
        grow(model, len ? offset + len : 0);
    } else if (kind == 13) {
        int ret = disk->ops->co_punch(disk, offset, len);
        if (ret == 0) {
            memset(model->bytes + offset, 0, len);
        } else {
            ck_assert_int_eq(ret, -EOPNOTSUPP);
        }
    } else if (kind == 14) {
        ck_assert_int_eq(co_disk_flush(disk), 0);
    } else {
        ck_assert_int_eq(disk->ops->co_truncate(disk, offset), 0);
        memset(model->bytes + offset, 0, MODEL_BYTES - offset);
        model->size_bytes = offset;
    }
    ck_assert_uint_eq(disk->size_bytes, model->size_bytes);
}

static void compare_file(const struct model *model)
{
    struct stat st;
    int fd = open(test_path("image"), O_RDONLY | O_CLOEXEC);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, model->size_bytes);
    ck_assert_int_eq(pread(fd, model->scratch, MODEL_BYTES, 0), (ssize_t)model->size_bytes);
    ck_assert_int_eq(memcmp(model->scratch, model->bytes, model->size_bytes), 0);
    close(fd);
}

static void co_model_body(void *arg)
{
    struct model_run *run = arg;
    struct model model = {calloc(1, MODEL_BYTES), NULL, 0};

    ck_assert_int_eq(posix_memalign((void **)&model.scratch, 4096, MODEL_BYTES), 0);
    world_begin();
    make_file("image", 0);
    struct disk *disk = must_open(test_path("image"), DISK_WRITABLE | run->flags);
    for (unsigned i = 0; i < run->steps; i++) {
        co_model_step(run, &model, disk);
    }
    disk_close(disk);
    compare_file(&model);
    world_end();
    free(model.bytes);
    free(model.scratch);
}

static bool have_direct(void)
{
    int fd = open(test_path("probe"), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

START_TEST(test_model_buffered)
{
    test_run(co_model_body, &(struct model_run){0, 1500, 88172645463325252ULL});
}
END_TEST

START_TEST(test_model_direct)
{
    if (have_direct()) {
        test_run(co_model_body, &(struct model_run){DISK_DIRECT, 1500, 362436069362436069ULL});
    }
}
END_TEST

START_TEST(test_model_tmpfs)
{
    if (access("/dev/shm", W_OK) == 0) {
        test_dir_remove();
        test_dir_make("/dev/shm");
        test_run(co_model_body, &(struct model_run){0, 1500, 521288629521288629ULL});
    }
}
END_TEST

/* More buffers than one system call takes. */
static void co_many_buffers_body(void *arg)
{
    enum { ENTRIES = 2500, PIECE = 7 };
    unsigned char *bytes = malloc((size_t)ENTRIES * PIECE);
    unsigned char *back = malloc((size_t)ENTRIES * PIECE);
    struct iovec *iov = calloc(ENTRIES, sizeof(*iov));

    world_begin();
    make_file("image", 0);
    struct disk *disk = must_open(test_path("image"), DISK_WRITABLE | *(unsigned *)arg);
    for (int i = 0; i < ENTRIES * PIECE; i++) {
        bytes[i] = (unsigned char)(i * 31 + i / 256);
    }
    for (int i = 0; i < ENTRIES; i++) {
        iov[i] = (struct iovec){bytes + i * PIECE, PIECE};
    }
    ck_assert_int_eq(disk->ops->co_write(disk, 3, iov, ENTRIES), 0);
    for (int i = 0; i < ENTRIES; i++) {
        iov[i].iov_base = back + i * PIECE;
    }
    ck_assert_int_eq(disk->ops->co_read(disk, 3, iov, ENTRIES), 0);
    ck_assert_int_eq(memcmp(bytes, back, (size_t)ENTRIES * PIECE), 0);
    /* The caller's array is as it was. */
    ck_assert_uint_eq(iov[ENTRIES - 1].iov_len, PIECE);
    disk_close(disk);
    world_end();
    free(iov);
    free(bytes);
    free(back);
}

START_TEST(test_many_buffers)
{
    unsigned flags = 0;
    test_run(co_many_buffers_body, &flags);
    flags = DISK_DIRECT;
    if (have_direct()) {
        test_run(co_many_buffers_body, &flags);
    }
}
END_TEST

static void co_limits_body(void *arg)
{
    unsigned char buf[8192];
    (void)arg;

    world_begin();
    make_file("image", 100);
    struct disk *disk = must_open(test_path("image"), DISK_WRITABLE);
    memset(buf, 0xee, sizeof(buf));
    ck_assert_int_eq(co_disk_read(disk, 1ULL << 55, buf, sizeof(buf)), 0);
    ck_assert_int_eq(buf[0] | buf[sizeof(buf) - 1], 0);
    ck_assert_int_eq(co_disk_read(disk, UINT64_MAX - 5, buf, sizeof(buf)), -EINVAL);
    ck_assert_int_eq(co_disk_write(disk, UINT64_MAX - 5, buf, sizeof(buf)), -EFBIG);
    ck_assert_int_eq(disk->ops->co_zero(disk, UINT64_MAX - 5, 10), -EFBIG);
    ck_assert_int_eq(disk->ops->co_punch(disk, 5, UINT64_MAX), -EINVAL);
    ck_assert_int_eq(disk->ops->co_truncate(disk, UINT64_MAX), -EFBIG);
    ck_assert_uint_eq(disk->size_bytes, 100);
    disk_close(disk);
    world_end();
}

START_TEST(test_limits)
{
    test_run(co_limits_body, NULL);
}
END_TEST

static uint64_t allocated_bytes(void)
{
    struct stat st;
    ck_assert_int_eq(stat(test_path("image"), &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void co_space_body(void *arg)
{
    enum { MIB_BYTES = 1 << 20 };
    bool is_hole;
    uint64_t end;
    unsigned char *buf = malloc(MIB_BYTES);
    (void)arg;

    world_begin();
    make_file("image", 4 * MIB_BYTES);
    struct disk *disk = must_open(test_path("image"), DISK_WRITABLE);

    ck_assert_int_eq(disk->ops->co_next_extent(disk, 4 * MIB_BYTES, &is_hole, &end), -EINVAL);
    ck_assert_int_eq(disk->ops->co_next_extent(disk, 0, &is_hole, &end), 0);
    ck_assert_uint_eq(end, 4 * MIB_BYTES);

    memset(buf, 1, MIB_BYTES);
    ck_assert_int_eq(co_disk_write(disk, MIB_BYTES, buf, MIB_BYTES), 0);
    ck_assert_int_eq(co_disk_flush(disk), 0);
    ck_assert_int_eq(disk->ops->co_next_extent(disk, 0, &is_hole, &end), 0);
    if (is_hole) {
        ck_assert_uint_eq(end, MIB_BYTES);
        ck_assert_int_eq(disk->ops->co_next_extent(disk, MIB_BYTES + 5, &is_hole, &end), 0);
        ck_assert(!is_hole);
        ck_assert_uint_eq(end, 2 * MIB_BYTES);
        ck_assert_int_eq(disk->ops->co_next_extent(disk, 3 * MIB_BYTES, &is_hole, &end), 0);
        ck_assert(is_hole);
        ck_assert_uint_eq(end, 4 * MIB_BYTES);
    }

    /* Zeroes keep space, grow the file; a punch gives it back. */
    uint64_t before = allocated_bytes();
    ck_assert_int_eq(disk->ops->co_zero(disk, 2 * MIB_BYTES, 3 * MIB_BYTES), 0);
    ck_assert_uint_eq(disk->size_bytes, 5 * MIB_BYTES);
    ck_assert_uint_ge(allocated_bytes(), before + 3 * MIB_BYTES);
    if (disk->ops->co_punch(disk, 0, 5 * MIB_BYTES) == 0) {
        ck_assert_uint_le(allocated_bytes(), before);
    }
    ck_assert_uint_eq(disk->size_bytes, 5 * MIB_BYTES);
    disk_close(disk);
    world_end();
    free(buf);
}

START_TEST(test_space)
{
    test_run(co_space_body, NULL);
    if (access("/dev/shm", W_OK) == 0) {
        test_dir_remove();
        test_dir_make("/dev/shm");
        test_run(co_space_body, NULL);
    }
}
END_TEST

/* Neighbours in one block: unaligned direct writes at the same time must not undo each other. */

enum { WRITERS = 32, ROUNDS = 12, PIECE_BYTES = 1000 };

struct neighbours {
    struct disk *disk;
    struct group group;
};

struct writer {
    struct neighbours *all;
    unsigned index;
};

static void co_writer(void *arg)
{
    struct writer *writer = arg;
    struct disk *disk = writer->all->disk;
    unsigned char piece[PIECE_BYTES];
    unsigned char back[PIECE_BYTES];

    for (unsigned round = 0; round < ROUNDS; round++) {
        /* Round by round the pieces form one growing file, written in no order. */
        uint64_t offset = (uint64_t)(round * WRITERS + (writer->index * 7) % WRITERS) * PIECE_BYTES;
        memset(piece, (int)(1 + (round * 5 + writer->index) % 250), sizeof(piece));
        ck_assert_int_eq(co_disk_write(disk, offset, piece, sizeof(piece)), 0);
        ck_assert_uint_ge(disk->size_bytes, offset + sizeof(piece));
        ck_assert_int_eq(co_disk_read(disk, offset, back, sizeof(back)), 0);
        ck_assert_int_eq(memcmp(piece, back, sizeof(piece)), 0);
    }
    group_leave(&writer->all->group);
}

static void co_neighbours_body(void *arg)
{
    struct neighbours all;
    struct writer writers[WRITERS];
    unsigned char piece[PIECE_BYTES];

    world_begin();
    make_file("image", 0);
    all.disk = must_open(test_path("image"), DISK_WRITABLE | *(unsigned *)arg);
    group_init(&all.group);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){&all, i};
        group_enter(&all.group);
        ck_assert_int_eq(coro_spawn(co_writer, &writers[i], "writer"), 0);
    }
    co_group_wait(&all.group);
    ck_assert_uint_eq(all.disk->size_bytes, (uint64_t)WRITERS * ROUNDS * PIECE_BYTES);
    disk_close(all.disk);

    struct stat st;
    ck_assert_int_eq(stat(test_path("image"), &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, (uint64_t)WRITERS * ROUNDS * PIECE_BYTES);
    int fd = open(test_path("image"), O_RDONLY | O_CLOEXEC);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < WRITERS; i++) {
            off_t offset = (off_t)(round * WRITERS + (i * 7) % WRITERS) * PIECE_BYTES;
            ck_assert_int_eq(pread(fd, piece, PIECE_BYTES, offset), PIECE_BYTES);
            for (unsigned at = 0; at < PIECE_BYTES; at++) {
                ck_assert_uint_eq(piece[at], 1 + (round * 5 + i) % 250);
            }
        }
    }
    close(fd);
    world_end();
}

START_TEST(test_neighbours)
{
    unsigned flags = 0;
    test_run(co_neighbours_body, &flags);
    flags = DISK_DIRECT;
    if (have_direct()) {
        test_run(co_neighbours_body, &flags);
    }
}
END_TEST

/* What the page cache does not have comes from the device, through the ring. */
static void co_cold_body(void *arg)
{
    enum { BYTES = 1 << 20 };
    unsigned char *bytes = malloc(BYTES);
    unsigned char *back = calloc(1, BYTES);
    (void)arg;

    world_begin();
    make_file("image", 0);
    struct disk *disk = must_open(test_path("image"), DISK_WRITABLE);
    for (size_t i = 0; i < BYTES; i++) {
        bytes[i] = (unsigned char)(i / 512 * 13 + i);
    }
    ck_assert_int_eq(co_disk_write(disk, 0, bytes, BYTES), 0);
    ck_assert_int_eq(co_disk_flush(disk), 0);
    int fd = open(test_path("image"), O_RDONLY | O_CLOEXEC);
    ck_assert_int_eq(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
    for (size_t at = 0; at < BYTES; at += 65536) {
        ck_assert_int_eq(co_disk_read(disk, at, back + at, 65536), 0);
    }
    ck_assert_int_eq(memcmp(bytes, back, BYTES), 0);
    disk_close(disk);
    world_end();
    free(bytes);
    free(back);
}

START_TEST(test_cold)
{
    test_run(co_cold_body, NULL);
}
END_TEST

static void count_run(void *arg)
{
    (*(int *)arg)++;
}

static void co_clock_body(void *arg)
{
    struct wait_queue queue;
    int runs = 0;
    (void)arg;

    world_begin();
    wait_queue_init(&queue);
    uint64_t start_ns = world_now_ns(world);
    co_sleep_ns(world, 20000000);
    ck_assert_uint_ge(world_now_ns(world), start_ns + 20000000);
    ck_assert_int_eq(co_wait_timeout(world, &queue, 1000000), -ETIMEDOUT);
    ck_assert_int_eq((int)wait_queue_wake_all(&queue), 0);
    world->ops->co_work(world, count_run, &runs);
    ck_assert_int_eq(runs, 1);

    uint64_t all_or = 0;
    uint64_t all_and = UINT64_MAX;
    for (int i = 0; i < 200; i++) {
        uint64_t number = world->ops->random64(world);
        all_or |= number;
        all_and &= number;
    }
    ck_assert_uint_eq(all_or, UINT64_MAX);
    ck_assert_uint_eq(all_and, 0);
    world_end();
}

START_TEST(test_clock)
{
    test_run(co_clock_body, NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("disk_real");
    TCase *tcase = tcase_create("disk_real");
    tcase_set_timeout(tcase, 50);
    tcase_add_checked_fixture(tcase, make_dir, test_dir_remove);
    tcase_add_test(tcase, test_open);
    tcase_add_test(tcase, test_model_buffered);
    tcase_add_test(tcase, test_model_direct);
    tcase_add_test(tcase, test_model_tmpfs);
    tcase_add_test(tcase, test_many_buffers);
    tcase_add_test(tcase, test_limits);
    tcase_add_test(tcase, test_space);
    tcase_add_test(tcase, test_neighbours);
    tcase_add_test(tcase, test_cold);
    tcase_add_test(tcase, test_clock);
    suite_add_tcase(suite, tcase);
    return test_main(suite);
}
