/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc includes this first; its helpers.h insists on the option. */
#define CONFIG_BPF_SYSCALL 1
