/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * References to exports and to lists of them. Who offers, and who has chosen, holds; so what is
 * taken off the list lives on until its last connection has gone.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "proto/nbd.h"

bool nbd_export_is_used(const struct nbd_export *export)
{
    return export->users.next && !list_empty(&export->users);
}

void nbd_export_hold(struct nbd_export *export)
{
    export->references++;
}

void nbd_export_release(struct nbd_export *export)
{
    if (!export) {
        return;
    }
    assert(export->references > 0);
    if (--export->references == 0) {
        assert(!nbd_export_is_used(export));
        if (export->released) {
            export->released(export);
        }
    }
}

/* Its places are the caller's to fill. */
static struct nbd_export_list *list_create(unsigned count)
{
    struct nbd_export_list *list = malloc(sizeof(*list) + count * sizeof(*list->exports));
    if (list) {
        list->references = 1;
        list->count = count;
    }
    return list;
}

static void list_fill(struct nbd_export_list *list, unsigned at, struct nbd_export *export)
{
    list->exports[at] = export;
    nbd_export_hold(export);
}

struct nbd_export_list *nbd_export_list_create(struct nbd_export *const *exports, unsigned count)
{
    struct nbd_export_list *list = list_create(count);
    for (unsigned i = 0; list && i < count; i++) {
        list_fill(list, i, exports[i]);
    }
    return list;
}

void nbd_export_list_hold(struct nbd_export_list *list)
{
    list->references++;
}

void nbd_export_list_release(struct nbd_export_list *list)
{
    if (!list) {
        return;
    }
    assert(list->references > 0);
    if (--list->references > 0) {
        return;
    }
    for (unsigned i = 0; i < list->count; i++) {
        nbd_export_release(list->exports[i]);
    }
    free(list);
}

void nbd_service_offer(struct nbd_service *service, struct nbd_export_list *list)
{
    struct nbd_export_list *before = service->exports;

    if (list) {
        nbd_export_list_hold(list);
    }
    service->exports = list;
    nbd_export_list_release(before);
}

int nbd_service_offer_array(struct nbd_service *service, struct nbd_export *exports, unsigned count)
{
    struct nbd_export_list *list = list_create(count);
    if (!list) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < count; i++) {
        list_fill(list, i, &exports[i]);
    }
    nbd_service_offer(service, list);
    nbd_export_list_release(list);
    return 0;
}
