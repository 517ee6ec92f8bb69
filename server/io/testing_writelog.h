/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads a log of writes as a replay tool would, for tests: written from the format's description,
 * with none of the code that writes it.
 */
#ifndef QCOWD_IO_TESTING_WRITELOG_H
#define QCOWD_IO_TESTING_WRITELOG_H

#include <check.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"

enum logged_flags { LOGGED_FLUSH = 1, LOGGED_FUA = 2, LOGGED_DISCARD = 4, LOGGED_MARK = 8 };

struct logged_entry {
    uint64_t sector;
    uint64_t sectors;
    uint64_t flags;
    const uint8_t *data; /* NULL for entries without */
    char mark[480];
};

struct log_reader {
    const uint8_t *bytes;
    uint64_t len;
    uint64_t entries; /* as the super block says */
    uint64_t at;
    uint64_t next;
};

static inline bool log_all_zero(const uint8_t *bytes, uint64_t len)
{
    while (len > 0 && *bytes == 0) {
        bytes++;
        len--;
    }
    return len == 0;
}

static inline struct log_reader log_reader_begin(const void *bytes, uint64_t len)
{
    struct log_reader reader = {.bytes = bytes, .len = len, .at = 512};
    ck_assert_uint_ge(len, 512);
    ck_assert_uint_eq(get_le64(reader.bytes), 0x6a736677736872ULL);
    ck_assert_uint_eq(get_le64(reader.bytes + 8), 1);
    reader.entries = get_le64(reader.bytes + 16);
    ck_assert_uint_eq(get_le32(reader.bytes + 24), 512);
    ck_assert(log_all_zero(reader.bytes + 28, 512 - 28));
    return reader;
}

/* Fails the test on whatever the kernel would not have written. False at the end. */
static inline bool log_reader_next(struct log_reader *reader, struct logged_entry *entry)
{
    if (reader->next == reader->entries) {
        return false;
    }
    ck_assert_msg(reader->at + 512 <= reader->len, "the log ends before entry %llu",
                  (unsigned long long)reader->next);
    const uint8_t *header = reader->bytes + reader->at;
    uint64_t text = get_le64(header + 24);
    entry->sector = get_le64(header);
    entry->sectors = get_le64(header + 8);
    entry->flags = get_le64(header + 16);
    ck_assert_msg(entry->flags != 0 || entry->sectors != 0, "entry %llu is empty",
                  (unsigned long long)reader->next);
    ck_assert_uint_lt(entry->flags, 32);
    ck_assert_uint_lt(text, sizeof(entry->mark));
    ck_assert(text == 0 || entry->flags == LOGGED_MARK);
    memset(entry->mark, 0, sizeof(entry->mark));
    memcpy(entry->mark, header + 32, text);
    ck_assert_msg(log_all_zero(header + 32 + text, 512 - 32 - text),
                  "entry %llu: garbage in its header", (unsigned long long)reader->next);
    reader->at += 512;
    entry->data = NULL;
    if (entry->sectors != 0 && !(entry->flags & LOGGED_DISCARD)) {
        ck_assert_uint_le(entry->sectors, (64U << 20) / 512);
        ck_assert_uint_le(entry->sectors * 512, reader->len - reader->at);
        entry->data = reader->bytes + reader->at;
        reader->at += entry->sectors * 512;
    }
    reader->next++;
    return true;
}

/* Replays one entry onto a disk of len bytes, a multiple of 512. */
static inline void log_entry_replay(const struct logged_entry *entry, uint8_t *disk, uint64_t len)
{
    if (entry->sectors == 0) {
        return;
    }
    ck_assert_uint_le(entry->sector + entry->sectors, len / 512);
    if (entry->data) {
        memcpy(disk + entry->sector * 512, entry->data, entry->sectors * 512);
    } else {
        memset(disk + entry->sector * 512, 0, entry->sectors * 512);
    }
}

#endif
