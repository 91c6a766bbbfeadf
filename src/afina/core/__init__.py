"""Words that every layer shares: errors, task, predictor, recipe, storage. No torch, no tables."""
