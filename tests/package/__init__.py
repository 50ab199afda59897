# SPDX-License-Identifier: Apache-2.0
"""Packages: built, checked, installed on booted systems, published."""
