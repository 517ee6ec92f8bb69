/* SPDX-License-Identifier: BSD-2-Clause */
/* Both forms, and names that try to break out of them. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/testing.h"
#include "qcow2/blocking_world.h"
#include "qcow2/create.h"
#include "qcow2/info.h"

static struct blocking_world world;
static struct errtext err;
static struct disk *disk;
static struct header header;
static char *directory;
static char *path;
static char *told;

static void setup(void)
{
    struct create_options options;
    create_options_init(&options);
    options.size_bytes = 3 * GIB / 2;
    options.lazy_refcounts = true;
    blocking_world_init(&world);
    directory = blocking_make_directory();
    ck_assert_int_gt(asprintf(&path, "%s/disk.qcow2", directory), 0);
    ck_assert_int_eq(co_qcow2_create(&world.world, path, &options, &err), 0);
    ck_assert_int_eq(blocking_open(&world.world, path, DISK_WRITABLE, &disk, &err), 0);
    ck_assert_int_eq(co_header_read(disk, &header, &err), 0);
}

static void teardown(void)
{
    header_free(&header);
    disk_close(disk);
    unlink(path);
    ck_assert_int_eq(rmdir(directory), 0);
    free(path);
    free(directory);
    free(told);
}

static int tell(enum info_form form, uint64_t allocated_bytes)
{
    size_t len = 0;
    free(told);
    told = NULL;
    FILE *out = open_memstream(&told, &len);
    ck_assert_ptr_nonnull(out);
    int ret = co_qcow2_info(disk, &header, allocated_bytes, form, out, &err);
    fclose(out);
    ck_assert_uint_eq(strlen(told), len);
    return ret;
}

static void expect(const char *part)
{
    ck_assert_msg(strstr(told, part) != NULL, "no %s in:\n%s", part, told);
}

static void expect_not(const char *part)
{
    ck_assert_msg(strstr(told, part) == NULL, "%s in:\n%s", part, told);
}

START_TEST(plain_text)
{
    ck_assert_int_eq(tell(INFO_TEXT, 262144), 0);
    expect("virtual size: 1.5 GiB (1610612736 bytes)\n");
    expect("disk size: 256 KiB (262144 bytes)\n");
    expect("cluster size: 65536\n");
    expect("compat: 1.1\n");
    expect("refcount bits: 16\n");
    expect("lazy refcounts: yes\n");
    expect("extended L2: no\n");
    expect("compression type: zlib\n");
    expect("dirty: no\n");
    expect("corrupt: no\n");
    expect_not("backing");
    expect_not("snapshots");
    expect_not("bitmaps");
    expect_not("encryption");
    ck_assert_int_eq(tell(INFO_TEXT, INFO_ALLOCATED_UNKNOWN), 0);
    expect_not("disk size");
}
END_TEST

START_TEST(sizes_in_words)
{
    static const struct {
        uint64_t bytes;
        const char *words;
    } cases[] = {
        {0, "disk size: 0 B (0 bytes)\n"},
        {1023, "disk size: 1023 B (1023 bytes)\n"},
        {1024, "disk size: 1 KiB (1024 bytes)\n"},
        {1024 + 52, "disk size: 1.05 KiB (1076 bytes)\n"},
        {1ULL << 61, "disk size: 2 EiB (2305843009213693952 bytes)\n"},
        {UINT64_MAX - 1, "disk size: 15.99 EiB (18446744073709551614 bytes)\n"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        ck_assert_int_eq(tell(INFO_TEXT, cases[i].bytes), 0);
        expect(cases[i].words);
    }
}
END_TEST

START_TEST(unusual_features)
{
    header.version = 2;
    ck_assert_int_eq(tell(INFO_TEXT, 0), 0);
    expect("compat: 0.10\n");
    expect_not("lazy");
    ck_assert_int_eq(tell(INFO_JSON, 0), 0);
    expect("\"compat\": \"0.10\"");
    expect_not("lazy");
    header.version = 3;
    header.incompatible = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DATA_FILE |
                          QCOW2_INCOMPAT_COMPRESSION | (1ULL << 40);
    header.crypt_method = QCOW2_CRYPT_LUKS;
    header.compression = QCOW2_COMPRESSION_ZSTD;
    snprintf(header.unknown_feature, sizeof(header.unknown_feature), "time travel");
    header.data_file_name = strdup("data.raw");
    header.backing_name = strdup("base");
    ck_assert_int_eq(tell(INFO_TEXT, 0), 0);
    expect("dirty: yes\n");
    expect("corrupt: yes\n");
    expect("encryption: luks\n");
    expect("compression type: zstd\n");
    expect("data file: data.raw\ndata file raw: no\n");
    expect("unknown incompatible feature: time travel\n");
    expect("backing file: base\nbacking file format: not named\n");
    ck_assert_int_eq(tell(INFO_JSON, 0), 0);
    expect("\"dirty-flag\": true");
    expect("\"corrupt\": true");
    expect("\"encrypted\": true");
    expect("\"encrypt\": {\"format\": \"luks\"}");
    expect("\"data-file\": \"data.raw\"");
    expect("\"data-file-raw\": false");
    expect("\"unknown-incompatible-feature\": \"time travel\"");
    expect_not("backing-filename-format");
}
END_TEST

START_TEST(hostile_names)
{
    header.backing_name = strdup("a\"b\\c\n\x1b[2J\xc3\xa9\xff\xe2\x80\xae\xed\xa0\x80\xc0\xaf");
    header.backing_format = strdup("raw");
    ck_assert_int_eq(tell(INFO_TEXT, 0), 0);
    expect(
        "backing file: a\"b\\x5cc\\x0a\\x1b[2J\xc3\xa9\\xff\\xe2\\x80\\xae\\xed\\xa0\\x80\\xc0\\xaf"
        "\nbacking file format: raw\n");
    ck_assert_int_eq(tell(INFO_JSON, 0), 0);
    expect("\"backing-filename\": \"a\\\"b\\\\c\\u000a\\u001b[2J\xc3\xa9\\ufffd\xe2\x80\xae"
           "\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\",\n");
}
END_TEST

START_TEST(truncated_utf8_at_the_end)
{
    header.backing_name = strdup("x\xf0\x9f\x98");
    ck_assert_int_eq(tell(INFO_JSON, 0), 0);
    expect("\"x\\ufffd\\ufffd\\ufffd\"");
    free(header.backing_name);
    header.backing_name = strdup("x\xf0\x9f\x98\x80\xf4\x90\x80\x80");
    ck_assert_int_eq(tell(INFO_JSON, 0), 0);
    expect("\"x\xf0\x9f\x98\x80\\ufffd\\ufffd\\ufffd\\ufffd\"");
}
END_TEST

START_TEST(snapshots)
{
    header.snapshot_count = 2;
    header.snapshots = calloc(2, sizeof(*header.snapshots));
    header.snapshots[0] = (struct snapshot){
        .id = strdup("1"),
        .name = strdup("before \"upgrade\""),
        .disk_size_bytes = 1048576,
        .vm_state_bytes = 7,
        .date_sec = 1000000000,
    };
    header.snapshots[1] =
        (struct snapshot){.id = strdup("2"), .name = strdup(""), .date_sec = UINT32_MAX};
    ck_assert_int_eq(tell(INFO_TEXT, 0), 0);
    expect("snapshots:\n    id 1, name before \"upgrade\", 2001-09-09 01:46:40 UTC, disk size "
           "1048576, vm state 7\n    id 2, name , 2106-02-07 06:28:15 UTC,");
    ck_assert_int_eq(tell(INFO_JSON, 0), 0);
    expect("{\"id\": \"1\", \"name\": \"before \\\"upgrade\\\"\", \"date-sec\": 1000000000, "
           "\"vm-state-size\": 7, \"disk-size\": 1048576},\n");
    expect("\"date-sec\": 4294967295");
}
END_TEST

/* A directory entry at `at`; returns its padded length. */
static uint64_t put_bitmap(uint64_t at, const char *name, uint32_t flags, uint32_t extra_bytes)
{
    uint8_t entry[256] = {0};
    put_be32(entry + 12, flags);
    entry[16] = 1;
    entry[17] = 16;
    put_be16(entry + 18, (uint16_t)strlen(name));
    put_be32(entry + 20, extra_bytes);
    memset(entry + 24, 0xee, extra_bytes);
    memcpy(entry + 24 + extra_bytes, name, strlen(name));
    uint64_t len = round_up_to(24 + extra_bytes + strlen(name), 8);
    ck_assert_int_eq(co_disk_write(disk, at, entry, len), 0);
    return len;
}

START_TEST(bitmaps)
{
    uint64_t at = disk->size_bytes;
    uint64_t len = put_bitmap(at, "nightly\n", 2, 8);
    len += put_bitmap(at + len, "torn", 3, 0);
    header.bitmap_count = 2;
    header.bitmap_directory_offset.bytes = at;
    header.bitmap_directory_len_bytes = len;
    ck_assert_int_eq(tell(INFO_TEXT, 0), 0);
    expect("bitmaps:\n    name nightly\\x0a, granularity 65536, auto\n"
           "    name torn, granularity 65536, auto, in use (not saved)\n");
    ck_assert_int_eq(tell(INFO_JSON, 0), 0);
    expect("{\"name\": \"nightly\\u000a\", \"granularity\": 65536, \"flags\": [\"auto\"]},\n");
    expect("{\"name\": \"torn\", \"granularity\": 65536, \"flags\": [\"in-use\", \"auto\"]}\n");
}
END_TEST

START_TEST(lying_bitmap_directory)
{
    uint64_t at = disk->size_bytes;
    uint64_t len = put_bitmap(at, "x", 0, 0);
    header.bitmap_directory_offset.bytes = at;
    header.bitmap_directory_len_bytes = len;
    header.bitmap_count = 65535;
    ck_assert_int_eq(tell(INFO_TEXT, 0), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "bitmap_directory_size is 32"));
    /* Extra data that reaches past the directory, and wraps nothing. */
    uint8_t huge[4] = {0xff, 0xff, 0xff, 0xff};
    ck_assert_int_eq(co_disk_write(disk, at + 20, huge, 4), 0);
    header.bitmap_count = 1;
    ck_assert_int_eq(tell(INFO_TEXT, 0), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "entry 0"));
}
END_TEST

START_TEST(unwritable_output)
{
    FILE *full = fopen("/dev/full", "w");
    ck_assert_ptr_nonnull(full);
    ck_assert_int_eq(co_qcow2_info(disk, &header, 0, INFO_TEXT, full, &err), -EIO);
    fclose(full);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("info");
    TCase *tcase = tcase_create("info");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, plain_text);
    tcase_add_test(tcase, sizes_in_words);
    tcase_add_test(tcase, unusual_features);
    tcase_add_test(tcase, hostile_names);
    tcase_add_test(tcase, truncated_utf8_at_the_end);
    tcase_add_test(tcase, snapshots);
    tcase_add_test(tcase, bitmaps);
    tcase_add_test(tcase, lying_bitmap_directory);
    tcase_add_test(tcase, unwritable_output);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
