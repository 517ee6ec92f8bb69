/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `qcowd info`. Takes no lock: it only looks, and an image in use may be looked at.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/log.h"
#include "cmd/commands.h"
#include "qcow2/header.h"
#include "qcow2/info.h"
#include "service/runtime.h"

static uint64_t allocated_bytes(const char *path)
{
    struct stat status;
    if (stat(path, &status) < 0 || status.st_blocks < 0) {
        return INFO_ALLOCATED_UNKNOWN;
    }
    return (uint64_t)status.st_blocks * 512;
}

static int co_describe(struct disk *disk, const struct config *config, struct errtext *err)
{
    struct header header;
    int result = co_header_read(disk, &header, err);
    if (result < 0) {
        return result;
    }
    result = header_admit(&header, HEADER_FOR_INFO, config->image, err);
    if (result == 0) {
        result = co_qcow2_info(disk, &header, allocated_bytes(config->image),
                               config->json ? INFO_JSON : INFO_TEXT, stdout, err);
    }
    header_free(&header);
    return result;
}

static int co_info(struct world *world, void *arg)
{
    const struct config *config = arg;
    struct errtext err;
    struct disk *disk;
    int result =
        world->ops->co_disk_open(world, config->image, DISK_READ_ONLY | DISK_NO_LOCK, &disk, &err);
    if (result == 0) {
        result = co_describe(disk, config, &err);
        disk_close(disk);
    }
    if (result < 0) {
        fflush(stdout);
        log_error("%s", err.text);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}

int cmd_info(const struct config *config)
{
    return runtime_run(co_info, (void *)(uintptr_t)config);
}
