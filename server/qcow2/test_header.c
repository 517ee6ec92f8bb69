/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One good image by hand, then one field at a time out of bounds: each must be refused with a
 * message that names file, field and value. What is written in place must leave every other byte
 * alone.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/testing.h"
#include "qcow2/blocking_world.h"
#include "qcow2/header.h"
#include "qcow2/test_images.h"

#define AT(field) offsetof(struct qcow2_disk_header, field)

static struct blocking_world world;
static struct errtext err;
static char *directory;
static char *image_path;
static struct test_image image;

static void setup(void)
{
    blocking_world_init(&world);
    directory = blocking_make_directory();
    ck_assert_int_gt(asprintf(&image_path, "%s/disk.qcow2", directory), 0);
    const struct test_image_options options = {3, 16, 4, false, 8};
    test_image_build(&image, &options);
}

static void teardown(void)
{
    test_image_free(&image);
    unlink(image_path);
    ck_assert_int_eq(rmdir(directory), 0);
    free(image_path);
    free(directory);
}

static struct disk *open_image(void)
{
    struct disk *disk;
    int rc = world.world.ops->co_disk_open(&world.world, image_path, DISK_WRITABLE, &disk, &err);
    ck_assert_int_eq(rc, 0);
    return disk;
}

/* Reads the header of what is in `image`. */
static int read_header(struct header *header)
{
    test_image_save(&image, image_path);
    struct disk *disk = open_image();
    memset(&err, 0, sizeof(err));
    int rc = co_header_read(disk, header, &err);
    disk_close(disk);
    return rc;
}

static void put(size_t at, unsigned width, uint64_t value)
{
    if (width == 8) {
        put_be64(image.bytes + at, value);
    } else {
        put_be32(image.bytes + at, (uint32_t)value);
    }
}

static size_t put_extension(size_t at, uint32_t type, const void *data, uint32_t len)
{
    put_be32(image.bytes + at, type);
    put_be32(image.bytes + at + 4, len);
    memcpy(image.bytes + at + 8, data, len);
    return at + 8 + round_up_to(len, 8);
}

static void refused(int rc, const char *words)
{
    struct header header;
    int got = read_header(&header);
    ck_assert_msg(got == rc, "%s: got %d, %s", words, got, err.text);
    ck_assert_msg(strstr(err.text, image_path) != NULL, "no file name: %s", err.text);
    ck_assert_msg(strstr(err.text, words) != NULL, "wanted '%s' in: %s", words, err.text);
    ck_assert_ptr_null(header.backing_name);
}

START_TEST(good_image)
{
    struct header header;

    ck_assert_msg(read_header(&header) == 0, "%s", err.text);
    ck_assert_uint_eq(header.version, 3);
    ck_assert_uint_eq(header.geo.cluster_bits, 16);
    ck_assert_uint_eq(header.geo.size_bytes, 16 * 65536);
    ck_assert_uint_eq(header.l1_entries, 1);
    ck_assert_uint_eq(header.l1_offset.bytes, 3 * 65536);
    ck_assert_uint_eq(header.reftable_offset.bytes, 65536);
    ck_assert_uint_eq(header.header_len_bytes, 104);
    ck_assert_ptr_null(header.backing_name);
    ck_assert_uint_eq(header.snapshot_count, 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_WRITING, image_path, &err), 0);
    header_free(&header);
}
END_TEST

static const struct {
    size_t at;
    unsigned width;
    uint64_t value;
    int rc;
    const char *words;
} bad_fields[] = {
    {AT(magic), 4, 0x51464900, -EINVAL, "magic is 0x51464900"},
    {AT(version), 4, 1, -ENOTSUP, "version is 1: allowed is 2 or 3"},
    {AT(version), 4, 4, -ENOTSUP, "version is 4"},
    {AT(cluster_bits), 4, 8, -EINVAL, "cluster_bits is 8: allowed is 9 to 21"},
    {AT(cluster_bits), 4, 22, -EINVAL, "cluster_bits is 22"},
    {AT(cluster_bits), 4, 0xffffffff, -EINVAL, "cluster_bits is 4294967295"},
    {AT(size), 8, UINT64_MAX, -EINVAL, "size is 18446744073709551615"},
    {AT(size), 8, 1ULL << 63, -EINVAL, "size is 9223372036854775808"},
    {AT(size), 8, INT64_MAX - 65536, -EINVAL, "size is "},
    {AT(size), 8, 1ULL << 40, -EINVAL, "l1_size is 1: allowed is 2048"},
    {AT(crypt_method), 4, 3, -EINVAL, "crypt_method is 3"},
    {AT(l1_size), 4, 0, -EINVAL, "l1_size is 0"},
    {AT(l1_size), 4, 0xffffffff, -EINVAL, "l1_size is 4294967295"},
    {AT(l1_size), 4, 4194304, -EINVAL, "l1_table_offset is 0x30000"},
    {AT(l1_table_offset), 8, 0, -EINVAL, "l1_table_offset is 0x0"},
    {AT(l1_table_offset), 8, 512, -EINVAL, "l1_table_offset is 0x200"},
    {AT(l1_table_offset), 8, 1ULL << 40, -EINVAL, "l1_table_offset is 0x10000000000"},
    {AT(l1_table_offset), 8, 13 * 65536, -EINVAL, "l1_table_offset is 0xd0000"},
    {AT(l1_table_offset), 8, UINT64_MAX - 65535, -EINVAL, "l1_table_offset is 0xffff"},
    {AT(l1_table_offset), 8, 65536, -EINVAL, "refcount table is 0x10000: allowed is outside"},
    {AT(refcount_table_offset), 8, 0, -EINVAL, "refcount_table_offset is 0x0"},
    {AT(refcount_table_offset), 8, 65537, -EINVAL, "refcount_table_offset is 0x10001"},
    {AT(refcount_table_offset), 8, 1ULL << 62, -EINVAL, "refcount_table_offset is 0x4"},
    {AT(refcount_table_clusters), 4, 0, -EINVAL, "refcount_table_clusters is 0: allowed is 1 to"},
    {AT(refcount_table_clusters), 4, 129, -EINVAL, "refcount_table_clusters is 129"},
    {AT(refcount_table_clusters), 4, 0xffffffff, -EINVAL, "refcount_table_clusters is 4294967295"},
    {AT(refcount_table_clusters), 4, 100, -EINVAL, "refcount_table_offset is 0x10000"},
    {AT(refcount_table_clusters), 4, 3, -EINVAL, "is outside of the L1 table"},
    {AT(nb_snapshots), 4, 65537, -EINVAL, "nb_snapshots is 65537"},
    {AT(nb_snapshots), 4, 1, -EINVAL, "snapshots_offset is 0x0"},
    {AT(refcount_order), 4, 7, -EINVAL, "refcount_order is 7: allowed is 0 to 6"},
    {AT(header_length), 4, 72, -EINVAL, "header_length is 72"},
    {AT(header_length), 4, 105, -EINVAL, "header_length is 105"},
    {AT(header_length), 4, 65544, -EINVAL, "header_length is 65544"},
    {AT(incompatible_features), 8, 8, -EINVAL, "compression_type is 0: allowed is 1"},
    {AT(backing_file_offset), 8, 8, -EINVAL, "backing_file_offset is 0x8"},
    {AT(backing_file_offset), 8, 65537, -EINVAL, "backing_file_offset is 0x10001"},
    {AT(backing_file_offset), 8, UINT64_MAX, -EINVAL, "backing_file_offset is 0xffff"},
};

START_TEST(bad_field)
{
    put(bad_fields[_i].at, bad_fields[_i].width, bad_fields[_i].value);
    refused(bad_fields[_i].rc, bad_fields[_i].words);
}
END_TEST

START_TEST(extended_l2_needs_large_clusters)
{
    const struct test_image_options options = {3, 13, 4, false, 8};
    test_image_free(&image);
    test_image_build(&image, &options);
    put(AT(incompatible_features), 8, QCOW2_INCOMPAT_EXTENDED_L2);
    refused(-EINVAL, "cluster_bits is 13: allowed is 14 to 21");
}
END_TEST

START_TEST(compression_type)
{
    struct header header;

    put(AT(header_length), 4, 112);
    image.bytes[AT(compression_type)] = 1;
    refused(-EINVAL, "compression_type is 1: allowed is 0");
    put(AT(incompatible_features), 8, QCOW2_INCOMPAT_COMPRESSION);
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert_uint_eq(header.compression, QCOW2_COMPRESSION_ZSTD);
    header_free(&header);
    image.bytes[AT(compression_type)] = 2;
    refused(-EINVAL, "compression_type is 2");
}
END_TEST

START_TEST(short_files)
{
    struct header header;
    uint64_t len = image.len_bytes;

    for (image.len_bytes = 0; image.len_bytes < 72; image.len_bytes++) {
        refused(-EINVAL, "the file's size is");
    }
    /* Cut anywhere, it is refused or read, and nothing worse. */
    for (image.len_bytes = 72; image.len_bytes < len; image.len_bytes += 4093) {
        if (read_header(&header) == 0) {
            header_free(&header);
        }
    }
    image.len_bytes = 3 * 65536 + 8; /* the last cluster may be partial */
    ck_assert_msg(read_header(&header) == 0, "%s", err.text);
    header_free(&header);
    image.len_bytes = len;
}
END_TEST

START_TEST(backing_file)
{
    struct header header;

    memcpy(image.bytes + 1000, "base.img", 8);
    put(AT(backing_file_offset), 8, 1000);
    put(AT(backing_file_size), 4, 8);
    put_extension(104, QCOW2_EXT_BACKING_FORMAT, "raw", 3);
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert_str_eq(header.backing_name, "base.img");
    ck_assert_str_eq(header.backing_format, "raw");
    header_free(&header);
    put(AT(backing_file_size), 4, 1024);
    refused(-EINVAL, "backing_file_size is 1024: allowed is at most 1023");
    put(AT(backing_file_offset), 8, 65530);
    put(AT(backing_file_size), 4, 8);
    refused(-EINVAL, "backing_file_size is 8");
    put(AT(backing_file_offset), 8, 1000);
    image.bytes[1003] = 0;
    refused(-EINVAL, "NUL");
}
END_TEST

START_TEST(extensions)
{
    struct header header;
    struct qcow2_disk_feature_name names[2] = {
        {0, 40, "warp drive\x1b[2J"},
        {1, 7, "not this one"},
    };
    size_t at = put_extension(104, 0x12345678, "unknown, and skipped", 20);
    at = put_extension(at, QCOW2_EXT_FEATURE_NAMES, names, sizeof(names));
    at = put_extension(at, QCOW2_EXT_DATA_FILE, "data.raw", 8);
    put(AT(incompatible_features), 8, 1ULL << 40 | 1ULL << 41 | QCOW2_INCOMPAT_DATA_FILE);
    ck_assert_msg(read_header(&header) == 0, "%s", err.text);
    ck_assert_str_eq(header.data_file_name, "data.raw");
    ck_assert_str_eq(header.unknown_feature, "warp drive\\x1b[2J");
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_INFO, image_path, &err), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_CHECK, image_path, &err), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(err.text, "'warp drive\\x1b[2J'"));
    header_free(&header);

    put(AT(incompatible_features), 8, 1ULL << 63);
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert_str_eq(header.unknown_feature, "bit 63");
    header_free(&header);

    put(AT(incompatible_features), 8, 0);
    put_be32(image.bytes + at, 0x99);
    put_be32(image.bytes + at + 4, 65536);
    refused(-EINVAL, "length of header extension 0x00000099 is 65536");
    put_be32(image.bytes + at + 4, UINT32_MAX);
    refused(-EINVAL, "length of header extension 0x00000099 is 4294967295");
}
END_TEST

START_TEST(bitmaps)
{
    struct header header;
    struct qcow2_disk_bitmaps_extension raw = {0};

    put_be32(raw.nb_bitmaps.bytes, 2);
    put_be64(raw.directory_size.bytes, 64);
    put_be64(raw.directory_offset.bytes, 5 * 65536);
    put_extension(104, QCOW2_EXT_BITMAPS, &raw, sizeof(raw));
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert_uint_eq(header.bitmap_count, 0); /* the autoclear bit says: inconsistent */
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_WRITING, image_path, &err), 0);
    header_free(&header);
    put(AT(autoclear_features), 8, QCOW2_AUTOCLEAR_BITMAPS);
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert_uint_eq(header.bitmap_count, 2);
    ck_assert_uint_eq(header.bitmap_directory_offset.bytes, 5 * 65536);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_READING, image_path, &err), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_WRITING, image_path, &err), 0);
    header_free(&header);
    put_be64(raw.directory_offset.bytes, 3 * 65536);
    put_extension(104, QCOW2_EXT_BITMAPS, &raw, sizeof(raw));
    refused(-EINVAL, "bitmap directory");
    put_be64(raw.directory_size.bytes, UINT64_MAX);
    put_extension(104, QCOW2_EXT_BITMAPS, &raw, sizeof(raw));
    refused(-EINVAL, "bitmap_directory_size is");
}
END_TEST

START_TEST(admission)
{
    struct header header;

    put(AT(crypt_method), 4, QCOW2_CRYPT_AES);
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_CHECK, image_path, &err), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_READING, image_path, &err), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_WRITING, image_path, &err), -ENOTSUP);
    header_free(&header);
    put(AT(crypt_method), 4, QCOW2_CRYPT_LUKS);
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_READING, image_path, &err), -EINVAL);
    header_free(&header);
    put(AT(crypt_method), 4, 0);
    put(AT(incompatible_features), 8, QCOW2_INCOMPAT_CORRUPT);
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_READING, image_path, &err), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_WRITING, image_path, &err), -EIO);
    ck_assert_ptr_nonnull(strstr(err.text, "--repair all"));
    header_free(&header);
}
END_TEST

/* Reads the header, and demands that it is admitted for reading, or not, with this message. */
static void admit_for_reading(int ret, const char *text)
{
    struct header header;
    ck_assert_msg(read_header(&header) == 0, "%s", err.text);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_CHECK, image_path, &err), 0);
    ck_assert_int_eq(header_admit(&header, HEADER_FOR_READING, image_path, &err), ret);
    ck_assert_msg(ret == 0 || strstr(err.text, text), "%s", err.text);
    header_free(&header);
}

START_TEST(data_file_admission)
{
    struct header header;

    put(AT(incompatible_features), 8, QCOW2_INCOMPAT_DATA_FILE);
    admit_for_reading(-EINVAL, "extension 0x44415441, which names it, is missing");
    put_extension(104, QCOW2_EXT_DATA_FILE, "data.raw", 8);
    admit_for_reading(0, "");
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert(header.geo.data_file && !header.geo.data_file_raw);
    header_free(&header);
    put(AT(autoclear_features), 8, QCOW2_AUTOCLEAR_RAW_DATA_FILE);
    admit_for_reading(0, "");
    ck_assert_int_eq(read_header(&header), 0);
    ck_assert(header.geo.data_file && header.geo.data_file_raw);
    header_free(&header);
    put(AT(backing_file_offset), 8, 1000);
    put(AT(backing_file_size), 4, 4);
    memcpy(image.bytes + 1000, "base", 4);
    admit_for_reading(-EINVAL, "autoclear feature bit 1 (raw external data) is set");
    put(AT(autoclear_features), 8, 0);
    admit_for_reading(0, "");
    put(AT(incompatible_features), 8, 0);
    put(AT(autoclear_features), 8, QCOW2_AUTOCLEAR_RAW_DATA_FILE);
    admit_for_reading(-EINVAL, "allowed is 0 without an external data file");
}
END_TEST

static void put_snapshot(size_t at, uint64_t l1_offset, uint32_t l1_entries, uint32_t extra_len,
                         const char *name)
{
    struct qcow2_disk_snapshot raw = {0};

    put_be64(raw.l1_table_offset.bytes, l1_offset);
    put_be32(raw.l1_size.bytes, l1_entries);
    put_be16(raw.id_size.bytes, 1);
    put_be16(raw.name_size.bytes, (uint16_t)strlen(name));
    put_be32(raw.vm_state_size.bytes, 77);
    put_be32(raw.extra_data_size.bytes, extra_len);
    memcpy(image.bytes + at, &raw, sizeof(raw));
    if (extra_len >= 16) {
        put_be64(image.bytes + at + sizeof(raw), 1ULL << 40);
        put_be64(image.bytes + at + sizeof(raw) + 8, 4096);
    }
    size_t text_at = at + sizeof(raw) + MIN_OF(extra_len, 64U);
    image.bytes[text_at] = '1';
    memcpy(image.bytes + text_at + 1, name, strlen(name));
}

START_TEST(snapshots)
{
    struct header header;
    const size_t table = 6 * 65536;

    memset(image.bytes + table, 0, 65536);
    put(AT(snapshots_offset), 8, table);
    put(AT(nb_snapshots), 4, 2);
    put_snapshot(table, 7 * 65536, 3, 0, "old");
    put_snapshot(table + 48, 8 * 65536, 1, 16, "newer");
    ck_assert_msg(read_header(&header) == 0, "%s", err.text);
    ck_assert_uint_eq(header.snapshot_count, 2);
    ck_assert_uint_eq(header.snapshots_len_bytes, 48 + 64);
    ck_assert_str_eq(header.snapshots[0].name, "old");
    ck_assert_str_eq(header.snapshots[0].id, "1");
    ck_assert_uint_eq(header.snapshots[0].disk_size_bytes, 16 * 65536);
    ck_assert_uint_eq(header.snapshots[0].vm_state_bytes, 77);
    ck_assert_uint_eq(header.snapshots[0].l1_entries, 3);
    ck_assert_str_eq(header.snapshots[1].name, "newer");
    ck_assert_uint_eq(header.snapshots[1].disk_size_bytes, 4096);
    ck_assert_uint_eq(header.snapshots[1].vm_state_bytes, 1ULL << 40);
    header_free(&header);

    put_snapshot(table + 48, 8 * 65536 + 512, 1, 16, "newer");
    refused(-EINVAL, "l1_table_offset of a snapshot is 0x80200");
    put_snapshot(table + 48, 8 * 65536, 0xffffffff, 16, "newer");
    refused(-EINVAL, "l1_size of a snapshot is 4294967295");
    put_snapshot(table + 48, 8 * 65536, 1, 1025, "newer");
    refused(-EINVAL, "extra_data_size of a snapshot is 1025");
    put_snapshot(table + 48, 8 * 65536, 1, 0xffffffff, "newer");
    refused(-EINVAL, "extra_data_size of a snapshot is 4294967295");
    put_snapshot(table + 48, 8 * 65536, 1, 16, "newer");
    put(AT(nb_snapshots), 4, 65536);
    refused(-EINVAL, "snapshots_offset is 0x60000");
    put(AT(snapshots_offset), 8, 3 * 65536);
    put(AT(nb_snapshots), 4, 1);
    refused(-EINVAL, "snapshot table is 0x30000: allowed is outside of the L1 table");
}
END_TEST

START_TEST(version_2)
{
    struct header header;
    const struct test_image_options options = {2, 9, 4, false, 6};

    test_image_free(&image);
    test_image_build(&image, &options);
    /* What would be version 3 fields are extensions here. */
    put_extension(72, QCOW2_EXT_BACKING_FORMAT, "qcow2", 5);
    ck_assert_msg(read_header(&header) == 0, "%s", err.text);
    ck_assert_uint_eq(header.header_len_bytes, 72);
    ck_assert_uint_eq(header.geo.refcount_order, 4);
    ck_assert_uint_eq(header.incompatible, 0);
    ck_assert(!header.geo.has_zero_flag);
    ck_assert_str_eq(header.backing_format, "qcow2");
    struct disk *disk = open_image();
    ck_assert_int_eq(co_header_set_features(disk, &header, QCOW2_INCOMPAT_DIRTY, 0), -ENOTSUP);
    ck_assert_int_eq(co_header_set_features(disk, &header, 0, 0), 0);
    disk_close(disk);
    header_free(&header);
}
END_TEST

START_TEST(fields_change_in_place)
{
    struct header header;
    struct test_image now;

    put(AT(compatible_features), 8, 0x8000000000000001ULL);
    put_extension(104, 0x12345678, "must survive", 12);
    ck_assert_int_eq(read_header(&header), 0);
    struct disk *disk = open_image();
    ck_assert_int_eq(co_header_set_features(disk, &header, QCOW2_INCOMPAT_DIRTY, 2), 0);
    ck_assert_int_eq(co_header_set_reftable(disk, &header, (host_off){5 * 65536}, 2), 0);
    ck_assert_uint_eq(header.incompatible, QCOW2_INCOMPAT_DIRTY);
    ck_assert_uint_eq(header.autoclear, 2);
    ck_assert_uint_eq(header.reftable_offset.bytes, 5 * 65536);
    ck_assert_uint_eq(header.reftable_clusters, 2);
    world.calls = 0;
    world.fail_from_call = 1;
    world.fail_with = -EIO;
    ck_assert_int_eq(co_header_set_features(disk, &header, 0, 0), -EIO);
    ck_assert_uint_eq(header.incompatible, QCOW2_INCOMPAT_DIRTY);
    disk_close(disk);
    header_free(&header);

    put(AT(incompatible_features), 8, QCOW2_INCOMPAT_DIRTY);
    put(AT(autoclear_features), 8, 2);
    put(AT(refcount_table_offset), 8, 5 * 65536);
    put(AT(refcount_table_clusters), 4, 2);
    test_image_load(&now, image_path);
    ck_assert_uint_eq(now.len_bytes, image.len_bytes);
    ck_assert_int_eq(memcmp(now.bytes, image.bytes, image.len_bytes), 0);
    test_image_free(&now);
}
END_TEST

/* Random bytes over the fields: any answer, but an orderly one. */
START_TEST(garbage)
{
    unsigned seed = 4711;
    uint8_t good[512];

    memcpy(good, image.bytes, sizeof(good));
    for (unsigned round = 0; round < 2000; round++) {
        struct header header;
        memcpy(image.bytes, good, sizeof(good));
        for (unsigned n = 0; n < 1 + round % 4; n++) {
            unsigned at = 4 + (unsigned)rand_r(&seed) % 200;
            image.bytes[at] = (uint8_t)rand_r(&seed);
        }
        int rc = read_header(&header);
        ck_assert(rc == 0 || rc == -EINVAL || rc == -ENOTSUP);
        ck_assert(rc == 0 || strlen(err.text) > strlen(image_path));
        if (rc == 0) {
            header_free(&header);
        }
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("header");

    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 50);
    tcase_add_test(tcase, good_image);
    tcase_add_loop_test(tcase, bad_field, 0, (int)ARRAY_LEN(bad_fields));
    tcase_add_test(tcase, extended_l2_needs_large_clusters);
    tcase_add_test(tcase, compression_type);
    tcase_add_test(tcase, short_files);
    tcase_add_test(tcase, backing_file);
    tcase_add_test(tcase, extensions);
    tcase_add_test(tcase, bitmaps);
    tcase_add_test(tcase, admission);
    tcase_add_test(tcase, data_file_admission);
    tcase_add_test(tcase, snapshots);
    tcase_add_test(tcase, version_2);
    tcase_add_test(tcase, fields_change_in_place);
    tcase_add_test(tcase, garbage);
    Suite *suite = suite_create("header");
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
