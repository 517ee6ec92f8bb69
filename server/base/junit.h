/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Reports of test programs in the XML that continuous integration reads (JUnit's): one suite a
 * file, a case after the other, so that a run that is cut short leaves what it has found.
 */
#ifndef QCOWD_BASE_JUNIT_H
#define QCOWD_BASE_JUNIT_H

#include <stdio.h>

/* Begins the report of a suite. NULL with errno set when the file cannot be made. */
FILE *junit_begin(const char *path, const char *suite);
/* A case that passed, or what it failed of. Any text will do: it is escaped. */
void junit_case(FILE *report, const char *name, double seconds, const char *failure);
/* Ends and closes it. 0, or -EIO when not all of it was written. */
int junit_end(FILE *report);

#endif
