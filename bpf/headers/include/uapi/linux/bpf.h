/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: bcc includes its own copy first. */
