/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Each cell lists the mutations that may still matter to it. "Settled" is the whole rule: of the
 * mutations answered before a read was sent, take the one that was sent last, at time S; what was
 * answered before S may not show. Time is a counter of events as the client sees them, so an order
 * is demanded only where the client has seen one.
 */
#include "oracle_model.h"

#include <assert.h>
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define WORD_BYTES 8U

enum mutation_state { RUNNING, APPLIED, FAILED, REFUSED };

struct mutation {
    uint64_t offset;
    uint64_t len;
    uint64_t start;
    uint64_t end; /* 0 while running */
    enum mutation_kind kind;
    enum mutation_state state;
};

struct cell {
    uint32_t *numbers; /* in order of sending */
    uint32_t count;
    uint32_t room;
};

struct model {
    uint64_t offset;
    uint64_t len;
    uint32_t cell_bytes;
    bool trim_is_hint;
    uint8_t *initial;
    struct cell *cells;
    struct mutation *mutations; /* [0] is unused */
    uint32_t mutation_count;
    uint32_t mutation_room;
    struct list reads; /* in flight, oldest first */
    uint64_t clock;
    uint64_t torn;
    FILE *report;
    unsigned reports_left;
};

static void out_of_memory(void)
{
    fputs("qcowd-load: out of memory\n", stderr);
    exit(EXIT_FAILURE);
}

struct model *model_create(uint64_t offset, uint64_t len, uint32_t cell_bytes, bool trim_is_hint,
                           uint8_t *initial)
{
    struct model *model = calloc(1, sizeof(*model));

    assert(cell_bytes == 1 || (cell_bytes >= WORD_BYTES && is_power_of_two(cell_bytes)));
    assert(len > 0 && offset % cell_bytes == 0 && len % cell_bytes == 0);
    if (model == NULL) {
        return NULL;
    }
    model->cells = calloc(len / cell_bytes, sizeof(model->cells[0]));
    if (model->cells == NULL) {
        free(model);
        return NULL;
    }
    model->offset = offset;
    model->len = len;
    model->cell_bytes = cell_bytes;
    model->trim_is_hint = trim_is_hint;
    model->initial = initial;
    model->mutation_count = 1;
    list_init(&model->reads);
    model->clock = 1;
    return model;
}

void model_free(struct model *model)
{
    if (model == NULL) {
        return;
    }
    for (uint64_t i = 0; i < model->len / model->cell_bytes; i++) {
        free(model->cells[i].numbers);
    }
    free(model->cells);
    free(model->mutations);
    free(model->initial);
    free(model);
}

void model_report_to(struct model *model, FILE *out, unsigned most)
{
    model->report = out;
    model->reports_left = most;
}

uint64_t model_torn(const struct model *model)
{
    return model->torn;
}

/* --- values --------------------------------------------------------------------------------- */

/* The number of the cell on the whole disk, which is what tags carry. */
static uint64_t disk_cell(const struct model *model, uint64_t cell)
{
    return model->offset / model->cell_bytes + cell;
}

static uint64_t tag_word(uint32_t number, uint64_t disk_cell_number)
{
    return htole64((uint64_t)number << 32 | (uint32_t)disk_cell_number);
}

static uint8_t tag_byte(uint32_t number, uint64_t disk_cell_number)
{
    uint64_t hash = (disk_cell_number << 32 ^ number) * 0x9e3779b97f4a7c15ULL;

    return (uint8_t)(1 + (hash ^ hash >> 29) % 255);
}

void model_fill(const struct model *model, uint32_t number, void *buffer)
{
    const struct mutation *mutation = &model->mutations[number];
    uint64_t first = mutation->offset / model->cell_bytes;
    uint8_t *to = buffer;

    for (uint64_t i = 0; i < mutation->len / model->cell_bytes; i++) {
        if (model->cell_bytes == 1) {
            *to++ = tag_byte(number, first + i);
            continue;
        }
        uint64_t word = tag_word(number, first + i);
        for (uint32_t at = 0; at < model->cell_bytes; at += WORD_BYTES) {
            memcpy(to, &word, WORD_BYTES);
            to += WORD_BYTES;
        }
    }
}

/* Whether a word of the cell (its byte, in cells of one) holds what the mutation puts there. */
static bool shows(const struct model *model, uint32_t number, uint64_t cell, const uint8_t *found)
{
    uint64_t word = 0;

    if (model->mutations[number].kind == MUTATION_WRITE) {
        if (model->cell_bytes == 1) {
            return *found == tag_byte(number, disk_cell(model, cell));
        }
        word = tag_word(number, disk_cell(model, cell));
    }
    return memcmp(found, &word, MIN_OF(model->cell_bytes, WORD_BYTES)) == 0;
}

static bool shows_initial(const struct model *model, uint64_t cell, uint32_t at,
                          const uint8_t *found, uint32_t bytes)
{
    static const uint8_t zeroes[WORD_BYTES];

    if (model->initial != NULL) {
        return memcmp(found, model->initial + cell * model->cell_bytes + at, bytes) == 0;
    }
    for (uint32_t i = 0; i < bytes; i += MIN_OF(bytes, WORD_BYTES)) {
        if (memcmp(found + i, zeroes, MIN_OF(bytes, WORD_BYTES)) != 0) {
            return false;
        }
    }
    return true;
}

/* --- the rule ------------------------------------------------------------------------------- */

static bool settles(const struct model *model, const struct mutation *mutation)
{
    return mutation->state == APPLIED && !(mutation->kind == MUTATION_TRIM && model->trim_is_hint);
}

/* What was answered before this may not show in a read sent at `moment`; 0: everything may. */
static uint64_t settled_at(const struct model *model, const struct cell *cell, uint64_t moment)
{
    uint64_t settled = 0;

    for (uint32_t i = 0; i < cell->count; i++) {
        const struct mutation *mutation = &model->mutations[cell->numbers[i]];
        if (settles(model, mutation) && mutation->end < moment) {
            settled = MAX_OF(settled, mutation->start);
        }
    }
    return settled;
}

static bool may_show(const struct mutation *mutation, uint64_t settled)
{
    return mutation->state == RUNNING || (mutation->state != REFUSED && mutation->end >= settled);
}

/* Forgets what no read in flight or to come may see. */
static void prune(struct model *model, struct cell *cell)
{
    uint64_t moment = model->clock;
    uint64_t settled;
    uint32_t kept = 0;

    if (!list_empty(&model->reads)) {
        moment = list_entry(model->reads.next, struct model_read, link)->start;
    }
    settled = settled_at(model, cell, moment);
    for (uint32_t i = 0; i < cell->count; i++) {
        if (may_show(&model->mutations[cell->numbers[i]], settled)) {
            cell->numbers[kept++] = cell->numbers[i];
        }
    }
    cell->count = kept;
}

static void cell_append(struct model *model, struct cell *cell, uint32_t number)
{
    if (cell->count == cell->room) {
        prune(model, cell);
        if (cell->count * 2 >= cell->room) {
            cell->room = MAX_OF(4U, cell->room * 2);
            cell->numbers = realloc(cell->numbers, cell->room * sizeof(cell->numbers[0]));
            if (cell->numbers == NULL) {
                out_of_memory();
            }
        }
    }
    cell->numbers[cell->count++] = number;
}

uint32_t model_begin(struct model *model, enum mutation_kind kind, uint64_t offset, uint64_t len)
{
    uint32_t number = model->mutation_count++;
    uint64_t first = (offset - model->offset) / model->cell_bytes;

    assert(len > 0 && offset % model->cell_bytes == 0 && len % model->cell_bytes == 0);
    assert(offset >= model->offset && range_inside(offset - model->offset, len, model->len));
    if (number >= model->mutation_room) {
        model->mutation_room = MAX_OF(1024U, model->mutation_room * 2);
        model->mutations =
            realloc(model->mutations, model->mutation_room * sizeof(model->mutations[0]));
        if (model->mutations == NULL) {
            out_of_memory();
        }
    }
    model->mutations[number] = (struct mutation){
        .offset = offset, .len = len, .start = model->clock++, .kind = kind, .state = RUNNING};
    for (uint64_t i = 0; i < len / model->cell_bytes; i++) {
        cell_append(model, &model->cells[first + i], number);
    }
    return number;
}

void model_end(struct model *model, uint32_t number, enum outcome outcome)
{
    struct mutation *mutation = &model->mutations[number];

    assert(mutation->state == RUNNING);
    mutation->end = model->clock++;
    mutation->state = outcome == OUTCOME_APPLIED  ? APPLIED
                      : outcome == OUTCOME_FAILED ? FAILED
                                                  : REFUSED;
}

/* --- reports -------------------------------------------------------------------------------- */

static void describe_mutation(const struct model *model, uint32_t number)
{
    static const char *const kinds[] = {"write", "zero", "trim"};
    const struct mutation *mutation = &model->mutations[number];

    fprintf(model->report, "%s #%" PRIu32 " of %" PRIu64 "+%" PRIu64 " sent at %" PRIu64,
            kinds[mutation->kind], number, mutation->offset, mutation->len, mutation->start);
    if (mutation->end != 0) {
        fprintf(model->report, " answered at %" PRIu64, mutation->end);
    }
}

/* Whose the word is, by its tag. */
static void describe_word(const struct model *model, uint64_t cell, const uint8_t *found)
{
    uint64_t word;
    uint64_t number, tagged_offset;

    memcpy(&word, found, sizeof(word));
    word = le64toh(word);
    number = word >> 32;
    tagged_offset = (word & UINT32_MAX) * model->cell_bytes;
    fprintf(model->report, "%016" PRIx64, word);
    if (word == 0) {
        fputs(" (zero)", model->report);
    } else if (number == 0 || number >= model->mutation_count ||
               model->mutations[number].kind != MUTATION_WRITE ||
               tagged_offset < model->mutations[number].offset ||
               tagged_offset - model->mutations[number].offset >= model->mutations[number].len) {
        fputs(" (no tag of this run)", model->report);
    } else {
        fprintf(model->report, "%s, ",
                tagged_offset == model->offset + cell * model->cell_bytes ? " (stale"
                                                                          : " (FOREIGN");
        describe_mutation(model, (uint32_t)number);
        fprintf(model->report, ", its data for offset %" PRIu64 ")", tagged_offset);
    }
}

static void describe_bad_cell(struct model *model, uint64_t cell_index, uint64_t read_start,
                              uint64_t settled, const uint8_t *found)
{
    const struct cell *cell = &model->cells[cell_index];

    if (model->report == NULL || model->reports_left == 0) {
        return;
    }
    model->reports_left--;
    fprintf(model->report, "bad cell at offset %" PRIu64 ", read sent at %" PRIu64 "\n  found:    ",
            model->offset + cell_index * model->cell_bytes, read_start);
    if (model->cell_bytes == 1) {
        fprintf(model->report, "%02x", *found);
    } else {
        describe_word(model, cell_index, found);
        for (uint32_t at = WORD_BYTES; at < model->cell_bytes; at += WORD_BYTES) {
            if (memcmp(found + at, found + at - WORD_BYTES, WORD_BYTES) != 0) {
                fprintf(model->report, "\n  byte %" PRIu32 ": ", at);
                describe_word(model, cell_index, found + at);
            }
        }
    }
    fputs("\n  expected:\n", model->report);
    if (settled == 0) {
        fputs("    what was there at first\n", model->report);
    }
    for (uint32_t i = 0; i < cell->count; i++) {
        uint32_t number = cell->numbers[i];
        if (may_show(&model->mutations[number], settled)) {
            fputs("    ", model->report);
            describe_mutation(model, number);
            if (model->cell_bytes == 1 && model->mutations[number].kind == MUTATION_WRITE) {
                fprintf(model->report, ": %02x", tag_byte(number, disk_cell(model, cell_index)));
            }
            fputc('\n', model->report);
        }
    }
}

/* --- reads ---------------------------------------------------------------------------------- */

void model_read_begin(struct model *model, struct model_read *read)
{
    read->start = model->clock++;
    list_push_back(&model->reads, &read->link);
}

void model_read_abandon(struct model_read *read)
{
    list_remove(&read->link);
}

/* Whether the word (or byte) at `at` in the cell may read so. */
static bool legal_unit(const struct model *model, uint64_t cell_index, uint64_t settled,
                       uint32_t at, const uint8_t *found)
{
    const struct cell *cell = &model->cells[cell_index];

    for (uint32_t i = cell->count; i-- > 0;) {
        uint32_t number = cell->numbers[i];
        if (may_show(&model->mutations[number], settled) &&
            shows(model, number, cell_index, found + at)) {
            return true;
        }
    }
    return settled == 0 &&
           shows_initial(model, cell_index, at, found + at, MIN_OF(model->cell_bytes, WORD_BYTES));
}

/* Whether something that may show was still in flight when the read was sent, or is. */
static bool in_motion(const struct model *model, const struct cell *cell, uint64_t read_start)
{
    for (uint32_t i = 0; i < cell->count; i++) {
        const struct mutation *mutation = &model->mutations[cell->numbers[i]];
        if (mutation->state == RUNNING ||
            (mutation->state != REFUSED && mutation->end > read_start)) {
            return true;
        }
    }
    return false;
}

static bool legal_cell(struct model *model, uint64_t cell_index, uint64_t read_start,
                       uint64_t settled, const uint8_t *found)
{
    const struct cell *cell = &model->cells[cell_index];
    uint32_t rest_bytes = model->cell_bytes - MIN_OF(model->cell_bytes, WORD_BYTES);

    if (settled == 0 && shows_initial(model, cell_index, 0, found, model->cell_bytes)) {
        return true;
    }
    if (rest_bytes == 0 || memcmp(found, found + WORD_BYTES, rest_bytes) == 0) {
        return legal_unit(model, cell_index, settled, 0, found);
    }
    if (!in_motion(model, cell, read_start)) {
        return false;
    }
    for (uint32_t at = 0; at < model->cell_bytes; at += WORD_BYTES) {
        if (!legal_unit(model, cell_index, settled, at, found)) {
            return false;
        }
    }
    model->torn++;
    return true;
}

uint64_t model_read_end(struct model *model, struct model_read *read, uint64_t offset, uint64_t len,
                        const void *bytes)
{
    uint64_t first = (offset - model->offset) / model->cell_bytes;
    const uint8_t *found = bytes;
    uint64_t bad = 0;

    assert(offset % model->cell_bytes == 0 && len % model->cell_bytes == 0);
    assert(offset >= model->offset && range_inside(offset - model->offset, len, model->len));
    for (uint64_t i = first; i < first + len / model->cell_bytes; i++) {
        uint64_t settled = settled_at(model, &model->cells[i], read->start);

        if (!legal_cell(model, i, read->start, settled, found)) {
            describe_bad_cell(model, i, read->start, settled, found);
            bad++;
        }
        found += model->cell_bytes;
    }
    list_remove(&read->link);
    return bad;
}
