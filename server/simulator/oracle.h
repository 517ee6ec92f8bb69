/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a read may return. For each byte range of the disk the oracle keeps the writes whose bytes
 * may be there, with the moments at which each began, ended, and was certainly overwritten, and
 * answers two questions per 512-byte sector: may a reader that ran from then to now see this, and
 * may the disk hold this after a power cut?
 *
 * Ranges split where requests begin and end, at any byte, so unaligned writes are exact too. Every
 * write fills its range with a pattern made of its own number and the position: bytes that turn up
 * elsewhere tell whose they are and where they belong.
 *
 * Rules. A write that ended well removes all that had ended before it began; of writes that
 * overlapped in time any may be on top. A failed write may have happened or not, sector by sector.
 * A read during which nothing was written settles which of the candidates is there, from the moment
 * the last of them ended. A flush that ended well makes everything overwritten before it began
 * impossible after a power cut; a write with FUA does so for what had ended before it began, in its
 * range.
 */
#ifndef QCOWD_SIMULATOR_ORACLE_H
#define QCOWD_SIMULATOR_ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct oracle;

/* Values are the numbers of the writes that made them. */
#define ORACLE_ZERO 0U

enum oracle_outcome {
    ORACLE_DONE,    /* the request succeeded */
    ORACLE_MAYBE,   /* it failed: any part may have happened */
    ORACLE_NOTHING, /* it was refused: nothing happened */
};

/* A disk of zeroes. Running out of memory ends the process. */
struct oracle *oracle_create(uint64_t size_bytes);
void oracle_free(struct oracle *oracle);

/* Contents from before the run began: durable, nothing else possible. */
void oracle_preset(struct oracle *oracle, uint64_t from, uint64_t len, uint32_t value);
/*
 * The disk begins as the other one ends (its backing file), zeroes behind that. Of a range where
 * the other one could still have several values, all remain possible.
 */
void oracle_inherit(struct oracle *oracle, const struct oracle *from);

/* The bytes that write number `value` puts at [offset, offset + len). */
void oracle_pattern(uint32_t value, uint64_t offset, void *buf, size_t len);

/* Returns the moment, which names the write at its end. */
uint64_t oracle_write_begin(struct oracle *oracle, uint64_t offset, uint64_t len, uint32_t value);
void oracle_write_end(struct oracle *oracle, uint64_t offset, uint64_t len, uint64_t began,
                      enum oracle_outcome outcome, bool durable);

uint64_t oracle_read_begin(struct oracle *oracle);
/* Ends a read that failed: nothing to learn. */
void oracle_read_drop(struct oracle *oracle, uint64_t began);
/* Whether a read that began then may see buf now; it goes on. Explains in why when it may not. */
bool oracle_read_check(struct oracle *oracle, uint64_t began, uint64_t offset, const void *buf,
                       size_t len, char *why, size_t why_bytes);
/* Ends a read that returned buf. False, with an explanation in why, when it may not have. */
bool oracle_read_end(struct oracle *oracle, uint64_t began, uint64_t offset, const void *buf,
                     size_t len, char *why, size_t why_bytes);

uint64_t oracle_flush_begin(struct oracle *oracle);
void oracle_flush_done(struct oracle *oracle, uint64_t began);

/*
 * Power was cut: what may be there is what may have been durable. Running requests are forgotten.
 */
void oracle_power_cut(struct oracle *oracle);

/* The next range at or after offset where anything was ever written; false when there is none. */
bool oracle_next_touched(const struct oracle *oracle, uint64_t offset, uint64_t *from,
                         uint64_t *to);

#endif
