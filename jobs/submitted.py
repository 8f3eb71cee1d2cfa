"""The entry point that releases before 0.2 submit: says that the cluster has another version."""

import sys

from jobs.dispatch.entrypoint import main

if __name__ == "__main__":
    sys.exit(main())
