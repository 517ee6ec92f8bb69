/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Where passphrases of encrypted images come from: the values of --key-file, and what they hold. A
 * passphrase is all bytes of its file, as QEMU has it; it is never on a command line.
 */
#ifndef QCOWD_CONFIG_KEY_FILES_H
#define QCOWD_CONFIG_KEY_FILES_H

#include <stdbool.h>

#include "base/errtext.h"
#include "qcow2/key.h"

/* In the order of the encrypted images of a chain, from the top; owned. */
struct key_files {
    char *names[IMAGE_KEYS_MAX];
    unsigned count;
};

/*
 * Adds a path, "-" (standard input), "fd:N" (a descriptor that was inherited) or "credential:NAME"
 * (a credential of systemd's). -EINVAL for what cannot be one of these, or one too many; -ENOMEM.
 * err begins with `called`.
 */
int key_files_add(struct key_files *files, const char *called, const char *name,
                  struct errtext *err);
/* *to is overwritten. -ENOMEM: it is empty. */
int key_files_copy(struct key_files *to, const struct key_files *from);
bool key_files_equal(const struct key_files *a, const struct key_files *b);
void key_files_free(struct key_files *files);

/* Whether a name is a path, and not one of the other forms. */
bool key_file_is_path(const char *name);

/* The path of a name that is one, or of a credential, for a sandbox; NULL for others. The caller's
 * to free(). */
char *key_file_path(const char *name);

struct key_ring {
    struct image_key keys[IMAGE_KEYS_MAX];
    unsigned count;
};

/*
 * Reads all of them into secret memory. A file that others than its owner's group may read, or
 * that others than its owner may write, is refused, as is an empty one and one of more than
 * LIMIT_PASSPHRASE_BYTES. -errno, with err, and nothing to be ended. Blocks. The names are those of
 * `files`, which must stay; the caller ends it with key_ring_wipe().
 */
int key_ring_read(const struct key_files *files, struct key_ring *ring, struct errtext *err);
void key_ring_wipe(struct key_ring *ring);

#endif
