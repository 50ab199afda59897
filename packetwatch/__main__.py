# SPDX-License-Identifier: Apache-2.0
"""`python3 -m packetwatch`; bin/packetwatch comes here, too."""

import sys

from packetwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
