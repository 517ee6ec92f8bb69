/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * For unit tests: small images held in memory, made by hand or loaded from a file, with ways to
 * find and change single entries; and a table of damages, each with the verdict that a check owes
 * it. All of it believes the image it is given, so only for images from here or from qemu-img.
 */
#ifndef QCOWD_QCOW2_TEST_IMAGES_H
#define QCOWD_QCOW2_TEST_IMAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/geometry.h"

struct test_image {
    uint8_t *bytes; /* owned */
    uint64_t len_bytes;
    struct geometry geo;
};

struct test_image_options {
    uint32_t version;
    uint32_t cluster_bits;
    uint32_t refcount_order;
    bool extended_l2;
    unsigned
        data_clusters; /* guest clusters 0 .. n - 1 are allocated, filled with their number + 1 */
};

/*
 * One L1 entry, one L2 table, one refcount block; twice as many guest clusters as allocated ones.
 */
void test_image_build(struct test_image *image, const struct test_image_options *options);
void test_image_load(struct test_image *image, const char *path);
void test_image_save(const struct test_image *image, const char *path);
void test_image_free(struct test_image *image);

uint64_t test_image_get(const struct test_image *image, uint64_t at);
void test_image_put(struct test_image *image, uint64_t at, uint64_t value);
/* File offsets of entries. The L2 table of guest_cluster must exist. */
uint64_t test_image_l1_at(const struct test_image *image, uint64_t index);
uint64_t test_image_l2_at(const struct test_image *image, uint64_t guest_cluster);
uint64_t test_image_reftable_at(const struct test_image *image, uint64_t index);
/* The block that counts `cluster` must exist for set; get says 0 without one. */
uint64_t test_image_refcount(const struct test_image *image, uint64_t cluster);
void test_image_set_refcount(struct test_image *image, uint64_t cluster, uint64_t count);
/* Makes the file longer by one cluster of zeroes; returns its index. */
uint64_t test_image_append_cluster(struct test_image *image);

/*
 * Takes a snapshot, as the format says: a second L1 table that shares the L2 table, all counts up,
 * no COPIED left. Refcounts must be wider than one bit.
 */
void test_image_add_snapshot(struct test_image *image);

enum verdict { VERDICT_CLEAN, VERDICT_LEAKS, VERDICT_CORRUPT };

struct damage {
    const char *name;
    /* False: the image has no place for this damage. Guest clusters 0 to 3 must be allocated with
     * normal clusters. */
    bool (*apply)(struct test_image *image);
    enum verdict verdict;
    uint64_t leaks;      /* exactly, for VERDICT_LEAKS */
    bool repairable;     /* repair all leaves it clean */
    bool qemu_is_laxer;  /* qemu-img check does not call it corrupt */
    const char *finding; /* part of a line that must be said; NULL: none */
};

extern const struct damage test_damages[];
extern const size_t test_damage_count;

#endif
