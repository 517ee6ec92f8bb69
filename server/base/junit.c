/* SPDX-License-Identifier: BSD-2-Clause */
#include "base/junit.h"

#include <errno.h>

/* Attribute text. XML 1.0 has no way to say most control characters. */
static void put_text(FILE *report, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", report);
            break;
        case '<':
            fputs("&lt;", report);
            break;
        case '>':
            fputs("&gt;", report);
            break;
        case '"':
            fputs("&quot;", report);
            break;
        case '\n':
            fputs("&#10;", report);
            break;
        default:
            fputc((unsigned char)*text < ' ' ? '?' : *text, report);
        }
    }
}

FILE *junit_begin(const char *path, const char *suite)
{
    FILE *report = fopen(path, "we");
    if (report) {
        fputs("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"", report);
        put_text(report, suite);
        fputs("\">\n", report);
    }
    return report;
}

void junit_case(FILE *report, const char *name, double seconds, const char *failure)
{
    fputs("  <testcase name=\"", report);
    put_text(report, name);
    fprintf(report, "\" time=\"%.3f\"", seconds);
    if (failure) {
        fputs("><failure message=\"", report);
        put_text(report, failure);
        fputs("\"/></testcase>\n", report);
    } else {
        fputs("/>\n", report);
    }
    fflush(report);
}

int junit_end(FILE *report)
{
    fputs("</testsuite>\n", report);
    int broken = ferror(report);
    return fclose(report) != 0 || broken ? -EIO : 0;
}
