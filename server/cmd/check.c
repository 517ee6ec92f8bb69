/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * `qcowd check`. Findings and the summary go to stdout, for they are what was asked for; progress
 * goes to stderr, and only where a person looks at it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "cmd/commands.h"
#include "qcow2/check.h"
#include "qcow2/header.h"
#include "service/runtime.h"

enum { EXIT_CORRUPT = 2, EXIT_LEAKS = 3 };

struct screen {
    bool shows_progress;
    bool progress_on_line;
};

static void clear_progress(struct screen *screen)
{
    if (screen->progress_on_line) {
        fputs("\r\033[K", stderr);
        screen->progress_on_line = false;
    }
}

static void print_finding(void *arg, const char *line)
{
    clear_progress(arg);
    printf("%s\n", line);
}

static void print_progress(void *arg, unsigned permille)
{
    struct screen *screen = arg;
    if (screen->shows_progress) {
        fprintf(stderr, "\rchecking: %3u.%u %%", permille / 10, permille % 10);
        screen->progress_on_line = true;
    }
}

static void print_summary(const char *path, enum check_repair repair,
                          const struct check_result *result)
{
    if (repair != CHECK_ONLY) {
        printf("%s: repaired %" PRIu64 " corruptions and %" PRIu64 " leaked clusters\n", path,
               result->corruptions_fixed, result->leaks_fixed);
    }
    if (result->corruptions == 0 && result->leaks == 0) {
        printf("%s: no errors\n", path);
    } else {
        printf("%s: %" PRIu64 " corruptions, %" PRIu64 " leaked clusters\n", path,
               result->corruptions, result->leaks);
    }
    printf("%s: %" PRIu64 " of %" PRIu64 " clusters allocated, %" PRIu64
           " of them compressed; the image ends at byte %" PRIu64 "\n",
           path, result->allocated_clusters, result->total_clusters, result->compressed_clusters,
           result->image_end_bytes);
}

static void print_remedy(const char *path, enum check_repair repair,
                         const struct check_result *result)
{
    if (result->corruptions > 0 && repair != CHECK_REPAIR_ALL) {
        printf("mend what can be mended with: qcowd check --repair all %s\n", path);
    } else if (result->corruptions == 0 && result->leaks > 0 && repair == CHECK_ONLY) {
        printf(
            "harmless but for the space they take; give it back with: qcowd check --repair leaks "
            "%s\n",
            path);
    }
}

static int co_check_disk(struct disk *disk, const struct config *config,
                         struct check_result *result, bool *bitmaps_left, struct errtext *err)
{
    struct screen screen = {.shows_progress = isatty(STDERR_FILENO)};
    struct check_options options = {
        .repair = config->repair,
        .finding = print_finding,
        .progress = print_progress,
        .arg = &screen,
    };
    struct header header;
    int done = co_header_read(disk, &header, err);
    if (done < 0) {
        return done;
    }
    done = header_admit(&header, HEADER_FOR_CHECK, config->image, err);
    if (done == 0) {
        done = co_qcow2_check(disk, &header, &options, result, err);
    }
    *bitmaps_left = done == 0 && (header.autoclear & QCOW2_AUTOCLEAR_INTENT);
    header_free(&header);
    clear_progress(&screen);
    return done;
}

/* What a crash has left of bitmaps is saved, as at every open for writing. */
static int co_recover_bitmaps(struct world *world, const char *path, struct errtext *err)
{
    const struct qcow2_open_options options = {.bitmaps_only = true};
    struct image *image;
    int result = co_qcow2_open(world, path, &options, &image, err);
    return result < 0 ? result : image->ops->co_close(image, err);
}

static int co_check(struct world *world, void *arg)
{
    const struct config *config = arg;
    struct check_result result = {0};
    struct errtext err;
    struct disk *disk;
    bool bitmaps_left = false;
    unsigned flags = config->repair == CHECK_ONLY ? DISK_READ_ONLY : DISK_WRITABLE;
    int done = world->ops->co_disk_open(world, config->image, flags, &disk, &err);
    if (done < 0) {
        log_error("%s", err.text);
        return EXIT_FAILURE;
    }
    done = co_check_disk(disk, config, &result, &bitmaps_left, &err);
    disk_close(disk);
    if (done == 0 && bitmaps_left && config->repair != CHECK_ONLY && result.corruptions == 0) {
        done = co_recover_bitmaps(world, config->image, &err);
    }
    if (done < 0) {
        fflush(stdout); /* findings first */
        log_error("%s", err.text);
        return EXIT_FAILURE;
    }
    print_summary(config->image, config->repair, &result);
    print_remedy(config->image, config->repair, &result);
    return result.corruptions > 0 ? EXIT_CORRUPT : result.leaks > 0 ? EXIT_LEAKS : EXIT_SUCCESS;
}

int cmd_check(const struct config *config)
{
    return runtime_run(co_check, (void *)(uintptr_t)config);
}
