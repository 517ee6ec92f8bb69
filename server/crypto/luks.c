/* SPDX-License-Identifier: BSD-2-Clause */
#include "crypto/luks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "crypto/luks_split.h"
#include "crypto/secret.h"

#define VERSION       1U
#define STRIPES       4000U
#define SLOT_ACTIVE   0x00ac71f3U
#define SLOT_INACTIVE 0x0000deadU
/* Slots begin, as QEMU's and cryptsetup's do, at multiples of so many sectors. */
#define SLOT_ALIGNMENT_SECTORS 8U
#define TEXT_BYTES             32U
#define UUID_BYTES             40U

static const uint8_t magic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};

/* As it lies on disk, big endian. */
struct disk_slot {
    uint8_t active[4];
    uint8_t iterations[4];
    uint8_t salt[LUKS_SALT_BYTES];
    uint8_t material_sector[4];
    uint8_t stripes[4];
};

struct disk_header {
    uint8_t magic[6];
    uint8_t version[2];
    uint8_t cipher_name[TEXT_BYTES];
    uint8_t cipher_mode[TEXT_BYTES];
    uint8_t hash_spec[TEXT_BYTES];
    uint8_t payload_sector[4];
    uint8_t key_bytes[4];
    uint8_t digest[LUKS_DIGEST_BYTES];
    uint8_t digest_salt[LUKS_SALT_BYTES];
    uint8_t digest_iterations[4];
    uint8_t uuid[UUID_BYTES];
    struct disk_slot slots[LUKS_SLOTS];
};
_Static_assert(sizeof(struct disk_slot) == 48, "slot");
_Static_assert(offsetof(struct disk_header, payload_sector) == 104, "payload_sector");
_Static_assert(offsetof(struct disk_header, slots) == 208, "slots");
_Static_assert(sizeof(struct disk_header) == LUKS_HEADER_BYTES, "header");

uint32_t luks_key_bytes(const struct luks *luks)
{
    return cipher_spec_key_bytes(&luks->spec);
}

uint64_t luks_material_bytes(const struct luks *luks)
{
    return round_up_to((uint64_t)luks_key_bytes(luks) * STRIPES, CRYPTO_SECTOR_BYTES);
}

uint64_t luks_material_offset(const struct luks *luks, unsigned slot)
{
    return (uint64_t)luks->slots[slot].material_sector * CRYPTO_SECTOR_BYTES;
}

uint64_t luks_area_bytes(const struct luks *luks)
{
    return (uint64_t)luks->payload_sector * CRYPTO_SECTOR_BYTES;
}

unsigned luks_active_slots(const struct luks *luks)
{
    unsigned count = 0;
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        count += luks->slots[i].active ? 1 : 0;
    }
    return count;
}

uint32_t luks_blocks(const struct hash_alg *hash, size_t out_len)
{
    return (uint32_t)((out_len + hash->digest_bytes - 1) / hash->digest_bytes);
}

/*
 * Reading.
 */

static int take_text(const char *field, const uint8_t *bytes, char *text, struct errtext *err)
{
    if (!memchr(bytes, 0, TEXT_BYTES)) {
        return err_set(err, EINVAL,
                       "%s of the LUKS header has no end: allowed are at most %u characters", field,
                       TEXT_BYTES - 1);
    }
    memcpy(text, bytes, TEXT_BYTES);
    return 0;
}

static int refuse_text(int error, const char *field, const char *value, const char *allowed,
                       struct errtext *err)
{
    char shown[128];
    return err_set(err, error, "%s of the LUKS header is '%s': allowed is %s", field,
                   err_sanitise(shown, sizeof(shown), value, strlen(value)), allowed);
}

/* "xts-plain64", "cbc-essiv:sha256"; cryptsetup leaves out what ECB has no use for. */
static int take_mode(char *text, struct cipher_spec *spec, struct errtext *err)
{
    char whole[TEXT_BYTES];
    memcpy(whole, text, sizeof(whole));
    char *iv = strchr(text, '-');
    if (iv) {
        *iv++ = '\0';
    }
    if (!cipher_mode_find(text, &spec->mode)) {
        return refuse_text(ENOTSUP, "cipher-mode", whole, "ecb, cbc, ctr or xts, with an IV", err);
    }
    if (!iv && spec->mode == CIPHER_ECB) {
        spec->iv = CIPHER_IV_PLAIN;
        return 0;
    }
    char *hash = iv ? strchr(iv, ':') : NULL;
    if (hash) {
        *hash++ = '\0';
    }
    if (!iv || !cipher_iv_find(iv, &spec->iv)) {
        return refuse_text(ENOTSUP, "cipher-mode", whole,
                           "MODE-IV, with IV plain, plain64 or essiv:HASH", err);
    }
    spec->iv_hash = NULL;
    if (spec->iv == CIPHER_IV_ESSIV) {
        spec->iv_hash = hash ? hash_find(hash) : NULL;
        if (!spec->iv_hash) {
            return refuse_text(ENOTSUP, "cipher-mode", whole, "essiv with a hash that is known",
                               err);
        }
    }
    return 0;
}

static int take_spec(const struct disk_header *disk, struct luks *luks, struct errtext *err)
{
    char family[TEXT_BYTES], mode[TEXT_BYTES], hash[TEXT_BYTES];
    uint32_t key_bytes = get_be32(disk->key_bytes);

    int ret = take_text("cipher-name", disk->cipher_name, family, err);
    if (ret == 0) {
        ret = take_text("cipher-mode", disk->cipher_mode, mode, err);
    }
    if (ret == 0) {
        ret = take_text("hash-spec", disk->hash_spec, hash, err);
    }
    if (ret == 0) {
        ret = take_mode(mode, &luks->spec, err);
    }
    if (ret < 0) {
        return ret;
    }
    luks->hash = hash_find(hash);
    if (!luks->hash) {
        return refuse_text(ENOTSUP, "hash-spec", hash, hash_names(), err);
    }
    uint32_t keys = luks->spec.mode == CIPHER_XTS ? 2 : 1;
    luks->spec.alg = key_bytes <= CIPHER_KEY_BYTES_MAX && key_bytes % keys == 0
                         ? cipher_alg_of_family(family, key_bytes / keys)
                         : NULL;
    if (!luks->spec.alg) {
        char shown[128];
        return err_set(err, ENOTSUP,
                       "cipher-name of the LUKS header is '%s', with a key of %" PRIu32
                       " bytes: allowed are the keys (two for xts) of %s",
                       err_sanitise(shown, sizeof(shown), family, strlen(family)), key_bytes,
                       cipher_alg_names());
    }
    ret = cipher_spec_check(&luks->spec, err);
    if (ret < 0) {
        err_prefix(err, "LUKS header");
    }
    return ret;
}

static int check_iterations(const char *what, uint32_t iterations, uint32_t blocks,
                            uint64_t *rounds, struct errtext *err)
{
    *rounds += (uint64_t)iterations * blocks;
    if (iterations == 0 || *rounds > LIMIT_LUKS_ROUNDS) {
        return err_set(err, EINVAL,
                       "iterations of the %s of the LUKS header are %" PRIu32
                       ": allowed are 1 and more, and %u rounds of the hash in all slots together",
                       what, iterations, LIMIT_LUKS_ROUNDS);
    }
    return 0;
}

static int take_slot(const struct disk_slot *disk, unsigned index, struct luks *luks,
                     uint64_t *rounds, struct errtext *err)
{
    struct luks_slot *slot = &luks->slots[index];
    uint32_t state = get_be32(disk->active);
    char what[16];

    snprintf(what, sizeof(what), "slot %u", index);
    if (state != SLOT_ACTIVE && state != SLOT_INACTIVE) {
        return err_set(err, EINVAL,
                       "state of %s of the LUKS header is 0x%08" PRIx32
                       ": allowed is 0x%08x (active) or 0x%08x (not)",
                       what, state, SLOT_ACTIVE, SLOT_INACTIVE);
    }
    slot->active = state == SLOT_ACTIVE;
    slot->iterations = get_be32(disk->iterations);
    memcpy(slot->salt, disk->salt, sizeof(slot->salt));
    slot->material_sector = get_be32(disk->material_sector);
    slot->stripes = get_be32(disk->stripes);
    if (slot->stripes != STRIPES) {
        return err_set(err, EINVAL,
                       "stripes of %s of the LUKS header are %" PRIu32 ": allowed are %u", what,
                       slot->stripes, STRIPES);
    }
    uint64_t offset = luks_material_offset(luks, index);
    if (offset < LUKS_HEADER_BYTES ||
        !range_inside(offset, luks_material_bytes(luks), luks_area_bytes(luks))) {
        return err_set(err, EINVAL,
                       "material of %s of the LUKS header is at sector %" PRIu32
                       ": allowed is behind the header, with %" PRIu64
                       " bytes before the payload at sector %" PRIu32,
                       what, slot->material_sector, luks_material_bytes(luks),
                       luks->payload_sector);
    }
    if (!slot->active) {
        return 0;
    }
    return check_iterations(what, slot->iterations, luks_blocks(luks->hash, luks_key_bytes(luks)),
                            rounds, err);
}

static int check_slots_apart(const struct luks *luks, struct errtext *err)
{
    uint64_t sectors = luks_material_bytes(luks) / CRYPTO_SECTOR_BYTES;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        for (unsigned j = i + 1; j < LUKS_SLOTS; j++) {
            uint64_t a = luks->slots[i].material_sector, b = luks->slots[j].material_sector;
            if (a < b + sectors && b < a + sectors) {
                return err_set(err, EINVAL,
                               "material of slot %u of the LUKS header is at sector %" PRIu64
                               ": allowed is outside of that of slot %u at %" PRIu64,
                               j, b, i, a);
            }
        }
    }
    return 0;
}

static int take_fields(const struct disk_header *disk, uint64_t area_bytes, struct luks *luks,
                       struct errtext *err)
{
    if (memcmp(disk->magic, magic, sizeof(magic)) != 0) {
        return err_set(err, EINVAL, "the encryption header does not begin with LUKS's magic");
    }
    uint32_t version = get_be16(disk->version);
    if (version != VERSION) {
        return err_set(err, ENOTSUP, "version of the LUKS header is %" PRIu32 ": allowed is %u",
                       version, VERSION);
    }
    luks->payload_sector = get_be32(disk->payload_sector);
    if (luks_area_bytes(luks) > area_bytes) {
        return err_set(err, EINVAL,
                       "payload-offset of the LUKS header is sector %" PRIu32
                       ": allowed is at most %" PRIu64 ", the end of the header's area",
                       luks->payload_sector, area_bytes / CRYPTO_SECTOR_BYTES);
    }
    memcpy(luks->digest, disk->digest, sizeof(luks->digest));
    memcpy(luks->digest_salt, disk->digest_salt, sizeof(luks->digest_salt));
    luks->digest_iterations = get_be32(disk->digest_iterations);
    memcpy(luks->uuid, disk->uuid, UUID_BYTES);
    luks->uuid[UUID_BYTES] = '\0';
    return take_spec(disk, luks, err);
}

int luks_parse(const uint8_t *bytes, uint64_t area_bytes, struct luks *luks, struct errtext *err)
{
    struct disk_header disk;
    uint64_t rounds = 0;

    memcpy(&disk, bytes, sizeof(disk));
    memset(luks, 0, sizeof(*luks));
    int ret = take_fields(&disk, area_bytes, luks, err);
    if (ret == 0) {
        ret = check_iterations("key's digest", luks->digest_iterations,
                               luks_blocks(luks->hash, LUKS_DIGEST_BYTES), &rounds, err);
    }
    for (unsigned i = 0; i < LUKS_SLOTS && ret == 0; i++) {
        ret = take_slot(&disk.slots[i], i, luks, &rounds, err);
        /* The digest is looked at once for each slot that is tried. */
        if (ret == 0 && luks->slots[i].active) {
            ret = check_iterations("key's digest", luks->digest_iterations,
                                   luks_blocks(luks->hash, LUKS_DIGEST_BYTES), &rounds, err);
        }
    }
    return ret == 0 ? check_slots_apart(luks, err) : ret;
}

/*
 * Writing.
 */

static void put_text(uint8_t *to, const char *text)
{
    size_t len = strlen(text);
    assert(len < TEXT_BYTES);
    memset(to, 0, TEXT_BYTES);
    memcpy(to, text, len);
}

void luks_format(const struct luks *luks, uint8_t *bytes)
{
    struct disk_header disk = {0};
    char mode[TEXT_BYTES];
    const struct cipher_spec *spec = &luks->spec;

    memcpy(disk.magic, magic, sizeof(magic));
    put_be16(disk.version, VERSION);
    put_text(disk.cipher_name, spec->alg->family);
    snprintf(mode, sizeof(mode), "%s-%s%s%s", cipher_mode_name(spec->mode),
             cipher_iv_name(spec->iv), spec->iv_hash ? ":" : "",
             spec->iv_hash ? spec->iv_hash->name : "");
    put_text(disk.cipher_mode, mode);
    put_text(disk.hash_spec, luks->hash->name);
    put_be32(disk.payload_sector, luks->payload_sector);
    put_be32(disk.key_bytes, luks_key_bytes(luks));
    memcpy(disk.digest, luks->digest, sizeof(disk.digest));
    memcpy(disk.digest_salt, luks->digest_salt, sizeof(disk.digest_salt));
    put_be32(disk.digest_iterations, luks->digest_iterations);
    memcpy(disk.uuid, luks->uuid, UUID_BYTES);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *slot = &luks->slots[i];
        put_be32(disk.slots[i].active, slot->active ? SLOT_ACTIVE : SLOT_INACTIVE);
        put_be32(disk.slots[i].iterations, slot->iterations);
        memcpy(disk.slots[i].salt, slot->salt, sizeof(slot->salt));
        put_be32(disk.slots[i].material_sector, slot->material_sector);
        put_be32(disk.slots[i].stripes, slot->stripes);
    }
    memcpy(bytes, &disk, sizeof(disk));
}

/*
 * Keys.
 */

static int digest_of(const struct luks *luks, const uint8_t *key, uint8_t *digest)
{
    return kdf_derive(luks->hash, key, luks_key_bytes(luks), luks->digest_salt,
                      sizeof(luks->digest_salt), luks->digest_iterations, digest,
                      LUKS_DIGEST_BYTES);
}

/* A cipher whose key is a passphrase's, for one slot. */
static int slot_cipher(const struct luks *luks, const struct luks_slot *slot,
                       const uint8_t *passphrase, size_t len, struct cipher **cipher)
{
    uint8_t *key = secret_alloc(luks_key_bytes(luks));
    int ret = key ? kdf_derive(luks->hash, passphrase, len, slot->salt, sizeof(slot->salt),
                               slot->iterations, key, luks_key_bytes(luks))
                  : -ENOMEM;
    if (ret == 0) {
        ret = cipher_create(&luks->spec, key, cipher);
    }
    secret_free(key);
    return ret;
}

static int crypt_material(const struct luks *luks, const struct luks_slot *slot, bool encrypt,
                          uint8_t *material, const uint8_t *passphrase, size_t len)
{
    struct cipher *cipher;
    int ret = slot_cipher(luks, slot, passphrase, len, &cipher);
    if (ret < 0) {
        return ret;
    }
    struct cipher_lane *lane = cipher_lane_get(cipher);
    if (lane) {
        (encrypt ? cipher_encrypt : cipher_decrypt)(lane, 0, material, material,
                                                    luks_material_bytes(luks));
        cipher_lane_put(cipher, lane);
    }
    cipher_free(cipher);
    return lane ? 0 : -ENOMEM;
}

int luks_unlock(const struct luks *luks, unsigned slot, uint8_t *material,
                const uint8_t *passphrase, size_t len, uint8_t *key)
{
    uint8_t digest[LUKS_DIGEST_BYTES];

    assert(luks->slots[slot].active);
    int ret = crypt_material(luks, &luks->slots[slot], false, material, passphrase, len);
    if (ret < 0) {
        return ret;
    }
    luks_merge(luks->hash, material, luks_key_bytes(luks), STRIPES, key);
    ret = digest_of(luks, key, digest);
    if (ret == 0 && memcmp(digest, luks->digest, sizeof(digest)) != 0) {
        secret_wipe(key, luks_key_bytes(luks));
        return -EACCES;
    }
    return ret;
}

int luks_lock(const struct luks *luks, unsigned slot, uint8_t *material, const uint8_t *passphrase,
              size_t len, const uint8_t *key)
{
    luks_split(luks->hash, key, luks_key_bytes(luks), STRIPES, material);
    return crypt_material(luks, &luks->slots[slot], true, material, passphrase, len);
}

int luks_init(struct luks *luks, const uint8_t *key)
{
    uint64_t sectors =
        round_up_to(luks_material_bytes(luks) / CRYPTO_SECTOR_BYTES, SLOT_ALIGNMENT_SECTORS);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        luks->slots[i] = (struct luks_slot){
            .material_sector = (uint32_t)(SLOT_ALIGNMENT_SECTORS + i * sectors),
            .stripes = STRIPES,
        };
    }
    luks->payload_sector = (uint32_t)(SLOT_ALIGNMENT_SECTORS + LUKS_SLOTS * sectors);
    return digest_of(luks, key, luks->digest);
}
