"""What a Ray job of ours runs on the cluster, by the name that it has had in every release.

So whoever submits to a cluster of another release is told both versions.
"""

import sys

from jobs.dispatch.entrypoint import main

if __name__ == "__main__":
    sys.exit(main())
