"""The work: stage, train, embed and query, as plan / execute / commit over a lake."""

import logging

from jobs.lake.uri import WithoutKeys

logging.getLogger("latentlake").addFilter(WithoutKeys())
