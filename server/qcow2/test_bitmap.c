/* SPDX-License-Identifier: BSD-2-Clause */
/* Against an array of one byte a granule, which is easy to believe. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/testing.h"
#include "qcow2/bitmap.h"

#define GRANULARITY_BITS 9U
#define GRANULE          (1ULL << GRANULARITY_BITS)
#define PAGE_GRANULES    (8ULL * BITMAP_PAGE_BYTES)
/* Three pages and a bit, and the last granule is not whole. */
#define SIZE ((3 * PAGE_GRANULES + 1003) * GRANULE - 100)

struct pair {
    struct bitmap bitmap;
    uint8_t *model;
    uint64_t size_bytes;
    uint64_t granules;
};

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return *state >> 24;
}

static void pair_init(struct pair *pair, uint64_t size_bytes)
{
    ck_assert_int_eq(bitmap_init(&pair->bitmap, size_bytes, GRANULARITY_BITS), 0);
    pair->size_bytes = size_bytes;
    pair->granules = div_round_up(size_bytes, GRANULE);
    pair->model = calloc(1, pair->granules + 1);
    ck_assert_ptr_nonnull(pair->model);
}

static void pair_free(struct pair *pair)
{
    bitmap_free(&pair->bitmap);
    free(pair->model);
}

static void pair_set(struct pair *pair, uint64_t offset, uint64_t len)
{
    uint64_t first = offset / GRANULE;
    uint64_t last = (offset + len - 1) / GRANULE;
    bool changes = memchr(pair->model + first, 0, last - first + 1) != NULL;

    memset(pair->model + first, 1, last - first + 1);
    ck_assert_int_eq(bitmap_set(&pair->bitmap, offset, len), changes);
}

static void pair_compare(const struct pair *pair)
{
    uint64_t count = 0;

    for (uint64_t offset = 0; offset < pair->size_bytes;) {
        bool is_dirty;
        uint64_t end;
        bitmap_next(&pair->bitmap, offset, pair->size_bytes, &is_dirty, &end);
        ck_assert_uint_gt(end, offset);
        uint64_t granule = offset / GRANULE;
        while (granule * GRANULE < end && pair->model[granule] == is_dirty) {
            granule++;
        }
        ck_assert_msg(granule * GRANULE >= end, "granule %llu", (unsigned long long)granule);
        if (end < pair->size_bytes) {
            ck_assert_uint_eq(end % GRANULE, 0);
            ck_assert_uint_ne(pair->model[end / GRANULE], is_dirty);
        }
        count += is_dirty ? end - offset : 0;
        offset = end;
    }
    ck_assert_uint_eq(bitmap_count_bytes(&pair->bitmap), count);
}

static void pair_randomise(struct pair *pair, uint64_t *random, unsigned times)
{
    for (unsigned i = 0; i < times; i++) {
        uint64_t offset = next_random(random) % pair->size_bytes;
        uint64_t most = next_random(random) % 7 == 0 ? pair->size_bytes : 3 * GRANULE;
        uint64_t len = 1 + next_random(random) % MIN_OF(most, pair->size_bytes - offset);
        pair_set(pair, offset, len);
    }
}

START_TEST(what_is_marked_is_dirty_and_nothing_else)
{
    uint64_t random = 1;

    for (unsigned run = 0; run < 30; run++) {
        struct pair pair;
        pair_init(&pair, run % 3 == 0 ? 1 + next_random(&random) % (20 * GRANULE) : SIZE);
        pair_compare(&pair);
        pair_randomise(&pair, &random, 1 + run % 20);
        pair_compare(&pair);
        bitmap_set_whole(&pair.bitmap);
        memset(pair.model, 1, pair.granules);
        pair_compare(&pair);
        bitmap_clear_whole(&pair.bitmap);
        memset(pair.model, 0, pair.granules);
        pair_compare(&pair);
        pair_free(&pair);
    }
}
END_TEST

START_TEST(a_disk_of_no_bytes_has_a_bitmap)
{
    struct bitmap bitmap;

    ck_assert_int_eq(bitmap_init(&bitmap, 0, 16), 0);
    ck_assert_uint_eq(bitmap_serialised_bytes(&bitmap), 0);
    ck_assert_uint_eq(bitmap_count_bytes(&bitmap), 0);
    bitmap_set_whole(&bitmap);
    ck_assert(!bitmap_snapshot(&bitmap));
    ck_assert_int_eq(bitmap_resize(&bitmap, 5), 0);
    ck_assert_uint_eq(bitmap_count_bytes(&bitmap), 5);
    bitmap_free(&bitmap);
}
END_TEST

START_TEST(the_serialised_form_comes_back)
{
    static const size_t steps[] = {BITMAP_PAGE_BYTES, 3 * BITMAP_PAGE_BYTES, 512, 64};
    uint64_t random = 2;

    for (unsigned run = 0; run < 20; run++) {
        struct pair pair, copy;
        size_t step = steps[run % ARRAY_LEN(steps)];
        uint8_t *bytes = malloc(step);
        pair_init(&pair, SIZE);
        pair_init(&copy, SIZE);
        pair_randomise(&pair, &random, 1 + run);
        for (uint64_t first = 0; first < bitmap_serialised_bytes(&pair.bitmap); first += step) {
            enum bitmap_piece piece = bitmap_piece(&pair.bitmap, first, step);
            bitmap_save(&pair.bitmap, first, bytes, step);
            unsigned wrong = 0;
            for (uint64_t i = 0; i < step * 8ULL; i++) {
                uint64_t granule = first * 8 + i;
                bool is_set = bytes[i / 8] >> i % 8 & 1;
                wrong += is_set != (granule < pair.granules && pair.model[granule]);
                wrong += granule < pair.granules && piece != BITMAP_PIECE_MIXED &&
                         is_set != (piece == BITMAP_PIECE_SET);
            }
            ck_assert_uint_eq(wrong, 0);
            if (piece == BITMAP_PIECE_SET) {
                bitmap_load_set(&copy.bitmap, first, step);
            } else {
                bitmap_load(&copy.bitmap, first, bytes, step);
            }
        }
        memcpy(copy.model, pair.model, pair.granules);
        pair_compare(&copy);
        ck_assert(!bitmap_snapshot(&copy.bitmap)); /* loading is no change */
        pair_free(&pair);
        pair_free(&copy);
        free(bytes);
    }
}
END_TEST

START_TEST(what_others_wrote_beyond_the_end_is_nothing)
{
    struct bitmap bitmap;
    uint8_t bytes[8];

    memset(bytes, 0xff, sizeof(bytes));
    ck_assert_int_eq(bitmap_init(&bitmap, 11 * GRANULE, GRANULARITY_BITS), 0);
    bitmap_load(&bitmap, 0, bytes, sizeof(bytes));
    ck_assert_uint_eq(bitmap_count_bytes(&bitmap), 11 * GRANULE);
    bitmap_save(&bitmap, 0, bytes, sizeof(bytes));
    ck_assert_uint_eq(bytes[0], 0xff);
    ck_assert_uint_eq(bytes[1], 0x07);
    ck_assert_uint_eq(bytes[2], 0);
    bitmap_free(&bitmap);
}
END_TEST

START_TEST(merging_is_a_union_at_any_granularity)
{
    uint64_t random = 3;

    for (unsigned bits = 9; bits <= 31; bits++) {
        struct pair pair;
        struct bitmap other;
        pair_init(&pair, SIZE);
        pair_randomise(&pair, &random, 5);
        ck_assert_int_eq(bitmap_init(&other, SIZE - (bits % 2) * 5 * GRANULE, bits), 0);
        uint64_t offset = next_random(&random) % (other.size_bytes - 1);
        bitmap_set(&other, offset, 1 + next_random(&random) % (other.size_bytes - offset));
        if (bits % 5 == 0) {
            bitmap_set_whole(&other);
        }
        bitmap_merge(&pair.bitmap, &other);
        for (uint64_t at = 0; at < other.size_bytes;) {
            bool is_dirty;
            uint64_t end;
            bitmap_next(&other, at, other.size_bytes, &is_dirty, &end);
            if (is_dirty) {
                memset(pair.model + at / GRANULE, 1, (end - 1) / GRANULE - at / GRANULE + 1);
            }
            at = end;
        }
        pair_compare(&pair);
        bitmap_free(&other);
        pair_free(&pair);
    }
}
END_TEST

START_TEST(what_a_resize_adds_is_dirty)
{
    uint64_t random = 4;

    for (unsigned run = 0; run < 60; run++) {
        struct pair pair;
        uint64_t size_bytes = 1 + next_random(&random) % SIZE;
        uint64_t resized_bytes = 1 + next_random(&random) % SIZE;
        pair_init(&pair, size_bytes);
        if (run % 4 == 0) {
            bitmap_set_whole(&pair.bitmap);
            memset(pair.model, 1, pair.granules);
        } else if (run % 4 != 1) {
            pair_randomise(&pair, &random, 4);
        }
        ck_assert_int_eq(bitmap_resize(&pair.bitmap, resized_bytes), 0);
        uint64_t granules = div_round_up(resized_bytes, GRANULE);
        uint8_t *model = calloc(1, granules);
        memcpy(model, pair.model, MIN_OF(granules, pair.granules));
        if (resized_bytes > size_bytes) {
            memset(model + size_bytes / GRANULE, 1, granules - size_bytes / GRANULE);
        }
        free(pair.model);
        pair.model = model;
        pair.granules = granules;
        pair.size_bytes = resized_bytes;
        pair_compare(&pair);
        pair_randomise(&pair, &random, 3);
        pair_compare(&pair);
        pair_free(&pair);
    }
}
END_TEST

START_TEST(what_changes_while_it_is_saved_is_saved_again)
{
    struct bitmap bitmap;

    ck_assert_int_eq(bitmap_init(&bitmap, SIZE, GRANULARITY_BITS), 0);
    ck_assert(!bitmap_snapshot(&bitmap));
    bitmap_set(&bitmap, PAGE_GRANULES * GRANULE, 1);
    ck_assert(bitmap_snapshot(&bitmap));
    ck_assert(!bitmap_is_saving(&bitmap, 0, BITMAP_PAGE_BYTES));
    ck_assert(bitmap_is_saving(&bitmap, BITMAP_PAGE_BYTES, 1));
    ck_assert(bitmap_is_saving(&bitmap, 0, BITMAP_PAGE_BYTES + 1));
    ck_assert(!bitmap_is_saving(&bitmap, 2 * BITMAP_PAGE_BYTES, 1 << 20));
    ck_assert(!bitmap_set(&bitmap, PAGE_GRANULES * GRANULE, 1)); /* no change */
    bitmap_set(&bitmap, 0, 1);
    bitmap_snapshot_done(&bitmap, true);
    ck_assert(bitmap_snapshot(&bitmap));
    ck_assert(bitmap_is_saving(&bitmap, 0, 1));
    ck_assert(!bitmap_is_saving(&bitmap, BITMAP_PAGE_BYTES, 1));
    bitmap_snapshot_done(&bitmap, false);
    ck_assert(bitmap_snapshot(&bitmap)); /* it had failed */
    bitmap_snapshot_done(&bitmap, true);
    ck_assert(!bitmap_snapshot(&bitmap));
    bitmap_free(&bitmap);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bitmap");
    TCase *cases = tcase_create("bits");

    tcase_add_test(cases, what_is_marked_is_dirty_and_nothing_else);
    tcase_add_test(cases, a_disk_of_no_bytes_has_a_bitmap);
    tcase_add_test(cases, the_serialised_form_comes_back);
    tcase_add_test(cases, what_others_wrote_beyond_the_end_is_nothing);
    tcase_add_test(cases, merging_is_a_union_at_any_granularity);
    tcase_add_test(cases, what_a_resize_adds_is_dirty);
    tcase_add_test(cases, what_changes_while_it_is_saved_is_saved_again);
    suite_add_tcase(suite, cases);
    return test_suite_run(suite);
}
