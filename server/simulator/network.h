/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A life over the network: the workload's clients share a few connections, each served by the
 * protocol floor on the image under test. It ends with goodbyes, with the server's drain, or with
 * clients that vanish in the middle of whatever they are sending; and the power may be cut anyway.
 */
#ifndef QCOWD_SIMULATOR_NETWORK_H
#define QCOWD_SIMULATOR_NETWORK_H

struct run;

/* Starts it, as a task of the run that ends when the last connection is closed on both sides. */
void network_start(struct run *run);

#endif
