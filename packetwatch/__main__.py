# SPDX-License-Identifier: Apache-2.0
"""`python3 -m packetwatch`; bin/packetwatch comes here, too."""

import sys

try:
    from packetwatch.cli import main
except KeyboardInterrupt:  # later ones are the guard's
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
