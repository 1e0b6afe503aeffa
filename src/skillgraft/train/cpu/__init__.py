"""CPU fast paths of training: ragged attention, fused log-probabilities, shared prefixes, generation."""
