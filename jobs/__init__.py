"""The work: stage, train, embed and query, as plan / execute / commit over a lake."""
