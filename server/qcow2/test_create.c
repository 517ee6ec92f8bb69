/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Options, limits, crash order, and the images themselves: read back by our own header reader, and
 * judged by `qemu-img check` where it is installed.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/testing.h"
#include "qcow2/blocking_world.h"
#include "qcow2/create.h"
#include "qcow2/header.h"

static struct blocking_world world;
static struct create_options options;
static struct errtext err;
static char *directory;
static char *image_path;

static void setup(void)
{
    blocking_world_init(&world);
    create_options_init(&options);
    directory = blocking_make_directory();
    ck_assert_int_gt(asprintf(&image_path, "%s/disk.qcow2", directory), 0);
}

static void teardown(void)
{
    unlink(image_path);
    ck_assert_int_eq(rmdir(directory), 0);
    free(image_path);
    free(directory);
}

START_TEST(size_text)
{
    static const struct {
        const char *text;
        int ret;
        uint64_t bytes;
    } cases[] = {
        {"0", 0, 0},
        {"512", 0, 512},
        {"512b", 0, 512},
        {"1k", 0, 1024},
        {"1K", 0, 1024},
        {"10G", 0, 10 * GIB},
        {"1.5G", 0, 3 * GIB / 2},
        {"0.0009765625M", 0, 1024},
        {"1.9999999999999999999999k", 0, 2047},
        {"64T", 0, 65536 * GIB},
        {"1P", 0, 1024 * 1024 * GIB},
        {"15E", 0, 15ULL << 60},
        {"18446744073709551615", 0, UINT64_MAX},
        {"1.0", 0, 1},
        {"18446744073709551616", -ERANGE, 0},
        {"16E", -ERANGE, 0},
        {"15.9999999999999999999E", 0, UINT64_MAX - 1},
        {"", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {" 1", -EINVAL, 0},
        {"1 ", -EINVAL, 0},
        {"1kk", -EINVAL, 0},
        {"1x", -EINVAL, 0},
        {"0x10", -EINVAL, 0},
        {"1.", -EINVAL, 0},
        {".5G", -EINVAL, 0},
        {"1.5", -EINVAL, 0},
        {"k", -EINVAL, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t bytes = 0;
        ck_assert_msg(parse_size(cases[i].text, &bytes) == cases[i].ret, "%s", cases[i].text);
        ck_assert_msg(bytes == cases[i].bytes, "%s: %" PRIu64, cases[i].text, bytes);
    }
}
END_TEST

static int parse(const char *assignment)
{
    static char kept[256];
    snprintf(kept, sizeof(kept), "%s", assignment);
    return create_option_parse(&options, kept, &err);
}

START_TEST(options_are_parsed)
{
    ck_assert_int_eq(parse("size=10M"), 0);
    ck_assert_uint_eq(options.size_bytes, 10 * MIB);
    ck_assert_int_eq(parse("compat=0.10"), 0);
    ck_assert_uint_eq(options.version, 2);
    ck_assert_int_eq(parse("compat=v3"), 0);
    ck_assert_uint_eq(options.version, 3);
    ck_assert_int_eq(parse("compat=v2"), 0);
    ck_assert_int_eq(parse("compat=1.1"), 0);
    ck_assert_uint_eq(options.version, 3);
    ck_assert_int_eq(parse("cluster_size=2M"), 0);
    ck_assert_uint_eq(options.cluster_bytes, 2 * MIB);
    ck_assert_int_eq(parse("refcount_bits=64"), 0);
    ck_assert_uint_eq(options.refcount_bits, 64);
    ck_assert_int_eq(parse("extended_l2=on"), 0);
    ck_assert(options.extended_l2);
    ck_assert_int_eq(parse("extended_l2=off"), 0);
    ck_assert(!options.extended_l2);
    ck_assert_int_eq(parse("lazy_refcounts=yes"), 0);
    ck_assert(options.lazy_refcounts);
    ck_assert_int_eq(parse("compression_type=zstd"), 0);
    ck_assert_uint_eq(options.compression, QCOW2_COMPRESSION_ZSTD);
    ck_assert_int_eq(parse("backing_fmt=raw"), 0);
    ck_assert_str_eq(options.backing_format, "raw");
    ck_assert_int_eq(parse("data_file=disk.data"), 0);
    ck_assert_str_eq(options.data_file_name, "disk.data");
    ck_assert_int_eq(parse("data_file_raw=on"), 0);
    ck_assert(options.data_file_raw);
    ck_assert_int_eq(parse("backing_file=a=b"), 0);
    ck_assert_str_eq(options.backing_name, "a=b");
}
END_TEST

START_TEST(bad_options_are_named)
{
    static const char *const cases[][2] = {
        {"size=ten", "size"},
        {"compat=4", "0.10 (v2) or 1.1 (v3)"},
        {"cluster_size=", "cluster_size"},
        {"refcount_bits=3", "1, 2, 4, 8, 16, 32 or 64"},
        {"refcount_bits=128", "1, 2, 4, 8, 16, 32 or 64"},
        {"extended_l2=maybe", "on or off"},
        {"lazy_refcounts", "lazy_refcounts=VALUE"},
        {"compression_type=lz4\x01", "lz4\\x01"},
        {"backing_fmt=vmdk", "qcow2 or raw"},
        {"backing_file=", "the name of a file"},
        {"data_file=", "the name of a file"},
        {"data_file_raw=maybe", "on or off"},
        {"preallocation=full", "\"preallocation\" is unknown"},
        {"siz=1", "known are size"},
        {"=1", "unknown"},
        {"", "unknown"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        ck_assert_msg(parse(cases[i][0]) == -EINVAL, "%s", cases[i][0]);
        ck_assert_msg(strstr(err.text, cases[i][1]) != NULL, "%s: %s", cases[i][0], err.text);
    }
}
END_TEST

static void expect_refused(const char *message)
{
    ck_assert_int_eq(co_qcow2_create(&world.world, image_path, &options, &err), -EINVAL);
    ck_assert_msg(strstr(err.text, message) != NULL, "%s", err.text);
    ck_assert_int_ne(access(image_path, F_OK), 0);
    create_options_init(&options);
}

START_TEST(bad_combinations_are_refused)
{
    options.version = 2;
    options.refcount_bits = 8;
    expect_refused("refcount_bits 8 needs compat 1.1");
    options.version = 2;
    options.extended_l2 = true;
    expect_refused("extended_l2 needs compat 1.1");
    options.version = 2;
    options.lazy_refcounts = true;
    expect_refused("lazy_refcounts needs compat 1.1");
    options.version = 2;
    options.compression = QCOW2_COMPRESSION_ZSTD;
    expect_refused("compression_type");
    options.version = 2;
    options.data_file_name = "disk.data";
    expect_refused("data_file needs compat 1.1");
    options.data_file_raw = true;
    expect_refused("data_file_raw is given without a data_file");
    options.data_file_raw = true;
    options.data_file_name = "disk.data";
    options.backing_name = "base";
    options.backing_format = "raw";
    expect_refused("data_file_raw and backing_file exclude each other");
    options.data_file_name = "nbd:server";
    expect_refused("data file \"nbd:server\" names a protocol");
    options.version = 4;
    expect_refused("version 4");
    options.cluster_bytes = 256;
    expect_refused("512 to 2M");
    options.cluster_bytes = 4 * MIB;
    expect_refused("512 to 2M");
    options.cluster_bytes = 1000;
    expect_refused("power of two");
    options.refcount_bits = 0;
    expect_refused("refcount_bits 0");
    options.refcount_bits = 12;
    expect_refused("refcount_bits 12");
    options.compression = 7;
    expect_refused("compression_type 7");
    options.extended_l2 = true;
    options.cluster_bytes = 8 * KIB;
    expect_refused("16k to 2M");
    options.backing_name = "base";
    expect_refused("-F raw");
    options.backing_format = "raw";
    expect_refused("without a backing_file");
    options.backing_name = "base";
    options.backing_format = "vmdk";
    expect_refused("qcow2 or raw");
    options.backing_name = "nbd://base";
    options.backing_format = "raw";
    expect_refused("protocol");
}
END_TEST

START_TEST(too_large_names_the_largest)
{
    options.cluster_bytes = 512;
    options.size_bytes = 128 * GIB + 1;
    expect_refused("the largest is 137438953472 (128G)");
    options.cluster_bytes = 512;
    options.size_bytes = UINT64_MAX;
    expect_refused("(128G)");
    options.cluster_bytes = 2 * MIB;
    options.size_bytes = (1ULL << 61) + 1;
    expect_refused("the largest is 2305843009213693952 (2147483648G)");
    options.cluster_bytes = 16 * KIB;
    options.extended_l2 = true;
    options.size_bytes = 65536 * GIB + 512;
    expect_refused("with extended_l2; the largest is 70368744177664");
}
END_TEST

START_TEST(backing_name_must_fit)
{
    char name[400];
    memset(name, 'a', sizeof(name));
    options.cluster_bytes = 512;
    options.backing_name = name;
    options.backing_format = "qcow2";
    name[377] = '\0';
    expect_refused("room for a name of 376");
    options.cluster_bytes = 512;
    options.backing_name = name;
    options.backing_format = "qcow2";
    name[376] = '\0';
    ck_assert_int_eq(co_qcow2_create(&world.world, image_path, &options, &err), 0);
}
END_TEST

/* Exit status of `qemu-img check`, or 77 where there is no qemu-img. */
static int qemu_img_check(const char *path)
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        execlp("qemu-img", "qemu-img", "check", "-f", "qcow2", path, (char *)NULL);
        _exit(77);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Made with the present options, it has what was asked for. */
static void expect_good_image(void)
{
    struct header header;
    struct disk *disk = NULL;
    const char *what = "";
    char described[200];
    snprintf(described, sizeof(described),
             "v%u cluster %" PRIu64 " refcount_bits %u extended %d size %" PRIu64, options.version,
             options.cluster_bytes, options.refcount_bits, options.extended_l2, options.size_bytes);
    ck_assert_msg(co_qcow2_create(&world.world, image_path, &options, &err) == 0, "%s: %s",
                  described, err.text);
    ck_assert_msg(!world.header_before_flush, "%s", described);
    ck_assert_uint_eq(world.unflushed_writes, 0);
    ck_assert_int_eq(blocking_open(&world.world, image_path, DISK_READ_ONLY, &disk, &err), 0);
    ck_assert_msg(co_header_read(disk, &header, &err) == 0, "%s: %s", described, err.text);
    ck_assert_uint_eq(disk->size_bytes % options.cluster_bytes, 0);
    what = header.version != options.version                               ? "version"
           : header.geo.size_bytes != round_up_to(options.size_bytes, 512) ? "size"
           : header.geo.cluster_bytes != options.cluster_bytes             ? "cluster"
           : 1U << header.geo.refcount_order != options.refcount_bits      ? "refcount"
           : header.geo.extended_l2 != options.extended_l2                 ? "extended"
           : header.compression != options.compression                     ? "compression"
           : header.l1_entries < l1_entries_needed(&header.geo)            ? "l1"
           : (header.compatible & 1) != (options.lazy_refcounts ? 1U : 0U) ? "lazy"
                                                                           : NULL;
    ck_assert_msg(!what, "%s: %s", described, what);
    header_free(&header);
    disk_close(disk);
    int status = qemu_img_check(image_path);
    ck_assert_msg(status == 0 || status == 77, "%s: qemu-img check says %d", described, status);
    ck_assert_int_eq(unlink(image_path), 0);
}

/* One cluster size a test: _i is cluster_bits. */
START_TEST(every_format)
{
    static const uint64_t sizes[] = {0, 1, 10 * GIB};
    for (unsigned refcount_order = 0; refcount_order <= 6; refcount_order++) {
        for (int form = 0; form < 3; form++) {
            create_options_init(&options);
            options.cluster_bytes = 1ULL << _i;
            options.refcount_bits = 1U << refcount_order;
            options.version = form == 0 ? 2 : 3;
            options.extended_l2 = form == 2;
            options.size_bytes = sizes[(refcount_order + (unsigned)form) % ARRAY_LEN(sizes)];
            if (create_options_check(&options, &err) == 0) {
                expect_good_image();
            }
        }
    }
}
END_TEST

START_TEST(every_size)
{
    static const uint64_t sizes[] = {0,        1,         512,        513,         64 * KIB - 1,
                                     10 * GIB, 128 * GIB, 1024 * GIB, 65536 * GIB, 1ULL << 61};
    unsigned made = 0;
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        options.cluster_bytes = 1ULL << _i;
        options.size_bytes = sizes[i];
        if (create_options_check(&options, &err) == 0) {
            expect_good_image();
            made++;
        }
    }
    ck_assert_uint_eq(made, _i == 9 ? 7 : _i == 16 ? 9 : 10);
}
END_TEST

START_TEST(features)
{
    options.compression = QCOW2_COMPRESSION_ZSTD;
    options.lazy_refcounts = true;
    options.extended_l2 = true;
    options.size_bytes = GIB;
    expect_good_image();
}
END_TEST

static void read_back(uint8_t *bytes, size_t len)
{
    int fd = open(image_path, O_RDONLY);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq((int)read(fd, bytes, len), (int)len);
    close(fd);
}

START_TEST(names_backing_and_features)
{
    struct header header;
    struct disk *disk = NULL;
    uint8_t cluster[4096];
    options.cluster_bytes = sizeof(cluster);
    options.size_bytes = MIB;
    options.backing_name = "base.raw";
    options.backing_format = "raw";
    ck_assert_int_eq(co_qcow2_create(&world.world, image_path, &options, &err), 0);
    ck_assert_int_eq(blocking_open(&world.world, image_path, DISK_READ_ONLY, &disk, &err), 0);
    ck_assert_int_eq(co_header_read(disk, &header, &err), 0);
    ck_assert_str_eq(header.backing_name, "base.raw");
    ck_assert_str_eq(header.backing_format, "raw");
    header_free(&header);
    disk_close(disk);
    read_back(cluster, sizeof(cluster));
    /* Header, backing format, then the names. */
    ck_assert_uint_eq(get_be32(cluster + 112), QCOW2_EXT_BACKING_FORMAT);
    ck_assert_uint_eq(get_be32(cluster + 128), QCOW2_EXT_FEATURE_NAMES);
    ck_assert_uint_eq(get_be32(cluster + 132), 8 * 48);
    ck_assert_str_eq((char *)cluster + 136 + 2, "dirty bit");
    ck_assert_str_eq((char *)cluster + 136 + 5 * 48 + 2, "lazy refcounts");
    ck_assert_uint_eq(cluster[136 + 5 * 48], 1);
}
END_TEST

START_TEST(existing_file_is_kept)
{
    FILE *file = fopen(image_path, "w");
    ck_assert_ptr_nonnull(file);
    fputs("precious", file);
    fclose(file);
    ck_assert_int_eq(co_qcow2_create(&world.world, image_path, &options, &err), -EEXIST);
    uint8_t bytes[8];
    read_back(bytes, sizeof(bytes));
    ck_assert_int_eq(memcmp(bytes, "precious", 8), 0);
}
END_TEST

/*
 * Whatever call fails, no file is left; where it cannot be removed, it is no image unless complete.
 */
START_TEST(failures_leave_no_image)
{
    struct world_ops without_remove;
    for (unsigned call = 1; call <= 5; call++) {
        blocking_world_init(&world);
        world.fail_from_call = call;
        world.fail_with = -ENOSPC;
        ck_assert_int_eq(co_qcow2_create(&world.world, image_path, &options, &err), -ENOSPC);
        ck_assert_ptr_nonnull(strstr(err.text, image_path));
        ck_assert_int_ne(access(image_path, F_OK), 0);

        without_remove = *world.world.ops;
        without_remove.remove = NULL;
        world.world.ops = &without_remove;
        world.calls = 0;
        ck_assert_int_eq(co_qcow2_create(&world.world, image_path, &options, &err), -ENOSPC);
        uint8_t magic[4] = {0};
        int fd = open(image_path, O_RDONLY);
        ck_assert_int_ge((int)read(fd, magic, sizeof(magic)), 0);
        close(fd);
        ck_assert(call == 5 || get_be32(magic) != QCOW2_MAGIC);
        unlink(image_path);
    }
    blocking_world_init(&world);
    world.fail_from_call = 6;
    ck_assert_int_eq(co_qcow2_create(&world.world, image_path, &options, &err), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("create");
    TCase *tcase = tcase_create("create");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 50);
    tcase_add_test(tcase, size_text);
    tcase_add_test(tcase, options_are_parsed);
    tcase_add_test(tcase, bad_options_are_named);
    tcase_add_test(tcase, bad_combinations_are_refused);
    tcase_add_test(tcase, too_large_names_the_largest);
    tcase_add_test(tcase, backing_name_must_fit);
    tcase_add_loop_test(tcase, every_format, 9, 22);
    tcase_add_loop_test(tcase, every_size, 9, 10);
    tcase_add_loop_test(tcase, every_size, 16, 17);
    tcase_add_loop_test(tcase, every_size, 21, 22);
    tcase_add_test(tcase, features);
    tcase_add_test(tcase, names_backing_and_features);
    tcase_add_test(tcase, existing_file_is_kept);
    tcase_add_test(tcase, failures_leave_no_image);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
