/* SPDX-License-Identifier: GPL-2.0-only */
#include </usr/include/linux/if_packet.h>
