# SPDX-License-Identifier: Apache-2.0
"""What takes whole batches: the log, the metrics, the ledger. A sink neither blocks nor raises for I/O."""
