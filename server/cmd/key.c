/* SPDX-License-Identifier: BSD-2-Clause */
/* `qcowd key`: who else may open an encrypted image, and who may not any more. */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "cmd/commands.h"
#include "config/key_files.h"
#include "crypto/luks.h"
#include "qcow2/header.h"
#include "qcow2/ondisk.h"
#include "qcow2/unlock.h"
#include "service/runtime.h"

static int co_change_keys(const struct config *config, struct disk *disk,
                          const struct header *header, const struct key_ring *now,
                          const struct key_ring *added, struct errtext *err)
{
    unsigned slot = config->key.slot_given ? config->key.slot : LUKS_SLOTS;
    const struct image_key *key = now->count > 0 ? &now->keys[0] : NULL;
    if (header->crypt_method != QCOW2_CRYPT_LUKS) {
        return err_set(err, EINVAL, "%s: crypt_method is %u: only LUKS images (2) have key slots",
                       disk->path, (unsigned)header->crypt_method);
    }
    int result = config->key.adds ? co_key_add(disk, header, key, &added->keys[0],
                                               config->key.iter_time_ms, &slot, err)
                                  : co_key_remove(disk, header, key, &slot, err);
    if (result == 0) {
        log_info("%s: key slot %u %s", disk->path, slot,
                 config->key.adds ? "has the new passphrase" : "is empty now");
    }
    return result;
}

static int co_on_disk(const struct config *config, struct disk *disk, const struct key_ring *now,
                      const struct key_ring *added, struct errtext *err)
{
    struct header header;
    int result = co_header_read(disk, &header, err);
    if (result < 0) {
        return result;
    }
    /* What a check demands is enough: nothing but the slots changes. */
    result = header_admit(&header, HEADER_FOR_CHECK, disk->path, err);
    if (result == 0) {
        result = co_change_keys(config, disk, &header, now, added, err);
    }
    header_free(&header);
    return result;
}

static int co_key(struct world *world, void *arg)
{
    const struct config *config = arg;
    struct key_ring now = {.count = 0};
    struct key_ring added = {.count = 0};
    struct disk *disk = NULL;
    struct errtext err;
    int result = key_ring_read(&config->key_files, &now, &err);
    if (result == 0) {
        result = key_ring_read(&config->key.added, &added, &err);
    }
    if (result == 0) {
        result = world->ops->co_disk_open(world, config->image, DISK_WRITABLE, &disk, &err);
    }
    if (result == 0) {
        result = co_on_disk(config, disk, &now, &added, &err);
    }
    disk_close(disk);
    key_ring_wipe(&now);
    key_ring_wipe(&added);
    if (result < 0) {
        log_error("%s", err.text);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

int cmd_key(const struct config *config)
{
    return runtime_run(co_key, (void *)(uintptr_t)config);
}
