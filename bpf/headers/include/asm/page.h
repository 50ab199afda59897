/* SPDX-License-Identifier: GPL-2.0-only */
#define PAGE_SIZE PACKETWATCH_PAGE_SIZE /* of the running kernel: the loader asks sysconf */
