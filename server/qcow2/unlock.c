/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Everything that a passphrase is turned into lies in secret memory. A slot is added material
 * first, header second, each durable before the next; it is destroyed the other way round: first
 * its material is gone, so that a crash in between leaves a slot that opens for nobody.
 */
#include "qcow2/unlock.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "crypto/library.h"
#include "crypto/secret.h"
#include "qcow2/ondisk.h"

#define AES_KEY_BYTES 16U
/* As QEMU has it: the digest of the key gets an eighth of the time, a slot a half. */
#define ITER_TIME_DEFAULT_MS 2000U
#define DIGEST_SHARE         8U
#define SLOT_SHARE           2U
#define ITERATIONS_LEAST     1000U
#define WIPE_ROUNDS          3U

static int out_of_memory(const char *path, struct errtext *err)
{
    return err_set(err, ENOMEM, "%s: out of memory", path);
}

/* ---- Deriving, on a worker ---- */

struct derivation {
    const struct luks *luks;
    unsigned slot;
    uint8_t *material;
    const struct image_key *passphrase;
    uint8_t *key;
    int result;
};

static void run_unlock(void *arg)
{
    struct derivation *work = arg;
    work->result = luks_unlock(work->luks, work->slot, work->material, work->passphrase->passphrase,
                               work->passphrase->len, work->key);
}

static void run_lock(void *arg)
{
    struct derivation *work = arg;
    work->result = luks_lock(work->luks, work->slot, work->material, work->passphrase->passphrase,
                             work->passphrase->len, work->key);
}

/* ---- Finding a key ---- */

int co_luks_read(struct disk *disk, const struct header *header, struct luks *luks,
                 struct errtext *err)
{
    uint8_t bytes[LUKS_HEADER_BYTES];

    if (header->crypto_header_len_bytes < sizeof(bytes)) {
        return err_set(err, EINVAL,
                       "%s: length of the encryption header is %" PRIu64 ": allowed is at least %u",
                       disk->path, header->crypto_header_len_bytes, LUKS_HEADER_BYTES);
    }
    int ret = co_disk_read(disk, header->crypto_header_offset.bytes, bytes, sizeof(bytes));
    if (ret < 0) {
        return err_set(err, -ret, "%s: reading the encryption header: %s", disk->path,
                       strerror(-ret));
    }
    ret = luks_parse(bytes, header->crypto_header_len_bytes, luks, err);
    if (ret < 0) {
        err_prefix(err, "%s", disk->path);
    }
    return ret;
}

static uint64_t material_at(const struct header *header, const struct luks *luks, unsigned slot)
{
    return header->crypto_header_offset.bytes + luks_material_offset(luks, slot);
}

/* Tries one slot. */
static int co_try_slot(struct disk *disk, const struct header *header, const struct luks *luks,
                       unsigned slot, const struct image_key *passphrase, uint8_t *key)
{
    size_t len = (size_t)luks_material_bytes(luks);
    uint8_t *material = secret_alloc(len);
    int ret =
        material ? co_disk_read(disk, material_at(header, luks, slot), material, len) : -ENOMEM;
    if (ret == 0) {
        struct derivation work = {luks, slot, material, passphrase, key, 0};
        disk->world->ops->co_work(disk->world, run_unlock, &work);
        ret = work.result;
    }
    secret_free(material);
    return ret;
}

/* The volume's key. *slot: where it was found. */
static int co_find_key(struct disk *disk, const struct header *header, const struct luks *luks,
                       const struct image_key *passphrase, uint8_t *key, unsigned *slot,
                       struct errtext *err)
{
    int ret = -EACCES;
    for (unsigned i = 0; i < LUKS_SLOTS && ret == -EACCES; i++) {
        if (luks->slots[i].active) {
            ret = co_try_slot(disk, header, luks, i, passphrase, key);
            *slot = i;
        }
    }
    if (ret == -EACCES) {
        return err_set(err, EACCES,
                       "%s: the passphrase of %s (%zu bytes) opens none of its %u key slots: every "
                       "byte counts, a newline at the end too",
                       disk->path, passphrase->name, passphrase->len, luks_active_slots(luks));
    }
    return ret < 0 ? err_set(err, -ret, "%s: reading the key slots: %s", disk->path, strerror(-ret))
                   : 0;
}

static int co_unlock_luks(struct disk *disk, const struct header *header,
                          const struct image_key *passphrase, struct cipher_spec *spec,
                          struct cipher **cipher, struct errtext *err)
{
    struct luks luks;
    unsigned slot;
    int ret = co_luks_read(disk, header, &luks, err);
    if (ret < 0) {
        return ret;
    }
    uint8_t *key = secret_alloc(luks_key_bytes(&luks));
    ret = key ? co_find_key(disk, header, &luks, passphrase, key, &slot, err)
              : out_of_memory(disk->path, err);
    if (ret == 0) {
        *spec = luks.spec;
        ret = cipher_create(spec, key, cipher);
        if (ret < 0) {
            out_of_memory(disk->path, err);
        }
    }
    secret_free(key);
    return ret;
}

/* The passphrase is the key, cut or filled up with zeroes: nothing tells a wrong one. */
static int unlock_aes(struct disk *disk, const struct image_key *passphrase,
                      struct cipher_spec *spec, struct cipher **cipher, struct errtext *err)
{
    *spec = (struct cipher_spec){cipher_alg_find("aes-128"), CIPHER_CBC, CIPHER_IV_PLAIN64, NULL};
    uint8_t *key = secret_alloc(AES_KEY_BYTES);
    if (!key) {
        return out_of_memory(disk->path, err);
    }
    memcpy(key, passphrase->passphrase, MIN_OF(passphrase->len, (size_t)AES_KEY_BYTES));
    int ret = cipher_create(spec, key, cipher);
    secret_free(key);
    return ret < 0 ? out_of_memory(disk->path, err) : 0;
}

int co_unlock(struct disk *disk, const struct header *header, const struct image_key *key,
              struct cipher_spec *spec, struct cipher **cipher, struct errtext *err)
{
    if (!crypto_library_present()) {
        return err_set(err, ENOTSUP, "%s: it is encrypted, and encryption is not built in",
                       disk->path);
    }
    if (!key) {
        return err_set(err, EACCES, "%s: it is encrypted: give its passphrase with --key-file",
                       disk->path);
    }
    crypto_library_start();
    return header->crypt_method == QCOW2_CRYPT_LUKS
               ? co_unlock_luks(disk, header, key, spec, cipher, err)
               : unlock_aes(disk, key, spec, cipher, err);
}

/* ---- A new header ---- */

static int refuse_name(const char *option, const char *value, const char *allowed,
                       struct errtext *err)
{
    char shown[64];
    return err_set(err, EINVAL, "option %s: \"%s\" is not allowed; give %s", option,
                   err_sanitise(shown, sizeof(shown), value, strlen(value)), allowed);
}

static const char *or_default(const char *name, const char *usual)
{
    return name ? name : usual;
}

static int choose_spec(const struct encryption_options *options, struct luks *luks,
                       struct errtext *err)
{
    struct cipher_spec *spec = &luks->spec;
    const char *alg = or_default(options->cipher_alg, "aes-256");
    const char *mode = or_default(options->cipher_mode, "xts");
    const char *iv = or_default(options->iv_gen, "plain64");
    const char *hash = or_default(options->hash, "sha256");

    *luks = (struct luks){.spec = {.alg = cipher_alg_find(alg)}, .hash = hash_find(hash)};
    if (!crypto_library_present()) {
        return err_set(err, ENOTSUP, "encrypt.format: encryption is not built in");
    }
    if (!spec->alg) {
        return refuse_name("encrypt.cipher-alg", alg, cipher_alg_names(), err);
    }
    if (!cipher_mode_find(mode, &spec->mode)) {
        return refuse_name("encrypt.cipher-mode", mode, "ecb, cbc, ctr or xts", err);
    }
    if (!cipher_iv_find(iv, &spec->iv)) {
        return refuse_name("encrypt.ivgen-alg", iv, "plain, plain64 or essiv", err);
    }
    if (!luks->hash) {
        return refuse_name("encrypt.hash-alg", hash, hash_names(), err);
    }
    if (spec->iv == CIPHER_IV_ESSIV) {
        const char *iv_hash = or_default(options->iv_hash, "sha256");
        spec->iv_hash = hash_find(iv_hash);
        if (!spec->iv_hash) {
            return refuse_name("encrypt.ivgen-hash-alg", iv_hash, hash_names(), err);
        }
    }
    int ret = cipher_spec_check(spec, err);
    if (ret < 0) {
        err_prefix(err, "options encrypt.*");
    }
    return ret;
}

int luks_measure(const struct encryption_options *options, uint64_t *area_bytes,
                 struct errtext *err)
{
    struct luks luks;
    uint8_t *key = secret_alloc(CIPHER_KEY_BYTES_MAX);
    int ret = key ? choose_spec(options, &luks, err) : err_set(err, ENOMEM, "out of memory");
    if (ret == 0) {
        /* The places depend on nothing but the key's length; the digest is thrown away. */
        crypto_library_start();
        luks.digest_iterations = 1;
        ret = luks_init(&luks, key);
        *area_bytes = luks_area_bytes(&luks);
        if (ret < 0) {
            err_set(err, ENOMEM, "out of memory");
        }
    }
    secret_free(key);
    return ret;
}

static void fill_random(struct world *world, uint8_t *bytes, size_t len)
{
    for (size_t at = 0; at < len; at += sizeof(uint64_t)) {
        uint64_t number = world->ops->random64(world);
        memcpy(bytes + at, &number, MIN_OF(len - at, sizeof(number)));
    }
}

/* Version 4, variant 1 of RFC 4122. */
static void make_uuid(struct world *world, char *uuid)
{
    uint8_t b[16];
    fill_random(world, b, sizeof(b));
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(uuid, LUKS_UUID_CHARS + 1,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
}

/* Iterations for a share of the time; all eight slots together must stay below the limit. */
static uint32_t choose_iterations(const struct luks *luks, size_t out_len, uint32_t iter_time_ms,
                                  uint32_t share)
{
    uint32_t ms = (iter_time_ms ? iter_time_ms : ITER_TIME_DEFAULT_MS) / share;
    uint32_t most = LIMIT_LUKS_ROUNDS / (4 * LUKS_SLOTS) / luks_blocks(luks->hash, out_len);
    return MAX_OF(kdf_iterations(luks->hash, out_len, MAX_OF(ms, 1U), most), ITERATIONS_LEAST);
}

struct making {
    struct luks *luks;
    uint32_t iter_time_ms;
    const uint8_t *key;
    int result;
};

static void run_init(void *arg)
{
    struct making *work = arg;
    struct luks *luks = work->luks;
    if (luks->digest_iterations == 0) {
        luks->digest_iterations =
            choose_iterations(luks, LUKS_DIGEST_BYTES, work->iter_time_ms, DIGEST_SHARE);
    }
    work->result = luks_init(luks, work->key);
}

struct choosing {
    struct luks *luks;
    unsigned slot;
    uint32_t iter_time_ms;
};

static void run_choose(void *arg)
{
    struct choosing *work = arg;
    work->luks->slots[work->slot].iterations =
        choose_iterations(work->luks, luks_key_bytes(work->luks), work->iter_time_ms, SLOT_SHARE);
}

/* Fills a slot's material for a passphrase, and makes it active in *luks. */
static int co_fill_slot(struct world *world, struct luks *luks, unsigned slot,
                        const struct image_key *passphrase, uint32_t iter_time_ms,
                        const uint8_t *key, uint8_t *material)
{
    struct choosing choosing = {luks, slot, iter_time_ms};
    if (luks->slots[slot].iterations == 0) {
        world->ops->co_work(world, run_choose, &choosing);
    }
    fill_random(world, luks->slots[slot].salt, LUKS_SALT_BYTES);
    fill_random(world, material, (size_t)luks_material_bytes(luks));
    struct derivation work = {luks, slot, material, passphrase, (uint8_t *)(uintptr_t)key, 0};
    world->ops->co_work(world, run_lock, &work);
    luks->slots[slot].active = work.result == 0;
    return work.result;
}

int co_luks_make(struct world *world, const struct encryption_options *options,
                 const struct image_key *key, struct luks *luks, uint8_t **bytes, size_t *len,
                 struct errtext *err)
{
    int ret = choose_spec(options, luks, err);
    if (ret < 0) {
        return ret;
    }
    crypto_library_start();
    uint8_t *volume = secret_alloc(luks_key_bytes(luks));
    uint8_t *area = NULL;
    ret = volume ? 0 : -ENOMEM;
    if (ret == 0) {
        fill_random(world, volume, luks_key_bytes(luks));
        fill_random(world, luks->digest_salt, LUKS_SALT_BYTES);
        make_uuid(world, luks->uuid);
        luks->digest_iterations = options->iterations;
        struct making work = {luks, options->iter_time_ms, volume, 0};
        world->ops->co_work(world, run_init, &work);
        ret = work.result;
    }
    if (ret == 0) {
        luks->slots[0].iterations = options->iterations;
        *len = (size_t)(luks_material_offset(luks, 0) + luks_material_bytes(luks));
        area = calloc(1, *len);
        /* Before it is encrypted, material is as good as the key. */
        uint8_t *material = secret_alloc((size_t)luks_material_bytes(luks));
        ret = area && material
                  ? co_fill_slot(world, luks, 0, key, options->iter_time_ms, volume, material)
                  : -ENOMEM;
        if (ret == 0) {
            memcpy(area + luks_material_offset(luks, 0), material,
                   (size_t)luks_material_bytes(luks));
        }
        secret_free(material);
    }
    secret_free(volume);
    if (ret < 0) {
        free(area);
        return err_set(err, -ret, "making the encryption header: %s", strerror(-ret));
    }
    luks_format(luks, area);
    *bytes = area;
    return 0;
}

/* ---- Slots ---- */

static int co_write_luks(struct disk *disk, const struct header *header, const struct luks *luks)
{
    uint8_t bytes[LUKS_HEADER_BYTES];
    luks_format(luks, bytes);
    int ret = co_disk_write(disk, header->crypto_header_offset.bytes, bytes, sizeof(bytes));
    return ret < 0 ? ret : co_disk_flush(disk);
}

static int choose_slot(const struct luks *luks, const char *path, unsigned *slot,
                       struct errtext *err)
{
    if (*slot < LUKS_SLOTS) {
        return luks->slots[*slot].active
                   ? err_set(err, EBUSY, "%s: key slot %u is in use", path, *slot)
                   : 0;
    }
    for (*slot = 0; *slot < LUKS_SLOTS; ++*slot) {
        if (!luks->slots[*slot].active) {
            return 0;
        }
    }
    return err_set(err, ENOSPC, "%s: all %u key slots are in use: remove one first", path,
                   LUKS_SLOTS);
}

/* The key of an image by one of its passphrases, for its slots; the caller's, secret. */
static int co_open_slots(struct disk *disk, const struct header *header,
                         const struct image_key *key, struct luks *luks, uint8_t **volume,
                         unsigned *found, struct errtext *err)
{
    crypto_library_start();
    *volume = secret_alloc(luks_key_bytes(luks));
    int ret = *volume ? co_find_key(disk, header, luks, key, *volume, found, err)
                      : out_of_memory(disk->path, err);
    if (ret < 0) {
        secret_free(*volume);
        *volume = NULL;
    }
    return ret;
}

static int co_add_to_slot(struct disk *disk, const struct header *header, struct luks *luks,
                          unsigned slot, const struct image_key *added, uint32_t iter_time_ms,
                          const uint8_t *volume)
{
    size_t len = (size_t)luks_material_bytes(luks);
    uint8_t *material = secret_alloc(len);
    luks->slots[slot].iterations = 0; /* of whoever had it before */
    int ret = material
                  ? co_fill_slot(disk->world, luks, slot, added, iter_time_ms, volume, material)
                  : -ENOMEM;
    if (ret == 0) {
        ret = co_disk_write(disk, material_at(header, luks, slot), material, len);
    }
    secret_free(material);
    if (ret == 0) {
        ret = co_disk_flush(disk);
    }
    return ret < 0 ? ret : co_write_luks(disk, header, luks);
}

int co_key_add(struct disk *disk, const struct header *header, const struct image_key *key,
               const struct image_key *added, uint32_t iter_time_ms, unsigned *slot,
               struct errtext *err)
{
    struct luks luks;
    uint8_t *volume;
    unsigned found;
    int ret = co_luks_read(disk, header, &luks, err);
    if (ret == 0) {
        ret = choose_slot(&luks, disk->path, slot, err);
    }
    if (ret == 0) {
        ret = co_open_slots(disk, header, key, &luks, &volume, &found, err);
    }
    if (ret < 0) {
        return ret;
    }
    ret = co_add_to_slot(disk, header, &luks, *slot, added, iter_time_ms, volume);
    secret_free(volume);
    return ret < 0 ? err_set(err, -ret, "%s: writing key slot %u: %s", disk->path, *slot,
                             strerror(-ret))
                   : 0;
}

/* Overwrites a slot's material; any part of it that is really gone is enough (crypto/luks_split).
 */
static int co_wipe_slot(struct disk *disk, const struct header *header, const struct luks *luks,
                        unsigned slot)
{
    size_t len = (size_t)luks_material_bytes(luks);
    uint8_t *noise = malloc(len);
    int ret = noise ? 0 : -ENOMEM;
    for (unsigned round = 0; round < WIPE_ROUNDS && ret == 0; round++) {
        fill_random(disk->world, noise, len);
        ret = co_disk_write(disk, material_at(header, luks, slot), noise, len);
        if (ret == 0) {
            ret = co_disk_flush(disk);
        }
    }
    free(noise);
    return ret;
}

static int find_slot_to_remove(const struct luks *luks, const char *path, unsigned slot,
                               struct errtext *err)
{
    if (!luks->slots[slot].active) {
        return err_set(err, ENOENT, "%s: key slot %u holds no key", path, slot);
    }
    if (luks_active_slots(luks) == 1) {
        return err_set(err, EPERM,
                       "%s: key slot %u is the only one in use: without it nobody could read the "
                       "image any more",
                       path, slot);
    }
    return 0;
}

int co_key_remove(struct disk *disk, const struct header *header, const struct image_key *key,
                  unsigned *slot, struct errtext *err)
{
    struct luks luks;
    uint8_t *volume = NULL;
    int ret = co_luks_read(disk, header, &luks, err);
    if (ret == 0 && key) {
        ret = co_open_slots(disk, header, key, &luks, &volume, slot, err);
        secret_free(volume);
    }
    if (ret == 0) {
        ret = find_slot_to_remove(&luks, disk->path, *slot, err);
    }
    if (ret < 0) {
        return ret;
    }
    ret = co_wipe_slot(disk, header, &luks, *slot);
    if (ret == 0) {
        struct luks_slot *gone = &luks.slots[*slot];
        gone->active = false;
        gone->iterations = 0;
        memset(gone->salt, 0, sizeof(gone->salt));
        ret = co_write_luks(disk, header, &luks);
    }
    return ret < 0 ? err_set(err, -ret, "%s: removing key slot %u: %s", disk->path, *slot,
                             strerror(-ret))
                   : 0;
}
