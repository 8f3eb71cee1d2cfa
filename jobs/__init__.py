"""The work: stage, train, embed and query, as plan / execute / commit over a lake."""

import logging

from jobs.uris import WithoutKeys

logging.getLogger("latentlake").addFilter(WithoutKeys())
