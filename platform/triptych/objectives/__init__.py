"""Losses and advantages: pure functions of tensors. No I/O, no Ray, no model loading; torch only.

Every loss returns `(sum, count, metrics)`. `sum` is differentiable, `count` is the number of terms it holds, and each
metric is a detached sum over the same terms. A learner divides by the count of the whole step, so that gradients do
not depend on how a batch is cut. Whatever stands where a mask is 0 (NaN and infinity included) changes nothing.
"""

IGNORE = -100
"""The label of a token that is not learned or judged, as in transformers."""
