"""Statistics of whole tensors that methods need before they merge: Gram matrices, order statistics, scores, conflicts.

All stream like the merge itself and hold no tensor. Sums are added by `math.fsum` over tiles whose cut depends on the
shape alone, or as integers, and order statistics are exact: no tile, thread or shard changes a bit of them. A method
asks for one by its `Statistic` (`methods.method`).
"""
