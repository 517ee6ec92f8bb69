/* SPDX-License-Identifier: BSD-2-Clause */
/* Between the two rooms of the export table: what export_change.c puts together. */
#ifndef QCOWD_EXPORT_EXPORT_TABLE_H
#define QCOWD_EXPORT_EXPORT_TABLE_H

#include "export/export.h"

/* The service that connections come to, and its world. */
struct nbd_service *export_table_service(const struct export_table *table);
struct world *export_table_world(const struct export_table *table);

/* Opens what *open says on a loop with room. On failure err says why. */
int co_open_image(struct export_table *table, struct open_image *open, struct errtext *err);
/* Nobody uses it any more. A failure is logged, and remembered for the exit status. */
void co_close_image(struct export_table *table, struct open_image *open);
/* Long requests come to an end: image.h, `ending`. */
void co_end_image(struct export_table *table, struct open_image *open);
/* It is not open. NULL is fine. */
void open_image_free(struct open_image *open);

/* With one reference, the table's; it shows nothing yet. NULL: out of memory. */
struct served_export *served_export_create(struct export_table *table,
                                           const struct export_config *config);
void served_export_show(struct served_export *served, struct open_image *open);
/* Out of the table; it lives on while clients hold it. */
void served_export_drop(struct served_export *served);
/* Takes over the settings, of the same name. Its image stays. */
void served_export_change(struct export_table *table, struct served_export *served,
                          struct export_config *config);

/* Of those in the list that show an image. NULL: out of memory. */
struct nbd_export_list *export_table_list(const struct list *exports);

#endif
