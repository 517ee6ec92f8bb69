/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Encrypted images in the simulated world: what lies on the disk is not what the guest wrote,
 * neighbours in one sector do not hurt each other, and without the right key nothing is written.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "crypto/library.h"
#include "qcow2/ondisk.h"
#include "qcow2/test_rig.h"
#include "qcow2/unlock.h"
#include "sched/co.h"

#define CLUSTER 65536U
#define PATTERN 0x5a
/* Two to a sector, and across its edge. */
#define PIECE_BYTES 200U
#define PIECES      64U

static uint8_t passphrase[] = "a long way to go";
static const struct image_key right = {"right", passphrase, sizeof(passphrase) - 1};
static const struct image_key wrong = {"wrong", passphrase, sizeof(passphrase) - 2};

struct shape {
    uint64_t cluster_bytes;
    bool extended;
    const char *data_file;
    const char *cipher;
    const char *mode;
};

static const struct shape shapes[] = {
    {CLUSTER, false, NULL, "aes-256", "xts"},     {CLUSTER, true, NULL, "aes-128", "cbc"},
    {512, false, NULL, "aes-256", "xts"},         {CLUSTER, false, "disk.data", "aes-256", "xts"},
    {CLUSTER, false, NULL, "twofish-192", "xts"}, {4096, false, NULL, "serpent-256", "ctr"},
};

/* NULL: none. */
static void use_key(struct rig *rig, const struct image_key *key)
{
    rig->options.keys = key;
    rig->options.key_count = key ? 1 : 0;
}

static void begin(struct rig *rig, const struct shape *shape, uint64_t seed)
{
    rig_init(rig, seed);
    rig->create.size_bytes = 40 * CLUSTER;
    rig->create.cluster_bytes = shape->cluster_bytes;
    rig->create.extended_l2 = shape->extended;
    rig->create.data_file_name = shape->data_file;
    rig->create.encryption = (struct encryption_options){
        .luks = true,
        .cipher_alg = shape->cipher,
        .cipher_mode = shape->mode,
        .iterations = 2,
    };
    rig->create.key = &right;
    use_key(rig, &right);
}

/* No 16 bytes of what is written may be the guest's. */
static void look_for_plain_bytes(struct rig *rig, const struct rig_event *event,
                                 const struct iovec *iov, int iov_count)
{
    uint8_t plain[16];
    (void)rig;
    memset(plain, PATTERN, sizeof(plain));
    for (int i = 0; event->call == RIG_WRITE && i < iov_count; i++) {
        ck_assert_ptr_null(memmem(iov[i].iov_base, iov[i].iov_len, plain, sizeof(plain)));
    }
}

static void co_disk_is_secret(struct rig *rig)
{
    rig->look = look_for_plain_bytes;
    co_rig_write(rig, 0, 3 * CLUSTER, PATTERN);
    co_rig_write(rig, 5 * CLUSTER + 100, 1000, PATTERN);
    co_rig_write(rig, 5 * CLUSTER + 300, CLUSTER, PATTERN);
    co_rig_zero(rig, CLUSTER + 700, 3000, 0);
    co_rig_trim(rig, 2 * CLUSTER, CLUSTER);
    for (unsigned round = 0; round < 2; round++) {
        co_rig_expect(rig, 0, CLUSTER + 700, PATTERN);
        co_rig_expect(rig, CLUSTER + 700, 3000, 0);
        co_rig_expect(rig, CLUSTER + 3700, CLUSTER - 3700, PATTERN);
        co_rig_expect(rig, 2 * CLUSTER, 3 * CLUSTER + 100, 0);
        co_rig_expect(rig, 5 * CLUSTER + 100, CLUSTER + 200, PATTERN);
        co_rig_expect(rig, 6 * CLUSTER + 300, 10000, 0);
        rig->look = NULL;
        co_rig_close(rig);
        co_rig_open(rig);
    }
}

START_TEST(the_disk_holds_nothing_that_the_guest_wrote)
{
    struct rig rig;
    begin(&rig, &shapes[_i], 7);
    rig_run(&rig, co_disk_is_secret);
    rig_free(&rig);
}
END_TEST

static unsigned next_piece;

static void co_write_piece(struct rig *rig)
{
    unsigned piece = next_piece++;
    co_rig_write(rig, (uint64_t)piece * PIECE_BYTES, PIECE_BYTES, (int)(piece + 1));
}

/* In place, where requests that touch no common byte do not wait for each other above. */
static void co_write_neighbours(struct rig *rig)
{
    co_rig_write(rig, 0, CLUSTER, 0xff);
    next_piece = 0;
    for (unsigned i = 0; i < PIECES; i++) {
        rig_spawn(rig, co_write_piece);
    }
    co_rig_join(rig);
    for (unsigned i = 0; i < PIECES; i++) {
        co_rig_expect(rig, (uint64_t)i * PIECE_BYTES, PIECE_BYTES, (int)(i + 1));
    }
    co_rig_expect(rig, PIECES * PIECE_BYTES, CLUSTER - PIECES * PIECE_BYTES, 0xff);
}

START_TEST(neighbours_in_a_sector_leave_each_other_alone)
{
    struct rig rig;
    begin(&rig, &shapes[0], (uint64_t)_i);
    rig_run(&rig, co_write_neighbours);
    rig_free(&rig);
}
END_TEST

static void co_try(struct rig *rig, const struct image_key *key, int error, const char *says)
{
    struct errtext err = {""};
    use_key(rig, key);
    int ret = co_rig_try_open(rig, &err);
    ck_assert_msg(ret == -error && strstr(err.text, says), "%d: %s", ret, err.text);
}

static void co_refuse_keys(struct rig *rig)
{
    co_rig_close(rig);
    struct test_image before = rig_get(rig, RIG_IMAGE);
    co_try(rig, &wrong, EACCES, "opens none of its 1 key slots");
    co_try(rig, NULL, EACCES, "--key-file");
    struct test_image after = rig_get(rig, RIG_IMAGE);
    ck_assert_uint_eq(before.len_bytes, after.len_bytes);
    ck_assert_mem_eq(before.bytes, after.bytes, before.len_bytes);
    free(before.bytes);
    free(after.bytes);
    use_key(rig, &right);
    co_rig_open(rig);
}

START_TEST(without_the_key_nothing_happens)
{
    struct rig rig;
    begin(&rig, &shapes[0], 3);
    rig_run(&rig, co_refuse_keys);
    rig_free(&rig);
}
END_TEST

/* A slot that is being removed: whatever is lost, the other one opens the image. */
static void co_change_slots(struct rig *rig)
{
    struct errtext err = {""};
    struct disk *disk = rig->q->disk;
    struct image_key second = {"second", passphrase, 3};
    unsigned slot = LUKS_SLOTS;

    int ret = co_key_add(disk, &rig->q->header, &right, &second, 1, &slot, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    ck_assert_uint_eq(slot, 1);
    ck_assert_int_eq(co_key_add(disk, &rig->q->header, &right, &second, 1, &slot, &err), -EBUSY);
    slot = 0;
    rig_forget(rig);
    ck_assert_int_eq(co_key_remove(disk, &rig->q->header, NULL, &slot, &err), 0);
    /* Its material first, durably, and only then the header. */
    ck_assert_uint_eq(rig_count(rig, RIG_FLUSH), 4);
    ck_assert_int_eq(co_key_remove(disk, &rig->q->header, &second, &slot, &err), -EPERM);
    co_rig_close(rig);
    co_try(rig, &right, EACCES, "opens none");
    use_key(rig, &second);
    co_rig_open(rig);
}

START_TEST(slots_come_and_go)
{
    struct rig rig;
    begin(&rig, &shapes[0], 5);
    rig_run(&rig, co_change_slots);
    rig_free(&rig);
}
END_TEST

/* One field of the LUKS header each; the parser's own tests know more of them. */
static const struct header_damage {
    size_t offset;
    uint32_t value;
    int error;
    const char *says;
} damages[] = {
    {0, 0, EINVAL, "LUKS's magic"},
    {104, 0xffffffff, EINVAL, "payload-offset"},
    {164, 0xffffffff, EINVAL, "iterations"},
    {208 + 4, 0xffffffff, EINVAL, "iterations of the slot 0"},
    {208 + 48 + 40, 9, EINVAL, "outside of that of slot 0"},
    {208, 0xdead, EACCES, "opens none of its 0 key slots"},
};

static const struct header_damage *damage;

static void co_damage(struct rig *rig)
{
    uint8_t bytes[4];
    uint64_t at = rig->q->header.crypto_header_offset.bytes + damage->offset;
    co_rig_close(rig);
    struct test_image image = rig_get(rig, RIG_IMAGE);
    memcpy(bytes, image.bytes + at, sizeof(bytes));
    put_be32(image.bytes + at, damage->value);
    rig_put(rig, RIG_IMAGE, &image);
    co_try(rig, &right, damage->error, damage->says);
    memcpy(image.bytes + at, bytes, sizeof(bytes));
    rig_put(rig, RIG_IMAGE, &image);
    free(image.bytes);
    use_key(rig, &right);
    co_rig_open(rig);
}

START_TEST(a_damaged_header_is_refused_by_name)
{
    struct rig rig;
    damage = &damages[_i];
    begin(&rig, &shapes[0], 9);
    rig_run(&rig, co_damage);
    rig_free(&rig);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("encrypted");
    TCase *tc = tcase_create("encrypted");
    if (!crypto_library_present()) {
        return 77;
    }
    tcase_add_loop_test(tc, the_disk_holds_nothing_that_the_guest_wrote, 0,
                        (int)(sizeof(shapes) / sizeof(*shapes)));
    tcase_add_loop_test(tc, neighbours_in_a_sector_leave_each_other_alone, 0, 10);
    tcase_add_test(tc, without_the_key_nothing_happens);
    tcase_add_test(tc, slots_come_and_go);
    tcase_add_loop_test(tc, a_damaged_header_is_refused_by_name, 0,
                        (int)(sizeof(damages) / sizeof(*damages)));
    suite_add_tcase(suite, tc);
    return rig_main(suite);
}
