# SPDX-License-Identifier: Apache-2.0
"""Packetwatch: records every new TCP connection of a host and stops port scanners in the kernel."""

__version__ = "0.1.0"
