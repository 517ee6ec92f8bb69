/* SPDX-License-Identifier: BSD-2-Clause */
/* Built without libseccomp, or with instruments that make system calls of their own. */
#include "sandbox/seccomp_filter.h"

#include <errno.h>

int filter_available(struct errtext *err)
{
#ifdef QCOWD_INSTRUMENTED
    return err_set(err, ENOSYS, "this build has sanitizers or counts coverage");
#else
    return err_set(err, ENOSYS, "this qcowd is built without libseccomp");
#endif
}

int filter_build(struct filter *filter, const struct filter_needs *needs, struct errtext *err)
{
    (void)filter;
    (void)needs;
    return filter_available(err);
}

void filter_free(struct filter *filter)
{
    (void)filter;
}

int filter_enter(const struct filter *filter)
{
    (void)filter;
    return -ENOSYS;
}
