/* SPDX-License-Identifier: BSD-2-Clause */
/* Nothing waits between asking how many there are and copying them: it is one moment's list. */
#include "proto/bitmap_offer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"

struct copying {
    struct image *image;
    struct bitmap_offer *offer;
    int result;
};

static int copy_list(struct image *image, struct bitmap_offer *offer)
{
    size_t capacity = MIN_OF(image->ops->bitmap_list(image, NULL, 0), LIMIT_BITMAPS_OFFERED);
    if (capacity == 0) {
        return 0;
    }
    struct image_bitmap *list = malloc(capacity * sizeof(*list));
    offer->bitmaps = calloc(capacity, sizeof(*offer->bitmaps));
    if (!list || !offer->bitmaps) {
        free(list);
        return -ENOMEM;
    }
    image->ops->bitmap_list(image, list, capacity);
    for (size_t i = 0; i < capacity; i++) {
        char *name = strdup(list[i].name);
        if (!name) {
            free(list);
            return -ENOMEM;
        }
        offer->bitmaps[offer->count++] = (struct offered_bitmap){list[i].id, name};
    }
    free(list);
    return 0;
}

/* Called as a coroutine of the image's loop. */
static void co_copy_list(void *arg)
{
    struct copying *copying = arg;
    copying->result = copy_list(copying->image, copying->offer);
}

int co_bitmap_offer(struct nbd_service *service, const struct nbd_export *export,
                    struct bitmap_offer *offer)
{
    struct copying copying = {.image = export->image, .offer = offer};
    int result = 0;

    *offer = (struct bitmap_offer){0};
    if (!export->image->ops->bitmap_list) {
        return 0;
    }
    if (export->home && export->home != service) {
        result = service->co_call(service, export->home, co_copy_list, &copying);
    } else {
        co_copy_list(&copying);
    }
    result = result < 0 ? result : copying.result;
    if (result < 0) {
        bitmap_offer_free(offer);
    }
    return result;
}

void bitmap_offer_trim(struct bitmap_offer *offer, size_t count)
{
    while (offer->count > count) {
        free(offer->bitmaps[--offer->count].name);
    }
}

void bitmap_offer_free(struct bitmap_offer *offer)
{
    bitmap_offer_trim(offer, 0);
    free(offer->bitmaps);
    offer->bitmaps = NULL;
}
