/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reads what a client said beside what it heard, and demands that the two belong together: each
 * option answered in order by replies that it may have, each request answered at most once by
 * chunks that it may have, nothing cut off in the middle, nothing that nobody asked for.
 */
#ifndef QCOWD_FUZZ_WIRE_JUDGE_H
#define QCOWD_FUZZ_WIRE_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct conversation_record {
    const uint8_t *said;
    size_t said_len;
    const uint8_t *heard;
    size_t heard_len;
    uint32_t request_bytes; /* the longest READ or WRITE that the service takes */
    unsigned options_max;   /* and how many options */
    /* The client stayed, read, and the service was not drained: what was heard is whole, and all
     * that was well said has its answer; what asks for nothing wrong does not fail. */
    bool undisturbed;
};

struct verdict_counts {
    unsigned options;  /* answered */
    unsigned requests; /* answered, well or with an error */
    unsigned errors;   /* of those: with an error */
    unsigned asked;    /* complete requests before the client or its words came to an end */
    bool transmission; /* was reached */
};

struct verdict_counts judge_conversation(const struct conversation_record *record);

#endif
