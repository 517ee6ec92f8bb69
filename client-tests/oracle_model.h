/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a disk may legally show. The disk is cut into cells; each cell has the set of values that
 * some legal order of the requests allows. A mutation (write, zero, trim) may show from the moment
 * it is sent; once it is answered it settles the cell: whatever was answered before it was sent may
 * not show in a read sent after. Mutations that were in flight together may end in any order.
 *
 * A write stores in each cell a value made of its own number and the cell's, so a wrong cell tells
 * whose data it is. In cells of 8 bytes and more every aligned 8-byte word carries that tag; in
 * cells of one byte it is a non-zero hash, which a stranger hits once in 255.
 *
 * A cell that shows a mix of legal values is torn. While one of them is in flight that is legal and
 * counted; at rest it is not.
 */
#ifndef QCOWD_ORACLE_MODEL_H
#define QCOWD_ORACLE_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/list.h"

enum mutation_kind { MUTATION_WRITE, MUTATION_ZERO, MUTATION_TRIM };

enum outcome {
    OUTCOME_APPLIED,
    OUTCOME_FAILED,  /* an error: may have taken effect in part */
    OUTCOME_REFUSED, /* an error that promises that nothing has changed */
};

struct model;

/* A read in flight; the caller keeps it in place. */
struct model_read {
    struct list link;
    uint64_t start;
};

/*
 * Of the bytes [offset, offset + len), which cell_bytes divides: 1, or a power of two from 8 up.
 * trim_is_hint: a trim may also leave what was there; else it reads zero, like a zero. At first
 * everything reads as `initial` (len bytes, which the model then owns; NULL: zeroes). NULL on out
 * of memory.
 */
struct model *model_create(uint64_t offset, uint64_t len, uint32_t cell_bytes, bool trim_is_hint,
                           uint8_t *initial);
void model_free(struct model *model);

/* Before the request is sent. Returns its number, from 1. Exits on out of memory. */
uint32_t model_begin(struct model *model, enum mutation_kind kind, uint64_t offset, uint64_t len);
/* What write `number` sends. */
void model_fill(const struct model *model, uint32_t number, void *buffer);
/* After the reply has come. */
void model_end(struct model *model, uint32_t number, enum outcome outcome);

/* Before the read is sent, and after its reply; the latter checks and returns how many cells are
 * bad. */
void model_read_begin(struct model *model, struct model_read *read);
uint64_t model_read_end(struct model *model, struct model_read *read, uint64_t offset, uint64_t len,
                        const void *bytes);
/* The read failed: nothing to check. */
void model_read_abandon(struct model_read *read);

/* Bad cells are described here, `most` of them; the first ones are the ones that tell. */
void model_report_to(struct model *model, FILE *out, unsigned most);

/* Torn cells that were legal, so far. */
uint64_t model_torn(const struct model *model);

#endif
