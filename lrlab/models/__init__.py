"""Models: the names that a config's `model.name` can take, and the contract they keep.

A model is a Flax linen module whose fields are what a config may set. lrlab itself sets
`num_classes`, and calls

    model.apply({"params": params, **stats}, x, train=..., rows=..., rngs={"dropout": key})

x: float32 [batch, *feature_shape], already shifted and scaled.
train: True in an update (dropout drops, BatchNorm uses the batch), False in an evaluation.
rows: int32 [batch], the row of each example in the update's whole batch; None means
  arange(batch). Dropout is a function of (key, layer, row, feature), so that one update gives the
  same masks on 1, 2 or 4 devices and in one piece or in micro-batches.
returns: logits, float32 [batch, num_classes].

Parameters have Flax's standard names and layouts (`Conv_0/kernel` is [height, width, in, out],
`Dense_0/kernel` is [in, out]) whatever formulation computes them, so a checkpoint moves between
machines. Other state, such as BatchNorm's averages, lives in collections of its own ("batch_stats")
and is updated when the caller makes them mutable.

A model that normalises over the batch has a field `axis_name`, the mapped axis to average over, or
None. A model with convolutions has a field `implementation`, see `layers.Conv`.
"""
