# SPDX-License-Identifier: Apache-2.0
"""What the netns tier has."""

from tests.netns.conftest import resident, wire

__all__ = ["resident", "wire"]
