/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: bcc's helpers.h names it for histograms, which we do not use. */
