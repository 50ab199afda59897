# SPDX-License-Identifier: Apache-2.0
"""The Vagrantfile: what it names, and one of its machines for real."""
