/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * LUKS headers. An input is how long the area is, the header's bytes, and what the material of its
 * slots is made of. Demanded: what is refused is refused in one line; what is let through lies
 * inside the area, apart, with bounded work to do, and is read the same when it is written down
 * again. Where the work is small, a passphrase is tried.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "crypto/library.h"
#include "crypto/luks.h"
#include "crypto/secret.h"
#include "fuzz/feed.h"
#include "fuzz/fuzz.h"

/* A derivation of more is not worth the time: what is different is the number. */
#define TRIED_ITERATIONS_MAX 4U

static void judge_places(const struct luks *luks, uint64_t area_bytes)
{
    uint64_t len = luks_material_bytes(luks);
    demand(luks_area_bytes(luks) <= area_bytes, "an area longer than there is");
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        uint64_t at = luks_material_offset(luks, i);
        demand(at >= LUKS_HEADER_BYTES && range_inside(at, len, luks_area_bytes(luks)),
               "slot %u lies outside", i);
        for (unsigned j = 0; j < i; j++) {
            uint64_t other = luks_material_offset(luks, j);
            demand(at + len <= other || other + len <= at, "slots %u and %u overlap", i, j);
        }
    }
}

static void judge_work(const struct luks *luks)
{
    uint64_t rounds = 0;
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *slot = &luks->slots[i];
        if (slot->active) {
            demand(slot->iterations > 0, "no iteration");
            rounds += (uint64_t)slot->iterations * luks_blocks(luks->hash, luks_key_bytes(luks));
            rounds += luks->digest_iterations;
        }
    }
    demand(rounds <= LIMIT_LUKS_ROUNDS, "more work than is allowed");
    demand(luks_key_bytes(luks) > 0 && luks_key_bytes(luks) <= CIPHER_KEY_BYTES_MAX,
           "a key of %u bytes", luks_key_bytes(luks));
}

static void judge_rewritten(const struct luks *luks, uint64_t area_bytes)
{
    uint8_t bytes[LUKS_HEADER_BYTES], again[LUKS_HEADER_BYTES];
    struct errtext err = {""};
    struct luks copy;
    luks_format(luks, bytes);
    int rc = luks_parse(bytes, area_bytes, &copy, &err);
    demand(rc == 0, "written down again: %s", err.text);
    luks_format(&copy, again);
    demand(memcmp(bytes, again, sizeof(bytes)) == 0, "written down again it is another");
}

static void try_slots(const struct luks *luks, struct feed *feed)
{
    static const uint8_t passphrase[] = "passphrase";
    size_t len = (size_t)luks_material_bytes(luks);
    uint8_t key[CIPHER_KEY_BYTES_MAX];
    uint8_t *material = calloc(1, len);
    size_t given;
    const uint8_t *bytes = feed_bytes(feed, len, &given);
    for (unsigned i = 0; i < LUKS_SLOTS && material; i++) {
        const struct luks_slot *slot = &luks->slots[i];
        if (!slot->active || slot->iterations > TRIED_ITERATIONS_MAX ||
            luks->digest_iterations > TRIED_ITERATIONS_MAX) {
            continue;
        }
        memcpy(material, bytes, given);
        int rc = luks_unlock(luks, i, material, passphrase, sizeof(passphrase) - 1, key);
        /* libFuzzer sees what the digest is compared with, and writes it into the header. */
        demand(rc == 0 || rc == -EACCES || rc == -ENOMEM, "%d", rc);
    }
    free(material);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    uint8_t bytes[LUKS_HEADER_BYTES] = {0};
    struct feed feed = {data, len};
    struct errtext err = {""};
    struct luks luks;
    size_t given;

    crypto_library_start();
    uint64_t area_bytes = (uint64_t)feed_u16(&feed) * CRYPTO_SECTOR_BYTES;
    const uint8_t *from = feed_bytes(&feed, sizeof(bytes), &given);
    memcpy(bytes, from, given);
    int rc = luks_parse(bytes, area_bytes, &luks, &err);
    fuzz_demand_line("a message", err.text);
    if (rc < 0) {
        demand(rc == -EINVAL || rc == -ENOTSUP, "refused with %d", rc);
        demand(err.text[0] != '\0', "refused without a word");
        return 0;
    }
    judge_places(&luks, area_bytes);
    judge_work(&luks);
    judge_rewritten(&luks, area_bytes);
    try_slots(&luks, &feed);
    return 0;
}
