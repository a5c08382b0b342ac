"""Predictions of a trained model for plain text: `fill_mask`, `replaced_tokens`, and the `LoadedModel` they need."""
