"""``streamadapt dlq``: dead letters, listed and replayed."""
