"""The precision that networks compute in; likelihoods and losses stay in float32."""

from typing import Literal

Precision = Literal["float32", "bfloat16"]
