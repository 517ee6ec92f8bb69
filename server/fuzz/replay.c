/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Runs a fuzz target once over each file named, and each file in a directory named, in order of
 * their names: what was found once stays fixed, with any compiler and without libFuzzer.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz/fuzz.h"

#define INPUT_BYTES_MAX (1U << 20)

static unsigned replayed;

static bool replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = malloc(INPUT_BYTES_MAX);
    bool ok = file && bytes;

    if (ok) {
        size_t len = fread(bytes, 1, INPUT_BYTES_MAX, file);
        ok = !ferror(file) && feof(file);
        /* Of the right size, so that a sanitizer sees what reads behind it. */
        uint8_t *exact = ok ? malloc(len > 0 ? len : 1) : NULL;
        if (exact) {
            memcpy(exact, bytes, len);
            fprintf(stderr, "%s\n", path); /* known when it does not return */
            LLVMFuzzerTestOneInput(exact, len);
            replayed++;
        }
        ok = exact != NULL;
        free(exact);
    }
    if (!ok) {
        fprintf(stderr, "%s: cannot be read, or has more than %u bytes\n", path, INPUT_BYTES_MAX);
    }
    if (file) {
        fclose(file);
    }
    free(bytes);
    return ok;
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static bool replay_directory(const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, is_visible, alphasort);
    bool ok = count >= 0;

    if (!ok) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
    }
    for (int i = 0; i < count; i++) {
        char name[4096];
        int len = snprintf(name, sizeof(name), "%s/%s", path, entries[i]->d_name);
        ok = len > 0 && (size_t)len < sizeof(name) && replay_file(name) && ok;
        free(entries[i]);
    }
    if (count >= 0) {
        free(entries);
    }
    return ok;
}

int main(int argc, char **argv)
{
    bool ok = true;

    for (int i = 1; i < argc; i++) {
        struct stat status;
        bool directory = stat(argv[i], &status) == 0 && S_ISDIR(status.st_mode);
        ok = (directory ? replay_directory(argv[i]) : replay_file(argv[i])) && ok;
    }
    printf("%u inputs\n", replayed);
    return ok && replayed > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
