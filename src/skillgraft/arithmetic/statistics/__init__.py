"""Statistics of whole tensors that methods need before they merge: thresholds, Gram matrices, scores."""
